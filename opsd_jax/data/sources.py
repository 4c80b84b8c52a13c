"""Where problems come from: one string -> Examples, checked.

  jsonl:path                        or a path that ends in .jsonl; gs:// too
  tfds:name,split=train,data_dir=d  a tensorflow-datasets dataset
  tfds:opsd_jsonl,path=p            the same of a jsonl file, made once
  hf:org/name,split=train,config=c  jsonl or parquet files of a hub's repository
  reasoning_gym:task,size=500,seed=0,key=value
  task                              what config.task makes itself

No source is read here in part: limits are `both`'s, and counted.
"""

import itertools
import pathlib
import re
from typing import NamedTuple

from opsd_jax import spec, tasks
from opsd_jax.data import rows as data_rows
from opsd_jax.data.rows import Columns, Loaded
from opsd_jax.runtime import paths
from opsd_jax.structs import Example

__all__ = ["Columns", "Loaded", "Split", "both", "check", "load"]

TASK = "task"


class Source(NamedTuple):
  """One kind of source, by what follows its colon."""

  check: object  # (name, options) -> None; ValueError for what cannot exist
  read: object  # (source, name, options, columns, skip_bad) -> Loaded
  options: tuple[str, ...] | None  # known ones; None: any


class Split(NamedTuple):
  """What a run trains and evaluates on; no question is in both."""

  train: tuple[Example, ...]
  eval: tuple[Example, ...]
  removed_as_overlap: int  # training problems that evaluation asks too
  dropped: dict[str, int]  # "training: reason" -> rows
  counts: dict[str, int]  # what was read, as a person wants to see it


def load(source: str, columns: Columns, *, skip_bad: int = 0) -> Loaded:
  """All problems of a source, in its order; repeated questions stay.

  Raises ValueError with file:line and reason where more than `skip_bad` rows
  are no problems, and where the source cannot be had.
  """
  kind, name, options = parse(source)
  return SOURCES[kind].read(source, name, options, columns, skip_bad)


def check(source: str) -> None:
  """Raises ValueError where a source cannot exist; fetches nothing."""
  if source != TASK:
    kind, name, options = parse(source)
    SOURCES[kind].check(name, options)


def parse(source: str) -> tuple[str, str, dict[str, str]]:
  """`"kind:name,key=value"` -> (kind, name, {key: value})."""
  kind, colon, rest = source.partition(":")
  if source.endswith(".jsonl") and kind not in SOURCES:
    kind, colon, rest = "jsonl", ":", source
  if kind not in SOURCES or not colon or not rest:
    raise ValueError(
      f"data source {source!r}: expected a path that ends in .jsonl, or one"
      f" of {', '.join(f'{k}:...' for k in SOURCES)}, or for a run's data"
      " task"
    )
  known = SOURCES[kind].options
  name, options = spec.parse(rest, known)
  _, *others = name.split(",") if known != () else [name]  # a path has none
  if others:
    raise ValueError(
      f"data source {source!r}: {others[0]!r} is no option, {kind} takes"
      f" {', '.join(f'{k}=...' for k in known or ('key',))}"
    )
  return kind, name, options


# ------------------------------------------------------------------- kinds


def file_at(path: str):
  path = paths.open_workdir(path).expanduser()
  if not path.exists() or path.is_dir():
    raise ValueError(f"data file {path} does not exist")
  return path


def read_jsonl(source, name, options, columns, skip_bad) -> Loaded:
  path = file_at(name)
  return data_rows.examples_of(str(path), data_rows.read_jsonl(path), columns, skip_bad)


def check_tfds(name, options) -> None:
  from opsd_jax.data import tfds  # here, since tfds takes seconds

  if name == tfds.NAME and "path" in options:
    file_at(options["path"])
  else:
    tfds.find(name, options)


def read_tfds(source, name, options, columns, skip_bad) -> Loaded:
  from opsd_jax.data import tfds  # here, since tfds takes seconds

  if name == tfds.NAME and "path" in options:
    path = file_at(options["path"])

    def read():
      return read_jsonl(source, str(path), {}, columns, skip_bad)

    return tfds.open_jsonl(path, read, (columns, skip_bad), options)
  rows = tfds.rows(source, name, options)
  return data_rows.examples_of(source, rows, columns, skip_bad)


def check_hf(name, options) -> None:
  if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
    raise ValueError(f"data source hf:{name}: expected hf:org/name")


