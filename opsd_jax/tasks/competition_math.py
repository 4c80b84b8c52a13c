"""Competition maths: the answer in the last \\boxed{}.

Without a box, what follows the last "answer is". Compared exactly by
tasks.answers; what that cannot read (algebra, functions) goes to math-verify
(Kydlicek 2025), which takes as long as it likes: run it in a pool.Pool.
"""

import functools
import logging
import re

from opsd_jax.structs import Verdict
from opsd_jax.tasks import judged
from opsd_jax.tasks.grading import answers
from opsd_jax.tasks.grading.extract import last_boxed, stated

LONGEST = 300  # characters that math-verify is asked about
DEEPEST = 12  # brackets in brackets
MATHS = re.compile(r"(?:\$\$?|\\\(|\\\[)(.+?)(?:\$\$?|\\\)|\\\])(.*)")
SENTENCE = re.compile(r"(?<=\S)[.!?](?=\s|$)|\n")

# What math-verify reads as it is written; anything else is compared as text.
COMMANDS = frozenset(
  (
    "frac",
    "sqrt",
    "pi",
    "cdot",
    "times",
    "div",
    "sin",
    "cos",
    "tan",
    "sec",
    "csc",
    "cot",
    "arcsin",
    "arccos",
    "arctan",
    "sinh",
    "cosh",
    "tanh",
    "log",
    "ln",
    "exp",
    "infty",
    "cup",
    "cap",
    "in",
    "le",
    "ge",
    "ne",
    "pm",
    "binom",
    "begin",
    "end",
    "alpha",
    "beta",
    "gamma",
    "theta",
    "lambda",
    "mu",
    "phi",
    "omega",
    "deg",
  )
)


def verify(reference: str, text: str) -> Verdict:
  found = final(text)
  if not found:
    return Verdict(0.0, None, "no answer in the reply")
  same = answers.compare(reference, found)
  if same is None:
    same = by_algebra(answers.clean(reference), answers.clean(found))
  return Verdict(float(same), found)


def final(text: str) -> str | None:
  """The answer as the reply writes it."""
  if (boxed := last_boxed(text)) is not None:
    return boxed.strip()
  if (after := stated(text)) is None:
    return None
  after = after.strip("*: \n")
  sentence = SENTENCE.split(after, maxsplit=1)[0].strip()
  match = MATHS.match(sentence)
  if match and not re.search(r"[0-9$]|\b(?:or|and|not)\b", match[2]):
    words = re.findall("[a-z]+", match[2].casefold())
    is_other = any(map(answers.multiplies, words))
    return sentence if is_other else match[1].strip()
  return sentence


def by_algebra(reference: str, found: str) -> bool:
  """Whether math-verify finds two cleaned answers equal. False for what it is
  known to misread: words, unknown commands, deep nesting, long texts,
  equations in other variables, which it takes for equal where neither has a
  solution."""
  for text in (reference, found):
    known = set(re.findall(r"\\([a-zA-Z]+)", text)) <= COMMANDS
    bare = re.sub(r"\\[a-zA-Z]+", " ", text)
    if len(text) > LONGEST or answers.has_words(text) or not known:
      return False
    if depth(text) > DEEPEST or re.search("[a-zA-Z][0-9]", bare):
      return False
  are_equations = all(map(answers.RELATION.search, (reference, found)))
  if are_equations and letters(reference) != letters(found):
    return False
  parse, equal = library()
  return equal(parse(as_latex(reference)), parse(as_latex(found)))


def letters(text: str) -> set[str]:
  """The variables of a formula."""
  commands = "|".join((r"\\[a-zA-Z]+", *answers.FUNCTIONS))
  bare = re.sub(commands, " ", text)
  return set(re.findall("[a-zA-Z]", bare)) - {"e", "i"}


def as_latex(text: str) -> str:
  """A cleaned answer with degrees and exponents in TeX's notation again, and
  decimals as fractions, so that none is rounded."""
  text = text.replace("\\deg", "^\\circ")
  text = re.sub(r"\^\s*([0-9]{2,})", r"^{\1}", text)
  return re.sub(r"([0-9]*)\.([0-9]+)", fraction, text)


def fraction(decimal) -> str:
  whole, part = decimal.groups()
  return f"\\frac{{{int(whole + part)}}}{{{10 ** len(part)}}}"


def depth(text: str) -> int:
  deepest = here = 0
  for character in text:
    here += (character in "([{") - (character in ")]}")
    deepest = max(deepest, here)
  return deepest


@functools.cache
def library():
  """math-verify's parse and verify, without its timeouts (they are signals,
  which only work in a main thread), its reading of plain text (which evaluates
  Python) and its dropping of units (5m is no 5)."""
  for name in ("math_verify", "latex2sympy2_extended"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  # Here, since they bring sympy, which other tasks do not need.
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

  def equal(gold, target):
    return math_verify.verify(
      gold,
      target,
      float_rounding=30,
      numeric_precision=50,
      allow_set_relation_comp=True,
      timeout_seconds=None,
    )

  return parse, equal


task = judged.task("maths", verify)
