"""Sets of problems to evaluate on: files by path and name, and tasks."""

import json
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

from opsd_jax import tasks
from opsd_jax.structs import Example


class Set(NamedTuple):
  """Problems under a name."""

  name: str
  examples: tuple[Example, ...]
  verify: Callable  # (examples, texts) -> Verdicts, one each
  about: dict  # source, task: for settings.json


class Spec(NamedTuple):
  """What a --set says."""

  name: str
  source: str
  task: str | None  # the verifier of a file; None: the source is a task


def parse(text: str) -> Spec:
  """`name=source[,task=maths]`, or a task, whose name may be left away:
  `largest_number`, `sums=reasoning_gym:chain_sum,max_terms=3`."""
  is_task = lambda source: re.split("[:,]", source)[0] in tasks.ALL
  if is_task(text):
    name, source = text.partition(":")[2].partition(",")[0] or text, text
  else:
    name, _, source = text.partition("=")
  if not re.fullmatch(r"[\w.-]+", name) or not source:
    raise ValueError(
        f"set {text!r}, expected name=source[,task=maths] with letters, digits,"
        " '.', '_', '-' in the name, or one of the tasks"
        f" {', '.join(tasks.ALL)}"
    )
  if is_task(source):
    return Spec(name, source, None)
  source, _, task = source.partition(",task=")
  return Spec(name, source, task or "maths")


def open_set(spec: Spec, *, count: int, seed: int, load=None, judge=None):
  """Spec -> Set: all problems of a file, `count` of a task that makes its own
  (those that training with `seed` as task.seed holds out).

  load(source) -> Examples; judge(task) -> verify(examples, texts) -> Verdicts;
  by default those below.
  """
  if count < 1:
    raise ValueError(f"{count} problems of {spec.name}, expected at least 1")
  load, judge = load or read_jsonl, judge or in_process
  task = spec.task or spec.source
  verify = judge(task)
  if spec.task:
    examples = tuple(load(spec.source))
    about = {"source": spec.source, "task": task}
  else:
    stream = tasks.open_task(task, "answer").examples(f"eval/{seed}")
    examples, _ = tasks.distinct(stream, count, set(), False, task)
    about = {"source": task, "task": task, "task_seed": seed}
  ids = [e.id for e in examples]
  if not ids or len(set(ids)) < len(ids):
    what = "no problems" if not ids else "problems of the same id"
    raise ValueError(f"set {spec.name}: {spec.source} has {what}")
  return Set(spec.name, examples, verify, about)


# The next two stand in for data.load and tasks' pool of workers.


def read_jsonl(source: str):
  """Examples of a .jsonl file with the usual column names."""
  path = pathlib.Path(source.removeprefix("jsonl:")).expanduser()
  for number, line in enumerate(path.read_text().splitlines(), 1):
    try:
      row = json.loads(line)
      question = row.get("problem") or row["question"]
      solution, _, answer = str(row["answer"]).rpartition("####")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
      raise ValueError(
          f"{path}:{number}: {type(e).__name__}: {e}; expected an object with"
          " problem or question, and answer"
      ) from e
    name = str(row.get("unique_id", row.get("id", number)))
    solution = row.get("solution") or solution.strip() or None
    yield Example(name, question, solution, answer.strip())


def in_process(task: str):
  """verify(examples, texts) -> Verdicts, in this process."""
  verify = tasks.open_task(task, "answer").verify
  return lambda examples, texts: list(map(verify, examples, texts))