def read_hf(source, name, options, columns, skip_bad) -> Loaded:
  check_hf(name, options)
  split = options.get("split", "train")
  try:
    import huggingface_hub  # here, since only hubs need it

    directory = huggingface_hub.snapshot_download(
      name,
      repo_type="dataset",
      revision=options.get("revision"),
      allow_patterns=[f"*{split}*.jsonl", f"*{split}*.parquet"],
    )
  except Exception as e:  # offline, gated, absent: its many exception types
    raise ValueError(
      f"{source}: not to be had from the Hugging Face hub:"
      f" {type(e).__name__}: {str(e).splitlines()[0]}. Where no hub is"
      " reachable, copy its file and give jsonl:path"
    ) from e
  found = choose_files(source, pathlib.Path(directory), split, options)

  def read(p):
    return data_rows.read_jsonl(p) if p.suffix == ".jsonl" else parquet(p, columns)

  rows = itertools.chain.from_iterable(map(read, found))
  return data_rows.examples_of(source, rows, columns, skip_bad)


def choose_files(source, directory, split: str, options) -> list[pathlib.Path]:
  """The files of one split and config, of one kind; ValueError otherwise, and
  where of files numbered "-00000-of-00002" one is missing."""
  names = sorted(
    p.relative_to(directory).as_posix()
    for p in directory.rglob("*")
    if p.suffix in (".jsonl", ".parquet")
  )
  number = r"-([0-9]+)-of-([0-9]+)(?:-[0-9a-f]+)?"
  is_split = re.compile(rf"{re.escape(split)}(?:{number})?")

  def of_split(n):
    return any(map(is_split.fullmatch, (*n.split("/")[:-1], pathlib.PurePath(n).stem)))

  config = options.get("config")
  found = [
    n for n in names if of_split(n) and (config is None or config in n.split("/")[:-1])
  ]
  groups = {(n.rpartition("/")[0], pathlib.PurePath(n).suffix) for n in found}
  if len(groups) != 1:
    raise ValueError(
      f"{source}: {len(found)} jsonl or parquet files of split={split}, "
      f" config={config} in {len(groups)} groups, expected one group; there"
      f" are {', '.join(names) or 'none'}: give split= and config=, a folder"
    )
  parts = [re.search(number + "$", pathlib.PurePath(n).stem) for n in found]
  if any(parts):
    there = {(int(m[1]), int(m[2])) if m else None for m in parts}
    count = max(int(m[2]) for m in parts if m)
    if there != {(i, count) for i in range(count)} or len(found) > count:
      raise ValueError(
        f"{source}: {', '.join(found)} are not the {count} parts of one file"
      )
  return [directory / n for n in found]


def parquet(path, columns):
  """Yields ("path:row", object), of the columns that may matter.

  Raises ValueError where the file is torn or its text is not UTF-8.
  """
  import pyarrow.parquet  # here, since only parquet needs it

  number = 0
  try:
    table = pyarrow.parquet.ParquetFile(path)
    there = table.schema_arrow.names
    names = [n for n in there if data_rows.may_hold(n, columns)]
    for batch in table.iter_batches(columns=names or None):
      for row in batch.to_pylist():
        number += 1
        yield f"{path}:{number}", row
  except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as e:
    reason = str(e).partition("\n")[0]
    raise ValueError(
      f"{path}: no parquet can be read after row {number}: {reason}"
    ) from e


def check_gym(name, options) -> None:
  open_gym(name, options, "answer")
  for key in ("size", "seed"):
    if not options.get(key, "0").isdecimal():
      raise ValueError(
        f"data source reasoning_gym:{name}: {key}={options[key]}, expected a number"
      )


def open_gym(name, options, field):
  own = [f"{k}={v}" for k, v in options.items() if k not in ("size", "seed")]
  return tasks.open_task(f"reasoning_gym:{','.join([name, *own])}", field)


def read_gym(source, name, options, columns, skip_bad) -> Loaded:
  """`size` problems (500) of stream `seed` (0), the package's own defaults.

  A metadata field that is a usual name of a solution is shown as one.
  """
  check_gym(name, options)

  def stream(field):
    return open_gym(name, options, field).examples(f"data/{options.get('seed', '0')}")

  field = columns.solution
  if field == "auto":
    there = next(stream("answer")).metadata["metadata"]
    usual = [n for n in data_rows.AUTO["solution"] if n in there]
    field = usual[0] if usual else "answer"
  size = int(options.get("size", "500"))
  return Loaded(tuple(itertools.islice(stream(field), size)), {})


SOURCES = {
  "jsonl": Source(lambda name, _: file_at(name) and None, read_jsonl, ()),
  "tfds": Source(check_tfds, read_tfds, ("split", "data_dir", "path")),
  "hf": Source(check_hf, read_hf, ("split", "config", "revision")),
  "reasoning_gym": Source(check_gym, read_gym, None),
}


# -------------------------------------------------------------------- both


