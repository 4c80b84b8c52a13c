"""Comparison by computer algebra: math-verify (Kydlicek 2025), on answers that it
reads correctly."""

import functools
import logging
import re

from opsd_jax.tasks.grading import notation

LONGEST = 300  # characters of an answer that math-verify is given
DEEPEST = 12  # levels of nested brackets

# LaTeX commands that math-verify reads correctly; an answer with another command
# is compared as text.
COMMANDS = frozenset(
  "frac sqrt pi cdot times div sin cos tan sec csc cot arcsin arccos arctan"
  " sinh cosh tanh log ln exp infty cup cap in le ge ne pm binom begin end"
  " alpha beta gamma theta lambda mu phi omega deg".split()
)


def equal(reference: str, answer: str) -> bool:
  """Whether math-verify finds two cleaned answers equal.

  False, without asking it, for answers that it is known to misread: words, unknown
  commands, deep nesting, long texts, and equations in different variables, which
  it calls equal where neither has a solution.
  """
  for text in (reference, answer):
    known = set(re.findall(r"\\([a-zA-Z]+)", text)) <= COMMANDS
    bare = re.sub(r"\\[a-zA-Z]+", " ", text)
    if len(text) > LONGEST or notation.has_words(text) or not known:
      return False
    if depth(text) > DEEPEST or re.search("[a-zA-Z][0-9]", bare):
      return False
  are_equations = all(map(notation.RELATION.search, (reference, answer)))
  if are_equations and variables(reference) != variables(answer):
    return False
  parse, verify = library()
  return verify(parse(as_latex(reference)), parse(as_latex(answer)))


def variables(text: str) -> set[str]:
  """The variables of a formula."""
  commands = "|".join((r"\\[a-zA-Z]+", *notation.FUNCTIONS))
  bare = re.sub(commands, " ", text)
  return set(re.findall("[a-zA-Z]", bare)) - {"e", "i"}


def as_latex(text: str) -> str:
  """A cleaned answer as LaTeX: degrees and exponents as TeX writes them, and
  decimals as fractions, so that math-verify rounds none."""
  text = text.replace("\\deg", "^\\circ")
  text = re.sub(r"\^\s*([0-9]{2,})", r"^{\1}", text)
  return re.sub(r"([0-9]*)\.([0-9]+)", fraction, text)


def fraction(decimal) -> str:
  whole, part = decimal.groups()
  return f"\\frac{{{int(whole + part)}}}{{{10 ** len(part)}}}"


def depth(text: str) -> int:
  """Levels of nested brackets."""
  deepest = level = 0
  for character in text:
    level += (character in "([{") - (character in ")]}")
    deepest = max(deepest, level)
  return deepest


@functools.cache
def library():
  """(parse, verify) of math-verify.

  Switched off are its timeouts (signals, which only work in a main thread), its
  parser of plain text (which evaluates Python) and its removal of units (5m is
  not 5).
  """
  for name in ("math_verify", "latex2sympy2_extended"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  # Imported in the function: they load sympy, which other tasks do not need.
  import math_verify
  from latex2sympy2_extended import NormalizationConfig

  rules = NormalizationConfig(
    basic_latex=True,
    units=False,
    malformed_operators=True,
    nits=True,
    boxed="none",
    equations=False,
  )
  latex = (math_verify.LatexExtractionConfig(normalization_config=rules),)

  def parse(text):
    return math_verify.parse(
      f"${text}$", latex, fallback_mode="no_fallback", parsing_timeout=None
    )

  def verify(gold, target):
    return math_verify.verify(
      gold,
      target,
      float_rounding=30,
      numeric_precision=50,
      allow_set_relation_comp=True,
      timeout_seconds=None,
    )

  return parse, verify
