"""Reading a cleaned answer: its outermost form, its items, its unit and its name.

Read are numbers with and without a unit, times of day, lists, sets, tuples,
matrices, sets of real numbers, relations, systems (x = 1, y = 2), choices with their
value ((C) 12) and words. What is none of them is text, compared letter by letter.
"""

import re
from typing import Any, NamedTuple

from opsd_jax.tasks.grading import exact_numbers, solution_sets, units
from opsd_jax.tasks.grading.notation import (
  RELATION,
  closing,
  folded,
  has_words,
  split,
  squeezed,
)

LONGEST = 1000  # characters of an answer; longer ones are compared as text


class Value(NamedTuple):
  """An answer that has been read."""

  kind: str  # scalar, text, choice, time, real set, relation, system, set, matrix, ...
  data: Any = None  # None: a value that only computer algebra can compare
  unit: units.Measure | str = ""
  name: str = ""  # the variable whose value it is, as x in x = 3; "x in" for x \in ...
  plain: bool = True  # see exact_numbers.Read
  text: str = ""  # of the value, without its name and unit
  items: tuple = ()


class Text(Exception):
  """The answer can only be compared letter by letter."""


GREEK = r"\\(?:alpha|beta|gamma|delta|theta|lambda|mu|phi|omega|rho|sigma)(?![a-z])"
LETTER = rf"(?:[A-Za-z]|{GREEK})(?:\s*_\s*(?:\w|\{{[^{{}}=]+\}}))?"
ARGUMENT = r"\((?:[^()=]|\([^()=]*\))*\)"
POINTS = r"[A-Z]{1,4}'?"
ANGLE = rf"\\angle\s*(?:{POINTS}|{LETTER})"
NAME = re.compile(
  rf"(?![a-ekmnxyz]'*\s*\(){LETTER}'*(?:(?:\^\{{-1\}})?'*\s*{ARGUMENT})?|{POINTS}|m?\s*{ANGLE}"
  rf"|\\(?:overline|overrightarrow|vec|widehat)\s*\{{\s*(?:{POINTS}|{LETTER})\s*\}}"
  rf"|\|\s*{POINTS}\s*\||\[\s*{POINTS}\s*\]|\\(?:Pr|mathbb\s*\{{[PE]\}})\s*[(\[][^()=]*[)\]]"
  rf"|\\(?:sin|cos|tan)\s*(?:[A-Z]|{GREEK}|{ANGLE})"
  rf'|"[^"0-9=]+"\s*(?:(?:\\triangle\s*)?(?:[A-Z]{{1,4}})?|{ARGUMENT})'
)
NAMED = re.compile(rf"({NAME.pattern})\s*(=|\\in(?![a-zA-Z]))\s*(.+)")
CHOICE = re.compile(r'["(]*\s*\(?([A-Z])\)?\s*[")]*')
CHOICES = re.compile(r'"?\s*[A-Z](?:\s*,\s*[A-Z])+\s*"?')
CHOICE_AND_VALUE = re.compile(
  r'(?:"?\s*\(\s*"?\s*([A-J])\s*"?\s*\)|"?\s*([A-J])\s*[.):])\s*(?:"\s*)?'
  r'((?!\\(?:cdot|times|pm|cup|cap|div|le|ge|ne|in)(?![a-z]))[0-9a-zA-Z\\"].*)'
)
DENIALS = frozenset(
  "and or not no wrong incorrect false untrue but unless than".split()
)
# In the name of a value: "Twice the area" = 10 is not 10.
OTHER_VALUES = frozenset("twice thrice reciprocal impossible rejected".split())
ANOTHER_CHOICE = re.compile(r"\(\s*\"?\s*[A-J]\s*\"?\s*\)|\b[A-J]\b\s*[.)]|\b[B-J]\b")
THOUSANDS = re.compile(r"(?<![0-9.,])([0-9]{1,3})((?:,[0-9]{3})+)(?![0-9]|,[0-9])")
SPACED_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2}(?: [0-9]{3})+(?:\.[0-9]+)?")
ZEROS = re.compile(r"(?<![0-9.])0[0-9]")
MATRIX = re.compile(
  r"\\begin\{([pb]?)(?:small)?matrix\}(.*)\\end\{\1(?:small)?matrix\}", re.DOTALL
)
VECTOR = re.compile(r"\\langle(?![a-z])(.*)\\rangle", re.DOTALL)
TIME = re.compile(r"([0-9]{1,2})(?::([0-9]{2}))?\s*([ap])\.?\s?m\.?", re.IGNORECASE)
EMPTY_SETS = ("\\emptyset", "\\varnothing", "\\{\\}")
NO_SOLUTION = re.compile(
  r"(?:there (?:is|are) )?(?:none|no solutions?(?: exists?)?|(?:the )?empty set)"
)
MAY_BE_REAL_SET = re.compile(
  r"\\(?:cup|cap|reals|setminus)(?![a-z])|\breal|\ball\b"
  r"|\b(?:greater|less|larger|smaller) than\b|\bat (?:least|most)\b",
  re.IGNORECASE,
)
IN_WORDS = re.compile(r'"([^"0-9=]*\b(?:is|are|equals)|[^"0-9=]*:|exactly)\s*"\s*(.+)')
RAW_JOINT = re.compile(r'\s*"?\s*\b(and|or)\b\s*"?\s*')
SMALL_WORDS = re.compile(
  r"^(?:(?:on|in|at|the|a|an|it is|it's|there are|there is) )+", re.IGNORECASE
)
ANGLE_FUNCTION = re.compile(r"\\?(?:sin|cos|tan|sec|csc|cot)(?![a-z])")
QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]+)(?:\s+and(?![a-zA-Z]))?\s*")


