"""Exact numbers: sums of q sqrt(n) pi^k i^c, as answers write them.

A number is {(n, k, c): q}, with q a Fraction other than 0, n a squarefree
positive integer, k an integer, c in {0, 1}. These products are independent over
the rationals (pi is transcendental), so two numbers are equal exactly where
their tables are. Nothing is evaluated that could be large.
"""

import math
import re
from fractions import Fraction
from typing import NamedTuple

DIGITS = 1000  # digits of an integer, at most
TERMS = 16  # terms of a number, at most
LARGEST_ROOT = 10**8  # largest number whose square root is simplified
DEEPEST = 20  # levels of nested brackets

UNIT = (1, 0, 0)


class Unknown(ValueError):
  """The text is no number that this file can read."""


class Ambiguous(ValueError):
  """The notation has two common readings: 1/2x, or a 3/2 after a 2."""


class Read(NamedTuple):
  """A number that has been read."""

  value: dict
  plain: bool  # False: written as a sum or product of rationals, such as 2 + 3


def rational(q) -> dict:
  return {UNIT: Fraction(q)} if q else {}


def add(a: dict, b: dict, sign: int = 1) -> dict:
  total = dict(a)
  for key, q in b.items():
    total[key] = total.get(key, 0) + sign * q
  return bounded({key: q for key, q in total.items() if q})


