"""Rewards: hand-checked advantages, losses and gradients; KL by enumeration."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from opsd_jax import reinforce

S, T = jnp.array([0.5, 0.3, 0.2]), jnp.array([0.7, 0.2, 0.1])
REWARDS = arrays(np.float64, (3, 4), elements=st.floats(-3, 3, width=16))


def advantage(name, *rewards):
  return reinforce.ADVANTAGES[name](np.array([rewards], float))[0]


def test_hand_checked_advantages():
  def close(a, b):
    return np.testing.assert_allclose(a, b, atol=5e-5)

  close(advantage("standardised", 1, 1, 0, 0), [0.86588, 0.86588, -0.86588, -0.86588])
  close(advantage("standardised", 1, 0, 0, 0), [1.4997, -0.4999, -0.4999, -0.4999])
  close(advantage("centred", 1, 0, 0, 0), [0.75, -0.25, -0.25, -0.25])
  close(advantage("leave_one_out", 1, 0, 0, 0), [1, -1 / 3, -1 / 3, -1 / 3])
  close(advantage("reward", 1, 0, 0, 0), [1, 0, 0, 0])
  two = reinforce.whitened(np.array([[1.0, 0, 0, 0], [1, 1, 1, 1]]))
  close(two, np.array([[0.75, -0.25, -0.25, -0.25], [0, 0, 0, 0]]) / 0.30629)


BASELINES = sorted(set(reinforce.ADVANTAGES) - set(reinforce.ALONE))


@pytest.mark.parametrize("name", BASELINES)
@given(reward=REWARDS, shift=st.floats(-2, 2, width=16))
def test_advantages_sum_to_nothing_and_do_not_see_a_shift(name, reward, shift):
  A = reinforce.ADVANTAGES[name](reward)
  np.testing.assert_allclose(A.sum(1), 0, atol=1e-9)
  np.testing.assert_allclose(reinforce.ADVANTAGES[name](reward + shift), A, atol=1e-8)


@pytest.mark.parametrize("name", BASELINES)
def test_equal_rewards_give_no_advantage(name):
  A = reinforce.ADVANTAGES[name](np.full((2, 4), 0.7))
  np.testing.assert_allclose(A, 0, atol=1e-9)


def test_one_response_that_nothing_is_compared_with():
  """Is refused by objective.from_config; here: what it would be."""
  assert reinforce.centred(np.ones((1, 1))) == 0


def test_signal():
  reward = np.array([[0, 1, 0], [1, 1, 1], [0, 0, 0.0]])
  assert reinforce.signal(reward).tolist() == [True, False, False]


def test_overlong():
  penalties = [reinforce.overlong(n, 100, 20) for n in (1, 80, 85, 90, 100, 120)]
  assert penalties == [0, 0, -0.25, -0.5, -1, -1]
  assert reinforce.overlong(100, 100, 0) == 0


# -------------------------------------------------------------- surrogates


def loss_and_gradient(surrogate, logp, old, A, sampled=np.nan, **kw):
  """A token's loss and its derivative by the log-prob."""
  token = types.SimpleNamespace(
    advantage_BxT=jnp.float32(A),
    old_logp_BxT=jnp.float32(old),
    sampled_logp_BxT=jnp.float32(sampled),
  )

  def loss(x):
    return surrogate(types.SimpleNamespace(logp_BxT=x), token, **kw)

  value, slope = jax.value_and_grad(loss)(jnp.float32(logp))
  return float(value), float(slope)


CLIP = {"clip_low": 0.2, "clip_high": 0.3}