def read(text: str) -> Value:
  """The Value of a cleaned answer."""
  name = ""
  if (match := NAMED.fullmatch(text)) and not RELATION.search(match[3]):
    if is_name(match[1]):
      name, text = name_of(match[1]), match[3]
      name += " in" if match[2] != "=" else ""
  if (match := IN_WORDS.fullmatch(text)) and not RELATION.search(match[2]):
    words = set(re.findall("[a-z]+", match[1].casefold()))
    if not words & (units.NO_UNIT | OTHER_VALUES) - {"is", "are", "of"}:
      name, text = folded(match[1]), match[2]
  if match := re.fullmatch(r'"\s*([^"a-zA-Z]+)"', text):
    text = match[1].strip()
  try:
    value = shape(text)
    return value._replace(name=name or value.name)
  except Text:
    return text_value(text)._replace(name=name)


def is_name(text: str) -> bool:
  """Whether a text names a value, as AB, f(2) and "Area" do in AB = 10."""
  if not NAME.fullmatch(text.strip()):
    return False
  words = re.findall("[a-z]+", text.casefold()) if '"' in text else []
  return not (set(words) - {"of"}) & (units.NO_UNIT | OTHER_VALUES)


def name_of(text: str) -> str:
  name = re.sub(r"\\(?:overline|mathbb|triangle)|[{}|\s]", "", text)
  return folded(name) if '"' in name else name


def text_value(text: str) -> Value:
  data = without_small_words(folded(text))
  if NO_SOLUTION.fullmatch(data):
    return Value("set", ())
  return Value("text", data, text=text)


def without_small_words(text: str) -> str:
  """ "on Monday" -> "Monday"; formulas as they are."""
  return SMALL_WORDS.sub("", text) if re.fullmatch(r"[a-zA-Z .']+", text) else text


def shape(text: str) -> Value:
  """The Value by the answer's outermost form; raises Text where there is none."""
  if match := CHOICE.fullmatch(text):
    return Value("choice", (match[1],))
  if CHOICES.fullmatch(text):
    return Value("text", ",".join(sorted(re.findall("[A-Z]", text))))
  if match := CHOICE_AND_VALUE.fullmatch(text):
    return choice(match[1] or match[2], match[3])
  if match := TIME.fullmatch(text.replace('"', " ").strip()):
    return time_of_day(match)
  if (value := assignments(text)) is not None:
    return value
  if RELATION.search(text) or MAY_BE_REAL_SET.search(text):
    if (found := solution_sets.read(text)) is not None:
      return Value("real set", found.intervals, name=found.variable, text=text)
  if RELATION.search(text):
    return Value("relation", text=text)
  return collection(text)


def choice(letter: str, rest: str) -> Value:
  """The letter of an option with the option's value."""
  rest = rest + '"' if rest.count('"') % 2 else rest
  words = set(re.findall("[a-z]+", rest.casefold()))
  if ANOTHER_CHOICE.search(rest) or words & DENIALS:
    raise Text
  return Value("choice", (letter, folded(rest)), items=(read(rest),))


