"""Whether two short answers are the same: exact, and never by evaluating much.

  compare("\\\\frac{1}{2}", "0.5")  -> True
  compare("(1,2)", "[1,2]")       -> False
  compare("x^2-1", "(x+1)(x-1)")  -> None: for a computer algebra system

What counts as the same:
- numbers of equal value; 0.333 is not 1/3. Where the reference is a number
  written out, a sum or product of others (2 + 3 for 5) is not an answer;
- a unit, a percent sign or a variable's name (x = 3) may be left out, or added;
  two different ones are different answers. 50% is also 0.5;
- a list without brackets or in braces has no order, in braces no repetition
  either; one in ( ) or [ ] has an order, and its brackets count;
- words by their letters, whatever their case.
"""

import re
from typing import Any, NamedTuple

from opsd_jax.tasks.grading import exact_numbers

LONGEST = 1000  # characters of an answer; longer ones are compared as text


class Value(NamedTuple):
  kind: str  # scalar, tuple, set, union, matrix, relation, text
  data: Any = None  # None: not known here
  unit: str = ""
  name: str = ""  # of the variable it is the value of
  plain: bool = True  # see exact_numbers.Read


class Text(Exception):
  """To be compared letter by letter, and nothing else."""


# ------------------------------------------------------------- clean text

GLYPHS = str.maketrans(
  {
    "−": "-",
    "×": "\\times ",
    "÷": "\\div ",
    "·": "\\cdot ",
    "⋅": "\\cdot ",
    "π": "\\pi ",
    "√": "\\sqrt ",
    "°": "\\degree ",
    "∞": "\\infty ",
    "∪": "\\cup ",
    "∩": "\\cap ",
    "²": "^2 ",
    "³": "^3 ",
    "≤": "\\le ",
    "≥": "\\ge ",
    "½": "\\frac{1}{2}",
    "\u00a0": " ",
    "\u202f": " ",
    '"': "",
    "±": "\\pm ",
    "∈": "\\in ",
    "≠": "\\ne ",
  }
)

REWRITES = tuple(
  (re.compile(pattern), to)
  for pattern, to in (
    (
      r"\\text(?:bf|it|rm|sf|tt|normal)?(?![a-zA-Z])|\\m(?:athrm|box|athbf|athit"
      r"|athsf)(?![a-zA-Z])|\\operatorname(?![a-zA-Z])",
      r"\\text",
    ),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|limits)(?![a-zA-Z])", ""),
    (r"(?<=[0-9])(?:\{,\}|,\\!|\\,)\s*(?=[0-9]{3}(?![0-9]))", ""),
    (r"\{,\}", ","),
    (r"(?<!\\)\\[!()\[\]]", ""),
    (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-zA-Z])", " "),
    (r"_\s*\{\s*([0-9]+)\s*\}", r"_\1"),
    (r"\^\s*\{\s*([0-9])\s*\}", r"^\1"),
    (
      r"\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![a-zA-Z]))"
      r"|\\degree(?![a-zA-Z])",
      r"\\deg ",
    ),
    (r"\\\$\s*((?:[0-9]|,(?=[0-9]{3}))*\.?[0-9]+)", r'\1 "dollars" '),
    (r"\\\$|\$", ""),
    (r"\\%", "%"),
    (r"\\leq?(?![a-zA-Z])", r"\\le "),
    (r"\\geq?(?![a-zA-Z])", r"\\ge "),
    (r"\\neq?(?![a-zA-Z])", r"\\ne "),
    (r"(?<![a-zA-Z\\])sqrt\b", r"\\sqrt"),
    (r"(?<![a-zA-Z\\])pi\b", r"\\pi "),
    (r"(?<![a-zA-Z\\])(?:infinity|inf|oo)\b", r"\\infty "),
    (r"([0-9])\s+([0-9]+)/([0-9]+)(?![0-9])", r"\1\\frac{\2}{\3}"),
    (r"\\text\s*\{\s*([ie])\s*\}", r" \1 "),
    (r"\\text\s*\{([^{}]*)\}", r' "\1" '),
    (r"\\\\\s*\\end(?![a-zA-Z])", r"\\end"),
    (r"\s+", " "),
  )
)
JOINT = re.compile(r'"\s*,?\s*(?:and|or)\s*"')
END = re.compile(r"[\s.,;:]+$|^[\s,;:]+")


def clean(text: str) -> str:
  """The text without what only concerns its looks; words stand in quotes."""
  text = text.translate(GLYPHS).strip().strip("*`")
  for pattern, to in REWRITES:
    text = pattern.sub(to, text)
  if not INEQUALITY.search(text):  # where "and" is not "or"
    text = " ".join(JOINT.sub(" , ", text).split())
  text = END.sub("", text)
  while text.startswith("{") and closes(text, 0) == len(text) - 1:
    text = text[1:-1].strip()
  return text


