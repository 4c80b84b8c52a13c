"""Whether two short answers are the same, compared exactly and cheaply.

  compare("\\\\frac{1}{2}", "0.5")  -> True
  compare("(1,2)", "[1,2]")       -> False
  compare("x^2-1", "(x+1)(x-1)")  -> None: left to a computer algebra system

Two answers are the same by these rules:
- numbers are the same when their values are equal; 0.333 is not 1/3. Where the
  reference is a number written out, a sum or product (2 + 3 for 5) is no answer;
- one side may leave out a unit, a percent sign or a variable's name (x = 3); two
  different units or names are different answers. 50% is also 0.5;
- a list without brackets or in braces has no order, and in braces no repetition
  either; a list in ( ) or [ ] has an order, and the kind of bracket counts;
- words are compared by their letters, whatever their case.
"""

import re
from typing import Any, NamedTuple

from opsd_jax.tasks.grading import exact_numbers, units
from opsd_jax.tasks.grading.notation import (
  RELATION,
  clean,
  closing,
  folded,
  has_words,
  split,
  squeezed,
)

LONGEST = 1000  # characters of an answer; longer ones are compared as text


class Value(NamedTuple):
  """An answer that has been read."""

  kind: str  # scalar, tuple, set, union, matrix, relation, text
  data: Any = None  # None: a value that this file cannot read
  unit: str = ""
  name: str = ""  # the variable whose value it is, as x in x = 3
  plain: bool = True  # see exact_numbers.Read


class Text(Exception):
  """The answer can only be compared letter by letter."""


# ---------------------------------------------------------- reading an answer

NAMED = re.compile(
  r"([A-Za-z](?:_(?:\w|\{\w+\}))?|[a-zA-Z]\([a-zA-Z]\)|\\theta|\\alpha)\s*"
  r"(?:=|\\in(?![a-zA-Z]))\s*(.+)"
)
CHOICE = re.compile(r'["(]*\s*\(?([A-Z])\)?\s*[")]*')
CHOICES = re.compile(r'"?\s*[A-Z](?:\s*,\s*[A-Z])+\s*"?')
THOUSANDS = re.compile(r"(?<![0-9.,])([0-9]{1,3})((?:,[0-9]{3})+)(?![0-9]|,[0-9])")
ZEROS = re.compile(r"(?<![0-9.])0[0-9]")
MATRIX = re.compile(r"\\begin\{([pb]?)matrix\}(.*)\\end\{\1matrix\}", re.DOTALL)


def read(text: str) -> Value:
  """The Value of a cleaned answer."""
  name = ""
  if (match := NAMED.fullmatch(text)) and not RELATION.search(match[2]):
    name, text = match[1].replace(" ", ""), match[2]
  if match := re.fullmatch(r'"\s*([^"a-zA-Z]+)"', text):
    text = match[1].strip()
  try:
    return shape(text)._replace(name=name)
  except Text:
    return Value("text", folded(text), name=name)


def shape(text: str) -> Value:
  """The Value by the answer's outermost form; raises Text where there is none."""
  if match := CHOICE.fullmatch(text):
    return Value("text", match[1])
  if CHOICES.fullmatch(text):
    return Value("text", ",".join(sorted(re.findall("[A-Z]", text))))
  if RELATION.search(text):
    return Value("relation")
  if match := MATRIX.fullmatch(text):
    rows = [row for row in match[2].split("\\\\") if row.strip()]
    return collected("matrix", [scalars(split(row, "&")) for row in rows])
  if len(parts := split(text, "\\cup")) > 1:
    return collected("union", [shape(part) for part in parts], once)
  last = len(text) - 1
  if text[:2] == "\\{" and text[-2:] == "\\}" and closing(text, 1) == last:
    return listed(text[2:-2], once)
  if text in ("\\emptyset", "\\varnothing", "\\{\\}"):
    return Value("set", ())
  if text[:1] in tuple("([") and closing(text, 0) == last:
    items = split(text[1:-1], ",")
    if len(items) > 1:
      if any(ZEROS.match(item) for item in items):
        raise Text
      return collected(text[0] + "tuple" + text[-1], scalars(items))
  bare = re.sub(r"\s(?:and|or)\s|;", ",", text)
  if not set(bare) & set("([{"):
    bare = THOUSANDS.sub(joined, bare)
  bare = re.sub(r",(?:\s*,)+", ",", bare)
  if len(split(bare, ",")) > 1 or "\\pm" in bare:
    return listed(bare)
  return scalar(bare)


def without_order(data) -> tuple:
  return tuple(sorted(data, key=repr))


def once(data) -> tuple:
  return without_order(set(data))


def joined(match) -> str:
  return match[1] + match[2].replace(",", "")


def scalars(items) -> list[Value]:
  return [scalar(item) for item in items]


def listed(text: str, arranged=without_order) -> Value:
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
  values = [(shape if i[:1] in tuple("([") else scalar)(i) for i in items]
  return collected("set", values, arranged)


