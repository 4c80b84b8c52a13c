"""Competition maths: the answer in the last \\boxed{}.

Without a box, the answer follows the last "answer is". grading/answers compares
it exactly; answers that it cannot read (algebra, functions) go to grading/algebra,
whose running time has no bound: run this task in a pool.Pool.
"""

import re

from opsd_jax.structs import Verdict
from opsd_jax.tasks import verify_only
from opsd_jax.tasks.grading import algebra, answers, extract, units

MATHS = re.compile(r"(?:\$\$?|\\\(|\\\[)(.+?)(?:\$\$?|\\\)|\\\])(.*)")


def verify(reference: str, text: str) -> Verdict:
  """Correct where the completion's final answer equals the reference."""
  found = final(text)
  if not found:
    return Verdict(0.0, None, "no answer in the reply")
  several = extract.boxed(text) or [found]
  same = answers.compare(reference, found, algebra) is True or (
    len(several) > 1
    and all(answers.compare(reference, box, algebra) is True for box in several)
  )
  return Verdict(float(same), found)


def final(text: str) -> str | None:
  """The final answer as the completion writes it; None where it states none."""
  if (boxes := extract.boxed(text)) is not None:
    return ", ".join(boxes).strip()
  if (after := extract.stated(text)) is None:
    return None
  after = after.strip("*: \n")
  sentence = extract.SENTENCE.split(after, maxsplit=1)[0].strip()
  match = MATHS.match(sentence)
  if match and not re.search(r"[0-9$]|\b(?:or|and|not)\b", match[2]):
    words = re.findall("[a-z]+", match[2].casefold())
    is_scaled = any(map(units.multiplies, words))
    return sentence if is_scaled else match[1].strip()
  return sentence


task = verify_only.task("maths", verify)
