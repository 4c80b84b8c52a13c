"""Any task of the reasoning-gym package (arXiv:2505.24760), scored by the package.

  reasoning_gym:chain_sum,min_terms=2,max_terms=3

The options after the task's name are the keyword arguments of its dataset.
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
from opsd_jax.tasks.grading.extract import boxed, reply, stated
from opsd_jax.tasks.task import Task

BLOCK = 1000  # entries of one dataset; some datasets make all of theirs at once

# Scorers of version 0.1.25 that run a completion as Python: `eval` of a list, and
# sympy's parse_expr of a formula. Only lists and formulas may reach them.
EVAL = ("string_insertion", "spiral_matrix", "binary_matrix", "n_queens")
PARSE_EXPR = (
  "simple_integration",
  "intermediate_integration",
  "countdown",
  "puzzle24",
  "polynomial_multiplication",
)
SIGNLESS = ("gsm_symbolic",)  # its scorer accepts -5 for 5
FORMULA = re.compile(
  r"(?:[0-9+\-*/^(),.=\s]|\b(?:[a-zA-Z]|pi|exp|log|ln|sqrt|Abs|erf"
  r"|a?(?:sin|cos|tan)h?|sec|csc|cot)(?![a-zA-Z_]))*"
)


def task(options: str, privileged_field: str):
  """A tasks.Task. `privileged_field`: "answer", or the metadata field that
  holds the worked solution (`answer_cot` for gsm_symbolic)."""
  # Raises ValueError at start where the task has no such field.
  privileged_text(dataset(options, seed=0, size=1)[0], privileged_field)
  return Task(
    functools.partial(examples, options, privileged_field),
    functools.partial(verify, options),
  )


def dataset(options: str, seed: int, size: int):
  """reasoning-gym's dataset; raises ValueError for an unknown task or setting."""
  # Imported in the function: it takes a second, and most runs have another task.
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
  """An endless stream of problems; an empty privileged field gives solution None."""
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
  """The text of the privileged field; ValueError where there is no such field."""
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
  """Verifies by the task's `score_answer` of the answer that `extract` finds."""
  found = extract(text, example.answer)
  name, _ = spec.parse(options)
  if name in SIGNLESS:
    same = found is not None and answers.compare(example.answer, found) is True
    return Verdict(float(same), found)
  if name in PARSE_EXPR and not FORMULA.fullmatch(found or ""):
    return Verdict(0.0, found, "not scored: no formula")
  try:
    score = scorer(options)(answer=found, entry=example.metadata)
  except Exception as e:  # some scorers raise on text that they do not expect
    return Verdict(0.0, found, f"not scored: {type(e).__name__}: {e}")
  return Verdict(float(score), found)


@functools.cache
def scorer(options: str):
  """The task's `score_answer`, with `eval` replaced by ast.literal_eval."""
  scored = dataset(options, seed=0, size=1)
  if spec.parse(options)[0] in EVAL:
    sys.modules[type(scored).__module__].eval = ast.literal_eval
  return scored.score_answer


def extract(text: str, answer: str | None) -> str | None:
  """The completion's final answer: what it states, else the whole completion.

  Where the reference is one line, the first line of a stated answer; where it is a
  number, the last number, None where that is part of another value (1/2, 2^10) and
  where there are several boxes.
  """
  text = reply(text)
  found = stated(text)
  if found is None:
    found = text
  elif answer is not None and "\n" not in answer:
    found = found.strip("* \n").partition("\n")[0].rstrip("*. ")
  if answer is not None and re.fullmatch(r"-?\d+(\.\d+)?", answer):
    if len(boxed(text) or ()) > 1:
      return None
    number = gsm8k.last_number(found, alone=False)
    if number is None or "/" in number:
      return None
    return number.replace(",", "").rstrip("\\% ")
  return found.strip() or None