@pytest.mark.parametrize(
  "A,ratio,loss,slope",
  [
    (2, 1.0, -2, -2),
    (2, 1.2, -2.4, -2.4),
    (2, 1.4, -2.6, 0),
    (2, 0.7, -1.4, -1.4),
    (-2, 0.9, 1.8, 1.8),
    (-2, 0.7, 1.6, 0),
    (-2, 1.4, 2.8, 2.8),
    (0, 1.4, 0, 0),
  ],
)
def test_ppo_clips_only_what_goes_on_in_its_direction(A, ratio, loss, slope):
  got = loss_and_gradient(reinforce.ppo, -1 + np.log(ratio), -1, A, **CLIP)
  np.testing.assert_allclose(got, (loss, slope), atol=1e-5)


@pytest.mark.parametrize("ratio,weight", [(1.1, 1.1), (2.0, 1.3), (0.5, 0.8)])
def test_cispo_keeps_every_gradient(ratio, weight):
  logp = -1 + np.log(ratio)
  got = loss_and_gradient(reinforce.cispo, logp, -1, 2, **CLIP)
  np.testing.assert_allclose(got, (-2 * weight * logp, -2 * weight), atol=1e-5)


@pytest.mark.parametrize("name", reinforce.SURROGATES)
@pytest.mark.parametrize("old", [np.nan, -1.5])
def test_the_first_update_is_reinforce(name, old):
  """At ratio 1 every surrogate has the gradient -A."""
  kw = {} if name == "plain" else CLIP
  _, slope = loss_and_gradient(reinforce.SURROGATES[name], -1.5, old, 3, **kw)
  np.testing.assert_allclose(slope, -3, atol=1e-6)


def test_importance_is_truncated_and_has_no_gradient():
  def weight(old, sampled):
    return loss_and_gradient(
      lambda tok, token: reinforce.importance(tok, token, 2.0) + 0 * tok.logp_BxT,
      -1.0,
      old,
      0,
      sampled,
    )

  np.testing.assert_allclose(weight(-1.0, -0.5), (np.exp(-0.5), 0), atol=1e-6)
  np.testing.assert_allclose(weight(-1.0, -3.0), (2, 0), atol=1e-6)
  np.testing.assert_allclose(weight(np.nan, -1.0), (1, 0), atol=1e-6)


# ---------------------------------------------------------------------- KL


def expected(name):
  """(value, gradient by the logits) of an estimator, over every token that the
  student may draw; the draw itself has no gradient."""

  def value(z):
    logp = jax.nn.log_softmax(z)
    ratio = jnp.exp(logp - jax.lax.stop_gradient(logp))
    return (S * reinforce.KL[name](logp, jnp.log(T), ratio)).sum()

  return jax.value_and_grad(value)(jnp.log(S))


def gradient_of(divergence):
  """By the logits, at S."""
  return jax.grad(lambda z: divergence(jax.nn.softmax(z)))(jnp.log(S))


@pytest.mark.parametrize(
  "name,value,gradient",
  [
    ("k1", 0.092033, (0, 0, 0)),
    ("k2", 0.101009, (-0.214253, 0.094030, 0.120223)),
    ("k3", 0.092033, (-0.2, 0.1, 0.1)),
    ("ratio_k3", 0.092033, (-0.214253, 0.094030, 0.120223)),
  ],
)
def test_kl_estimators_in_expectation(name, value, gradient):
  got_value, got_gradient = expected(name)
  np.testing.assert_allclose(got_value, value, atol=2e-6)
  np.testing.assert_allclose(got_gradient, gradient, atol=2e-6)


def test_the_gradients_are_those_of_the_two_kls():
  reverse = gradient_of(lambda p: (p * jnp.log(p / T)).sum())
  forward = gradient_of(lambda p: (T * jnp.log(T / p)).sum())
  for name, truth in (("k2", reverse), ("ratio_k3", reverse), ("k3", forward)):
    np.testing.assert_allclose(expected(name)[1], truth, atol=1e-6)


def test_one_sample():
  def of(name):
    return reinforce.KL[name](np.log(0.5), np.log(0.25), 1.0)

  np.testing.assert_allclose(
    [of("k1"), of("k2"), of("k3")], [0.6931, 0.2402, 0.1931], atol=5e-5
  )
