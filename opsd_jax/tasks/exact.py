"""Exact: the reference's words, or its number.

The answer follows the last `####`, is in the last \\boxed{} or follows the last
"answer is"; without any of them the whole completion is the answer.
"""

import re

from opsd_jax.structs import Verdict
from opsd_jax.tasks import verify_only
from opsd_jax.tasks.grading import answers
from opsd_jax.tasks.grading.extract import stated


def verify(reference: str, text: str) -> Verdict:
  """Correct where grading/answers finds the two equal, or where the texts are equal
  but for spaces and the case of words."""
  found = text if (marked := stated(text)) is None else marked
  found = found.strip("* \n")
  if "\n" not in reference.strip() and marked is not None:
    found = found.partition("\n")[0]
  if not found:
    return Verdict(0.0, None, "no answer in the reply")
  same = answers.compare(reference, found) or normalize(reference) == normalize(found)
  return Verdict(float(same), found)


def normalize(text: str) -> str:
  """Text without spaces at its ends and without the case of its words; a text of
  single letters and symbols keeps its case: R is not r."""
  text = " ".join(text.split()).strip("*. ")
  return text.casefold() if re.search("[a-zA-Z]{2}", text) else text


task = verify_only.task("exact", verify)
