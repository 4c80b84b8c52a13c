"""Tasks: where problems come from and how a completion is verified.

A task is two functions: `examples(seed)`, an endless stream of Examples, the same
for the same seed, and `verify(example, text) -> Verdict`. gsm8k, maths, exact and
multiple_choice only verify; their examples come from files.
"""

import itertools
import re
import unicodedata
from typing import NamedTuple

from opsd_jax.registry import pick
from opsd_jax.structs import Example
from opsd_jax.tasks import (
  competition_math,
  exact,
  gsm8k,
  largest_number,
  multiple_choice,
  reasoning_gym,
)
from opsd_jax.tasks.task import Task


class Split(NamedTuple):
  """The training and the evaluation problems of a task."""

  train: tuple[Example, ...]
  eval: tuple[Example, ...]
  removed_as_overlap: int  # training questions that are also evaluation questions
  removed_as_repeated: int  # evaluation questions drawn a second time


ALL = {
  "largest_number": largest_number.task,
  "reasoning_gym": reasoning_gym.task,
  "gsm8k": gsm8k.task,
  "maths": competition_math.task,
  "exact": exact.task,
  "multiple_choice": multiple_choice.task,
}


def open_task(name: str, privileged_field: str) -> Task:
  """`"family"` or `"family:options"` -> Task; raises ValueError for an unknown family."""
  family, _, options = name.partition(":")
  return pick(ALL, family)(options, privileged_field)


# Unicode spellings of one character, replaced one pattern after the other.
ALIKE = [
  (re.compile(pattern), to)
  for pattern, to in (
    ("[\u00ad\u200b-\u200f\u2060\ufeff]", ""),
    ("[‐-―−]", "-"),
    ("[‘’‚‛′]", "'"),
    ("[“”„‟]", '"'),
    ("[⁰¹²³⁴-ⁿⁱ]+", r"^\g<0> "),
    ("[₀-₎ₐ-ₜ]+", r"_\g<0> "),
  )
]
TEX_ALIKE = [
  (re.compile(pattern), to)
  for pattern, to in (
    (r"\\?\$+|\\[()\[\]]|\\(?:left|right)(?![a-zA-Z])", " "),
    (r"\\[dt]frac(?![a-z])", r"\\frac"),
    (r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}"),
    (r"([\^_])\{(\w+)\}", r"\1\2 "),
    (r"\\([lgn]e)q(?![a-z])", r"\\\1"),
    (r"\s+", " "),
    (r" (?=\W|$)|(?<=\W) |^ ", ""),
    (r"[.?]+$", ""),
  )
]
# A word that casefold may change, and that is no LaTeX \command.
WORD = re.compile(r"(?<![\\A-Za-z])[^\W\d_]*[^\W\d_a-z][^\W\d_]*")


def normalize_question(question: str) -> str:
  """A key that is equal for questions that read alike.

  It ignores the case of words, spaces that separate nothing, dollar signs, how
  Unicode writes a character and TeX a fraction or an index, and the final mark.
  One-letter variables keep their case ($S_n$ is not $s_n$), and 5² is not 52.
  """
  text = question
  if not text.isascii():
    for pattern, to in ALIKE:
      text = pattern.sub(to, text)
    text = unicodedata.normalize("NFKC", text)

  def is_variable(word):
    return len(word[0]) == 1

  text = WORD.sub(lambda w: w[0] if is_variable(w) else w[0].casefold(), text)
  for pattern, to in TEX_ALIKE:
    text = pattern.sub(to, text)
  return text


def load(
  name: str, *, train_count: int, eval_count: int, seed: int, privileged_field: str
) -> Split:
  """Training and evaluation problems, disjoint by their questions' text.

  Evaluation problems are drawn first, each question once; a training problem with
  an evaluation question is removed, counted and replaced. Raises ValueError where
  the task has too few different questions.
  """
  task = open_task(name, privileged_field)
  held_out, repeated = distinct(
    task.examples(f"eval/{seed}"), eval_count, set(), False, name
  )
  excluded = {normalize_question(e.question) for e in held_out}
  train, overlap = distinct(
    task.examples(f"train/{seed}"), train_count, excluded, True, name
  )
  return Split(train, held_out, overlap, repeated)


def distinct(stream, count: int, taken: set, repeats: bool, name: str):
  """(the stream's first `count` usable examples, how many others were skipped).

  An example is usable where its normalized question is not in `taken` and, unless
  `repeats`, no earlier example has the same.
  """
  kept, skipped, taken = [], 0, set(taken)
  limit = 20 * count + 1000
  for example in itertools.islice(stream, limit):
    text = normalize_question(example.question)
    if text in taken:
      skipped += 1
      continue
    if not repeats:
      taken.add(text)
    kept.append(example)
    if len(kept) == count:
      return tuple(kept), skipped
  raise ValueError(
    f"{name} gave {len(kept)} usable different questions in {limit}, expected"
    f" {count}: lower task.train_count or task.eval_count"
  )