def folded(text: str) -> str:
  """Text as people compare it: case, spaces and quotes aside."""
  return squeezed(text.replace('"', " ").casefold()).strip(".,;: ")


def squeezed(text: str) -> str:
  """Without the spaces that part no two words or numbers: "4 2" is not 42."""
  return re.sub(r"\s+(?=\W|$)|(?<=\W)\s+|^\s+", "", text)


def closes(text: str, at: int) -> int:
  """Where the bracket at `at` closes, -1 where it does not; intervals may
  close with the other kind."""
  depth = 0
  for i in range(at, len(text)):
    if text[i] in "([{":
      depth += 1
    elif text[i] in ")]}":
      depth -= 1
      if depth == 0:
        return i
  return -1


def split(text: str, mark: str) -> list[str]:
  """The parts between marks that stand in no bracket."""
  parts, depth, start = [], 0, 0
  for i, character in enumerate(text):
    depth += (character in "([{") - (character in ")]}")
    if depth == 0 and text.startswith(mark, i):
      parts.append(text[start:i])
      start = i + len(mark)
  return [p.strip() for p in (*parts, text[start:])]


# ------------------------------------------------------------ what it says

NAMED = re.compile(
  r"([A-Za-z](?:_(?:\w|\{\w+\}))?|[a-zA-Z]\([a-zA-Z]\)|\\theta|\\alpha)\s*"
  r"(?:=|\\in(?![a-zA-Z]))\s*(.+)"
)
CHOICE = re.compile(r'["(]*\s*\(?([A-Z])\)?\s*[")]*')
CHOICES = re.compile(r'"?\s*[A-Z](?:\s*,\s*[A-Z])+\s*"?')
THOUSANDS = re.compile(r"(?<![0-9.,])([0-9]{1,3})((?:,[0-9]{3})+)(?![0-9]|,[0-9])")
ZEROS = re.compile(r"(?<![0-9.])0[0-9]")
MATRIX = re.compile(r"\\begin\{([pb]?)matrix\}(.*)\\end\{\1matrix\}", re.DOTALL)
RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne)(?![a-zA-Z])")
INEQUALITY = re.compile(r"[<>]|\\(?:le|ge|ne)(?![a-zA-Z])")
WORD = re.compile(r'"|(?<![a-zA-Z\\])[a-zA-Z]{3,}')
FUNCTIONS = frozenset(
  (
    "sin",
    "cos",
    "tan",
    "sec",
    "csc",
    "cot",
    "log",
    "exp",
    "sinh",
    "cosh",
    "tanh",
    "arcsin",
    "arccos",
    "arctan",
    "gcd",
    "lcm",
    "min",
    "max",
    "mod",
  )
)


def has_words(text: str) -> bool:
  """Whether it holds language: what a computer algebra system would take for
  a product of variables."""
  bare = re.sub(r"\\[a-zA-Z]+", " ", text)
  words = (match[0] for match in WORD.finditer(bare))
  is_one = re.fullmatch(r"[a-zA-Z]{2,}", text) is not None
  return is_one or any(word not in FUNCTIONS for word in words)


def read(text: str) -> Value:
  """What a cleaned answer is."""
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
  """By its outermost form; raises Text where only its letters say."""
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
  if text[:2] == "\\{" and text[-2:] == "\\}" and closes(text, 1) == last:
    return listed(text[2:-2], once)
  if text in ("\\emptyset", "\\varnothing", "\\{\\}"):
    return Value("set", ())
  if text[:1] in tuple("([") and closes(text, 0) == last:
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
  """A list whose order means nothing; a +- b is two of it."""
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
  """Values in one; unknown where one of them is.

  One unit for all may be left out, as that of a number; where there are two,
  each is a part of its value.
  """
  flat = [v for i in items for v in (i if isinstance(i, list) else (i,))]
  if any(v.data is None for v in flat):
    return Value(kind)
  units = {v.unit for v in flat} - {""}

  def own(v):
    return v.unit if len(units) > 1 else ""

  def key(v):
    return (v.kind, v.data, own(v))

  data = [tuple(map(key, i)) if isinstance(i, list) else key(i) for i in items]
  return Value(
    kind,
    arranged(data),
    unit=units.pop() if len(units) == 1 else "",
    plain=all(v.plain for v in flat),
  )


# ---------------------------------------------------- a number and its unit

TAIL = re.compile(  # what follows a number: "cm^2", degrees, words in quotes
  r'(.*?[0-9.})\]]|.*\\pi)\s*(\\deg|%|"[^"]*"(?:\s*\^\s*\{?[0-9]\}?)?'
  r"|[a-zA-Z]{2,}(?: [a-zA-Z]{2,})*(?:\s*\^\s*\{?[23]\}?)?)\s*"
)
# Words that make another number of the one they stand after.
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
TIMES_OF_DAY = re.compile(r"[0-9]{1,2}:[0-9]{2}.*")


