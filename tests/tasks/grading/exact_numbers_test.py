"""Exact numbers: arithmetic against floats, and what is not evaluated."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax.tasks.grading import exact_numbers

small = st.integers(-30, 30)
fractions = st.builds(Fraction, small, st.integers(1, 30))


def as_float(value) -> complex:
  return sum(
    complex(q) * math.sqrt(n) * math.pi**k * 1j**c for (n, k, c), q in value.items()
  )


def in_latex(q: Fraction) -> str:
  return f"\\frac{{{q.numerator}}}{{{q.denominator}}}"


@given(fractions, fractions, st.integers(0, 60), fractions)
def test_a_sum_is_what_floats_say(a, b, n, c):
  text = f"{in_latex(a)} + ({in_latex(b)})\\sqrt{{{n}}} - {in_latex(c)}\\pi i"
  expected = float(a) + float(b) * math.sqrt(n) - float(c) * math.pi * 1j
  assert as_float(exact_numbers.read(text).value) == pytest.approx(expected)


@given(fractions, fractions, st.integers(0, 60))
def test_an_inverse_undoes_a_product(a, b, n):
  root = exact_numbers.root(exact_numbers.rational(n))
  value = exact_numbers.add(
    exact_numbers.rational(a), exact_numbers.multiply(exact_numbers.rational(b), root)
  )
  if value:
    one = exact_numbers.multiply(value, exact_numbers.inverse(value))
    assert one == exact_numbers.rational(1)


@given(fractions, st.integers(-6, 6))
def test_a_power_is_repeated_multiplication(a, e):
  if a or e > 0:
    assert exact_numbers.power(
      exact_numbers.rational(a), Fraction(e)
    ) == exact_numbers.rational(a**e)


@pytest.mark.parametrize(
  "text",
  [
    "9^{9^{9}}",
    "2^{101}",
    "(1+\\sqrt2)^{99}",
    "9" * 1001,
    "1/0",
    "0^0",
    "\\sqrt{1234567890123456789}",
    "(" * 21 + "1" + ")" * 21,
    "\\sqrt{\\pi}",
    "1" * 900 + "^{100}",
    "",
    "-",
    "\\frac{1}",
    "x",
    "2+",
  ],
)
def test_what_is_large_or_unclear_is_not_evaluated(text):
  with pytest.raises(exact_numbers.Unknown):
    exact_numbers.read(text)


@pytest.mark.parametrize("text", ["1/2\\pi", "2\\frac{3}{2}", "\\frac123", "4 2"])
def test_what_two_people_read_differently_is_refused(text):
  with pytest.raises(exact_numbers.Ambiguous):
    exact_numbers.read(text)
