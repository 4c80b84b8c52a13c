"""Computer algebra is not used on answers that it misreads."""

import pytest

from opsd_jax.tasks.grading import algebra


@pytest.mark.parametrize(
  "reference,found",
  [
    ("x", "\\text{x} y"),
    ("x", "\\overline{x}"),
    ("x", "(" * 13 + "x" + ")" * 13),
    ("x", "x+0" + "+0" * 150),
    ("xy", "x2y"),
    ("east", "seat"),
  ],
)
def test_math_verify_does_not_see_what_it_misreads(monkeypatch, reference, found):
  monkeypatch.setattr(algebra, "library", lambda: pytest.fail("called"))
  assert not algebra.equal(reference, found)
