"""Surrogates by hand: losses and gradients; KL estimators by enumeration."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsd_jax.losses import policy_gradient
from tests.families import surrogate_keywords

S, T = jnp.array([0.5, 0.3, 0.2]), jnp.array([0.7, 0.2, 0.1])


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
  got = loss_and_gradient(policy_gradient.ppo, -1 + np.log(ratio), -1, A, **CLIP)
  np.testing.assert_allclose(got, (loss, slope), atol=1e-5)


@pytest.mark.parametrize("ratio,weight", [(1.1, 1.1), (2.0, 1.3), (0.5, 0.8)])
def test_cispo_keeps_every_gradient(ratio, weight):
  logp = -1 + np.log(ratio)
  got = loss_and_gradient(policy_gradient.cispo, logp, -1, 2, **CLIP)
  np.testing.assert_allclose(got, (-2 * weight * logp, -2 * weight), atol=1e-5)


@pytest.mark.parametrize("name", policy_gradient.SURROGATES)
@pytest.mark.parametrize("old", [np.nan, -1.5])
def test_the_first_update_is_reinforce(name, old):
  """At ratio 1 every surrogate has the gradient -A."""
  surrogate = policy_gradient.SURROGATES[name]
  kw = surrogate_keywords(surrogate)
  if "old_share" in kw:
    kw["old_share"] = 1.0  # else it reads a teacher
  _, slope = loss_and_gradient(surrogate, -1.5, old, 3, **kw)
  np.testing.assert_allclose(slope, -3, atol=1e-6)


def test_trrd_by_hand():
  """S .5, old .4, T .7: the ratio S / (old^a T^(1 - a)) (RLAD, eq. 3)."""
  for share, expected in ((0.0, 0.7143), (0.5, 0.9449), (1.0, 1.25)):
    token = types.SimpleNamespace(
      advantage_BxT=jnp.float32(1), old_logp_BxT=jnp.log(0.4)
    )
    stats = types.SimpleNamespace(logp_BxT=jnp.log(0.5), teacher_logp_BxT=jnp.log(0.7))
    kw = {"clip_low": 1.0, "clip_high": 1.0, "old_share": share}
    loss = policy_gradient.trrd(stats, token, **kw)
    np.testing.assert_allclose(-loss, expected, atol=5e-5)


def test_importance_is_truncated_and_has_no_gradient():
  def weight(old, sampled):
    return loss_and_gradient(
      lambda stats, token: (
        policy_gradient.importance(stats, token, 2.0) + 0 * stats.logp_BxT
      ),
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
    return (S * policy_gradient.KL[name](logp, jnp.log(T), ratio)).sum()

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
    return policy_gradient.KL[name](np.log(0.5), np.log(0.25), 1.0)

  np.testing.assert_allclose(
    [of("k1"), of("k2"), of("k3")], [0.6931, 0.2402, 0.1931], atol=5e-5
  )


@pytest.mark.parametrize("name", policy_gradient.KL)
@pytest.mark.parametrize("gap", [0.0, 3.0, -3.0, 50.0, -50.0])
def test_no_estimator_breaks_far_from_the_reference(name, gap):
  def value(logp):
    return policy_gradient.KL[name](logp, jnp.float32(-60.0), jnp.float32(1.0))

  got = jax.value_and_grad(value)(jnp.float32(-60.0 + gap))
  assert np.isfinite(got).all()
  assert gap or got[0] == 0


# ------------------------------------------------------------- gaps of any size

GAPS = (0.0, 20.0, 63.0, 100.0, 1000.0, np.inf)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("name", policy_gradient.KL)
def test_no_gap_breaks_an_estimator(name, gap, sign):
  """Of the reference and of the old policy; -inf as objective.of_logits bounds it."""
  logp, other = jnp.float32(-1), jnp.float32(np.maximum(-1 + sign * gap, -1e4))
  if sign > 0:
    logp, other = jnp.float32(np.maximum(-1 - gap, -1e4)), jnp.float32(-1)

  def of(x):
    ratio = policy_gradient.exp_clipped(x - jax.lax.stop_gradient(other))
    return policy_gradient.KL[name](x, other, ratio)

  value, slope = jax.value_and_grad(of)(logp)
  assert np.isfinite(value) and np.isfinite(np.square(slope)), (value, slope)


@pytest.mark.parametrize("gap", [20.5, 63.0, 1000.0])
@pytest.mark.parametrize("name", ["k3", "ratio_k3"])
def test_one_far_token_leaves_the_others_their_share(name, gap):
  """Beyond 20 nats it has no gradient, whose square would be infinite."""

  def of(logp_2):
    return policy_gradient.KL[name](logp_2, jnp.float32(-1), jnp.ones(2)).sum()

  far, near = jax.grad(of)(jnp.array([-1 - gap, -1.5], jnp.float32))
  assert far == 0 and near == pytest.approx(-np.expm1(0.5), rel=1e-5)


@pytest.mark.parametrize("gap", [0.0, 20.0, 100.0, 1000.0, 1e4])
@pytest.mark.parametrize("A", [1.5, 0.0, -1.5])
@pytest.mark.parametrize("name", policy_gradient.SURROGATES)
def test_no_gap_breaks_a_surrogate(name, A, gap):
  surrogate = policy_gradient.SURROGATES[name]
  kw = surrogate_keywords(surrogate)
  for logp, other in ((-1.0, -1.0 - gap), (-1.0 - gap, -1.0)):
    token = types.SimpleNamespace(
      advantage_BxT=jnp.float32(A), old_logp_BxT=jnp.float32(other)
    )

    def of(x, token=token, other=other):
      stats = types.SimpleNamespace(logp_BxT=x, teacher_logp_BxT=jnp.float32(other))
      return surrogate(stats, token, **kw)

    value, slope = jax.value_and_grad(of)(jnp.float32(logp))
    assert np.isfinite(value) and np.isfinite(np.square(slope))
