"""Answers that are equal and answers that are not."""

import pathlib
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from opsd_jax.tasks.grading import answers, notation
from tests.tasks.grading.exact_numbers_test import in_latex
from tests.tasks.verify_only_test import score

CORPUS = [
  line.split("\t")
  for line in (pathlib.Path(__file__).with_name("answers.tsv")).read_text().splitlines()
  if not line.startswith("#")
]


def test_a_corpus_labelled_by_hand():
  assert len(CORPUS) >= 250
  assert {label for *_, label in CORPUS} == {"same", "different"}
  wrong = []
  for reference, answer, label in CORPUS:
    got = score("maths", reference, f"Hence $\\boxed{{{answer}}}$.") == 1
    if got != (label == "same"):
      wrong.append((reference, answer, label))
  assert not wrong


def test_most_of_it_needs_no_algebra():
  unknown = [(a, b) for a, b, _ in CORPUS if answers.compare(a, b) is None]
  assert len(unknown) < 0.25 * len(CORPUS), unknown


def test_an_answer_is_itself():
  """Also where it is read: written otherwise, it is no equal text."""
  for text in {text for row in CORPUS for text in row[:2]}:
    assert answers.compare(text, text) is True, text
    value = answers.read(notation.clean(text))
    is_named = answers.NAMED.match(notation.clean(text))
    if value.data is not None and not is_named and value.kind != "real set":
      assert answers.compare(text, f"x = {text}") in (True, None), text


@given(st.integers(0, 10**12), st.integers(0, 4))
def test_decimals_and_thousands_are_fractions(n, places):
  number = f"{n // 10**places:,}." + str(n % 10**places).zfill(places)
  assert answers.compare(in_latex(Fraction(n, 10**places)), number)
  assert not answers.compare(in_latex(Fraction(n + 1, 10**places)), number)
