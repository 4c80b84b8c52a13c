"""The best share of the label, against a search."""

import numpy as np
import pytest

from opsd_jax.losses.label_share import best_label_share


def test_it_is_the_best_of_many():
  rng = np.random.default_rng(0)
  of_labels, of_teacher = rng.dirichlet(np.ones(4), (2, 30))
  y = rng.integers(0, 4, 30)
  shares = np.linspace(0, 1, 2001)
  errors = [
    np.square(a * of_labels + (1 - a) * of_teacher - np.eye(4)[y]).sum() for a in shares
  ]
  found = best_label_share(of_labels, of_teacher, y)
  assert 0 < found < 1
  assert found == pytest.approx(shares[np.argmin(errors)], abs=1e-3)


def test_whoever_is_right_gets_all():
  onehot, flat = np.eye(3), np.full((3, 3), 1 / 3)
  assert best_label_share(onehot, flat, np.arange(3)) == 1
  assert best_label_share(flat, onehot, np.arange(3)) == 0
  with pytest.raises(ValueError, match="the same"):
    best_label_share(flat, flat, np.arange(3))
