"""Units of a number, and the words that are not one.

  parse('"miles per hour"') -> Measure((("hour", -1), ("mile", 1)), 1)
  parse('"km/h"')           -> Measure((("centimeter", 1), ("second", -1)), 250 / 9)

Units of one dimension convert (60 minutes are 1 hour); a word that is in no table is
a dimension of its own, in the singular (5 apples are not 5 pears). Currencies do not
convert, nor do months to days or degrees Celsius to Fahrenheit.
"""

import re
from fractions import Fraction
from typing import NamedTuple


class NotAUnit(ValueError):
  """The words after a number are no unit, or they change its value."""


class Measure(NamedTuple):
  """Powers of dimensions, and how many of their base units the unit is."""

  dimensions: tuple[tuple[str, int], ...]
  factor: Fraction = Fraction(1)


# Words that change the value of the number before them.
MULTIPLIERS = frozenset(
  "hundred hundreds thousand thousands million millions billion billions"
  " trillion trillions dozen dozens score half halves third thirds fourth"
  " fourths quarter quarters fifth fifths sixth sixths seventh sevenths"
  " eighth eighths ninth ninths tenth tenths hundredth hundredths thousandth"
  " thousandths squared cubed factorial percent point lakh lakhs crore"
  " crores gross grand kilo double doubled triple tripled percentage"
  " tens bn mn mil mln myriad myriads mille permille ppm ppb bps basis percentile".split()
)
NO_UNIT = MULTIPLIERS | frozenset(
  "and or not no to times plus minus over more less than base mod modulo pi"
  " theta alpha beta gamma infinity power if for when where sin cos tan log"
  " ln exp sqrt pair pairs of either unless is are equals wrong incorrect"
  " root above below zero negative fewer too false untrue approximately about"
  " nearly almost remaining short off away left except but only at most least approx roughly maybe perhaps possibly maximum"
  " minimum inclusive exclusive different ago younger max extraneous rejected invalid"
  " impossible discarded estimate estimated onwards upwards ish repeating"
  " recurring".split()
)
ANOTHER_NUMBER = re.compile(  # twelfths, quadrillion, tenfold
  r".*(?:(?:teen|ie|el[fv]|even|undred|ousand|illion)ths?|illions?|fold)"
)
PREFIXED = re.compile(r"[mM](?:[A-Z][a-z]?|eV|mol|cd|bar)")  # MW is not mW
# name and other names: (base unit, its power, how many of it).
KNOWN = {
  names: (base, power, Fraction(factor))
  for names, base, power, factor in (
    ("mm millimeter millimetre", "centimeter", 1, "0.1"),
    ("cm centimeter centimetre", "centimeter", 1, 1),
    ("dm decimeter decimetre", "centimeter", 1, 10),
    ("m meter metre", "centimeter", 1, 100),
    ("km kilometer kilometre", "centimeter", 1, 100_000),
    ("inch inches in", "inch", 1, 1),
    ("ft foot feet", "inch", 1, 12),
    ("yd yard", "inch", 1, 36),
    ("mi mile", "inch", 1, 63_360),
    ("mg milligram", "gram", 1, "0.001"),
    ("g gm gram", "gram", 1, 1),
    ("kg kilogram", "gram", 1, 1000),
    ("oz ounce", "ounce", 1, 1),
    ("lb pound", "ounce", 1, 16),
    ("s sec second", "second", 1, 1),
    ("min minute", "second", 1, 60),
    ("h hr hour", "second", 1, 3600),
    ("day", "second", 1, 86_400),
    ("week", "second", 1, 604_800),
    ("month", "month", 1, 1),
    ("yr year", "month", 1, 12),
    ("ml mL milliliter millilitre", "centimeter", 3, 1),
    ("l L liter litre", "centimeter", 3, 1000),
    ("pint", "pint", 1, 1),
    ("quart", "pint", 1, 2),
    ("gallon gal", "pint", 1, 8),
    ("dollar usd", "dollar", 1, 1),
    ("cent", "dollar", 1, "0.01"),
    ("euro eur", "euro", 1, 1),
    ("people person", "person", 1, 1),
    ("deg degree", "degree", 1, 1),
  )
}
UNITS = {name: entry for names, entry in KNOWN.items() for name in names.split()}
SPEEDS = {"mph": "mi / h", "kph": "km / h", "kmh": "km / h", "kmph": "km / h"}
SHORT_UNITS = frozenset(
  "cm mm km kg ft ml mL in hr hrs min lb lbs oz mph sq men day cup pie usd per"
  " eur usd USD EUR mi yd".split()
)
SIZES = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}