def collected(kind: str, items: list, arranged=tuple) -> Value:
  """One Value of several; its data is None where one of theirs is.

  A unit that all items share may be left out, like the unit of a number; where
  units differ, each is a part of its item's value.
  """
  flat = [v for i in items for v in (i if isinstance(i, list) else (i,))]
  if any(v.data is None for v in flat):
    return Value(kind)
  found = {v.unit for v in flat} - {""}

  def key(v):
    return (v.kind, v.data, v.unit if len(found) > 1 else "")

  data = [tuple(map(key, i)) if isinstance(i, list) else key(i) for i in items]
  return Value(
    kind,
    arranged(data),
    unit=found.pop() if len(found) == 1 else "",
    plain=all(v.plain for v in flat),
  )


# ---------------------------------------------------- a number and its unit

TIMES_OF_DAY = re.compile(r"[0-9]{1,2}:[0-9]{2}.*")


def scalar(text: str) -> Value:
  """The Value of a number with or without a unit, of infinity or of an unknown."""
  text = text.strip()
  if not text or TIMES_OF_DAY.fullmatch(text) or len(text) > LONGEST:
    raise Text
  if match := re.fullmatch(r"([+-]?)\s*\\infty", text):
    return Value("scalar", match[1].replace("+", "") + "infinity")
  if re.fullmatch(r"[+-]?[0-9A-F.]+\s*_\s*\{?\s*\S+\s*\}?", text):
    raise Text  # digits in another base
  number, unit = text, ""
  if (match := units.TAIL.fullmatch(text)) and units.is_unit(match[2]):
    number, unit = match[1], named_unit(match[2])
    if unit == "degree" and "\\pi" in number:
      raise Text  # an angle in degrees and in radians
  elif has_words(text) or ":" in text:
    raise Text
  try:
    value, plain = exact_numbers.read(number)
  except exact_numbers.Ambiguous as e:
    raise Text from e
  except exact_numbers.Unknown as e:
    if unit and unit not in ("%", "degree"):
      raise Text from e
    return Value("scalar", unit=unit)
  return Value("scalar", tuple(sorted(value.items())), unit, plain=plain)


def named_unit(text: str) -> str:
  try:
    return units.normalize(text)
  except units.NotAUnit as e:
    raise Text from e


# -------------------------------------------------------------- comparison


def compare(reference: str, answer: str) -> bool | None:
  """Whether an answer equals the reference; None where this file cannot decide."""
  if len(answer) > LONGEST or len(reference) > LONGEST:
    return reference.strip() == answer.strip()
  reference, answer = clean(reference), clean(answer)
  if not reference or not answer:
    return False
  if squeezed(reference) == squeezed(answer):
    return True
  a, b = read(reference), read(answer)
  if "text" in (a.kind, b.kind):
    return (a.kind, a.data) == (b.kind, b.data) and is_compatible(a.name, b.name)
  if a.kind != b.kind:
    return None if may_be_equal(a, b, reference, answer) else False
  if a.data is None or b.data is None:
    return None if a.unit == b.unit else False
  if a.plain and not b.plain:
    return False
  if "%" in (a.unit, b.unit) and a.kind == "scalar":
    return is_compatible(a.name, b.name) and equal_percentages(a, b)
  if not is_compatible(a.name, b.name) or not is_compatible(a.unit, b.unit):
    return False
  if a.kind == "union" and a.data != b.data:
    return None  # the parts of a union may overlap
  return a.data == b.data


def is_compatible(a: str, b: str) -> bool:
  """Whether two units or names are equal, or one is left out."""
  return not a or not b or a == b


def may_be_equal(a: Value, b: Value, *texts: str) -> bool:
  """Whether values of two kinds may be equal, as x > 3 and (3, infinity) are.

  False where (3, 5) may be a point, and for equations, which are no intervals.
  """
  if "relation" not in (a.kind, b.kind):
    return False
  relation, other = texts if a.kind == "relation" else texts[::-1]
  kind = b.kind if a.kind == "relation" else a.kind
  is_interval = kind in ("union", "(tuple]", "[tuple)", "[tuple]") or (
    kind == "(tuple)" and "\\infty" in other
  )
  return is_interval and not re.search("=", relation)


def equal_percentages(a: Value, b: Value) -> bool:
  """Compares where one side has a percent sign: p% equals p / 100, and also p,
  since the sign may be left out."""
  x, y = dict(a.data), dict(b.data)
  if a.unit and b.unit:
    return a.unit == b.unit and x == y
  hundredth = exact_numbers.rational(exact_numbers.Fraction(1, 100))

  def scale(v, unit):
    return exact_numbers.multiply(v, hundredth) if unit == "%" else v

  if scale(x, a.unit) == scale(y, b.unit):
    return True
  return x == y and (a.unit == "%" or x.get(exact_numbers.UNIT, 0) >= 1)