def check_both(train: str, eval: str, name: str, task: tasks.Task) -> None:
  """Raises ValueError where a source cannot exist, or where the task, opened by
  this name, has no problems of its own or cannot judge a source's."""
  own_source, _ = spec.parse(name)
  for use, source in (("train", train), ("eval", eval)):
    try:
      if source == TASK:
        task.examples(use)  # one that only judges refuses
      check(source)
    except ValueError as e:
      raise ValueError(f"data.{use}: {e}") from e
    here, _ = spec.parse(source)
    if own_source.startswith("reasoning_gym:") and here not in (TASK, own_source):
      raise ValueError(
        f"task.name={name} judges by records of its own, which data.{use}="
        f"{source} does not hold: choose another task.name to judge by"
      )


def both(
  train: str,
  eval: str,
  columns: Columns,
  *,
  skip_bad: int,
  train_limit: int,
  eval_limit: int,
  rewarded: bool,
  task: dict,
) -> Split:
  """Training and evaluation problems, disjoint by their questions' text.

  `rewarded`: replies to training problems are judged, so those without an
  answer are dropped too. `task` holds the keywords of tasks.load. A limit is a
  number of problems from the source's beginning, 0 for all. As with a task's own
  problems, evaluation asks no question twice and training may.
  """
  if train == eval == TASK:
    d = tasks.load(**task)
    counts = {"evaluation repeated (removed)": d.removed_as_repeated}
    return Split(d.train, d.eval, d.removed_as_overlap, {}, counts)
  dropped, counts = {}, {}
  if eval == TASK:
    held_out, repeated = task_problems(task, "eval", set())
  else:
    rows = read(eval, columns, skip_bad, "evaluation", dropped, counts)
    rows = answered(task["name"], rows, dropped, "evaluation")
    asked = by_text(rows)
    counts["evaluation questions with several answers"] = contradictory(asked)
    held_out = tuple(first for first, *_ in asked.values())
    repeated = len(rows) - len(held_out)
    held_out = limited(held_out, eval_limit, "evaluation", dropped)
  asked = by_text(held_out)
  if train == TASK:
    learnt, overlap = task_problems(task, "train", asked)
  else:
    rows = read(train, columns, skip_bad, "training", dropped, counts)
    if rewarded:
      rows = answered(task["name"], rows, dropped, "training")
    learnt = tuple(e for e in rows if tasks.normalize_question(e.question) not in asked)
    overlap = len(rows) - len(learnt)
    learnt = limited(learnt, train_limit, "training", dropped)
  learnt_by_text = by_text(learnt)
  if train != TASK:
    counts["training questions with several answers"] = contradictory(learnt_by_text)
  counts["evaluation repeated (removed)"] = repeated
  counts["training repeated (kept)"] = len(learnt) - len(learnt_by_text)
  for use, examples in (("training", learnt), ("evaluation", held_out)):
    missing = sum(e.solution is None for e in examples)
    counts[f"{use} without solution"] = missing
  return Split(learnt, held_out, overlap, dropped, counts)


def task_problems(task: dict, use: str, taken):
  """A task's own, as tasks.load draws them -> (examples, passed over)."""
  stream = tasks.open_task(task["name"], task["privileged_field"]).examples(
    f"{use}/{task['seed']}"
  )
  return tasks.distinct(
    stream, task[f"{use}_count"], set(taken), use == "train", task["name"]
  )


def read(source, columns, skip_bad: int, use: str, dropped, counts):
  """A source's examples; what was read and what dropped is counted."""
  loaded = load(source, columns, skip_bad=skip_bad)
  counts[f"{use} rows"] = len(loaded.examples) + sum(loaded.dropped.values())
  dropped.update({f"{use}: {k}": n for k, n in loaded.dropped.items()})
  return loaded.examples


def answered(task: str, examples, dropped, use: str):
  """Those that the task can judge; reasoning-gym's, by their record."""
  if task.startswith("reasoning_gym:"):
    return examples
  kept = [e for e in examples if e.answer is not None]
  if len(kept) < len(examples):
    dropped[f"{use}: no answer"] = len(examples) - len(kept)
  return kept


def limited(examples, limit: int, use: str, dropped):
  """The first `limit`, 0 for all; the others are counted as dropped."""
  kept = examples[:limit] if limit else examples
  if len(kept) < len(examples):
    dropped[f"{use}: beyond the limit of {limit}"] = len(examples) - len(kept)
  return kept


def by_text(examples) -> dict[str, list[Example]]:
  """Those that ask the same question, together, in order."""
  found = {}
  for e in examples:
    found.setdefault(tasks.normalize_question(e.question), []).append(e)
  return found


def contradictory(asked: dict[str, list[Example]]) -> int:
  """Questions of `by_text` that stand there with different answers."""
  return sum(len({e.answer for e in same}) > 1 for same in asked.values())
