"""The default task: one that a small model mostly gets wrong, and that the
reference makes easy.

  Q: What is the largest of these numbers: 412, 87, 930, 55, 671? Answer in one
     short sentence.
  A: The largest of these numbers is 930.
"""

import random

from opsd_jax.structs import Example, Verdict
from opsd_jax.tasks.grading.extract import last_number, reply
from opsd_jax.tasks.task import Task


def task(options: str, privileged_field: str):
  """The tasks.Task; it takes no options."""
  if options:
    raise ValueError(f"largest_number takes no options, got {options!r}")
  return Task(examples, verify)


def examples(seed: str):
  """An endless stream of problems, each of five different integers in [10, 999]."""
  rng = random.Random(seed)
  index = 0
  while True:
    numbers = rng.sample(range(10, 1000), 5)
    best = max(numbers)
    yield Example(
      id=f"{seed}/{index}",
      question=(
        "What is the largest of these numbers:"
        f" {', '.join(map(str, numbers))}? Answer in one short sentence."
      ),
      solution=f"The largest of these numbers is {best}.",
      answer=str(best),
    )
    index += 1


def verify(example: Example, text: str) -> Verdict:
  """Correct where the completion's last number is the answer."""
  found = last_number(reply(text))
  if found is None:
    return Verdict(0.0, None, "no number in the reply")
  return Verdict(float(float(found) == int(example.answer)), found)
