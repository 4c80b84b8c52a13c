"""Sets of problems to evaluate on: files by path and name, and tasks."""

import re
from collections.abc import Callable
from typing import NamedTuple

from opsd_jax import spec, tasks
from opsd_jax.data import sources
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

  def is_task(source):
    return spec.parse(source)[0].partition(":")[0] in tasks.ALL

  if is_task(text):
    name, source = spec.parse(text)[0].rpartition(":")[2], text
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
  source, options = spec.parse(source, ("task",))
  return Spec(name, source, options.get("task") or "maths")


def open_set(wanted: Spec, *, count: int | None, seed: int | None, open_verifier):
  """Spec -> Set: the first `count` problems of a file, or all, or `count` of a
  task that makes its own (those that training with `seed` as task.seed holds
  out).

  judge(task) -> verify(examples, texts) -> Verdicts.
  """
  if count is not None and count < 1:
    raise ValueError(f"{count} problems of {wanted.name}, expected at least 1")
  task = wanted.task or wanted.source
  verify = open_verifier(task)
  if wanted.task:
    dropped = {}
    examples = sources.load(wanted.source, sources.Columns()).examples
    examples = sources.answered(task, examples, dropped, "evaluation")
    examples = examples[:count]
    about = {
      "source": wanted.source,
      "task": task,
      "without_answer": sum(dropped.values()),
      "asked_again": len(examples) - len(sources.by_text(examples)),
    }
  else:
    stream = tasks.open_task(task, "answer").examples(f"eval/{seed}")
    examples, _ = tasks.distinct(stream, count, set(), False, task)
    about = {"source": task, "task": task, "task_seed": seed}
  ids = [e.id for e in examples]
  if not ids or len(set(ids)) < len(ids):
    what = "no problems" if not ids else "problems of the same id"
    raise ValueError(f"set {wanted.name}: {wanted.source} has {what}")
  return Set(wanted.name, examples, verify, about)
