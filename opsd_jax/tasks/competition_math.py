"""Competition maths: the answer in \\boxed{}, or what follows the last "answer is".

grading/extract says where the answer stands and what several boxes mean,
grading/answers what equals the reference. Where two people would read a form
differently it is no answer:

- several different boxes, unless the last is called final or takes the others back;
- an answer that is taken back ("Wait, that is wrong") without another one;
- a box with "not" right behind it, even where that may only describe it: \\boxed{9} is
  not prime (grading/around);
- 1/2x, \\sin x/2, 2\\frac{3}{2}, 1{7}, 2^3!; \\log without a base is neither ln nor
  the decimal logarithm;
- x < 1, x > 3 without "and" or "or"; (2, 5) beside 2 < x < 5; 7:00 without AM or PM;
- "pounds" and £; seven for 7; \\sqrt{x^2} for x; xy = 3 and x^2 = 3 for 3.
"""

import re

from opsd_jax.structs import Verdict
from opsd_jax.tasks import verify_only
from opsd_jax.tasks.grading import algebra, answers, extract, units

MATHS = re.compile(r"(?:\$\$?|\\\(|\\\[)(.+?)(?:\$\$?|\\\)|\\\])(.*)")

# What makes another value of the formula before it: $5$%, $5$ less, $5$ or more.
JOINED = re.compile(r"\s*(?:[%!/^_*](?!\*)|[a-z](?![a-z]))")
CHANGING = units.NO_UNIT - units.MULTIPLIERS - frozenset(
  "and or to for when where if of is are either unless equals over on but theta alpha"
  " beta gamma base only pair pairs different power root".split()
) | {"remainder", "alternatively"}


def verify(reference: str, text: str) -> Verdict:
  """Correct where the completion's final answer equals the reference."""
  boxes = extract.boxed(text)
  found = in_words(text) if boxes is None else ", ".join(boxes).strip()
  if not found:
    return Verdict(0.0, None, "no answer in the reply")
  several = boxes or [found]
  same = answers.compare(reference, found, algebra) is True or (
    len(several) > 1
    and all(answers.compare(reference, box, algebra) is True for box in several)
  )
  return Verdict(float(same), found)


def in_words(text: str) -> str | None:
  """The answer that a completion states without a box; None where it states none."""
  if (after := extract.stated(text)) is None:
    return None
  after = after.strip("*: \n")
  sentence = extract.SENTENCE.split(after, maxsplit=1)[0].strip()
  match = MATHS.match(sentence)
  if match and not re.search(r"[0-9$]|\b(?:or|and|not)\b", match[2]):
    content, end = match[1].strip(), match.start(2)
    if changes(match[2]) or extract.is_part(sentence, match.start(), end):
      return sentence
    return content + extract.unit_after(content, sentence, end)
  return sentence


def changes(after: str) -> bool:
  """Whether the words after a formula change its value or deny it."""
  words = set(re.findall("[a-z]+", after.casefold()))
  return bool(
    JOINED.match(after)
    or any(map(units.multiplies, words))
    or words & CHANGING
    or re.search(r"\b(?:is|was|,)\s+(?:wrong|incorrect|false|untrue)\b", after)
  )


task = verify_only.task("maths", verify)
