"""Numbers in words: "forty-two apples" -> "42 apples"."""

import re

from opsd_jax.tasks.grading import units

ONES = {
  word: value
  for value, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen"
    " fourteen fifteen sixteen seventeen eighteen nineteen".split()
  )
}
TENS = {
  word: 10 * value
  for value, word in enumerate(
    "twenty thirty forty fifty sixty seventy eighty ninety".split(), 2
  )
}
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
NUMBER = "|".join((*ONES, *TENS, "hundred", *SCALES, "a(?=[ -]+(?:hundred|thousand))"))
ANY = re.compile(  # one may be no number
  rf"\b(?:{'|'.join([*ONES][2:])}|{'|'.join(TENS)}|hundred|thousand|million|half)\b",
  re.IGNORECASE,
)
LEADING = re.compile(
  rf"\s*(?:(minus|negative)\s+)?((?:{NUMBER})(?:(?:[\s-]+|\s+and\s+)(?:{NUMBER})\b)*)\b",
  re.IGNORECASE,
)
SIGNED = re.compile(r"^\s*(?:minus|negative)\s+(?=[$£€]?[0-9])", re.IGNORECASE)


def with_digits(text: str) -> str:
  """The text with the number in words at its beginning in digits: "minus 4" is -4.

  The text itself where it begins with none, or where more follows than words: "two
  ten", "four and a half", "one third", "ten minus two", "five of the 12".
  """
  text = SIGNED.sub("-", text, count=1)
  match = LEADING.match(text)
  if not match:
    return text
  value = value_of(re.findall("[a-z]+", match[2].casefold()))
  rest = text[match.end() :]
  words = set(re.findall("[a-z]+", rest.partition("\n")[0].casefold()))
  if value is None or words & (units.NO_UNIT - {"percent"}) or ANY.search(rest):
    return text
  return f"{'-' if match[1] else ''}{value}{rest}"


def value_of(words: list[str]) -> int | None:
  """two hundred and five -> 205; None for words in an order that is no number."""
  total, group, smallest = 0, 0, 10**12
  previous = None
  for word in words:
    if word == "and":
      if previous not in ("hundred", *SCALES):
        return None
    elif word == "a":
      if previous:
        return None
      group = 1
    elif word in ONES:
      if previous in ONES or (previous in TENS and not 0 < ONES[word] < 10):
        return None
      group += ONES[word]
    elif word in TENS:
      if previous in ONES or previous in TENS:
        return None
      group += TENS[word]
    elif word == "hundred":
      if not 0 < group < 20 or previous == "hundred":
        return None
      group *= 100
    else:
      if not 0 < group < 1000 or SCALES[word] >= smallest:
        return None
      total, group, smallest = total + group * SCALES[word], 0, SCALES[word]
    previous = word
  return None if previous == "and" else total + group
