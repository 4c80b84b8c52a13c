"""Routing: what every function keeps to, and values by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax.rollouts import routing
from tests.families import routing_keywords

ROLES = ("student", "teacher", "guided", "dataset")


@pytest.mark.parametrize("name", routing.ALL)
@given(
  st.lists(
    st.tuples(st.floats(0, 1), st.booleans(), st.sampled_from(ROLES)),
    min_size=1,
    max_size=6,
  )
)
def test_keys_hang_on_no_data_and_weights_are_numbers(name, group):
  f = routing.ALL[name]
  kw = routing_keywords(f)
  score, has_view, role = (np.array(x) for x in zip(*group, strict=True))
  weights = f(score, has_view[:, None], role, **kw)
  assert tuple(weights) == routing.keys(lambda *x: f(*x, **kw))
  for weight_N in weights.values():
    assert weight_N.shape == score.shape and np.isfinite(weight_N).all()
    assert (weight_N >= 0).all()


def rate(right, total, a=1.0, b=1.0):
  score = np.arange(total) < right
  views = np.ones((total, 1), bool)
  return routing.pass_rate(score * 1.0, views, np.array(["student"] * total), a=a, b=b)


@pytest.mark.parametrize(
  "right,expected", [(0, 0), (1, 0.109375), (4, 0.25), (7, 0.109375), (8, 0)]
)
def test_a_pass_rate_by_hand(right, expected):
  np.testing.assert_allclose(rate(right, 8)["distill"], expected)
  np.testing.assert_allclose(rate(right, 8, 0, 0)["distill"], 1)
