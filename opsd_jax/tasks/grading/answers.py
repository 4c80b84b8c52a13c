"""Whether two short answers are the same.

  compare("\\\\frac{1}{2}", "0.5")  -> True
  compare("(1,2)", "[1,2]")       -> False
  compare("x^2-1", "(x+1)(x-1)")  -> None: needs `algebra`

Two answers are the same by these rules:
- numbers are the same when their values are equal; 0.333 is not 1/3, but
  0.\\overline{3} is. Where the
  reference is a number written out, a sum or product (2 + 3 for 5) is no answer; a
  mixed number may be a sum (3 + 1/4). Digits in words (seven) are no number, nor is
  e^{i\\pi} an answer for -1;
- formulas are the same when their values are (algebra.equal). Letters that differ
  in case, primes and indices are different letters;
- one side may leave out a unit, a percent sign, a currency or a name (x = 3, AB =
  10); the answer also which sum it is (m + n = 113). Two different names or
  currencies are different answers, and units of one kind convert: 90 minutes are
  1.5 hours. 50% is also 0.5. For 7, 7:00 PM is an answer; for 7:00 AM it is none.
  Words that change a number (5 million, 5 left) are no unit;
- a chain is its last value where all its parts are equal: x = 5! = 120;
- a list without brackets or in braces has no order, and in braces no repetition
  either; a list in ( ) or [ ] has an order, and the kind of bracket counts. A
  vector in angle brackets is a column;
- (\\pm 1, 2) is two points; with two \\pm a point has two readings;
- x = 1, y = 2 is the point (1, 2), its letters in alphabetical order; x_1 = 1, x_2
  = 2 is the list 1, 2;
- equations that are multiples of each other are the same, and inequalities that are
  positive multiples. x = 3 asks for the solution: 2x = 6 is none;
- sets of real numbers are the same however they are written (solution_sets). As
  (2, 5) may be a point, it is not 2 < x < 5;
- (C) 12 is C, and also 12;
- words are compared by their letters, whatever their case; single letters and names
  in capitals keep theirs. No solution, none and the empty set are the same.
"""

import re

from opsd_jax.tasks.grading import exact_numbers, formulas, solution_sets
from opsd_jax.tasks.grading.notation import INEQUALITY, clean, folded, split, squeezed
from opsd_jax.tasks.grading.values import (
  LONGEST,
  NAMED,
  Value,
  is_name,
  read,
  without_small_words,
)

__all__ = ["LONGEST", "NAMED", "compare", "read"]

PLAIN = re.compile(r"-?[0-9]{1,99}")
SUM_OF_LETTERS = re.compile(r"[A-Za-z](?:\s*\+\s*[A-Za-z])+\s*=(?=[^=]+$)")
MOST_PARTS = 12  # of a chain
MOST_ITEMS = 100  # of a collection; longer ones are compared as they are written


def compare(reference: str, answer: str, algebra=None) -> bool | None:
  """Whether an answer equals the reference.

  None where that takes computer algebra and `algebra`, the module of that name, is
  not given.
  """
  if len(answer) > LONGEST or len(reference) > LONGEST:
    return reference.strip() == answer.strip()
  if PLAIN.fullmatch(reference) and PLAIN.fullmatch(answer):
    return int(reference) == int(answer)
  reference, answer = clean(reference), clean(answer)
  if not reference or not answer:
    return False
  if squeezed(reference) == squeezed(answer):
    return True
  reference, answer = same_letters(reference, answer)
  if "=" not in reference and (match := SUM_OF_LETTERS.match(answer)):
    answer = answer[match.end() :]
  a, b = (read(unchained(text, algebra)) for text in (reference, answer))
  return same(a, b, algebra)


def same_letters(*texts: str):
  """Both texts, with a unit of one letter (5 m) as one where the other text says that
  it is: "5 \\text{ m}" and "5 m"."""
  for text, other in zip(texts, texts[::-1], strict=True):
    match = re.fullmatch(r"(.*[0-9.}])\s*([a-zA-Z])", text)
    is_unit = match and re.search(rf'"\s*{match[2]}\s*"$', other)
    yield f'{match[1]} "{match[2]}"' if is_unit else text


