"""Sets of real numbers, as unions of intervals with exact ends.

  read("x < -1 \\\\text{ or } x \\\\ge 1") -> RealSet("x", ((-inf, -1), [1, inf)))

Read are intervals, \\cup, \\cap and \\setminus of sets, finite sets beside an
interval, \\mathbb{R}, relations in one variable with numbers (2 < x \\le 5, x \\ne 2,
|x| < 3) joined by "and" or "or", set-builders over the reals, and the same in words
("all real numbers except 2", "x is at least 3"). A comma between two relations may
mean "and" or "or": it is not read.
"""

import math
import re
from fractions import Fraction
from typing import NamedTuple

from opsd_jax.tasks.grading import exact_numbers
from opsd_jax.tasks.grading.notation import closing, split

LONGEST = 200  # characters
MOST_PARTS = 12


class RealSet(NamedTuple):
  """`intervals`: (low, has low, high, has high), disjoint and in order; an end is an
  End. `variable`: "" where the set is written without one."""

  variable: str
  intervals: tuple


class End(NamedTuple):
  """An end of an interval: its place, and its exact value."""

  place: float
  exact: tuple


class NotASet(ValueError):
  """The text is no set of real numbers that this file can read."""


LOW, HIGH = End(-math.inf, ()), End(math.inf, ())
REALS = ((LOW, False, HIGH, False),)
WORDS = tuple(
  (re.compile(pattern, re.IGNORECASE), to)
  for pattern, to in (
    (r'"', " "),
    (r"\b(?:greater|more) than or equal to\b|\bat least\b", r" \\ge "),
    (r"\b(?:less|smaller) than or equal to\b|\bat most\b", r" \\le "),
    (r"\b(?:greater|more|larger) than\b", " > "),
    (r"\b(?:less|smaller) than\b", " < "),
    (r"\b(?:is|are|does) not (?:equal )?(?:to )?", r" \\ne "),
    (r"\b(?:is|are)\b", " "),
    (r"\bzero\b", "0"),
    (r"\breal values?\b", "real numbers"),
    (r"\b(?:all )?(?:nonzero|non-zero) real(?: number)?s?\b", r"all reals \\ne 0"),
    (r"\b(?:all )?positive real(?: number)?s?\b", "all reals > 0"),
    (r"\b(?:all )?negative real(?: number)?s?\b", "all reals < 0"),
    (r"\b(?:all )?non-?negative real(?: number)?s?\b", r"all reals \\ge 0"),
    (r"\s+", " "),
  )
)
ALL = re.compile(
  r"(?:the set of )?(?:\\reals|all reals?|(?:all|every|any)?\s*(?:of the )?real"
  r" (?:numbers?|values?)(?: of)?|all values of)(?: ([a-zA-Z]))?|all real ([a-zA-Z])",
  re.IGNORECASE,
)
EXCEPT = re.compile(
  r"(.+?),?\s*(?:except(?: for)?|other than|but not|besides|excluding)\s+(.+)"
)
SUCH_THAT = re.compile(r"(.+?),?\s*(?:such that|with|where|:|\|)\s*(.+)")
OPERATOR = re.compile(r"(\\le(?![a-z])|\\ge(?![a-z])|\\ne(?![a-z])|<|>|=)")
FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "=": "=", "\\ne": "\\ne"}
VARIABLE = re.compile(r"[a-zA-Z](?:_[0-9a-z])?|\\(?:theta|alpha|beta|lambda)")


def read(text: str) -> RealSet | None:
  """The set that a cleaned answer writes; None where it writes none."""
  if len(text) > LONGEST:
    return None
  for pattern, to in WORDS:
    text = pattern.sub(to, text)
  try:
    found = whole(text.strip(" .;"))
  except (NotASet, exact_numbers.Unknown, exact_numbers.Ambiguous):
    return None
  is_finite = found.intervals and all(i[0] == i[2] for i in found.intervals)
  return None if is_finite else found


def whole(text: str) -> RealSet:
  """A set, perhaps of "and" and "or"; "and" binds more closely."""
  return joined(text, r"\s+or\s+|\\(?:lor|vee)(?![a-z])", union, conjunction)


def conjunction(text: str) -> RealSet:
  mark = r"\s+and\s+|\\(?:land|wedge)(?![a-z])"
  if all("\\ne" in part for part in split(text, ",")):
    mark += r"|\s*,\s*(?=[a-z]\s*\\ne)"  # x is neither 1 nor 2
  return joined(text, mark, intersection, single)