def scalar(text: str) -> Value:
  """A number with or without a unit, infinity, words, or what is not known."""
  text = text.strip()
  if not text or TIMES_OF_DAY.fullmatch(text) or len(text) > LONGEST:
    raise Text
  if match := re.fullmatch(r"([+-]?)\s*\\infty", text):
    return Value("scalar", match[1].replace("+", "") + "infinity")
  if re.fullmatch(r"[+-]?[0-9A-F.]+\s*_\s*\{?\s*\S+\s*\}?", text):
    raise Text  # digits in another base
  number, unit = text, ""
  if (match := TAIL.fullmatch(text)) and is_unit(match[2]):
    number, unit = match[1], unit_of(match[2])
    if unit == "degree" and "\\pi" in number:
      raise Text  # two units of an angle
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


def is_unit(text: str) -> bool:
  """Whether it is a unit and no product of variables, as xy is."""
  words = re.findall(r"[a-zA-Z]+", text)
  if text.startswith('"'):
    return all(len(w) > 1 or w.casefold() in UNITS for w in words)
  return (
    not words
    or text.startswith("\\deg")
    or all(len(w) > 3 or w in SHORT_UNITS for w in words)
  )


def multiplies(word: str) -> bool:
  """Whether it makes another number of the one before: million, twelfths."""
  return word in MULTIPLIERS or ANOTHER_NUMBER.fullmatch(word) is not None


def unit_of(text: str) -> str:
  """ "cm^2" -> "centimeter^2"; raises Text for words that are no unit."""
  if text in ("\\deg", "%"):
    return {"\\deg": "degree", "%": "%"}[text]
  words, _, power = text.partition("^")
  words = re.findall(r"[a-z]+", words.casefold())
  if NO_UNIT & set(words) or any(map(multiplies, words)):
    raise Text
  if re.search(r"[0-9]", text.partition("^")[0]):
    raise Text
  power = "".join(c for c in power if c in "0123456789")
  for word, p in (("square", "2"), ("sq", "2"), ("cubic", "3")):
    if word in words:
      words.remove(word)
      power = p
  known = [
    UNITS.get(w) or UNITS.get(w.removesuffix("s")) or w.removesuffix("s") for w in words
  ]
  return " ".join(known) + (f"^{power}" if power else "")


# -------------------------------------------------------------- comparison


def compare(reference: str, reply: str) -> bool | None:
  """Whether the reply is the reference; None where this file cannot say."""
  if len(reply) > LONGEST or len(reference) > LONGEST:
    return reference.strip() == reply.strip()
  reference, reply = clean(reference), clean(reply)
  if not reference or not reply:
    return False
  if squeezed(reference) == squeezed(reply):
    return True
  a, b = read(reference), read(reply)
  if "text" in (a.kind, b.kind):
    return (a.kind, a.data) == (b.kind, b.data) and agree(a.name, b.name)
  if a.kind != b.kind:
    return None if may_meet(a, b, reference, reply) else False
  if a.data is None or b.data is None:
    return None if a.unit == b.unit else False
  if a.plain and not b.plain:
    return False
  if "%" in (a.unit, b.unit) and a.kind == "scalar":
    return agree(a.name, b.name) and percent(a, b)
  if not agree(a.name, b.name) or not agree(a.unit, b.unit):
    return False
  if a.kind == "union" and a.data != b.data:
    return None  # parts may overlap
  return a.data == b.data


def agree(a: str, b: str) -> bool:
  return not a or not b or a == b


def may_meet(a: Value, b: Value, *texts: str) -> bool:
  """Whether two forms may say the same: x > 3 and (3, infinity). Not where (3,
  5) may be a point, nor with equations, whose order says nothing."""
  if "relation" not in (a.kind, b.kind):
    return False
  relation, other = texts if a.kind == "relation" else texts[::-1]
  kind = b.kind if a.kind == "relation" else a.kind
  is_interval = kind in ("union", "(tuple]", "[tuple)", "[tuple]") or (
    kind == "(tuple)" and "\\infty" in other
  )
  return is_interval and not re.search("=", relation)


def percent(a: Value, b: Value) -> bool:
  """p% is p / 100, and p where the sign is left out or added."""
  x, y = dict(a.data), dict(b.data)
  if a.unit and b.unit:
    return a.unit == b.unit and x == y
  hundredth = exact_numbers.rational(exact_numbers.Fraction(1, 100))

  def scale(v, unit):
    return exact_numbers.multiply(v, hundredth) if unit == "%" else v

  if scale(x, a.unit) == scale(y, b.unit):
    return True
  return x == y and (a.unit == "%" or x.get(exact_numbers.UNIT, 0) >= 1)