def time_of_day(match) -> Value:
  hour, minute = int(match[1]), int(match[2] or 0)
  if not 1 <= hour <= 12 or minute > 59:
    raise Text
  since_midnight = 60 * (hour % 12 + 12 * (match[3] in "pP")) + minute
  return Value("time", since_midnight, text="" if minute else str(hour))


POINTS_NAMED = re.compile(r"(\([a-z](?:\s*,\s*[a-z])+\))\s*=\s*(\(.*\))")
POINT = re.compile(r"\(([a-z](?:\s*,\s*[a-z])+)\)\s*=\s*\((.*)\)")


def assignments(text: str) -> Value | None:
  """x = 1, y = 2 as a system; x = 1 or x = 2 as a list; None for other texts."""
  if (match := POINT.fullmatch(text)) and not RELATION.search(match[2]):
    names = [name.strip() for name in match[1].split(",")]
    items = split(match[2], ",")
    if len(items) == len(set(names)) == len(names):
      return system(names, list(map(item_value, items)), text)
  if (match := POINTS_NAMED.fullmatch(text)) and not RELATION.search(match[2]):
    items = list(map(item_value, split(match[2], ",")))
    if all(v.kind == "(tuple)" for v in items):
      return gathered("set", items, text)._replace(name=squeezed(match[1]))
  if text.count("=") < 2 or re.search(r"[<>]|\\(?:le|ge|ne)(?![a-z])", text):
    return None
  joints = {m[1] for m in RAW_JOINT.finditer(text)}
  parts = [NAMED.fullmatch(p) for p in split(RAW_JOINT.sub(",", text), ",") if p]
  if len(parts) < 2 or not all(p and p[2] == "=" for p in parts):
    return None
  if any(RELATION.search(p[3]) for p in parts):
    return None
  names = [name_of(p[1]) for p in parts]
  values = [read(p[3]) for p in parts]
  if len(set(names)) == 1:
    return gathered("set", values, text)._replace(name=names[0])
  if len(set(names)) < len(names) or "or" in joints:
    return None
  return system(names, values, text)


def system(names: list[str], values: list[Value], text: str) -> Value:
  """The values in their names' order."""
  pairs = sorted(zip(names, values, strict=True), key=lambda pair: pair[0])
  value = gathered("system", [v for _, v in pairs], text)
  return value._replace(name=",".join(sorted(names)))


# --------------------------------------------------------------- collections


def collection(text: str) -> Value:
  """A matrix, set, tuple or list, or a single value."""
  if match := MATRIX.fullmatch(text):
    rows = [split(row, "&") for row in match[2].split("\\\\") if row.strip()]
    return matrix(rows, text)
  if match := VECTOR.fullmatch(text):
    return matrix([[item] for item in split(match[1], ",")], text)
  if len(parts := split(text, "\\cup")) > 1:
    return gathered("union", distinct(map(shape, parts)), text)
  last = len(text) - 1
  if text in EMPTY_SETS:
    return Value("set", ())
  if text[:2] == "\\{" and text[-2:] == "\\}" and closing(text, 1) == last:
    return listed(text[2:-2], distinct)
  if text[:1] in tuple("([") and closing(text, 0) == last:
    items = split(text[1:-1], ",")
    if len(items) > 1:
      if any(ZEROS.match(item) for item in items):
        raise Text
      if text[0] == "(" and text.count("\\pm") == 1 and "\\mp" not in text:
        return listed(",".join(text.replace("\\pm", sign) for sign in "+-"))
      return gathered(text[0] + "tuple" + text[-1], map(item_value, items), text)
  if (value := compound(text)) is not None:
    return value
  bare = re.sub(r"\s(?:and|or)\s|;", ",", text)
  if not set(bare) & set("([{"):
    bare = THOUSANDS.sub(lambda m: m[1] + m[2].replace(",", ""), bare)
  bare = re.sub(r",(?:\s*,)+", ",", bare)
  if len(split(bare, ",")) > 1 or "\\pm" in bare:
    return listed(bare)
  return scalar(bare)


