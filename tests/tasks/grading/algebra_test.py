"""Formulas: what is equal, what is not evaluated, and how long that takes."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax.tasks.grading import algebra, answers, formulas
from opsd_jax.tasks.grading.exact_numbers import Ambiguous, Unknown

QUICK = 2  # seconds

formula = st.recursive(
  st.sampled_from(["x", "y", "3", "\\pi", "a_1"]),
  lambda part: st.one_of(
    st.builds("({}+{})".format, part, part),
    st.builds("({}-{})".format, part, part),
    st.builds("{}\\cdot {}".format, part, part),
    st.builds("\\frac{{{}}}{{2}}".format, part),
    st.builds("({})^2".format, part),
    st.builds("\\sin({})".format, part),
  ),
  max_leaves=6,
)


@given(formula, formula)
def test_equality_is_an_equivalence(a, b):
  assert algebra.equal(a, a)
  assert algebra.equal(a, b) == algebra.equal(b, a)
  assert algebra.equal(f"({a})+({b})", f"({b})+({a})")


@given(formula)
def test_a_small_addition_is_seen(a):
  assert not algebra.equal(a, f"({a})+10^{{-60}}")
  assert not algebra.equal(a, f"({a})(1+\\frac{{1}}{{3^{{200}}}})") or algebra.equal(
    a, "0"
  )


@pytest.mark.parametrize(
  "reference,found",
  [
    ("x", "\\text{x} y"),
    ("x", "\\overline{x}"),
    ("x", "(" * 21 + "x" + ")" * 21),
    ("x", "x+0" + "+0" * 150),
    ("xy", "x2y"),
    ("east", "seat"),
    ("9^{9^{9}}", "9^{9^{9}}+1"),
    ("f(x)", "fx"),
    ("\\frac{dy}{dx}", "\\frac{y}{x}"),
    ("\\sin x/2", "\\sin(x/2)"),
    ("\\frac{x}{x}", "\\frac{0}{0}"),
  ],
)
def test_what_is_no_formula_or_large_equals_nothing(reference, found):
  assert not algebra.equal(reference, found)


@pytest.mark.parametrize(
  "text",
  ["1/2x", "x2", "2^3^4", "2^3!", "1{7}", "\\sin x/2", "\\sin(x)^2", "3\\frac53"],
)
def test_what_two_people_read_differently_is_refused(text):
  with pytest.raises(Ambiguous):
    formulas.parse(text)


@pytest.mark.parametrize(
  "text", ["f'(x)", "f(x)", "dy/dx", "word", "x=1", "\\int x", ""]
)
def test_what_is_no_formula_is_refused(text):
  with pytest.raises(Unknown):
    formulas.parse(text)


@pytest.mark.parametrize(
  "f,g,positive,expected",
  [
    ("2x-y+3", "y-2x-3", False, True),
    ("2x-y+3", "y-2x-3", True, False),
    ("2x-y+3", "4x-2y+6", True, True),
    ("x-1", "y-1", False, False),
    ("x", "X", False, False),
    ("x^2-1", "x-1", False, False),
    ("2", "4", False, False),
    ("\\pi x", "x", True, True),
  ],
)
def test_multiples_are_one_equation(f, g, positive, expected):
  assert algebra.proportional(f, g, positive) is expected


HOSTILE = [
  "9^{9^{9^9}}",
  "10^{10^{10}}-1",
  "((((9!)!)!)!)!",
  "9!!!!!!!!!!",
  "2^{99999999}",
  "(x+1)^{99999}",
  "x^{4000}y^{4000}z^{4000}",
  "\\binom{4000}{2000}^{9}",
  "\\frac{1}{" * 90 + "x" + "}" * 90,
  "\\sqrt{" * 50 + "2" + "}" * 50,
  "\\sqrt{2+" * 18 + "x" + "}" * 18,
  "\\sin(" * 18 + "x" + ")" * 18,
  "+".join(f"\\sin {n}x" for n in range(1, 40)),
  "+".join(f"\\sqrt{{{n}}}" for n in range(2, 40)),
  "+".join(f"e^{{{n}\\pi}}" for n in range(2, 30)),
  "\\frac{1}{3999!}" + "+\\frac{1}{3998!}" * 15,
  "\\tan(\\frac{\\pi}{2})",
  "10^{2000}+\\sin(10^{2000})",
  "x!y!z!a!b!c!",
  "{" * 100_000,
  "1" * 100_000,
  "(" * 400 + ")" * 400,
  "x=" * 400,
  "1," * 499,
  "\\pm 1," * 140,
  "(1,2)\\cup" * 100 + "(1,2)",
  "1 m " * 240,
  '5 "a b c d" / ' * 60,
  "x<1 or " * 140,
  "\\text{" * 150,
  "|" * 290,
  "\\log_{" * 40 + "2" + "}2" * 40,
  "a+" * 400 + "b=1",
  "5 " + "a" * 900,
  "5 " + "ab " * 300 + "!",
  "one hundred " * 80,
  "\\begin{pmatrix}" + "1&" * 300 + "1\\end{pmatrix}",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda t: t[:24])
def test_a_hostile_answer_is_decided_soon(text):
  before = time.process_time()
  for other in ("5", "x^2+1", "\\sqrt2+\\sin x", "(1,2)"):
    answers.compare(text, f"{text[:-1]}+2", algebra)
    answers.compare(other, text, algebra)
  assert time.process_time() - before < QUICK