def unchained(text: str, algebra) -> str:
  """x = 5! = 120 as x = 120, where the parts are equal; else the text."""
  if "=" not in text or len(split(text, ",")) > 1:
    return text
  if INEQUALITY.search(re.sub(r"\([^()]*\)", "", text)):
    return text
  parts = split(text, "=")
  if len(parts) > MOST_PARTS or "" in parts:
    return text
  names = []
  while len(parts) > 1 and is_name(parts[0]):
    names.append(parts.pop(0))
  if len(parts) == 1 and len(names) == 1:
    return text
  values = [read(part) for part in parts]
  if any(v.kind in ("text", "relation") for v in values):
    return text
  if not all(same(values[0], v, algebra, worked=True) for v in values[1:]):
    return text
  last = next(
    (p for p, v in zip(parts, values, strict=True) if is_written_out(v)), None
  )
  return f"{names[0]} = {last or parts[-1]}" if names else (last or parts[-1])


def is_written_out(value: Value) -> bool:
  return value.data is not None and value.plain


# -------------------------------------------------------------- comparison


def same(a: Value, b: Value, algebra, worked: bool = False) -> bool | None:
  """Whether two Values are the same; `worked`: a number may be a sum or product."""
  kinds = {a.kind, b.kind}
  if "choice" in kinds:
    return same_choice(a, b, algebra)
  if "text" in kinds:
    return a.kind == b.kind and same_words(a, b) and is_compatible(a.name, b.name)
  if kinds == {"time", "scalar"}:
    return b.kind == "time" and not a.unit and bool(b.text) and a.text == b.text
  if "system" in kinds:
    return same_system(a, b, algebra)
  if "real set" in kinds:
    return same_real_set(a, b)
  if "relation" in kinds or is_equation(a) and is_equation(b) and a.name != b.name:
    return same_relation(a, b, algebra)
  if a.kind != b.kind or not is_compatible(a.name, b.name):
    return False
  if a.kind == "scalar":
    return same_scalar(a, b, algebra, worked)
  if a.kind == "time":
    return a.data == b.data
  return same_items(a, b, algebra)


def is_compatible(a, b) -> bool:
  """Whether two units or names are equal, or one is left out."""
  if isinstance(a, str) and isinstance(b, str):
    a, b = a.removesuffix(" in"), b.removesuffix(" in")
  return not a or not b or a == b


def same_words(a: Value, b: Value) -> bool:
  """Equal texts; where one stood in \\text, its words are words in the other too."""
  if a.data == b.data or '"' not in a.text + b.text:
    return a.data == b.data
  x, y = (without_small_words(folded(v.text, all_words=True)) for v in (a, b))
  return x == y


def same_choice(a: Value, b: Value, algebra) -> bool | None:
  """Options by their letters, and by their values where both have one."""
  if a.kind == b.kind:
    if a.data[0] != b.data[0]:
      return False
    return not (a.items and b.items) or same(a.items[0], b.items[0], algebra)
  option, other = (a, b) if a.kind == "choice" else (b, a)
  if not option.items:
    return False
  return same(option.items[0], other, algebra)


def same_system(a: Value, b: Value, algebra) -> bool | None:
  """x = 1, y = 2 and the point (1, 2), or two systems of the same letters."""
  if a.kind == b.kind:
    return a.name == b.name and same_items(a, b, algebra)
  system, point = (a, b) if a.kind == "system" else (b, a)
  names = system.name.split(",")
  if point.kind == "set" and len({name.partition("_")[0] for name in names}) == 1:
    return same_items(a._replace(kind="set"), b._replace(kind="set"), algebra)
  are_letters = all(re.fullmatch("[a-z]", name) for name in names)
  if point.kind != "(tuple)" or not are_letters:
    return False
  if point.name and point.name not in (f"({system.name})",):
    return False
  return same_items(a._replace(kind=point.kind), b._replace(kind=point.kind), algebra)


def same_real_set(a: Value, b: Value) -> bool:
  found = [as_real_set(v) for v in (a, b)]
  if None in found:
    return False
  return found[0].intervals == found[1].intervals and is_compatible(
    found[0].variable, found[1].variable
  )


def as_real_set(value: Value) -> solution_sets.RealSet | None:
  """A Value as a set of real numbers; None for (3, 5), which may be a point."""
  name = value.name.removesuffix(" in")
  if value.kind == "real set":
    return solution_sets.RealSet(name, value.data)
  if value.kind == "set" and not value.items:
    return solution_sets.RealSet(name, ())
  if value.kind not in ("(tuple)", "(tuple]", "[tuple)", "[tuple]"):
    return None
  found = solution_sets.read(value.text)
  is_point = value.kind == "(tuple)" and "\\infty" not in value.text
  if found is None or (is_point and not value.name.endswith(" in")):
    return None
  return found._replace(variable=name)