def joined(text: str, mark: str, combine, read_part) -> RealSet:
  is_braced = text.startswith("\\{") and closing(text, 1) == len(text) - 1
  parts = [text] if is_braced else re.split(mark, text)
  if len(parts) == 1 or (combine is union and EXCEPT.fullmatch(text)):
    return read_part(text)
  if len(parts) > MOST_PARTS:
    raise NotASet
  sets = [read_part(part.strip(" ,")) for part in parts]
  variables = {s.variable for s in sets}
  if len(variables) > 1:
    raise NotASet
  intervals = sets[0].intervals
  for other in sets[1:]:
    intervals = combine(intervals, other.intervals)
  return RealSet(variables.pop(), intervals)


def single(text: str) -> RealSet:
  """A set by its outermost form."""
  if text.startswith("\\{") and closing(text, 1) == len(text) - 1:
    inside = text[2:-2].strip()
    if not (match := SUCH_THAT.fullmatch(inside)):
      raise NotASet  # a finite set
    head, condition = match[1].strip(), match[2]
    # n, k and m are whole numbers more often than not.
    if variable := re.fullmatch(r"([a-jlo-z])(?:\s*\\in\s*\\reals)?", head):
      found = whole(condition)
      if found.variable != variable[1]:
        raise NotASet
      return RealSet("", found.intervals)
    raise NotASet
  if match := EXCEPT.fullmatch(text):
    base = single(match[1].strip())
    left_out = finite(re.sub(r"\s+(?:and|or)\s+", ",", match[2]))
    return RealSet(base.variable, difference(base.intervals, left_out))
  if match := ALL.fullmatch(text.strip()):
    return RealSet(match[1] or match[2] or "", REALS)
  if match := re.fullmatch(r"(.+?)\s*\\in(?![a-z])\s*(.+)", text):
    if VARIABLE.fullmatch(match[1].strip()):
      return RealSet(match[1].strip(), of_sets(match[2]))
  if OPERATOR.search(text):
    head = r"(?:all|every|any) (?:reals?(?: numbers?)? |numbers? )?(?:values of )?(.+)"
    if match := re.fullmatch(head, text, re.IGNORECASE):
      text = match[1]
    if match := SUCH_THAT.fullmatch(text):
      if ALL.fullmatch(match[1].strip()) or VARIABLE.fullmatch(match[1].strip()):
        return whole(match[2])
    return relation(text)
  return RealSet("", of_sets(text))


# ---------------------------------------------------------------- relations


def relation(text: str) -> RealSet:
  """2 < x \\le 5, x \\ne 2, |x| < 3, > 3."""
  parts = [part.strip() for part in OPERATOR.split(text)]
  terms, operators = parts[::2], parts[1::2]
  if len(operators) > 2:
    raise NotASet
  if len(operators) == 2:
    pair = {o.replace("\\le", "<").replace("\\ge", ">") for o in operators}
    if pair not in ({"<"}, {">"}) or not VARIABLE.fullmatch(terms[1]):
      raise NotASet
    both = [
      bound(operator, number(term))
      for operator, term in (
        (FLIPPED[operators[0]], terms[0]),
        (operators[1], terms[2]),
      )
    ]
    return RealSet(terms[1], intersection(*both))
  (term, value), (operator,) = terms, operators
  if VARIABLE.fullmatch(value) and not VARIABLE.fullmatch(term):
    term, value, operator = value, term, FLIPPED[operator]
  if match := re.fullmatch(r"\|\s*(.+?)\s*\|", term):
    return absolute(match[1], operator, number(value))
  if term and not VARIABLE.fullmatch(term):
    raise NotASet
  if operator == "=":
    return RealSet(term, finite(value))
  if operator == "\\ne":
    return RealSet(term, difference(REALS, finite(value)))
  return RealSet(term, bound(operator, number(value)))


def absolute(variable: str, operator: str, end: End) -> RealSet:
  """|x| < a and |x| > a for positive a."""
  if not VARIABLE.fullmatch(variable) or not 0 < end.place < math.inf:
    raise NotASet
  negative = End(-end.place, tuple((key, -q) for key, q in end.exact))
  if operator in ("<", "\\le"):
    other = bound(FLIPPED[operator], negative)
    return RealSet(variable, intersection(bound(operator, end), other))
  if operator in (">", "\\ge"):
    other = bound(FLIPPED[operator], negative)
    return RealSet(variable, union(bound(operator, end), other))
  raise NotASet


def bound(operator: str, end: End) -> tuple:
  has_end = operator in ("\\le", "\\ge")
  if math.isinf(end.place):
    if (operator, end) in (("<", HIGH), (">", LOW)):
      return REALS
    raise NotASet
  if operator in ("<", "\\le"):
    return ((LOW, False, end, has_end),)
  return ((end, has_end, HIGH, False),)


# ----------------------------------------------------------------- intervals