# A number, and after it "cm^2", "m"/"s", degrees or words in quotes. (?>...): a word
# is read in one way only, or a long row of them would take forever.
WORDS = r'>"[^"]*"|[a-zA-Z]+(?=[ /]*(?:/|per\b))|[a-zA-Z]{2,}|(?<=/)\s*[a-zA-Z]'
POWER = r"(?:\s*\^\s*(?:[0-9]|\{\s*-?[0-9]+\s*\}))?"
TAIL = re.compile(
  r"(.*?[0-9.})\]!]|.*\\pi)\s*(\\deg\s*(?:\"?\s*[CF]\s*\"?)?|%"
  rf"|(?:/\s*)?(?{WORDS}){POWER}(?:\s*[ /.]\s*(?{WORDS}){POWER})*)\s*"
)
FRACTION = re.compile(
  r'\\frac\s*\{\s*("[^"]*")\s*\}\s*\{\s*("[^"]*")' + POWER + r"\s*\}"
)
PART = re.compile(r"[a-zA-Z]+|/|\^\s*\{?\s*(-?[0-9]+)\s*\}?|\S")


def is_unit(text: str) -> bool:
  """Whether a text is a unit, and not a product of variables such as xy."""
  words = re.findall(r"[a-zA-Z]+", text)
  if text.startswith('"'):
    return all(len(w) > 1 or known(w) for w in words)
  if "/" in text and len(words) > 1:
    return all(len(w) > 3 or known(w) for w in words)
  return (
    not words
    or text.startswith("\\deg")
    or all(len(w) > 3 or w in SHORT_UNITS for w in words)
  )


def known(word: str):
  """The table's entry of a word in the singular or plural; None without one."""
  if len(word) < 3:  # M is not m
    return UNITS.get(word)
  return UNITS.get(word) or UNITS.get(word.casefold().removesuffix("s"))


def multiplies(word: str) -> bool:
  """Whether a word changes the number before it, as million and twelfths do."""
  return word in MULTIPLIERS or ANOTHER_NUMBER.fullmatch(word) is not None


def parse(text: str) -> Measure | str:
  """The Measure of the words after a number, "%" for a percent sign; raises NotAUnit."""
  if text == "%":
    return text
  if text.startswith("\\deg"):
    scale = text.removeprefix("\\deg").strip('" ')
    return Measure(((f"degree{scale}", 1),))
  powers, factor = {}, Fraction(1)
  side, size, last = 1, 1, None
  for match in PART.finditer(spelt_out(text)):
    part = match[0]
    if part == "/":
      side, last = -1, None
    elif match[1]:
      if last is None:
        raise NotAUnit
      base, power, scale, signed = last
      extra = int(match[1]) - 1
      powers[base] = powers.get(base, 0) + signed * power * extra
      factor *= scale ** (signed * extra)
      last = None
    elif not part.isalpha():
      raise NotAUnit
    elif part.casefold() in SIZES:
      size = SIZES[part.casefold()]
    else:
      base, power, scale = dimension(part)
      last = (base, power, scale, side * size)
      powers[base] = powers.get(base, 0) + side * size * power
      factor *= scale ** (side * size)
      size = 1
  if size != 1:
    raise NotAUnit
  return Measure(tuple(sorted((b, p) for b, p in powers.items() if p)), factor)


def spelt_out(text: str) -> str:
  text = re.sub(r"\(([a-zA-Z ]+)\)", r"\1", text.replace('"', " "))
  text = re.sub(r"(?<![a-zA-Z])per(?![a-zA-Z])", "/", text)
  text = re.sub(r"(?<=[a-z]) an?(?= [a-z])", "/", text)
  text = re.sub(r"(?<=/)\s*(?:an?|each|one)(?![a-zA-Z])", " ", text)
  text = re.sub(r"(?<=[a-z])\.", " ", text)
  return re.sub("[a-zA-Z]+", lambda m: SPEEDS.get(m[0].casefold(), m[0]), text)


def dimension(word: str) -> tuple[str, int, Fraction]:
  """(base unit, power, factor) of one word; raises NotAUnit."""
  low = word.casefold()
  if low in NO_UNIT or multiplies(low) or word == "MM":
    raise NotAUnit
  if entry := known(word):
    return entry
  if len(low) < 2:
    raise NotAUnit
  if PREFIXED.fullmatch(word):
    low = word
  return low.removesuffix("s"), 1, Fraction(1)
