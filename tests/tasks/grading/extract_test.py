"""Numbers, boxes and stated answers, as they are read from a completion."""

import time

import pytest

from opsd_jax.tasks.grading import extract
from tests.tasks.verify_only_test import ONLY_VERIFY, score

QUICK = 1  # seconds


@pytest.mark.parametrize(
  "text,expected",
  [
    ("The largest of these numbers is 930.", "930"),
    ("930", "930"),
    ("**930**!", "930"),
    ("(930)", "930"),
    ("930th", "930"),
    ("412, 87, 930, 55, 671", "671"),
    ("412, 87", "87"),
    ("412,87", "87"),
    ("between 12, 930", "930"),
    ("87 or 930, I think", "930"),
    ("1,234", "1234"),
    ("$1,234,567.", "1234567"),
    ("1,234.50", "1234.50"),
    ("12,34,567", "34567"),
    ("1234,567", "567"),
    ("12,3456", "3456"),
    ("it is 3.14", "3.14"),
    ("version 930.", "930"),
    ("930.5", "930.5"),
    ("-4", "-4"),
    ("7 - 3 = -4", "-4"),
    ("x=-4", "-4"),
    ("10-20", "20"),
    ("4 - 1", "1"),
    ("(5)-3", "3"),
    ("a-7", "7"),
    ("", None),
    ("none of them", None),
    ("one, two", None),
    ("-.,", None),
  ],
)
def test_last_number(text, expected):
  assert extract.last_number(text) == expected


@pytest.mark.parametrize(
  "text,expected",
  [
    (r"\boxed{7}", "7"),
    (r"\boxed{1}, no, \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\frac{\sqrt{\frac{1}{2}}}{3}}.", r"\frac{\sqrt{\frac{1}{2}}}{3}"),
    (r"\boxed{\{1,2\}}", r"\{1,2\}"),
    (r"\boxed{\left\{1\right\}}", r"\left\{1\right\}"),
    (r"\fbox{3}", "3"),
    (r"\boxed 5$.", "5"),
    (r"\boxed{}", ""),
    (r"\boxed{1} and \boxed{2", ""),
    ("none", None),
    (r"\boxedx{1}", None),
  ],
)
def test_the_last_box(text, expected):
  assert extract.last_boxed(text) == expected


@pytest.mark.parametrize(
  "part", ["\\boxed", "\\boxed{5}", "\\boxed 5 ", "{", " ", "\n", "#### 9 ", "1,000"]
)
def test_a_long_row_is_read_soon(part):
  """The neighbours of a box are read for the last boxes only, not for 30,000."""
  for name in ONLY_VERIFY:
    before = time.process_time()
    score(name, "9", 30_000 * part + "\\boxed{9}")
    assert time.process_time() - before < QUICK
