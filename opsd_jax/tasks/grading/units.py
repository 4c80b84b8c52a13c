"""Units of a number, and the words that are not one."""

import re


class NotAUnit(ValueError):
  """The words after a number are no unit, or they change its value."""


TAIL = re.compile(  # a number, and after it "cm^2", degrees or words in quotes
  r'(.*?[0-9.})\]]|.*\\pi)\s*(\\deg|%|"[^"]*"(?:\s*\^\s*\{?[0-9]\}?)?'
  r"|[a-zA-Z]{2,}(?: [a-zA-Z]{2,})*(?:\s*\^\s*\{?[23]\}?)?)\s*"
)
# Words that change the value of the number before them.
MULTIPLIERS = frozenset(
  "hundred hundreds thousand thousands million millions billion billions"
  " trillion trillions dozen dozens score half halves third thirds fourth"
  " fourths quarter quarters fifth fifths sixth sixths seventh sevenths"
  " eighth eighths ninth ninths tenth tenths hundredth hundredths thousandth"
  " thousandths squared cubed factorial percent point lakh lakhs crore"
  " crores gross grand kilo double doubled triple tripled".split()
)
NO_UNIT = MULTIPLIERS | frozenset(
  "and or not no to times plus minus over more less than base mod modulo pi"
  " theta alpha beta gamma infinity power if for when where sin cos tan log"
  " ln exp sqrt pair pairs of either unless is are equals wrong incorrect"
  " root above below zero negative fewer too false untrue".split()
)
UNITS = {
  "cm": "centimeter",
  "mm": "millimeter",
  "km": "kilometer",
  "m": "meter",
  "kg": "kilogram",
  "g": "gram",
  "mg": "milligram",
  "gm": "gram",
  "ft": "foot",
  "feet": "foot",
  "inches": "inch",
  "in": "inch",
  "yd": "yard",
  "mi": "mile",
  "h": "hour",
  "hr": "hour",
  "hrs": "hour",
  "s": "second",
  "sec": "second",
  "min": "minute",
  "mins": "minute",
  "l": "liter",
  "ml": "milliliter",
  "litre": "liter",
  "metre": "meter",
  "lb": "pound",
  "lbs": "pound",
  "oz": "ounce",
  "deg": "degree",
  "cents": "cent",
  "centimetre": "centimeter",
  "kilometre": "kilometer",
  "people": "person",
}
SHORT_UNITS = frozenset(
  "cm mm km kg ft ml mL in hr hrs min lb lbs oz mph sq men day cup pie usd per".split()
)
ANOTHER_NUMBER = re.compile(  # twelfths, quadrillion, tenfold
  r".*(?:(?:teen|ie|el[fv]|even|undred|ousand|illion)ths?|illions?|fold)"
)


def is_unit(text: str) -> bool:
  """Whether a text is a unit, and not a product of variables such as xy."""
  words = re.findall(r"[a-zA-Z]+", text)
  if text.startswith('"'):
    return all(len(w) > 1 or w.casefold() in UNITS for w in words)
  return (
    not words
    or text.startswith("\\deg")
    or all(len(w) > 3 or w in SHORT_UNITS for w in words)
  )


def multiplies(word: str) -> bool:
  """Whether a word changes the number before it, as million and twelfths do."""
  return word in MULTIPLIERS or ANOTHER_NUMBER.fullmatch(word) is not None


def normalize(text: str) -> str:
  """ "cm^2" -> "centimeter^2"; raises NotAUnit for words that are no unit."""
  if text in ("\\deg", "%"):
    return {"\\deg": "degree", "%": "%"}[text]
  words, _, power = text.partition("^")
  words = re.findall(r"[a-z]+", words.casefold())
  if NO_UNIT & set(words) or any(map(multiplies, words)):
    raise NotAUnit
  if re.search(r"[0-9]", text.partition("^")[0]):
    raise NotAUnit
  power = "".join(c for c in power if c in "0123456789")
  for word, p in (("square", "2"), ("sq", "2"), ("cubic", "3")):
    if word in words:
      words.remove(word)
      power = p
  known = [
    UNITS.get(w) or UNITS.get(w.removesuffix("s")) or w.removesuffix("s") for w in words
  ]
  return " ".join(known) + (f"^{power}" if power else "")
