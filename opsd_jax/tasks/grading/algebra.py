"""Whether two formulas are equal, by their values.

Rational values are computed exactly. Others are computed twice: once to learn how
large and how small the parts of a formula are, and once with so many digits that
two different values of formulas of this length and these sizes differ in them: 1
- 1/2^{2011} and 1 - 1/2^{2012} differ, and so do a constant and its first digits.
Formulas with letters are compared at several rational points. Nothing is evaluated
that takes long: a large number is Unknown, and an unknown value equals none.
"""

import functools
import math
import random
import threading
from fractions import Fraction

from opsd_jax.tasks.grading import formulas
from opsd_jax.tasks.grading.exact_numbers import Ambiguous, Unknown

LARGEST = 60_000  # bits of an exact rational
FIRST_BITS = 64
MOST_BITS = 8_000  # working precision
MOST_CALLS = 40  # functions, roots and powers that are no rationals, in a formula
MOST_LETTERS = 12
LARGEST_FACTORIAL = 4_000
POINTS = 5
COMPLEX = frozenset(("z", "w"))  # letters whose values are complex
LOCK = threading.Lock()  # of mpmath's working precision


class Undefined(ValueError):
  """A formula has no value at a point."""


def equal(reference: str, answer: str) -> bool:
  """Whether two cleaned formulas have equal values at every point.

  Not equal are formulas that formulas.parse refuses, that are undefined at
  different points, and whose equality needs letters to be positive: \\sqrt{x^2} is
  |x|, not x.
  """
  try:
    a, b = formulas.parse(reference), formulas.parse(answer)
    return same_function(a, b, len(reference) + len(answer))
  except (Unknown, Ambiguous):
    return False


def proportional(reference: str, answer: str, positive: bool) -> bool:
  """Whether f = c g with a constant c, so that f = 0 and g = 0 are one equation;
  `positive`: with c > 0, so that f < 0 and g < 0 are one inequality."""
  try:
    f, g = formulas.parse(reference), formulas.parse(answer)
    names = formulas.letters(f)
    if names != formulas.letters(g) or not names:
      return False
    size = len(reference) + len(answer)
    point = next(points(names, complex_letters=()))
    f_there, g_there = substitute(f, point), substitute(g, point)
    zero = ("number", Fraction(0))
    if not all(same_constant(t, zero, size) is False for t in (f_there, g_there)):
      return False
    if positive and sign(f_there) != sign(g_there):
      return False
    return same_function(("*", f, g_there), ("*", g, f_there), size)
  except (Unknown, Ambiguous, Undefined):
    return False


def same_function(a: tuple, b: tuple, size: int) -> bool:
  """Whether two trees agree at several points, wherever one of them has a value."""
  names = formulas.letters(a) | formulas.letters(b)
  if len(names) > MOST_LETTERS:
    raise Unknown("many letters")
  is_complex = "i" in {*leaves(a), *leaves(b)}
  defined = 0
  for point in points(names, names if is_complex else COMPLEX) if names else ({},):
    x, y = substitute(a, point), substitute(b, point)
    same = same_constant(x, y, size)
    if same is False:
      return False
    defined += same is not None
  return defined >= (2 if names else 1)


def same_constant(a: tuple, b: tuple, size: int) -> bool | None:
  """Whether two trees without letters are equal; None where neither has a value."""
  first = Evaluator(FIRST_BITS)
  x, y = first.value_or_none(a), first.value_or_none(b)
  if x is None or y is None:
    return None if x is y else False
  if isinstance(x, Fraction) and isinstance(y, Fraction):
    return x == y
  bits = int(256 + 8 * size + 4 * first.magnitude)
  if bits > MOST_BITS:
    raise Unknown("a value that needs very many digits")
  second = Evaluator(bits, is_last=True)
  x, y = second.value_or_none(a), second.value_or_none(b)
  if x is None or y is None:
    return None if x is y else False
  with LOCK, second.context.workprec(bits):
    x, y = second.real(x), second.real(y)
    scale = max(1, abs(x), abs(y))
    bits_off = int(2 * first.magnitude + 64)
    return bool(abs(x - y) <= scale * second.context.ldexp(1, bits_off - bits))


