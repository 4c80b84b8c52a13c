"""Any task of the reasoning-gym package (arXiv:2505.24760), judged by itself.

  reasoning_gym:chain_sum,min_terms=2,max_terms=3

The options after the task's name are its own settings.
"""

import ast
import functools
import hashlib
import re

from opsd_jax.structs import Example, Verdict


def task(options: str, privileged_field: str):
  """A tasks.Task. `privileged_field`: "answer", or the metadata field that
  holds the worked solution (`answer_cot` for gsm_symbolic)."""
  from opsd_jax.tasks import Task

  name, *pairs = options.split(",")
  if name not in names():
    close = [n for n in names() if n[:3] == name[:3]] or names()[:8]
    raise ValueError(
        f"reasoning-gym has no task {name!r}; it has {', '.join(close)}, ..."
    )
  settings = {}
  for pair in pairs:
    key, _, value = pair.partition("=")
    try:
      settings[key] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      settings[key] = value
  return Task(
      functools.partial(examples, name, settings, privileged_field),
      functools.partial(verify, name, tuple(settings.items())),
  )


@functools.cache
def names() -> list[str]:
  from reasoning_gym import factory

  return sorted(factory.DATASETS)


def create(name: str, settings: dict, seed: int, size: int):
  import reasoning_gym

  try:
    return reasoning_gym.create_dataset(name, seed=seed, size=size, **settings)
  except (TypeError, AssertionError) as e:
    raise ValueError(f"reasoning-gym task {name}: {e}") from e


def examples(name: str, settings: dict, privileged_field: str, seed: str):
  """An endless stream; an empty privileged field is None, never its name."""
  number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
  size = 1_000_000  # entries are made on access
  for index, entry in enumerate(create(name, settings, number, size)):
    if privileged_field == "answer":
      told = entry["answer"]
    elif privileged_field in entry["metadata"]:
      told = entry["metadata"][privileged_field]
    else:
      raise ValueError(
          f"{name} has no metadata field {privileged_field!r}; it has"
          f" {', '.join(entry['metadata'])}"
      )
    yield Example(
        id=f"{seed}/{index}", question=entry["question"],
        solution=as_text(told), answer=as_text(entry["answer"]), metadata=entry,
    )  # fmt: skip


def as_text(value) -> str | None:
  return None if value is None or not str(value).strip() else str(value)


def verify(name: str, settings: tuple, example: Example, text: str) -> Verdict:
  """The task's own `score_answer` on what `extract` finds in the reply."""
  found = extract(text, example.answer)
  judge = scorer(name, settings)
  score = judge(answer=found, entry=example.metadata)
  return Verdict(float(score), found)


@functools.cache
def scorer(name: str, settings: tuple):
  return create(name, dict(settings), seed=0, size=1).score_answer


def extract(text: str, answer: str | None) -> str | None:
  """The reply's final answer: after the last `####`, or in the last \\boxed{},
  or after the last "answer is" or "answer:"; else the last number where the
  answer is one; else the whole reply, stripped."""
  if "####" in text:
    found = text.rpartition("####")[2]
  elif boxed := re.findall(r"\\boxed\{([^{}]*)\}", text):
    found = boxed[-1]
  elif stated := re.findall(r"(?i)answer(?: is|:)\s*(.+)", text):
    found = stated[-1].rstrip(". ")
  else:
    found = text
  if answer is not None and re.fullmatch(r"-?\d+(\.\d+)?", answer):
    numbers = re.findall(r"-?\d+(?:\.\d+)?", found.replace(",", ""))
    return numbers[-1] if numbers else None
  return found.strip() or None
