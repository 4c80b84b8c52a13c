"""Tasks: problems and how a reply to one is judged.

A task is two functions: `examples(seed)`, an endless stream of Examples that
the seed decides, and `verify(example, text) -> Verdict`. gsm8k, maths, exact
and multiple_choice only verify; their examples come from files.
"""

import itertools
import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from opsd_jax.pick import pick
from opsd_jax.structs import Example
from opsd_jax.tasks import (
  exact,
  gsm8k,
  largest_number,
  maths,
  multiple_choice,
  reasoning_gym,
)


class Task(NamedTuple):
  examples: Callable  # (seed: str) -> iterator of Examples
  verify: Callable  # (example, text) -> Verdict


class Dataset(NamedTuple):
  train: tuple[Example, ...]
  eval: tuple[Example, ...]
  removed_as_overlap: int  # training questions that evaluation asks too
  removed_as_repeated: int  # evaluation questions asked twice


ALL = {
    "largest_number": largest_number.task, "reasoning_gym": reasoning_gym.task,
    "gsm8k": gsm8k.task, "maths": maths.task, "exact": exact.task,
    "multiple_choice": multiple_choice.task,
}  # fmt: skip


RAISED = re.compile("[⁰¹²³⁴-⁹]+")


def open_task(name: str, privileged_field: str) -> Task:
  """`"family"` or `"family:options"` -> Task; ValueError where it is unknown."""
  family, _, options = name.partition(":")
  return pick(ALL, family)(options, privileged_field)


def same_text(question: str) -> str:
  """What two questions that read alike share: case, spaces that part no words,
  dollar signs, ways to write a character or a fraction in TeX are folded."""
  question = RAISED.sub(r"^\g<0>", question)  # 5² is 5^2, not 52
  text = unicodedata.normalize("NFKC", question).casefold().replace("$", "")
  text = re.sub(r"\\[dt]frac(?![a-z])", r"\\frac", text)
  return re.sub(r"\s+(?=\W|$)|(?<=\W)\s+|^\s+", "", " ".join(text.split()))


def load(
    name: str,
    *,
    train_count: int,
    eval_count: int,
    seed: int,
    privileged_field: str,
) -> Dataset:
  """Training and evaluation problems, disjoint by their questions' text.

  Evaluation is drawn first and holds no question twice; a training question
  that evaluation asks is removed, counted and replaced. Raises ValueError
  where the task has too few different questions.
  """
  task = open_task(name, privileged_field)
  held_out, repeated = distinct(
      task.examples(f"eval/{seed}"), eval_count, set(), False, name
  )
  asked = {same_text(e.question) for e in held_out}
  train, overlap = distinct(
      task.examples(f"train/{seed}"), train_count, asked, True, name
  )
  return Dataset(train, held_out, overlap, repeated)


def distinct(stream, count: int, taken: set, repeats: bool, name: str):
  """The stream's first `count` examples whose questions are not in `taken` and,
  unless `repeats`, differ from each other -> (examples, number passed over)."""
  kept, passed, taken = [], 0, set(taken)
  limit = 20 * count + 1000
  for example in itertools.islice(stream, limit):
    text = same_text(example.question)
    if text in taken:
      passed += 1
      continue
    if not repeats:
      taken.add(text)
    kept.append(example)
    if len(kept) == count:
      return tuple(kept), passed
  raise ValueError(
      f"{name} gave {len(kept)} usable different questions in {limit}, expected"
      f" {count}: lower task.train_count or task.eval_count"
  )