def of_sets(text: str) -> tuple:
  """Intervals of sets joined by \\cup, \\cap and \\setminus."""
  parts = split(text, "\\cup")
  if len(parts) > MOST_PARTS:
    raise NotASet
  total = ()
  for part in parts:
    first, *others = re.split(r"\\cap(?![a-z])", part)
    intervals = without(first.strip())
    for other in others:
      intervals = intersection(intervals, without(other.strip()))
    total = union(total, intervals)
  return total


def without(text: str) -> tuple:
  first, *others = re.split(r"\\setminus(?![a-z])|(?<=\\reals)\s*-\s*(?=\\\{)", text)
  intervals = simple_set(first.strip())
  for other in others:
    intervals = difference(intervals, simple_set(other.strip()))
  return intervals


def simple_set(text: str) -> tuple:
  if ALL.fullmatch(text):
    return REALS
  if text in ("\\emptyset", "\\varnothing"):
    return ()
  if text.startswith("\\{") and text.endswith("\\}"):
    return finite(text[2:-2])
  if not re.fullmatch(r"[(\[].*[)\]]", text) or closing(text, 0) != len(text) - 1:
    raise NotASet
  items = split(text[1:-1], ",")
  if len(items) != 2:
    raise NotASet
  low, high = (number(item) for item in items)
  has_low, has_high = text[0] == "[", text[-1] == "]"
  if (
    not low.place < high.place
    or (has_low and low == LOW)
    or (has_high and high == HIGH)
  ):
    raise NotASet
  return ((low, has_low, high, has_high),)


def finite(text: str) -> tuple:
  """The points of "1, 2", "x = 1, 2" or \\pm 2, each as an interval."""
  total = ()
  for item in split(text.strip().removeprefix("\\{").removesuffix("\\}"), ","):
    item = re.sub(r"^\s*[a-z]\s*=\s*", "", item)
    signs = "+-" if "\\pm" in item else " "
    for sign in signs:
      end = number(item.replace("\\pm", sign))
      if math.isinf(end.place):
        raise NotASet
      total = union(total, ((end, True, end, True),))
  return total


def number(text: str) -> End:
  """The end that a text writes; raises NotASet for what is no real number."""
  if match := re.fullmatch(r"([+-]?)\s*\\infty", text.strip()):
    return LOW if match[1] == "-" else HIGH
  value, _ = exact_numbers.read(text)
  if any(c for _, _, c in value):
    raise NotASet
  if set(value) <= {exact_numbers.UNIT}:
    q = value.get(exact_numbers.UNIT, Fraction(0))
    if abs(q) > 10**12 or q.denominator > 10**12:
      raise NotASet
    return End(float(q), tuple(value.items()))
  if any(abs(q) > 10**6 or q.denominator > 10**6 for q in value.values()):
    raise NotASet
  place = sum(float(q) * math.sqrt(n) * math.pi**k for (n, k, _), q in value.items())
  return End(place, tuple(sorted(value.items())))


def arranged(intervals) -> tuple:
  """Disjoint intervals in order; raises NotASet where floats cannot order the ends."""
  ends = sorted({end for i in intervals for end in (i[0], i[2])})
  for a, b in zip(ends, ends[1:], strict=False):
    if math.isfinite(a.place) and math.isfinite(b.place):
      if b.place - a.place < 1e-9 * max(1, abs(a.place)):
        raise NotASet
  merged = []
  for low, has_low, high, has_high in sorted(intervals, key=lambda i: (i[0], not i[1])):
    if merged:
      _, _, last, has_last = merged[-1]
      if low < last or (low == last and (has_low or has_last)):
        if high > last:
          merged[-1][2:] = [high, has_high]
        elif high == last:
          merged[-1][3] = has_high or has_last
        continue
    merged.append([low, has_low, high, has_high])
  return tuple(map(tuple, merged))


def union(a: tuple, b: tuple) -> tuple:
  return arranged((*a, *b))


def intersection(a: tuple, b: tuple) -> tuple:
  arranged((*a, *b))  # the ends have an order
  found = []
  for low_a, has_low_a, high_a, has_high_a in a:
    for low_b, has_low_b, high_b, has_high_b in b:
      low, has_low = max((low_a, not has_low_a), (low_b, not has_low_b))
      high, has_high = min((high_a, has_high_a), (high_b, has_high_b))
      if low < high or (low == high and not has_low and has_high):
        found.append((low, not has_low, high, has_high))
  return arranged(found)


def difference(a: tuple, b: tuple) -> tuple:
  for low, has_low, high, has_high in b:
    rest = []
    if low != LOW:
      rest.append((LOW, False, low, not has_low))
    if high != HIGH:
      rest.append((high, not has_high, HIGH, False))
    a = intersection(a, tuple(rest))
  return a
