"""Grade-school maths (Cobbe et al. 2021, arXiv:2110.14168): a number.

The answer follows the last `####`, else is in the \\boxed{} (several are several
answers), else in the sentence after "the answer is" or in <answer></answer>, else is
the last number. A stated answer may be in words: forty-two, minus 4. Of "5 of the 12"
it is the first number; two other numbers are no answer, unless they only give its
reason (9, not 10; 18, since 9 * 2 = 18). A number that words beside it change or deny
(the root of 9, close to 9, 9 is too small) is none.
"""

import re

from opsd_jax.structs import Verdict
from opsd_jax.tasks import verify_only
from opsd_jax.tasks.grading import answers, around, notation, number_words, units
from opsd_jax.tasks.grading.extract import (
  SENTENCE,
  TAKEN_BACK,
  after_hashes,
  boxed,
  in_words,
)

PLAIN = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
NUMBER = re.compile(rf"(?:(?<![\w)])-)?(?:{PLAIN})(?:\s*/\s*(?:{PLAIN}))?(?:\s*\\?%)?")
DRESS = re.compile(
  r"(?<=[0-9])\{,\}(?=[0-9])|\\[!,]|(?<![0-9])\\?\$|\\?\$(?![0-9])|[£€¥₹]|(?<![0-9])\*\*|\*\*(?![0-9])"
  r"|\\(?:text|math)(?:bf|rm|it)?\s*(?=\{)"
)
# The last number of a reply that states none, denied: "She does not have 18 eggs".
DENIED_BEFORE = re.compile(
  r"(?:n['’]t|\b(?:not|cannot|never|neither|nor))\s+(?:[a-z]+\s+){0,2}[$£€]?$"
  r"|\b(?:doubt|false|wrong to|not true|not the case)\b[^.!?\n]*$|n['’]t think\b[^.!?\n]*$"
  r"|(?:\bat (?:most|least)|[0-9]\s+or|\b(?:less|more|fewer) than)\s+[$£€]?$",
  re.IGNORECASE,
)
DENIED_AFTER = re.compile(r"\s*(?:[a-z]+\s+)?(?:is|was) (?:wrong|incorrect|false)\b")
APPROXIMATE = re.compile(r"[\s$(*]*(?:[≈~∼]|\\approx|approx\b)")
SIDE = re.compile(  # what makes a number before "=" another value than the one after
  r"[0-9]\W*(?:[,;(]|\b(?:rounded|from|either|or|as|for|if|when)\b)"
  r"|[0-9]\s*[a-z]\s*$",
  re.IGNORECASE,
)
HEADING = re.compile(r"\W*[A-Za-z]{2}[^=\n]*(?:\n|$)")
JOINED_BEFORE = re.compile(
  r"(?:(?<![a-z])[a-z]|[0-9][ ]?[x×*][ ]?|[\^_/!.]|[\^_}]\{|[0-9][eE][+-]?|\\(?:sqrt|pm|ne|approx)\s*\{?"
  r"|\b(?:minus|negative|not|twice|double|triple|half(?: of)?)\s+|=\s*-\s*)$",
  re.IGNORECASE,
)
JOINED_AFTER = re.compile(
  r"\s*(?:\^|\*\s*[0-9]|\\(?:frac|times|pi)|×|/\s*[0-9])|[eE][+-]?[0-9]"
  r"|[¼¾⅐-⅞⁰¹⁴-⁹]|\s+and\s+(?:an?|one|two|three|four)[\s-]+(?:hal|third|quarter"
  r"|fourth|fifth|sixth|seventh|eighth|ninth|tenth)",
  re.IGNORECASE,
)
FORMULA_BEFORE = re.compile(r"[-+*/<>^|~\\]\s*$|[+*/<>^|~\\]|[-\w]\(\s*$")
# Before a stated number: what is taken of it, or names one near to it.
APPLIED = re.compile(
  rf"(?:\b(?:thrice|sqrt|log|ln|exp|close to|near)|^\W*{around.WRONG}\b)\W*$",
  re.IGNORECASE,
)
BELOW_ZERO = re.compile(r"(?:\W*[a-z]+)?[\s{]+below\b", re.IGNORECASE)
NOT_EQUAL = re.compile(r"!=|≠|\\neq?(?![a-z])")
REASON = re.compile(r"\s(?:since|because)\b|,\s{1,9}not\b", re.IGNORECASE)
RESTATED = re.compile(r"\s*([0-9]+)\s*\(([a-z -]{3,99})\)")
FORMULA_AFTER = re.compile(r"\s*(?:[+*/^<>=]|-\s*[\w(])")
WORD_AFTER = re.compile(r"([\s{-]*)([a-z]+)", re.IGNORECASE)
SHORT = frozenset(("k", "K", "M", "B", "MM"))  # multipliers, as in 5 K
QUALIFIED = re.compile(
  r"\b(?:(?:more|less|fewer|greater|other) than|at (?:least|most)|over|under|about"
  r"|around|approximately|nearly|almost|roughly|perhaps|maybe|possibly|up to|of the"
  rf"|unknown|unclear|not|never|between|or|fewer|ago|younger"
  rf"|times as)\b|[0-9]\s*!|{number_words.ANY.pattern}",
  re.IGNORECASE,
)
PART_OF = re.compile(rf"({PLAIN})(?: ([a-z]+))? (?:out )?of the [0-9]+(?: [a-z]+)*\W*$")
UNEQUAL = re.compile(rf"\W*({PLAIN})\s*=\s*({PLAIN})\W*$")
COMMAND = re.compile(r"\\[a-zA-Z]")


