"""Exact: the reference's words, or its number.

Read after the last `####`, in the last \\boxed{} or after the last "answer is";
without any the reply is the answer.
"""

from opsd_jax.structs import Verdict
from opsd_jax.tasks import judged
from opsd_jax.tasks.grading import answers
from opsd_jax.tasks.grading.extract import stated


def verify(reference: str, text: str) -> Verdict:
  """Right when equal by tasks.answers, or as text but for case and spaces."""
  found = text if (marked := stated(text)) is None else marked
  found = found.strip("* \n")
  if "\n" not in reference.strip() and marked is not None:
    found = found.partition("\n")[0]
  if not found:
    return Verdict(0.0, None, "no answer in the reply")
  same = answers.compare(reference, found) or plain(reference) == plain(found)
  return Verdict(float(same), found)


def plain(text: str) -> str:
  return " ".join(text.casefold().split()).strip("*. ")


task = judged.task("exact", verify)
