"""Sets of problems to evaluate on: files by path and name, and tasks."""

import re
from collections.abc import Callable
from typing import NamedTuple

from opsd_jax import setup, spec, tasks
from opsd_jax.data import sources, splits
from opsd_jax.problems import load_split
from opsd_jax.runtime import paths
from opsd_jax.structs import Example


class EvalSet(NamedTuple):
  """Problems under a name, and their verifier."""

  name: str
  examples: tuple[Example, ...]
  verify: Callable  # (examples, texts) -> Verdicts, one each
  about: dict  # source, task: for settings.json


class Spec(NamedTuple):
  """A --set flag, parsed."""

  name: str
  source: str
  task: str | None  # the verifier of a file; None: the source is a task


def parse(text: str) -> Spec:
  """Parses `name=source[,task=maths]`, or a task with an optional name:
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


def open_set(
  wanted: Spec, *, count: int | None, seed: int | None, open_verifier
) -> EvalSet:
  """The problems that a Spec names.

  Args:
    count: problems to take, None for all of a file. Of a task that generates its
      problems these are the ones that training with task.seed = `seed` holds out.
    seed: task.seed; None for a file.
    open_verifier: task -> verify(examples, texts) -> Verdicts.
  """
  if count is not None and count < 1:
    raise ValueError(f"{count} problems of {wanted.name}, expected at least 1")
  task = wanted.task or wanted.source
  verify = open_verifier(task)
  if wanted.task:
    dropped = {}
    loaded = sources.load(wanted.source, sources.Columns())
    examples = splits.drop_unanswered(task, loaded.examples, dropped, "evaluation")
    examples = examples[:count]
    about = {
      "source": wanted.source,
      "task": task,
      "without_answer": sum(dropped.values()),
      "repeated": len(examples) - len(splits.group_by_question(examples)),
      **{f"{k} (not read)": n for k, n in loaded.not_read.items()},
    }
  else:
    stream = tasks.open_task(task, "answer").examples(f"eval/{seed}")
    examples, _ = tasks.distinct(stream, count, set(), False, task)
    about = {"source": task, "task": task, "task_seed": seed}
  ids = [e.id for e in examples]
  if not ids or len(set(ids)) < len(ids):
    what = "no problems" if not ids else "several problems of one id"
    raise ValueError(f"set {wanted.name}: {wanted.source} has {what}")
  return EvalSet(wanted.name, examples, verify, about)


# ------------------------------------------------- what a training run held out


def held_out(run_dir, defaults, source: str, count: int | None, seed: int | None):
  """(count, seed) of a task's problems, where a None is replaced.

  The values of the run apply where `source` is the task that it trained on; else,
  or without a run, those of `defaults`, a config.task. Raises ValueError for more
  problems than the run held out.
  """

  def given(value, default):
    return default if value is None else value

  if not run_dir:
    return given(count, defaults.eval_count), given(seed, defaults.seed)
  task = setup.read_config(paths.open_workdir(run_dir)).task
  seed = given(seed, task.seed)
  if (source, seed) != (task.name, task.seed):
    return given(count, defaults.eval_count), seed
  if given(count, 0) > task.eval_count:
    raise ValueError(
      f"{count} problems of {source}: the training of {run_dir} held out"
      f" {task.eval_count} (task.eval_count), and may have seen the others"
    )
  return given(count, task.eval_count), seed


def training_questions(run_dir) -> set[str] | None:
  """The normalized questions that a run trains on; None without a run, or where its
  data cannot be read."""
  if not run_dir:
    return None
  config = setup.read_config(paths.open_workdir(run_dir))
  try:
    problems = load_split(config)
  except ValueError as e:
    print(f"unknown which questions {run_dir} was trained on: {e}", flush=True)
    return None
  return {tasks.normalize_question(e.question) for e in problems.train}
