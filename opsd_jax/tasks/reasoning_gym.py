"""Any task of the reasoning-gym package (arXiv:2505.24760), judged by itself.

  reasoning_gym:chain_sum,min_terms=2,max_terms=3

The options after the task's name are its own settings.
"""

import ast
import difflib
import functools
import hashlib
import itertools
import re
import sys

from opsd_jax import spec
from opsd_jax.structs import Example, Verdict
from opsd_jax.tasks import gsm8k
from opsd_jax.tasks.grading import answers
from opsd_jax.tasks.grading.extract import stated
from opsd_jax.tasks.task import Task

BLOCK = 1000  # entries of one dataset; some make all of theirs at once

# Scorers of 0.1.25 that run a reply as Python: `eval` of a list, and sympy's
# parse_expr of a formula. They are given nothing else.
EVAL = ("string_insertion", "spiral_matrix", "binary_matrix", "n_queens")
PARSE_EXPR = (
  "simple_integration",
  "intermediate_integration",
  "countdown",
  "puzzle24",
  "polynomial_multiplication",
)
SIGNLESS = ("gsm_symbolic",)  # whose scorer takes -5 for 5
FORMULA = re.compile(
  r"(?:[0-9+\-*/^(),.=\s]|\b(?:[a-zA-Z]|pi|exp|log|ln|sqrt|Abs|erf"
  r"|a?(?:sin|cos|tan)h?|sec|csc|cot)(?![a-zA-Z_]))*"
)


def task(options: str, privileged_field: str):
  """A tasks.Task. `privileged_field`: "answer", or the metadata field that
  holds the worked solution (`answer_cot` for gsm_symbolic)."""
  privileged_text(dataset(options, seed=0, size=1)[0], privileged_field)  # is it there?
  return Task(
    functools.partial(examples, options, privileged_field),
    functools.partial(verify, options),
  )


def dataset(options: str, seed: int, size: int):
  """reasoning-gym's dataset; ValueError for what it does not know."""
  # Here, since it takes a second and most tasks are others.
  import reasoning_gym
  from reasoning_gym import factory

  name, pairs = spec.parse(options)
  if name not in factory.DATASETS:
    close = difflib.get_close_matches(name, factory.DATASETS, 5, 0)
    raise ValueError(
      f"reasoning-gym has no task {name!r}; it has {', '.join(close)}, ..."
    )
  settings = {}
  for key, value in pairs.items():
    try:
      settings[key] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      settings[key] = value
  try:
    return reasoning_gym.create_dataset(name, seed=seed, size=size, **settings)
  except (TypeError, AssertionError) as e:
    raise ValueError(f"reasoning-gym task {name}: {e}") from e


def examples(options: str, privileged_field: str, seed: str):
  """An endless stream; an empty privileged field is None, never its name."""
  for index in itertools.count():
    block, place = divmod(index, BLOCK)
    if place == 0:
      digest = hashlib.sha256(f"{seed}/{block}".encode()).digest()
      entries = dataset(options, int.from_bytes(digest[:4], "big"), BLOCK)
    entry = entries[place]
    yield Example(
      id=f"{seed}/{index}",
      question=entry["question"],
      solution=as_text(privileged_text(entry, privileged_field)),
      answer=as_text(entry["answer"]),
      metadata=entry,
    )


def privileged_text(entry: dict, privileged_field: str):
  """What the teacher may be shown; ValueError where there is no such field."""
  if privileged_field == "answer":
    return entry["answer"]
  if privileged_field not in entry["metadata"]:
    raise ValueError(
      f"{entry['metadata']['source_dataset']} has no metadata field"
      f" {privileged_field!r}; it has {', '.join(entry['metadata'])}"
    )
  return entry["metadata"][privileged_field]


def as_text(value) -> str | None:
  return None if value is None or not str(value).strip() else str(value)


def verify(options: str, example: Example, text: str) -> Verdict:
  """The task's own `score_answer` on what `extract` finds in the reply."""
  found = extract(text, example.answer)
  name, _ = spec.parse(options)
  if name in SIGNLESS:
    right = found is not None and answers.compare(example.answer, found) is True
    return Verdict(float(right), found)
  if name in PARSE_EXPR and not FORMULA.fullmatch(found or ""):
    return Verdict(0.0, found, "not scored: no formula")
  try:
    score = scorer(options)(answer=found, entry=example.metadata)
  except Exception as e:  # some scorers fail on text that they do not expect
    return Verdict(0.0, found, f"not scored: {type(e).__name__}: {e}")
  return Verdict(float(score), found)


@functools.cache
def scorer(options: str):
  made = dataset(options, seed=0, size=1)
  if spec.parse(options)[0] in EVAL:
    sys.modules[type(made).__module__].eval = ast.literal_eval
  return made.score_answer


def extract(text: str, answer: str | None) -> str | None:
  """The reply's final answer: what it states, one line of it where the true
  answer is one, else the whole reply; of that the last number where the true
  answer is one, None where that is a part of another (1/2, 2^10)."""
  found = stated(text)
  if found is None:
    found = text
  elif answer is not None and "\n" not in answer:
    found = found.strip("* \n").partition("\n")[0].rstrip("*. ")
  if answer is not None and re.fullmatch(r"-?\d+(\.\d+)?", answer):
    number = gsm8k.last_number(found, alone=False)
    if number is None or "/" in number:
      return None
    return number.replace(",", "").rstrip("\\% ")
  return found.strip() or None
