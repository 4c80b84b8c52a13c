"""Advantages, checked by hand and by their invariances."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from opsd_jax.rollouts import advantages

REWARDS = arrays(np.float64, (3, 4), elements=st.floats(-3, 3, width=16))


def advantage(name, *rewards):
  return advantages.ALL[name](np.array([rewards], float))[0]


def test_hand_checked_advantages():
  def close(a, b):
    return np.testing.assert_allclose(a, b, atol=5e-5)

  close(advantage("standardised", 1, 1, 0, 0), [0.86588, 0.86588, -0.86588, -0.86588])
  close(advantage("standardised", 1, 0, 0, 0), [1.4997, -0.4999, -0.4999, -0.4999])
  close(advantage("mean_baseline", 1, 0, 0, 0), [0.75, -0.25, -0.25, -0.25])
  close(advantage("leave_one_out", 1, 0, 0, 0), [1, -1 / 3, -1 / 3, -1 / 3])
  close(advantage("reward", 1, 0, 0, 0), [1, 0, 0, 0])
  two = advantages.whitened(np.array([[1.0, 0, 0, 0], [1, 1, 1, 1]]))
  close(two, np.array([[0.75, -0.25, -0.25, -0.25], [0, 0, 0, 0]]) / 0.30629)


BASELINES = sorted(set(advantages.ALL) - set(advantages.ALONE))


@pytest.mark.parametrize("name", BASELINES)
@given(reward=REWARDS, shift=st.floats(-2, 2, width=16))
def test_advantages_sum_to_nothing_and_do_not_see_a_shift(name, reward, shift):
  A = advantages.ALL[name](reward)
  np.testing.assert_allclose(A.sum(1), 0, atol=1e-9)
  np.testing.assert_allclose(advantages.ALL[name](reward + shift), A, atol=1e-8)


@pytest.mark.parametrize("name", BASELINES)
def test_equal_rewards_give_no_advantage(name):
  A = advantages.ALL[name](np.full((2, 4), 0.7))
  np.testing.assert_allclose(A, 0, atol=1e-9)


def test_one_response_that_nothing_is_compared_with():
  """Is refused by objective.from_config; here: what it would be."""
  assert advantages.mean_baseline(np.ones((1, 1))) == 0


def test_signal():
  reward = np.array([[0, 1, 0], [1, 1, 1], [0, 0, 0.0]])
  assert advantages.signal(reward).tolist() == [True, False, False]


def test_overlong():
  penalties = [advantages.overlong(n, 100, 20) for n in (1, 80, 85, 90, 100, 120)]
  assert penalties == [0, 0, -0.25, -0.5, -1, -1]
  assert advantages.overlong(100, 100, 0) == 0