def sign(tree: tuple) -> int:
  """The sign of a constant that is not 0; raises Undefined where it is not real."""
  value = Evaluator(MOST_BITS // 8, is_last=True).value(tree)
  if not isinstance(value, Fraction) and value.imag != 0:
    raise Undefined("no real number")
  return 1 if value > 0 else -1


# ------------------------------------------------------------------- points


def points(names, complex_letters=COMPLEX):
  """Yields {letter: tree of a number}: first positive numbers, then both signs."""
  rng = random.Random(0)

  def number(signed):
    q = Fraction(rng.randint(200, 4000), rng.randint(200, 4000))
    return ("number", -q if signed and rng.random() < 0.6 else q)

  for i in range(POINTS):
    point = {}
    for name in sorted(names):
      point[name] = number(i > 1)
      if name in complex_letters:
        point[name] = ("+", point[name], ("*", number(True), ("i",)))
    yield point


def substitute(tree: tuple, point: dict) -> tuple:
  if tree[0] == "letter":
    return point[tree[1]]
  return tuple(substitute(t, point) if isinstance(t, tuple) else t for t in tree)


def leaves(tree: tuple):
  parts = [part for part in tree[1:] if isinstance(part, tuple)]
  if not parts:
    yield tree[0]
  for part in parts:
    yield from leaves(part)


# --------------------------------------------------------------- evaluation


@functools.cache
def mpmath_context():
  # Imported in the function: other tasks do not need it.
  import mpmath

  return mpmath.MPContext()


class Evaluator:
  """Values of trees without letters: Fractions where they are rational, else mpmath's
  numbers of `bits` bits. `magnitude` sums |log2| of the absolute values so far.

  `is_last`: the precision suffices to tell a value from 0, so that a tiny one is 0.
  """

  def __init__(self, bits: int, is_last: bool = False):
    self.bits, self.is_last = bits, is_last
    self.context = mpmath_context()
    self.magnitude, self.calls = 0.0, 0

  def value_or_none(self, tree: tuple):
    try:
      return self.value(tree)
    except Undefined:
      return None

  def value(self, tree: tuple):
    with LOCK, self.context.workprec(self.bits):
      return self.visit(tree)

  def visit(self, tree: tuple):
    name, *parts = tree
    if name == "number":
      return self.noted(parts[0])
    function = parts.pop(0) if name == "call" else None
    values = [self.visit(part) for part in parts]
    if function is None and all(isinstance(v, Fraction) for v in values):
      value = RATIONAL[name](*values) if name in RATIONAL else None
      if value is not None:
        return self.noted(value)
    self.calls += name not in ("+", "*", "negative", "/", "degrees")
    if self.calls > MOST_CALLS:
      raise Unknown("many functions")
    try:
      return self.noted(self.compute(function or name, values))
    except (ZeroDivisionError, OverflowError) as e:
      raise Undefined(str(e)) from e

  def noted(self, value):
    """The value, its magnitude recorded; a tiny value is 0 in the last evaluation."""
    if isinstance(value, Fraction):
      size = value.numerator.bit_length() - value.denominator.bit_length()
      if max(value.numerator.bit_length(), value.denominator.bit_length()) > LARGEST:
        raise Unknown("a large number")
    elif not self.context.isfinite(value):
      raise Undefined("no finite value")
    else:
      size = self.context.mag(value) if value else 0
      if abs(size) > MOST_BITS and not self.is_last:
        raise Unknown("a large or small value")
      if self.is_last and abs(size) > self.bits // 2:
        if size > 0:
          raise Undefined("a division by zero")
        return Fraction(0)
    self.magnitude += abs(size)
    return value

  def real(self, value):
    if isinstance(value, Fraction):
      return self.context.mpf(value.numerator) / value.denominator
    return value

  def compute(self, name: str, values: list):
    """One operation, in mpmath's numbers."""
    mp = self.context
    if name in ("pi", "e"):
      return +getattr(mp, name)
    if name == "i":
      return mp.mpc(0, 1)
    if name in ("!", "binom") and any(abs(self.real(v)) > 10**4 for v in values):
      raise Unknown("a large factorial")
    if name in ("^", "root"):
      return self.power(name, *values)
    x, *rest = [self.real(v) for v in values]
    if name in ("exp", "sinh", "cosh", "tanh") and abs(x) > MOST_BITS:
      raise Unknown("a large exponent")
    if name in ("ln", "log"):
      if not x:
        raise Undefined("the logarithm of 0")
      # \log without a base is ln times a constant that nobody knows.
      unknown = Fraction(100_003, 70_001)
      return (
        mp.ln(x) / mp.ln(rest[0])
        if rest
        else mp.ln(x) * (self.real(unknown) if name == "log" else 1)
      )
    if name == "tanh":  # through exp, whose size counts
      tail = self.noted(mp.exp(-2 * abs(x.real)))
      return mp.tanh(x) + 0 * self.real(tail)
    return COMPUTED[name](mp, x, *rest)

  def power(self, name: str, base, exponent):
    """base ^ exponent, or the root with that index: real for odd roots of negative
    numbers. Raises Undefined where people do not agree: (-8)^{1/3}."""
    mp = self.context
    is_whole = isinstance(exponent, Fraction) and exponent.denominator == 1
    x, e = self.real(base), self.real(exponent)
    if name == "root":
      if not is_whole or not 2 <= exponent <= 100:
        raise Unknown("a root of another index")
      if exponent == 2:
        return mp.sqrt(x)
      if not mp.im(x) and mp.re(x) < 0:
        if exponent % 2 == 0:
          raise Undefined("an even root of a negative number")
        return -mp.root(-x, int(exponent))
      if mp.im(x):
        raise Undefined("a root of a complex number")
      return mp.root(x, int(exponent)) if x else Fraction(0)
    if not x:
      if not mp.im(e) and mp.re(e) > 0:
        return Fraction(0)
      raise Undefined("a power of 0")
    # A half-integer power is a power of the square root; of (-8)^{1/3} people differ.
    if isinstance(exponent, Fraction) and exponent.denominator == 2:
      return self.power("^", mp.sqrt(x), Fraction(exponent.numerator))
    if not is_whole and (mp.im(x) or mp.re(x) < 0):
      raise Undefined("a power of a negative number")
    if abs(e) * max(1, abs(mp.mag(x))) > MOST_BITS:
      raise Unknown("a large power")
    return mp.power(x, int(exponent) if is_whole else e)


def rational_power(a: Fraction, e: Fraction) -> Fraction | None:
  if e.denominator != 1:
    return None
  if not a:
    if e <= 0:
      raise Undefined("a power of 0")
    return a
  bits = max(a.numerator.bit_length(), a.denominator.bit_length())
  if a.numerator in (1, -1) and a.denominator == 1:
    return a ** int(e % 2)
  if abs(e) * bits > LARGEST:
    raise Unknown("a large power")
  return a ** int(e)


def rational_quotient(a: Fraction, b: Fraction) -> Fraction:
  if not b:
    raise Undefined("a division by zero")
  return a / b


def factorial(n: Fraction) -> Fraction | None:
  if n.denominator != 1:
    return None
  if n < 0:
    raise Undefined("a factorial of a negative number")
  if n > LARGEST_FACTORIAL:
    raise Unknown("a large factorial")
  return Fraction(math.factorial(int(n)))


def binomial(n: Fraction, k: Fraction) -> Fraction | None:
  if n.denominator != 1 or k.denominator != 1 or n < 0 or k < 0:
    return None
  if n > LARGEST_FACTORIAL:
    raise Unknown("a large binomial")
  return Fraction(math.comb(int(n), int(k)))


RATIONAL = {
  "+": lambda a, b: a + b,
  "*": lambda a, b: a * b,
  "/": rational_quotient,
  "^": rational_power,
  "negative": lambda a: -a,
  "abs": abs,
  "!": factorial,
  "binom": binomial,
}
COMPUTED = {
  "+": lambda mp, a, b: a + b,
  "*": lambda mp, a, b: a * b,
  "/": lambda mp, a, b: a / b,
  "negative": lambda mp, a: -a,
  "abs": lambda mp, a: abs(a),
  "degrees": lambda mp, a: a * mp.pi / 180,
  "!": lambda mp, a: mp.gamma(a + 1),
  "binom": lambda mp, n, k: mp.binomial(n, k),
  "arcsin": lambda mp, a: mp.asin(a),
  "arccos": lambda mp, a: mp.acos(a),
  "arctan": lambda mp, a: mp.atan(a),
} | {
  name: lambda mp, a, name=name: getattr(mp, name)(a)
  for name in "sin cos tan sec csc cot exp sinh cosh".split()
}
