"""Divergences against hand-checked numbers, identities and finite differences."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax.losses import divergences, label_losses
from tests.families import divergence_keywords

T3, S3 = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
EVERY = [
  *((name, divergence_keywords(f)) for name, f in divergences.ALL.items()),
  *(("jsd", {"beta": b}) for b in (0, 0.1, 0.9, 1)),
  *(("alpha", {"alpha": a}) for a in (-0.5, 0, 1, 2)),
]


def value(name, p, q, y=0, **kw):
  f = divergences.make(name, **kw)
  return float(f(jnp.log(p), jnp.log(q), jnp.array(y))[0])


def logit_gradient(name, p, q, y=0, **kw):
  f = divergences.make(name, **kw)

  def of(z):
    return f(jax.nn.log_softmax(z), jnp.log(q), jnp.array(y))[0]

  return np.asarray(jax.grad(of)(jnp.log(jnp.asarray(p, jnp.float32))))


def pair(seed, V=7, scale=2.0):
  z = np.random.default_rng(seed).normal(size=(2, V)) * scale
  p = np.exp(z - z.max(1, keepdims=True))
  return p / p.sum(1, keepdims=True)


@pytest.mark.parametrize(
  "name,kw,expected",
  [
    ("forward_kl", {}, 0.085123),
    ("reverse_kl", {}, 0.092033),
    ("jsd", {"beta": 0.5}, 0.021901),
    ("jsd", {"beta": 0.1}, 0.007695),
    ("jsd", {"beta": 0.9}, 0.008185),
    ("jsd", {"beta": 0}, 0.085123),
    ("forward_kl", {"clip": "signed", "tau": 0.05}, -0.100408),
    ("reverse_kl", {"clip": "signed", "tau": 0.05}, -0.068236),
    ("jsd", {"beta": 0.5, "clip": "signed", "tau": 0.05}, 0.021901),
    ("forward_kl", {"clip": "generalized", "tau": 0.05}, 0.085123),
    ("forward_kl", {"clip": "token_sum", "tau": 0.05}, 0.05),
    ("forward_kl", {"support": "top_k_renormalised", "k": 2}, 0.053814),
    ("reverse_kl", {"support": "top_k_renormalised", "k": 2}, 0.059537),
    (
      "forward_kl",
      {"support": "top_k_tail", "k": 1, "support_from": "student"},
      0.082283,
    ),
    (
      "reverse_kl",
      {"support": "top_k_tail", "k": 1, "support_from": "student"},
      0.087177,
    ),
    ("sampled_token", {}, 0.233225),
    ("total_variation", {}, 0.2),
    ("chi_square", {}, 0.04 / 0.5 + 0.01 / 0.3 + 0.01 / 0.2),
  ],
)
def test_stated_values(name, kw, expected):
  assert value(name, S3, T3, **kw) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
  "name,kw,expected",
  [
    ("forward_kl", {}, (-0.2, 0.1, 0.1)),
    ("reverse_kl", {}, (-0.214253, 0.094030, 0.120223)),
    ("jsd", {"beta": 0.5}, (-0.050848, 0.024187, 0.026661)),
    ("forward_kl", {"clip": "signed", "tau": 0.05}, (0.15, -0.11, -0.04)),
    ("reverse_kl", {"clip": "signed", "tau": 0.05}, (0.1659, -0.0995, -0.0664)),
  ],
)
def test_stated_gradients(name, kw, expected):
  np.testing.assert_allclose(logit_gradient(name, S3, T3, **kw), expected, atol=5e-5)


def in_float64(name, p, q, kw):
  """Each divergence written anew, for finite differences."""
  u = q / p
  if name == "jsd" and kw["beta"] not in (0, 1):
    b = kw["beta"]
    m = b * q + (1 - b) * p
    return b * (q * np.log(q / m)).sum() + (1 - b) * (p * np.log(p / m)).sum()
  a = kw.get("alpha", {0: 1, 1: 0}.get(kw.get("beta")))
  if name == "forward_kl" or a == 1:
    f = u * np.log(u)
  elif name.startswith("reverse_kl") or a == 0:
    f = -np.log(u)
  elif name == "total_variation":
    f = abs(u - 1) / 2
  elif name == "squared_hellinger":
    f = (np.sqrt(u) - 1) ** 2
  elif name == "chi_square":
    f = (u - 1) ** 2
  else:
    f = (u**a - a * u + a - 1) / (a * (a - 1))
  return (p * f).sum()


@pytest.mark.parametrize("name,kw", EVERY)
def test_value_and_gradient_by_finite_differences(name, kw):
  for seed in range(4):
    p, q = pair(seed, scale=1.0)
    assert value(name, p, q, **kw) == pytest.approx(
      in_float64(name, p, q, kw), rel=1e-4, abs=1e-6
    )
    z, numeric = np.log(p), []

    def soft(z):
      return np.exp(z) / np.exp(z).sum()

    for j in range(len(z)):
      step = 1e-6 * np.eye(len(z))[j]
      up, down = (in_float64(name, soft(z + s * step), q, kw) for s in (1, -1))
      numeric.append((up - down) / 2e-6)
    np.testing.assert_allclose(logit_gradient(name, p, q, **kw), numeric, atol=1e-4)


@pytest.mark.parametrize("name,kw", EVERY)
@given(seed=st.integers(0, 2**16))
def test_zero_where_equal_positive_elsewhere(name, kw, seed):
  p, q = pair(seed)
  assert abs(value(name, p, p, **kw)) < 1e-6
  if name != "total_variation":  # not differentiable there
    assert np.abs(logit_gradient(name, p, p, **kw)).max() < 1e-6
  assert value(name, p, q, **kw) > 0
  # Adding a constant to the logits is invisible: gradients sum to 0.
  gradient = logit_gradient(name, p, q, **kw)
  assert abs(gradient.sum()) < 1e-4 * max(1, np.abs(gradient).max())


@given(seed=st.integers(0, 2**16), beta=st.floats(0.05, 0.95))
def test_symmetries_and_bounds(seed, beta):
  p, q = pair(seed)

  def close(x):
    return pytest.approx(x, rel=1e-3, abs=2e-6)

  assert value("forward_kl", p, q) == close(value("reverse_kl", q, p))
  assert value("jsd", p, q, beta=beta) == close(value("jsd", q, p, beta=1 - beta))
  entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
  assert value("jsd", p, q, beta=beta) <= entropy + 1e-6
  assert value("total_variation", p, q) <= 1 + 1e-6
  assert value("squared_hellinger", p, q) <= 2 + 1e-6
  assert value("alpha", p, q, alpha=0.5) == close(2 * value("squared_hellinger", p, q))
  assert value("alpha", p, q, alpha=2) == close(0.5 * value("chi_square", p, q))


@given(seed=st.integers(0, 2**16), k=st.integers(1, 6))
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "chi_square"])
@pytest.mark.parametrize("support_from", ["teacher", "student"])
def test_top_k_with_tail_is_at_most_the_full_divergence(name, support_from, seed, k):
  """Scale 1: a tail of 1e-7 of the mass is rounded by as much in float32."""
  p, q = pair(seed, scale=1.0)
  coarse = value(name, p, q, support="top_k_tail", k=k, support_from=support_from)
  full = value(name, p, q)
  assert -1e-6 <= coarse <= full * (1 + 1e-3) + 1e-6


@pytest.mark.parametrize("support", ["top_k_tail", "top_k_renormalised"])
@pytest.mark.parametrize("name,kw", EVERY)
def test_top_k_of_everything_is_full(name, kw, support):
  p, q = pair(3)
  got = value(name, p, q, support=support, k=7, **kw)
  assert got == pytest.approx(value(name, p, q, **kw), rel=1e-3, abs=1e-5)
  np.testing.assert_allclose(
    logit_gradient(name, p, q, support=support, k=7, **kw),
    logit_gradient(name, p, q, **kw),
    atol=2e-4,
  )


def test_renormalised_support_gives_nothing_to_the_others():
  p, q = pair(5)
  gradient = logit_gradient("forward_kl", p, q, support="top_k_renormalised", k=3)
  top = np.argsort(-q)[:3]
  outside = np.setdiff1d(np.arange(7), top)
  assert np.abs(gradient[outside]).max() < 1e-7
  assert np.abs(gradient[top]).max() > 1e-3


@given(seed=st.integers(0, 2**16), tau=st.floats(0.01, 0.5))
def test_clipped_forward_kl_pulls_to_the_unclipped_part(seed, tau):
  p, q = pair(seed)
  kept = q * np.log(q / p) <= tau
  expected = q[kept].sum() * p - q * kept
  np.testing.assert_allclose(
    logit_gradient("forward_kl", p, q, clip="signed", tau=tau), expected, atol=1e-4
  )


@given(seed=st.integers(0, 2**16), low=st.floats(0.01, 0.3))
@pytest.mark.parametrize("clip", ["signed", "generalized", "token_sum"])
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "total_variation"])
def test_clips_are_monotone_and_vanish_when_wide(name, clip, seed, low):
  p, q = pair(seed)

  def clipped(tau):
    return value(name, p, q, clip=clip, tau=tau)

  full = value(name, p, q)
  assert clipped(low) <= clipped(2 * low) + 1e-6 <= full + 1e-4
  assert clipped(1e6) == pytest.approx(full, rel=1e-4, abs=1e-5)
  if clip != "signed":
    assert clipped(low) >= -1e-6


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_generalized_without_effect_has_the_plain_gradient(name):
  p, q = pair(1)
  np.testing.assert_allclose(
    logit_gradient(name, p, q, clip="generalized", tau=1e6),
    logit_gradient(name, p, q),
    atol=1e-5,
  )


def test_clipped_fraction():
  f = divergences.make("forward_kl", clip="signed", tau=0.05)
  assert float(f(jnp.log(S3), jnp.log(T3), 0)[1]) == pytest.approx(1 / 3)


@given(seed=st.integers(0, 2**16))
def test_sampled_token_is_reverse_kl_in_expectation(seed):
  p, q = pair(seed)
  mean = sum(p[y] * logit_gradient("sampled_token", p, q, y=y) for y in range(len(p)))
  np.testing.assert_allclose(mean, logit_gradient("reverse_kl", p, q), atol=2e-4)


@pytest.mark.parametrize("name,kw", EVERY)
def test_impossible_tokens_do_not_make_nan(name, kw):
  """-inf on both sides, and on one where the divergence stays finite."""
  inf = -jnp.inf
  both = jnp.array([math.log(0.6), math.log(0.4), inf])
  near = jnp.array([math.log(0.5), math.log(0.5), inf])
  f = divergences.make(name, **kw)
  out, gradient = jax.value_and_grad(lambda x: f(x, near, 0)[0])(both)
  assert np.isfinite(out) and np.isfinite(gradient[:2]).all()


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_huge_logits_stay_finite(name):
  kw = {"beta": 0.5} if name == "jsd" else {}
  f = divergences.make(name, **kw)
  q = jax.nn.log_softmax(jnp.array([0.0, 1e4, -1e4]))

  def of(z):
    return f(jax.nn.log_softmax(z), q, 0)[0]

  out, gradient = jax.value_and_grad(of)(jnp.array([1e4, -1e4, 0.0]))
  assert np.isfinite(out) and np.isfinite(gradient).all()


def test_mutual_information_gap():
  """argmin_p of a mixture of teachers is their mean; the minimum is I(Y; R)."""
  t1, t2 = np.array([0.9, 0.1]), np.array([0.1, 0.9])
  half = np.array([0.5, 0.5])
  for name, gap in (("forward_kl", 0.3681), ("reverse_kl", 0.5108)):

    def both(p, name=name):
      return (value(name, p, t1) + value(name, p, t2)) / 2

    assert both(half) == pytest.approx(gap, abs=1e-4)
    for d, side in itertools.product((0.05, 0.2), (1, -1)):
      assert both(half + side * np.array([d, -d])) > both(half)


@pytest.mark.parametrize(
  "name,kw,words",
  [
    ("kl", {}, "forward_kl"),
    ("forward_kl", {"beta": 0.5}, "beta"),
    ("jsd", {"beta": 1.5}, "0 to 1"),
    ("forward_kl", {"support": "top_p"}, "top_k_tail"),
    ("forward_kl", {"support": "top_k_tail"}, "k >= 1"),
    ("forward_kl", {"clip": "signed"}, "tau > 0"),
    ("forward_kl", {"clip": "hard", "tau": 1.0}, "token_sum"),
    ("forward_kl", {"support_from": "judge"}, "student"),
  ],
)
def test_refusals(name, kw, words):
  with pytest.raises(ValueError, match=words):
    divergences.make(name, **kw)


def test_k_beyond_the_vocabulary_is_refused():
  with pytest.raises(ValueError, match="1 to 3"):
    value("forward_kl", S3, T3, support="top_k_tail", k=4)


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 0.2, 0.5, 0.8, 1 - 1e-3, 1 - 1e-6, 1.5])
def test_alpha_divergences_near_their_ends_are_those_of_float64(alpha):
  for seed in range(20):
    p, q = pair(seed)
    a = np.float64(alpha)
    terms = q**a * p ** (1 - a) - a * q + (a - 1) * p
    expected = terms.sum() / (a * (a - 1))
    # the reference itself loses digits near the ends
    got = value("alpha", p, q, alpha=alpha)
    assert got == pytest.approx(expected, rel=2e-4, abs=1e-6)
    end = value("alpha", p, q, alpha=round(alpha))
    if abs(alpha - round(alpha)) < 1e-5:
      assert got == pytest.approx(end, rel=1e-3, abs=1e-6)


INF = np.inf
GAPS = {  # logits of student and teacher
  "0": ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
  "20": ([20.0, 0.0, -5.0], [0.0, 20.0, 5.0]),
  "100": ([100.0, 0.0, -50.0], [0.0, 100.0, 50.0]),
  "180": ([0.0, -180.0, -60.0], [-180.0, 0.0, 60.0]),
  "1000": ([1000.0, 0.0, -500.0], [0.0, 1000.0, 500.0]),
  "teacher -inf": ([1.0, 0.0, 2.0], [0.0, -INF, 1.0]),
  "student -inf": ([1.0, -INF, 2.0], [0.0, 3.0, 1.0]),
  "both -inf": ([1.0, -INF, 2.0], [0.0, -INF, 1.0]),
}
CLIPPED = [{}] + [
  {"clip": clip, "tau": 0.05} for clip in divergences.CLIPS if clip != "none"
]
SUPPORTED = [{}] + [
  {"support": support, "k": 2, "support_from": side}
  for support in ("top_k_tail", "top_k_renormalised")
  for side in ("teacher", "student")
]


OF_LABELS = [
  (name, divergence_keywords(f))
  for name, f in {**label_losses.TOKEN, **label_losses.LABEL}.items()
]


@pytest.mark.parametrize("name,kw", [*EVERY, *OF_LABELS])
def test_no_gap_of_logits_makes_a_gradient_that_is_not_finite(name, kw):
  """Nor a value, with every clip and every support; each response token."""
  sides = np.array(list(GAPS.values()), np.float32)
  z, zt = (jnp.asarray(np.repeat(sides[:, side], 3, 0)) for side in (0, 1))
  y = np.tile(np.arange(3), len(GAPS))
  more = (
    [{}] if name not in divergences.ALL else [c | s for c in CLIPPED for s in SUPPORTED]
  )
  for options in more:
    f = divergences.make(name, **kw, **options)

    def of(z, f=f):
      value = f(jax.nn.log_softmax(z), jax.nn.log_softmax(zt), y)[0]
      return value.sum(), value

    (_, out), gradient = jax.value_and_grad(of, has_aux=True)(z)
    broken = ~(np.isfinite(out) & np.isfinite(gradient).all(1))
    # One token's gradient, squared and summed, is still a float32.
    broken |= np.abs(gradient).max(1) > 1e10
    assert not broken.any(), (
      options,
      [list(GAPS)[i // 3] for i in np.where(broken)[0]],
    )


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("name", label_losses.RANKINGS)
def test_no_gap_of_logits_breaks_a_ranking(name, gap):
  z, zt = (jnp.array(x) for x in GAPS[gap])

  def of(z):
    logp, logq = jax.nn.log_softmax(z), jax.nn.log_softmax(zt)
    return label_losses.RANKINGS[name](logp, logq, jnp.array(1), k=2)

  out, gradient = jax.value_and_grad(of)(z)
  assert np.isfinite(out) and np.isfinite(gradient).all()