def multiply(a: dict, b: dict) -> dict:
  total = {}
  for (n, k, c), p in a.items():
    for (m, j, d), q in b.items():
      g = math.gcd(n, m)
      key = (n * m // g**2, k + j, (c + d) % 2)
      total[key] = total.get(key, 0) + p * q * g * (-1 if c + d == 2 else 1)
  return bounded({key: q for key, q in total.items() if q})


def inverse(a: dict) -> dict:
  """1 / a, where a has one term, or two with 1 / (u + v) = (u - v) / (u^2 - v^2) and
  a denominator of one term."""
  if len(a) == 1:
    (((n, k, c), q),) = a.items()
    return {(n, -k, c): (-1 if c else 1) / (q * n)}
  if len(a) == 2:
    u, v = ({key: q} for key, q in a.items())
    norm = add(multiply(u, u), multiply(v, v), -1)
    if len(norm) == 1:
      return multiply(add(u, v, -1), inverse(norm))
  raise Unknown("a division by zero or by a sum")


def root(a: dict) -> dict:
  """The square root of a rational."""
  if not set(a) <= {UNIT}:
    raise Unknown("a root of a number that is not rational")
  q = a.get(UNIT, Fraction(0))
  n, outside = abs(q.numerator) * q.denominator, 1
  if n > LARGEST_ROOT:
    whole = math.isqrt(n)
    if whole**2 != n:
      raise Unknown("a root of a large number")
    n, outside = 1, whole
  factor = 2
  while factor * factor <= n:
    while n % factor**2 == 0:
      n, outside = n // factor**2, outside * factor
    factor += 1
  key = (n, 0, int(q < 0))
  return {key: Fraction(outside, q.denominator)} if q else {}


def power(a: dict, e: Fraction) -> dict:
  """a ** e for small integers e and for e = 1/2."""
  if e == Fraction(1, 2):
    return root(a)
  if e.denominator != 1 or abs(e) > 100 or (len(a) > 1 and abs(e) > 4):
    raise Unknown("a power that is not small")
  if abs(e) * max((bits(q) for q in a.values()), default=0) > 4000:
    raise Unknown("a power that is not small")
  if e <= 0 and not a:
    raise Unknown("zero to such a power")
  total = rational(1)
  for _ in range(abs(int(e))):
    total = multiply(total, a)
  return inverse(total) if e < 0 else total


def bits(q: Fraction) -> int:
  return max(q.numerator.bit_length(), q.denominator.bit_length())


def bounded(a: dict) -> dict:
  if len(a) > TERMS or any(bits(q) > 4 * DIGITS for q in a.values()):
    raise Unknown("a large number")
  return a


# -------------------------------------------------------------- reading

NUMERAL = re.compile(
  r"(?P<whole>[0-9]+)(?P<dot>\.)?(?P<part>[0-9]*)|\.(?P<only>[0-9]+)"
)
DIGITS_BESIDE = re.compile(r"\{?\s*\.?[0-9]")
EXPONENT = re.compile(r"[eE]([+-]?[0-9]{1,2})(?![0-9])")
PLUS = re.compile(r"[+-]")
TIMES = re.compile(r"\*|×|\\cdot(?![a-zA-Z])|\\times(?![a-zA-Z])")
OVER = re.compile(r"/|\\div(?![a-zA-Z])")
FRAC = re.compile(r"\\frac(?![a-zA-Z])")
SQRT = re.compile(r"\\sqrt(?![a-zA-Z])")
PI = re.compile(r"\\pi(?![a-zA-Z])")
I = re.compile(r"i(?![a-zA-Z])")
REPEATING = re.compile(r"\\overline\s*\{\s*([0-9]{1,99})\s*\}")
INTEGER = re.compile(r"[0-9]+")
LITERAL = re.compile(  # \frac{1}{2}, \frac12
  r"\s*\\frac\s*(?:\{\s*([0-9]{1,99})\s*\}|([0-9]))"
  r"\s*(?:\{\s*([0-9]{1,99})\s*\}|([0-9]))"
)


def read(text: str) -> Read:
  """Reads a number in LaTeX or plain notation; raises Unknown or Ambiguous.

  Known are decimals, fractions, mixed numbers, scientific notation, square roots,
  pi, i, sums, products, quotients and small powers.
  """
  reader = Reader(text)
  value = reader.sum()
  if reader.skip() < len(text):
    raise Unknown(f"{text[reader.position :]!r} is left")
  return Read(value, reader.plain)


class Reader:
  """Recursive-descent parser of one text; `position` is the next character."""

  def __init__(self, text: str):
    self.text, self.position, self.plain, self.depth = text, 0, True, 0

  def skip(self) -> int:
    while self.text[self.position : self.position + 1].isspace():
      self.position += 1
    return self.position

  def take(self, pattern):
    if match := pattern.match(self.text, self.skip()):
      self.position = match.end()
    return match

  def note(self, a: dict, b: dict) -> None:
    """Records that a sum or product of two rationals is not a plain number."""
    if set(a) & set(b) or not (set(a) | set(b)) - {UNIT}:
      self.plain = False

  def sum(self) -> dict:
    self.depth += 1
    if self.depth > DEEPEST:
      raise Unknown("too many brackets")
    sign = self.take(PLUS)
    total = self.product()
    if sign and sign[0] == "-":
      total = add({}, total, -1)
    while sign := self.take(PLUS):
      term = self.product()
      self.note(total, term)
      total = add(total, term, -1 if sign[0] == "-" else 1)
    self.depth -= 1
    return total

  def product(self) -> dict:
    total, slashed = self.factor(), False
    while True:
      if self.take(TIMES):
        term = self.signed()
        if not is_power_of_ten(term):
          self.note(total, term)
        total = multiply(total, term)
      elif self.take(OVER):
        total, slashed = multiply(total, inverse(self.signed())), True
      elif self.ends():
        return total
      elif slashed:
        raise Ambiguous("a product after a slash")
      elif DIGITS_BESIDE.match(self.text, self.position):
        raise Ambiguous("two numbers side by side")
      else:
        term = self.factor()
        self.note(total, term)
        total = multiply(total, term)

  def ends(self) -> bool:
    return self.text[self.skip() : self.position + 1] in ("", "+", "-", ")", "}", "]")

  def signed(self) -> dict:
    sign = self.take(PLUS)
    value = self.factor()
    return add({}, value, -1) if sign and sign[0] == "-" else value

  def factor(self) -> dict:
    value = self.base()
    if self.text[self.skip() : self.position + 1] == "^":
      self.position += 1
      self.plain = self.plain and len(value) < 2
      value = power(value, self.exponent())
      if self.text[self.skip() : self.position + 1] == "^":
        raise Unknown("a tower of powers")
    return value

  def exponent(self) -> Fraction:
    sign = self.take(PLUS)
    e = self.group() if self.next_is("{(") else self.integer()
    if not set(e) <= {UNIT}:
      raise Unknown("an exponent that is no rational")
    return e.get(UNIT, Fraction(0)) * (-1 if sign and sign[0] == "-" else 1)

  def next_is(self, characters: str) -> bool:
    return self.text[self.skip() : self.position + 1] in tuple(characters)

  def base(self) -> dict:
    if self.next_is("({"):
      return self.group()
    if self.take(FRAC):
      above, below = self.argument(), self.argument()
      return multiply(above, inverse(below))
    if self.take(SQRT):
      if self.next_is("["):
        raise Unknown("a root other than the square root")
      return root(self.group() if self.next_is("({") else self.radicand())
    if self.take(PI):
      return {(1, 1, 0): Fraction(1)}
    if self.take(I):
      return {(1, 0, 1): Fraction(1)}
    return self.number()

  def radicand(self) -> dict:
    """The radicand of a root without braces: sqrt 13 is the root of 13."""
    return {(1, 1, 0): Fraction(1)} if self.take(PI) else self.integer()

  def integer(self) -> dict:
    match = self.take(INTEGER)
    if not match or len(match[0]) > DIGITS:
      raise Unknown("no integer")
    return rational(int(match[0]))

  def group(self) -> dict:
    close = {"(": ")", "{": "}"}[self.text[self.position]]
    self.position += 1
    value = self.sum()
    if not self.next_is(close):
      raise Unknown(f"a bracket without its {close}")
    self.position += 1
    return value

  def argument(self) -> dict:
    """The argument of a TeX command: a group, a command or one digit."""
    if self.next_is("{"):
      return self.group()
    if self.next_is("0123456789"):
      self.position += 1
      return rational(int(self.text[self.position - 1]))
    return self.base()

  def number(self) -> dict:
    match = self.take(NUMERAL)
    if not match:
      raise Unknown("no number")
    if len(match[0]) > DIGITS:
      raise Unknown("a number of very many digits")
    digits = match["part"] or match["only"] or ""
    q = Fraction(int((match["whole"] or "") + digits), 10 ** len(digits))
    if match["dot"] or match["only"]:
      q += self.repeating(len(digits))
    if match["whole"] and match["dot"] is None:
      q += self.mixed()
    if e := EXPONENT.match(self.text, self.position):
      self.position = e.end()
      q *= Fraction(10) ** int(e[1])
    return rational(q)

  def repeating(self, places: int) -> Fraction:
    """The digits that repeat behind so many decimal places: 0.1\\overline{6}."""
    match = self.take(REPEATING)
    return (
      Fraction(int(match[1]), 10**places * (10 ** len(match[1]) - 1))
      if match
      else Fraction(0)
    )

  def mixed(self) -> Fraction:
    """The fraction of a mixed number, 0 where none follows. Raises Ambiguous for an
    improper one: 2\\frac{3}{2} may mean 3.5 or 3."""
    match = LITERAL.match(self.text, self.position)
    if not match:
      return Fraction(0)
    self.position = match.end()
    p, q = int(match[1] or match[2]), int(match[3] or match[4])
    if not 0 < p < q:
      raise Ambiguous("an improper fraction after an integer")
    return Fraction(p, q)


def is_power_of_ten(a: dict) -> bool:
  q = a.get(UNIT)
  if q is None or len(a) > 1 or 1 not in (q.numerator, q.denominator):
    return False
  return str(q.numerator * q.denominator).rstrip("0") == "1"
