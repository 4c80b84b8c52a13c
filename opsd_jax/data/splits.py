"""Training and evaluation examples of a run, disjoint by their questions."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from opsd_jax import spec, tasks
from opsd_jax.data import sources
from opsd_jax.data.columns import Columns
from opsd_jax.data.sources import TASK
from opsd_jax.structs import Example


class Split(NamedTuple):
  """The examples of a run; no question is in both parts."""

  train: tuple[Example, ...]
  eval: tuple[Example, ...]
  removed_as_overlap: int  # training examples whose question evaluation has too
  dropped: dict[str, int]  # "training: reason" -> rows
  counts: dict[str, int]  # statistics of the sources, in words, for the log


def check(train: str, eval: str, name: str, task: tasks.Task) -> None:
  """Checks data.train and data.eval without reading them.

  Args:
    train, eval: sources, as `sources.load` takes them.
    name: config.task.name.
    task: the task of this name.

  Raises:
    ValueError: a source cannot exist, the task generates no problems of its own,
      or it cannot verify answers to the problems of a source.
  """
  family, _ = spec.parse(name)
  for use, source in (("train", train), ("eval", eval)):
    try:
      if source == TASK:
        task.examples(use)  # raises where the task only verifies
      sources.check(source)
    except ValueError as e:
      raise ValueError(f"data.{use}: {e}") from e
    source_family, _ = spec.parse(source)
    if family.startswith("reasoning_gym:") and source_family not in (TASK, family):
      raise ValueError(
        f"task.name={name} can only verify problems that it generated, but"
        f" data.{use}={source} comes from elsewhere: set task.name to gsm8k, maths,"
        " exact or multiple_choice"
      )


def load(
  train: str,
  eval: str,
  columns: Columns,
  *,
  skip_bad: int,
  train_limit: int,
  eval_limit: int,
  rewarded: bool,
  task: dict,
  test_time: bool = False,
) -> Split:
  """Reads both sources and removes from training what evaluation has too.

  Evaluation keeps the first of repeated questions (tasks.normalize_question),
  training keeps all, as with a task's own problems.

  Args:
    train, eval: sources, as `sources.load` takes them; "task" is `task` itself.
    columns, skip_bad: the columns of a file's rows; bad rows each source may have.
    train_limit, eval_limit: examples to take from the beginning; 0 is all.
    rewarded: training verifies responses, so examples without an answer are
      dropped from it too.
    task: keyword arguments of `tasks.load`.
    test_time: the first task["train_count"] evaluation examples are the training
      ones; `train` is not read.
  """
  if train == eval == TASK and not test_time:
    return of_task(task, train_limit, eval_limit)
  dropped, counts = {}, {}
  if eval == TASK:
    held_out, repeated = task_examples(task, "eval", set())
  else:
    rows = read(eval, columns, skip_bad, "evaluation", dropped, counts)
    rows = drop_unanswered(task["name"], rows, dropped, "evaluation")
    held_out, repeated = without_repeats(rows, counts)
  held_out = take(held_out, eval_limit, "evaluation", dropped)
  if test_time:
    train, overlap = eval, 0
    train_examples = held_out[: task["train_count"]]
    if beyond := len(held_out) - len(train_examples):
      dropped["training: an evaluation problem beyond task.train_count"] = beyond
  elif train == TASK:
    train_examples, overlap = task_examples(task, "train", group_by_question(held_out))
  else:
    rows = read(train, columns, skip_bad, "training", dropped, counts)
    if rewarded:
      rows = drop_unanswered(task["name"], rows, dropped, "training")
    train_examples, overlap = without_overlap(rows, held_out)
  if not test_time:
    train_examples = take(train_examples, train_limit, "training", dropped)
  by_question = group_by_question(train_examples)
  if train != TASK:
    counts["training questions with several answers"] = contradictory(by_question)
  counts["evaluation repeated (removed)"] = repeated
  counts["training repeated (kept)"] = len(train_examples) - len(by_question)
  for use, examples in (("training", train_examples), ("evaluation", held_out)):
    counts[f"{use} without solution"] = sum(e.solution is None for e in examples)
  return Split(train_examples, held_out, overlap, dropped, counts)


def of_task(task: dict, train_limit: int, eval_limit: int) -> Split:
  """The problems that a task makes, both uses at once."""
  made, dropped = tasks.load(**task), {}
  return Split(
    take(made.train, train_limit, "training", dropped),
    take(made.eval, eval_limit, "evaluation", dropped),
    made.removed_as_overlap,
    dropped,
    {"evaluation repeated (removed)": made.removed_as_repeated},
  )


def without_repeats(rows: Sequence[Example], counts: dict):
  """(the rows, each question once; how many were repeated); counts those that have
  several answers."""
  by_question = group_by_question(rows)
  counts["evaluation questions with several answers"] = contradictory(by_question)
  held_out = tuple(first for first, *_ in by_question.values())
  return held_out, len(rows) - len(held_out)


def without_overlap(rows: Sequence[Example], held_out: Iterable[Example]):
  """(the rows whose question is not held out; how many others there were)."""
  taken = group_by_question(held_out)
  kept = tuple(e for e in rows if tasks.normalize_question(e.question) not in taken)
  return kept, len(rows) - len(kept)


def task_examples(task: dict, use: str, taken: Iterable[str]):
  """(examples, number passed over) that the task generates, as `tasks.load` does."""
  stream = tasks.open_task(task["name"], task["privileged_field"]).examples(
    f"{use}/{task['seed']}"
  )
  return tasks.distinct(
    stream, task[f"{use}_count"], set(taken), use == "train", task["name"]
  )


def read(
  source: str, columns: Columns, skip_bad: int, use: str, dropped: dict, counts: dict
) -> tuple[Example, ...]:
  """A source's examples; adds its bad rows to `dropped`, and to `counts` all rows and
  what no field takes of the others."""
  loaded = sources.load(source, columns, skip_bad=skip_bad)
  counts[f"{use} rows"] = len(loaded.examples) + sum(loaded.dropped.values())
  counts.update({f"{use} {k} (not read)": n for k, n in loaded.not_read.items()})
  dropped.update({f"{use}: {k}": n for k, n in loaded.dropped.items()})
  return loaded.examples


def drop_unanswered(
  task_name: str, examples: Sequence[Example], dropped: dict, use: str
) -> Sequence[Example]:
  """The examples with an answer. reasoning-gym verifies by its metadata instead:
  of its examples none is dropped."""
  if task_name.startswith("reasoning_gym:"):
    return examples
  kept = [e for e in examples if e.answer is not None]
  if len(kept) < len(examples):
    dropped[f"{use}: no answer"] = len(examples) - len(kept)
  return kept


def take(examples: Sequence[Example], limit: int, use: str, dropped: dict):
  """The first `limit` examples, 0 is all; adds the rest to `dropped`."""
  kept = examples[:limit] if limit else examples
  if len(kept) < len(examples):
    dropped[f"{use}: beyond the limit of {limit}"] = len(examples) - len(kept)
  return kept


def group_by_question(examples: Iterable[Example]) -> dict[str, list[Example]]:
  """Normalised question -> the examples that have it, in order."""
  groups = {}
  for e in examples:
    groups.setdefault(tasks.normalize_question(e.question), []).append(e)
  return groups


def contradictory(by_question: dict[str, list[Example]]) -> int:
  """The number of questions whose examples have different answers."""
  return sum(len({e.answer for e in same}) > 1 for same in by_question.values())
