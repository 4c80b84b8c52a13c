"""Exact: the reference's words, or its number.

The answer follows the last `####`, is in the last \\boxed{} or follows the last
"answer is"; without any of them the whole completion is the answer.

Values are compared only where both texts are one number, perhaps with a unit: 0.5 is
1/2 and 1,000 is 1000, but 3-2 is not 1, 007 not 7, and 3, 1, 2 keeps its order. Every
other text is compared letter by letter, but for spaces, quotes of markup and the full
stop at its end: *args is not args. The case of words counts only where it may tell two
words apart: in words of one or two letters (Co, CO), in those with capitals inside
(AaBb, kWh) and in units (5 Mg).
"""

import re

from opsd_jax.structs import Verdict
from opsd_jax.tasks import verify_only
from opsd_jax.tasks.grading import answers, notation
from opsd_jax.tasks.grading.extract import stated

DIGITS = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|0|[1-9][0-9]*)"
NUMBER = re.compile(  # of a cleaned answer
  rf"[-+]?(?:{DIGITS}(?:\.[0-9]+|/{DIGITS})?|\.[0-9]+|\\frac\{{{DIGITS}\}}\{{{DIGITS}\}})"
  r'(?:\s*(?:%|"[^"]*"|[a-zA-Z][a-zA-Z /]*))?'
)
WRAPPED = re.compile(
  r"\$([^$]*)\$|\\(?:text|mathrm|mbox)(?:bf|it|rm|sf|tt)?\s*\{([^{}]*)\}"
)
WORD = re.compile(r"[^\W\d_]+")


def verify(reference: str, text: str) -> Verdict:
  """Correct where both are the same number or the same words."""
  found = text if (marked := stated(text)) is None else marked
  found = found.strip()
  if "\n" not in reference.strip() and marked is not None:
    found = found.partition("\n")[0]
  found = notation.unstarred(found.rstrip(". "))
  if not found:
    return Verdict(0.0, None, "no answer in the reply")
  same = normalize(reference) == normalize(found)
  if not same and is_number(reference) and is_number(found):
    same = answers.compare(reference, found)
  return Verdict(float(bool(same)), found)


def is_number(text: str) -> bool:
  """Whether a text is one number, perhaps with a unit."""
  if len(text) > answers.LONGEST:
    return False
  return NUMBER.fullmatch(notation.clean(text)) is not None


def normalize(text: str) -> str:
  """Text without its markup, its spaces beside symbols and the case of its words."""
  text = notation.unstarred(" ".join(text.split())).rstrip(". ")
  if match := WRAPPED.fullmatch(text):
    text = (match[1] or match[2] or "").strip()
  text = notation.squeezed(text)
  words = WORD.findall(text)
  is_prose = any(len(word) > 2 for word in words) or text.casefold() in notation.LOUD
  is_plain = all(w.islower() or w.istitle() or w.isupper() for w in words)
  return text.casefold() if is_prose and is_plain else text


task = verify_only.task("exact", verify)