def verify(reference: str, text: str) -> Verdict:
  """Correct where the number equals the reference exactly.

  Equal are values (18.0, $18, 18 dollars and 0 cents, 10% for 10 or 0.1, 6/day, 7:00
  PM for 7); a unit is not compared with the question's.
  """
  reference = reference.rpartition("####")[2]
  stated = final(text)
  if stated is None:
    *_, denial = [None, *TAKEN_BACK.finditer(text)]
    is_denied = denial and not re.search("[0-9]", text[denial.end() :])
    found = None if is_denied else last_number(text, alone=False)
  elif APPROXIMATE.match(stated):
    found = None
  else:
    if answers.compare(reference, stated):
      return Verdict(1.0, stated.strip())
    part = PART_OF.match(stated)
    words = re.findall("[a-z]+", part[0].casefold()) if part else ()
    is_part = part and not any(map(units.multiplies, words))
    claim = REASON.split(stated, maxsplit=1)[0]
    found = part[1] if is_part else last_number(claim, alone=True)
  if found is None:
    return Verdict(0.0, stated, "no number in the reply")
  return Verdict(float(answers.compare(reference, found) is True), found)


def final(text: str) -> str | None:
  """The line or sentence that states the answer; None where the completion marks
  none."""
  after = after_hashes(text)
  if after is not None:
    first, _, more = after.strip().partition("\n")
    line = without_repetition(number_words.with_digits(first))
    is_heading = HEADING.match(line) and (more.strip() or not re.search("[0-9]", line))
    return None if is_heading else line
  if (boxes := boxed(text)) is not None:
    return number_words.with_digits(", ".join(boxes))
  if (after := in_words(text)) is None:
    return None
  sentence = SENTENCE.split(after.strip("*: \n"), maxsplit=1)[0].strip()
  sentence = without_repetition(number_words.with_digits(sentence))
  return sentence if re.search("[0-9]", sentence) else None


def without_repetition(line: str) -> str:
  """5 (five) -> 5"""
  match = RESTATED.match(line)
  same = match and number_words.with_digits(match[2]) == match[1]
  return match[1] + line[match.end() :] if same else line


def last_number(text: str, alone: bool) -> str | None:
  """The last number, with its slash and percent sign; None where it is a part of
  another value (2^10, 5 million, minus 5, 5k).

  `alone`: None also where another number follows the last "=", or where the number
  is part of a formula.
  """
  text = DRESS.sub("", notation.ascii_notation(text))
  if alone and NOT_EQUAL.search(text):
    return None
  if alone and UNEQUAL.match(text) and len({*UNEQUAL.match(text).groups()}) > 1:
    return None
  if alone and "=" in text:
    side, _, text = text.rpartition("=")
    first = NUMBER.search(side)
    if SIDE.search(side) and not (first and first[0] in NUMBER.findall(text)):
      return None
  matches = list(NUMBER.finditer(text))
  if not matches:
    return None
  if alone and (len(matches) > 1 or COMMAND.search(text) or QUALIFIED.search(text)):
    return None
  last = matches[-1]
  before, after = text[: last.start()], text[last.end() :]
  is_mixed = "/" in last[0] and re.search(r"[0-9]\s+$", before)
  if alone and is_changed(before, after):
    return None
  if not alone and (DENIED_BEFORE.search(before[-60:]) or DENIED_AFTER.match(after)):
    return None
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


def is_changed(before: str, after: str) -> bool:
  """Whether the words beside a stated number make another value of it or deny it."""
  return bool(
    APPLIED.search(before) or BELOW_ZERO.match(after) or around.is_denied(before, after)
  )


def is_multiplied(after) -> bool:
  """Whether the word after a number changes its value: 5 million, 5k."""
  if not after:
    return False
  space, word = after[1].replace("{", ""), after[2].casefold()
  is_unit = units.is_unit(word) or word in units.UNITS
  is_short = after[2] in SHORT
  return units.multiplies(word) or is_short or not (space or is_unit)


task = verify_only.task("gsm8k", verify)
