"""Grade-school maths (Cobbe et al. 2021, arXiv:2110.14168): a number.

The answer follows the last `####`, else is in the last \\boxed{}, else is the last
number.
"""

import re

from opsd_jax.structs import Verdict
from opsd_jax.tasks import verify_only
from opsd_jax.tasks.grading import answers, notation, units
from opsd_jax.tasks.grading.extract import after_hashes, last_boxed

PLAIN = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
NUMBER = re.compile(rf"(?:(?<![\w)])-)?(?:{PLAIN})(?:\s*/\s*(?:{PLAIN}))?(?:\s*\\?%)?")
DRESS = re.compile(
  r"(?<=[0-9])\{,\}(?=[0-9])|\\[!,]|\\?\$|[£€¥₹]|\*\*"
  r"|\\(?:text|math)(?:bf|rm|it)?\s*(?=\{)"
)
DASHES = str.maketrans(dict.fromkeys("‐‑‒–—―－﹣", "-"))
HEADING = re.compile(r"\W*[A-Za-z]{2}[^=\n]*(?:\n|$)")
JOINED_BEFORE = re.compile(
  r"(?:[\^_/!.]|[\^_}]\{|[0-9][eE][+-]?|\\(?:sqrt|pm|ne|approx)\s*\{?"
  r"|\b(?:minus|negative|not|twice|double|triple|half(?: of)?)\s+|=\s*-\s*)$",
  re.IGNORECASE,
)
JOINED_AFTER = re.compile(
  r"\s*(?:\^|\*\s*[0-9]|\\(?:frac|times|pi)|×|/\s*[0-9])|[eE][+-]?[0-9]"
  r"|[¼¾⅐-⅞⁰¹⁴-⁹]|\s+and\s+(?:an?|one|two|three|four)[\s-]+(?:hal|third|quarter"
  r"|fourth|fifth|sixth|seventh|eighth|ninth|tenth)",
  re.IGNORECASE,
)
FORMULA_BEFORE = re.compile(r"[-+*/<>^|~\\]\s*$|[+*/<>^|~\\]")
FORMULA_AFTER = re.compile(r"\s*(?:[+*/^<>=]|-\s*[\w(])")
WORD_AFTER = re.compile(r"([\s{-]*)([a-z]+)", re.IGNORECASE)
SHORT = frozenset(("k", "K", "M", "B", "mn", "bn"))  # multipliers, as in 5 K
COMMAND = re.compile(r"\\[a-zA-Z]")


def verify(reference: str, text: str) -> Verdict:
  """Correct where the number equals the reference exactly."""
  reference = reference.rpartition("####")[2]
  stated = final(text)
  if stated is not None and answers.compare(reference, stated):
    return Verdict(1.0, stated.strip())
  found = last_number(text if stated is None else stated, stated is not None)
  if found is None:
    return Verdict(0.0, stated, "no number in the reply")
  return Verdict(float(answers.compare(reference, found) is True), found)


def final(text: str) -> str | None:
  """The line that states the answer; None where the completion marks none."""
  after = after_hashes(text)
  if after is not None:
    return None if HEADING.match(after) else after.strip().partition("\n")[0]
  return last_boxed(text)


def last_number(text: str, alone: bool) -> str | None:
  """The last number, with its slash and percent sign; None where it is a part of
  another value (2^10, 5 million, minus 5, 5k).

  `alone`: None also where another number follows the last "=", or where the number
  is part of a formula.
  """
  text = DRESS.sub("", text.translate(notation.GLYPHS).translate(DASHES))
  text = text.rpartition("=")[2] if alone else text
  matches = list(NUMBER.finditer(text))
  if not matches or (alone and (len(matches) > 1 or COMMAND.search(text))):
    return None
  last = matches[-1]
  before, after = text[: last.start()], text[last.end() :]
  is_mixed = "/" in last[0] and re.search(r"[0-9]\s+$", before)
  is_formula = alone and (FORMULA_BEFORE.search(before) or FORMULA_AFTER.match(after))
  if (
    is_mixed
    or is_formula
    or JOINED_BEFORE.search(before[-20:])
    or JOINED_AFTER.match(after)
    or is_multiplied(WORD_AFTER.match(after))
  ):
    return None
  return last[0]


def is_multiplied(after) -> bool:
  """Whether the word after a number changes its value: 5 million, 5k."""
  if not after:
    return False
  space, word = after[1].replace("{", ""), after[2].casefold()
  is_unit = units.is_unit(word) or word in units.UNITS
  is_short = after[2] in SHORT
  return units.multiplies(word) or is_short or not (space or is_unit)


task = verify_only.task("gsm8k", verify)
