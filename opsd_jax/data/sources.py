"""Sources of problems: one string -> checked Examples.

  jsonl:path                        jsonl, a JSON array or parquet, gzipped or not; or
                                    a path that ends in .jsonl, .json, .parquet, or
                                    one of them and .gz; gs:// too
  tfds:name,split=train,data_dir=d  a tensorflow-datasets dataset
  tfds:opsd_jsonl,path=p            such a file as such a dataset, converted once
  hf:org/name,split=train,config=c  jsonl or parquet files of a Hugging Face dataset
  reasoning_gym:task,size=500,seed=0,key=value
  task                              the generator of config.task, see splits.py

A source is always read whole; splits.py applies limits and counts what they drop.
"""

import itertools
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

from opsd_jax import spec, tasks
from opsd_jax.data import formats
from opsd_jax.data import rows as data_rows
from opsd_jax.data.columns import AUTO, Columns, list_names
from opsd_jax.data.rows import Loaded
from opsd_jax.runtime import paths

__all__ = ["Columns", "Loaded", "check", "load"]

TASK = "task"


class Kind(NamedTuple):
  """The functions of one kind of source, `kind:name,key=value`."""

  check: Callable  # (name, options) -> None; ValueError where it cannot exist
  read: Callable  # (source, name, options, columns, skip_bad) -> Loaded
  options: tuple[str, ...] | None  # the known keys; None: any


def load(source: str, columns: Columns, *, skip_bad: int = 0) -> Loaded:
  """All examples of a source, in its order; repeated questions stay.

  Raises ValueError with file:line and reason where more than `skip_bad` rows
  cannot become examples, and where the source cannot be read.
  """
  kind, name, options = parse(source)
  return KINDS[kind].read(source, name, options, columns, skip_bad)


def check(source: str) -> None:
  """Raises ValueError where a source cannot exist; downloads nothing."""
  if source != TASK:
    kind, name, options = parse(source)
    KINDS[kind].check(name, options)


def parse(source: str) -> tuple[str, str, dict[str, str]]:
  """`"kind:name,key=value"` -> (kind, name, {key: value}); raises ValueError."""
  kind, colon, rest = source.partition(":")
  if kind not in KINDS and (formats.is_data_file(source) or is_directory(source)):
    kind, colon, rest = "jsonl", ":", source
  if kind not in KINDS or not colon or not rest:
    raise ValueError(
      f"data source {source!r}: expected a path that ends in"
      f" {', '.join(formats.SUFFIXES)} or one of them and .gz, {PREFIXES}, or for a"
      " run's data: task"
    )
  known = KINDS[kind].options
  name, options = spec.parse(rest, known)
  _, *others = name.split(",") if known != () else [name]  # a path has none
  if others:
    raise ValueError(
      f"data source {source!r}: {others[0]!r} is no option, known to {kind}:"
      f" {', '.join(f'{k}=...' for k in known or ('key',))}"
    )
  return kind, name, options


# ------------------------------------------------------------------- kinds


def is_directory(path: str) -> bool:
  try:
    return "://" not in path and pathlib.Path(path).expanduser().is_dir()
  except (OSError, RuntimeError):  # a name that is too long, an unknown ~user
    return False


def existing_file(path: str):
  """The path; ValueError where no file is there."""
  try:
    path = paths.open_workdir(path).expanduser()
    is_file, is_dir = path.is_file(), path.is_dir()
  except (OSError, RuntimeError) as e:
    raise ValueError(f"data file {path}: {e}") from e
  if is_dir:
    raise ValueError(
      f"data file {path} does not exist: it is a directory, give a file in it"
    )
  if not is_file:
    raise ValueError(
      f"data file {path} does not exist: give the path of a file, {PREFIXES}"
    )
  return path


def check_jsonl(name, options) -> None:
  existing_file(name)


def read_jsonl(source, name, options, columns, skip_bad) -> Loaded:
  path = existing_file(name)
  return data_rows.read_examples(
    str(path), formats.read_rows(path, columns), columns, skip_bad
  )


def check_tfds(name, options) -> None:
  from opsd_jax.data import tfds  # deferred: its import takes seconds

  if name == tfds.NAME and "path" in options:
    existing_file(options["path"])
  else:
    tfds.find(name, options)


def read_tfds(source, name, options, columns, skip_bad) -> Loaded:
  from opsd_jax.data import tfds  # deferred: its import takes seconds

  if name == tfds.NAME and "path" in options:
    path = existing_file(options["path"])

    def read():
      return read_jsonl(source, str(path), {}, columns, skip_bad)

    return tfds.open_jsonl(path, read, (columns, skip_bad), options)
  rows = tfds.rows(source, name, options)
  return data_rows.read_examples(source, rows, columns, skip_bad)