def same_items(a: Value, b: Value, algebra) -> bool | None:
  """Collections, item by item; without order for sets and unions."""
  if a.kind != b.kind or len(a.items) != len(b.items):
    return False
  if len(a.items) > MOST_ITEMS:
    return a.data is not None and a.data == b.data
  shared = [{v.unit for v in side.items} for side in (a, b)]
  mixed = any(len(found) > 1 for found in shared)

  def equal(v, w):
    if mixed and bool(v.unit) != bool(w.unit):
      return False
    return same(v, w, algebra)

  if a.kind in ("set", "union"):
    return matched(a.items, b.items, equal)
  return every(equal(v, w) for v, w in zip(a.items, b.items, strict=True))


def every(verdicts) -> bool | None:
  """all() of True, False and None: False where one is False, else None where one is."""
  result = True
  for verdict in verdicts:
    if verdict is False:
      return False
    result = result and verdict
  return result


def matched(a, b, equal) -> bool | None:
  """Whether the items of two lists are equal in some order."""
  left, unsure = list(b), False
  for item in a:
    verdicts = [equal(item, other) for other in left]
    if True in verdicts:
      left.pop(verdicts.index(True))
    elif None in verdicts:
      unsure = True
    else:
      return False
  return None if unsure else not left


# ------------------------------------------------------ numbers and formulas

MIXED = re.compile(r"[0-9]+\s*\\frac\s*(?:\{[0-9]+\}|[0-9])\s*(?:\{[0-9]+\}|[0-9])")


def same_scalar(a: Value, b: Value, algebra, worked: bool) -> bool | None:
  if isinstance(a.data, str) or isinstance(b.data, str):  # infinity
    return a.data == b.data
  if a.data is None or b.data is None:
    if (
      not is_compatible(a.unit, b.unit) or "%" in (a.unit, b.unit) and a.unit != b.unit
    ):
      return False
    if algebra is None:
      return None
    if not worked and a.data is not None and a.plain and not is_plain(b.text):
      return False
    return algebra.equal(a.text, b.text)
  is_sum_of_mixed = MIXED.fullmatch(a.text) and squeezed(
    b.text.replace("+", " ", 1)
  ) == squeezed(a.text)
  if not worked and a.plain and not b.plain and not is_sum_of_mixed:
    return False
  if "%" in (a.unit, b.unit):
    return equal_percentages(a, b)
  x, y = dict(a.data), dict(b.data)
  if a.unit and b.unit:
    if a.unit.dimensions != b.unit.dimensions:
      return False
    x = exact_numbers.multiply(x, exact_numbers.rational(a.unit.factor))
    y = exact_numbers.multiply(y, exact_numbers.rational(b.unit.factor))
  return x == y


def is_plain(text: str) -> bool:
  """Whether a formula is written without a sum or product."""
  try:
    return formulas.is_plain(formulas.parse(text))
  except (exact_numbers.Unknown, exact_numbers.Ambiguous):
    return False


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


# ---------------------------------------------------------------- relations


def is_equation(value: Value) -> bool:
  """Whether a Value is a formula with a letter's name, such as y = 2x."""
  return value.kind == "scalar" and value.data is None and bool(value.name)


def same_relation(a: Value, b: Value, algebra) -> bool | None:
  """Equations and inequalities that are multiples of each other."""
  sides = [differences(v) for v in (a, b)]
  if algebra is None:
    return None
  if None in sides:
    return False

  def equal(f, g):
    return f[0] == g[0] and algebra.proportional(f[1], g[1], f[0] in ("<", "\\le"))

  return len(sides[0]) == len(sides[1]) and matched(*sides, equal)


def differences(value: Value) -> list[tuple[str, str]] | None:
  """[(operator, left - right)] of a relation, > turned into <; None for other
  Values."""
  if is_equation(value):
    return [("=", f"({value.name})-({value.text})")]
  if value.kind != "relation" or '"' in value.text or "," in value.text:
    return None
  parts = solution_sets.OPERATOR.split(value.text)
  if len(parts) > MOST_PARTS:
    return None
  found = []
  for first, operator, second in zip(
    parts[::2], parts[1::2], parts[2::2], strict=False
  ):
    if operator in (">", "\\ge"):
      first, operator, second = second, solution_sets.FLIPPED[operator], first
    found.append((operator, f"({first})-({second})"))
  return found
