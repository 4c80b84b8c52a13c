"""The default task: one that a small model mostly gets wrong, and that the
reference makes easy.

  Q: What is the largest of these numbers: 412, 87, 930, 55, 671? Answer in one
     short sentence.
  A: The largest of these numbers is 930.
"""

import random
import re

from opsd_jax.structs import Example, Verdict


def examples(seed: str):
  """An endless stream; five different integers of 10 to 999 each."""
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
  """Right when the reply's last integer is the answer."""
  numbers = re.findall(r"\d+", text.replace(",", ""))
  if not numbers:
    return Verdict(0.0, None, "no number in the reply")
  return Verdict(float(int(numbers[-1]) == int(example.answer)), numbers[-1])