def check_hf(name, options) -> None:
  if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
    raise ValueError(f"data source hf:{name}: expected hf:org/name")


def read_hf(source, name, options, columns, skip_bad) -> Loaded:
  check_hf(name, options)
  split = options.get("split", "train")
  try:
    import huggingface_hub  # deferred: only this kind of source needs it

    directory = huggingface_hub.snapshot_download(
      name,
      repo_type="dataset",
      revision=options.get("revision"),
      allow_patterns=[f"*{split}*.jsonl", f"*{split}*.parquet"],
    )
  except Exception as e:  # offline, gated, absent: many exception types
    raise ValueError(
      f"{source}: could not be downloaded from the Hugging Face hub:"
      f" {type(e).__name__}: {str(e).splitlines()[0]}. Without network access copy"
      " its file and give jsonl:path"
    ) from e
  found = choose_files(source, pathlib.Path(directory), split, options)
  rows = itertools.chain.from_iterable(formats.read_rows(p, columns) for p in found)
  return data_rows.read_examples(source, rows, columns, skip_bad)


def choose_files(source, directory, split: str, options) -> list[pathlib.Path]:
  """The files of one split and config.

  Raises ValueError unless they lie in one folder, end alike, and, where numbered
  "-00000-of-00002", are complete.
  """
  names = sorted(
    p.relative_to(directory).as_posix()
    for p in directory.rglob("*")
    if p.suffix in (".jsonl", ".parquet")
  )
  number = r"-([0-9]+)-of-([0-9]+)(?:-[0-9a-f]+)?"
  is_split = re.compile(rf"{re.escape(split)}(?:{number})?")

  def is_of_split(n):
    return any(map(is_split.fullmatch, (*n.split("/")[:-1], pathlib.PurePath(n).stem)))

  config = options.get("config")
  found = [
    n
    for n in names
    if is_of_split(n) and (config is None or config in n.split("/")[:-1])
  ]
  groups = {(n.rpartition("/")[0], pathlib.PurePath(n).suffix) for n in found}
  if len(groups) != 1:
    raise ValueError(
      f"{source}: {len(found)} jsonl or parquet files of split={split},"
      f" config={config} in {len(groups)} groups, expected one group; the files"
      f" are {list_names(names)}: give split= and config=, a folder"
    )
  parts = [re.search(number + "$", pathlib.PurePath(n).stem) for n in found]
  if any(parts):
    present = {(int(m[1]), int(m[2])) if m else None for m in parts}
    count = max(int(m[2]) for m in parts if m)
    if present != {(i, count) for i in range(count)} or len(found) > count:
      raise ValueError(
        f"{source}: {list_names(found)} are not the {count} parts of one file"
      )
  return [directory / n for n in found]


def check_gym(name, options) -> None:
  open_gym(name, options, "answer")
  for key in ("size", "seed"):
    if not options.get(key, "0").isdecimal():
      raise ValueError(
        f"data source reasoning_gym:{name}: {key}={options[key]}, expected a number"
      )


def open_gym(name, options, field):
  task_options = [f"{k}={v}" for k, v in options.items() if k not in ("size", "seed")]
  return tasks.open_task(f"reasoning_gym:{','.join([name, *task_options])}", field)


def read_gym(source, name, options, columns, skip_bad) -> Loaded:
  """`size` problems (500) of stream `seed` (0), the defaults of reasoning-gym.

  Solutions come from the first metadata field with a usual name of one, without
  such a field from the answer.
  """
  check_gym(name, options)

  def stream(field):
    return open_gym(name, options, field).examples(f"data/{options.get('seed', '0')}")

  field = columns.solution
  if field == "auto":
    metadata = next(stream("answer")).metadata["metadata"]
    usual = [n for n in AUTO["solution"] if n in metadata]
    field = usual[0] if usual else "answer"
  size = int(options.get("size", "500"))
  return Loaded(tuple(itertools.islice(stream(field), size)), {})


KINDS = {
  "jsonl": Kind(check_jsonl, read_jsonl, ()),
  "tfds": Kind(check_tfds, read_tfds, ("split", "data_dir", "path")),
  "hf": Kind(check_hf, read_hf, ("split", "config", "revision")),
  "reasoning_gym": Kind(check_gym, read_gym, None),
}
PREFIXES = f"one of {', '.join(f'{kind}:...' for kind in KINDS)}"