def matrix(rows: list[list[str]], text: str) -> Value:
  """Its items are its entries, row by row; its name is no name but its shape."""
  if len({len(row) for row in rows}) > 1:
    raise Text
  value = gathered("matrix", [scalar(e) for row in rows for e in row], text)
  kind = f"matrix of {len(rows)} rows"
  return value._replace(kind=kind)


def listed(text: str, arrange=list) -> Value:
  """An unordered list; a ± b stands for two of its items."""
  items = []
  for item in split(text, ","):
    if item.count("\\pm") == 1 and "\\mp" not in item:
      items += [item.replace("\\pm", sign) for sign in "+-"]
    else:
      items.append(item)
  if any(ZEROS.match(item) for item in items):
    raise Text
  if len(items) == 1:
    return scalar(items[0])
  return gathered("set", arrange(map(item_value, items)), text)


def item_value(text: str) -> Value:
  if text[:1] in tuple("([") and closing(text, 0) == len(text) - 1:
    return shape(text)
  return scalar(text)


def distinct(values) -> list[Value]:
  kept = []
  for value in values:
    if value.data is None or all((value[:3]) != (v[:3]) for v in kept):
      kept.append(value)
  return kept


def gathered(kind: str, items, text: str) -> Value:
  """One Value of several; its data is None where one of theirs is."""
  items = tuple(items)
  known = all(v.data is not None for v in items)
  data = tuple(sorted(repr(v[:3]) for v in items)) if known else None
  if kind.startswith(("(", "[", "matrix", "system")) and known:
    data = tuple(v[:3] for v in items)
  return Value(kind, data, plain=all(v.plain for v in items), text=text, items=items)


# ------------------------------------------------------- a number and its unit


def compound(text: str) -> Value | None:
  """3 hours and 5 minutes, as hours; None for other texts."""
  bare = re.sub(r'[",]', " ", text) if '"' in text else text
  bare = bare.strip()
  parts = QUANTITY.findall(bare)
  if len(parts) < 2 or QUANTITY.sub("", bare):
    return None
  try:
    measures = [(exact_numbers.Fraction(n), units.parse(u)) for n, u in parts]
  except units.NotAUnit:
    return None
  first, factors = measures[0][1], [u.factor for _, u in measures]
  if len({u.dimensions for _, u in measures}) > 1:
    return None
  if any(a <= b for a, b in zip(factors, factors[1:], strict=False)):
    return None
  total = sum(n * u.factor for n, u in measures) / first.factor
  data = tuple(exact_numbers.rational(total).items())
  return Value("scalar", data, first, text=text)


def scalar(text: str) -> Value:
  """The Value of a number with or without a unit, of infinity or of a formula."""
  text = text.strip()
  if not text or len(text) > LONGEST:
    raise Text
  if match := re.fullmatch(r"([+-]?)\s*\\infty", text):
    return Value("scalar", match[1].replace("+", "") + "infinity")
  if re.fullmatch(r"[+-]?[0-9A-F.]+\s*_\s*\{?\s*\S+\s*\}?", text):
    raise Text  # digits in another base
  if SPACED_THOUSANDS.fullmatch(text):
    text = text.replace(" ", "")
  number, unit = with_unit(text)
  try:
    value, plain = exact_numbers.read(number)
  except exact_numbers.Ambiguous as e:
    raise Text from e
  except exact_numbers.Unknown:
    return Value("scalar", None, unit, text=number)
  return Value("scalar", tuple(sorted(value.items())), unit, plain=plain, text=number)


def with_unit(text: str) -> tuple[str, units.Measure | str]:
  """(the number, its unit or ""); raises Text for other words."""
  if match := units.FRACTION.search(text):
    text = f"{text[: match.start()]}{match[1]}/{match[2]}" + text[
      match.end(2) :
    ].replace("}", "", 1)
  match = units.TAIL.fullmatch(text)
  if match and match[2].startswith("\\deg") and ANGLE_FUNCTION.search(match[1]):
    return text, ""  # the sine of so many degrees
  if match and units.is_unit(match[2].lstrip("/ ")):
    try:
      unit = units.parse(match[2])
    except units.NotAUnit as e:
      raise Text from e
    if "degree" in str(unit) and "\\pi" in match[1]:
      raise Text  # an angle in degrees and in radians
    return match[1], unit
  if has_words(text) or ":" in text:
    raise Text
  return text, ""
