"""Draws against their distributions, thresholds against a sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax.sampling import tokens
from opsd_jax.sampling.tokens import SamplingParams

drawn = jax.jit(tokens.draw)


def each(rows: int, sampling: SamplingParams) -> SamplingParams:
  """The same sampling for every row, or one of each a row."""
  types = jnp.float32, jnp.int32, jnp.float32, jnp.float32
  return SamplingParams(
    *(
      jnp.broadcast_to(jnp.asarray(x, t), rows)
      for x, t in zip(sampling, types, strict=True)
    )
  )


def reference(p, top_k, top_p, min_p):
  """The filters on one distribution, by sorting and looping (no ties)."""
  order = np.argsort(-p)
  keep = order[: top_k or len(p)]
  q = p[keep] / p[keep].sum()
  nucleus, mass = [], 0.0
  for i, v in zip(keep, q, strict=True):
    if mass >= top_p:
      break
    nucleus.append(i)
    mass += v
  nucleus = [i for i in nucleus if p[i] >= min_p * p.max()]
  out = np.zeros_like(p)
  out[nucleus] = p[nucleus] / p[nucleus].sum()
  return out


SAMPLINGS = [
  SamplingParams(1.0),
  SamplingParams(0.7),
  SamplingParams(1.5),
  SamplingParams(1.0, top_k=5),
  SamplingParams(1.0, top_p=0.6),
  SamplingParams(1.0, min_p=0.15),
  SamplingParams(1.3, 6, 0.8, 0.05),
  SamplingParams(1.0, top_k=1),
  SamplingParams(1.0, top_k=10_000),
  SamplingParams(1.0, top_p=1e-6),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("V", [12, 700])  # a block, and three
def test_frequencies_match_the_softmax(sampling, V):
  rows = 20_000
  z_V = np.random.default_rng(3).normal(size=V) * (1.5 if V == 12 else 3)
  p_V = np.exp(z_V / sampling.temperature)
  p_V = reference(p_V / p_V.sum(), *sampling[1:])
  logits = jnp.broadcast_to(jnp.asarray(z_V, jnp.float32), (rows, V))
  keys = tokens.row_keys(0, 0, "rollout", ["a"], rows)
  t_R = jnp.zeros(rows, jnp.int32)
  y_R, logp_R, sampled_R = drawn(logits, keys, t_R, each(rows, sampling))
  counts = np.bincount(y_R, minlength=V)
  assert (counts[p_V == 0] == 0).all()
  # What is expected less than ten times counts as one outcome.
  rare = (p_V > 0) & (rows * p_V < 10)
  seen = np.append(counts[p_V * rows >= 10], counts[rare].sum())
  wanted = rows * np.append(p_V[p_V * rows >= 10], p_V[rare].sum())
  seen, wanted = seen[wanted > 0], wanted[wanted > 0]
  chi2 = ((seen - wanted) ** 2 / wanted).sum()
  # 99.99% quantile of chi-square is below df + 4 sqrt(2 df) + 12.
  df = len(wanted) - 1
  assert chi2 <= df + 4 * np.sqrt(2 * df) + 12
  np.testing.assert_allclose(sampled_R, np.log(p_V[y_R]), atol=1e-4)
  np.testing.assert_allclose(
    logp_R, jax.nn.log_softmax(z_V.astype(np.float32))[y_R], atol=1e-5
  )


def test_draws_of_different_tokens_and_rows_differ():
  logits = jnp.zeros((64, 1000))
  keys = tokens.row_keys(0, 0, "rollout", ["a"], 64)

  def at(t_R):
    return drawn(logits, keys, t_R, each(64, SamplingParams()))[0]

  first, second = at(jnp.zeros(64, jnp.int32)), at(jnp.ones(64, jnp.int32))
  assert len(set(np.asarray(first))) > 50 and (first != second).sum() > 50
  mixed = at(jnp.arange(64) % 2)
  np.testing.assert_array_equal(mixed, np.where(np.arange(64) % 2, second, first))


def test_rows_of_all_kinds_side_by_side_are_what_they_are_alone():
  z = 3 * jax.random.normal(jax.random.key(0), (5, 300))
  keys = tokens.row_keys(0, 0, "rollout", ["a"], 5)
  kinds = [
    SamplingParams(0.0),
    SamplingParams(1.0),
    SamplingParams(0.5),
    SamplingParams(1.0, 3),
    SamplingParams(2.0, 0, 0.4),
  ]
  t_R = jnp.zeros(5, jnp.int32)
  together = drawn(z, keys, t_R, each(5, SamplingParams(*zip(*kinds, strict=True))))
  for r, sampling in enumerate(kinds):
    alone = drawn(z[r : r + 1], keys[r : r + 1], t_R[:1], each(1, sampling))
    assert alone[0][0] == together[0][r]
    np.testing.assert_allclose(
      alone[1:], [x[r : r + 1] for x in together[1:]], rtol=1e-6
    )
  assert together[0][0] == z[0].argmax() and together[2][0] == 0


def test_greedy_is_the_first_of_equal_logits():
  z = jnp.array([[0.0, 2.0, 1.0, 2.0], [3.0, 3.0, 3.0, 3.0]])
  keys = tokens.row_keys(0, 0, "rollout", ["a"], 2)
  y_R, logp_R, _ = drawn(z, keys, jnp.zeros(2, jnp.int32), each(2, SamplingParams(0.0)))
  assert y_R.tolist() == [1, 0]
  np.testing.assert_allclose(logp_R[1], np.log(0.25), rtol=1e-6)


@given(
  st.lists(
    st.sampled_from([-np.inf, -np.inf, -200.0, -80.0, 0.0, 3.0]),
    min_size=16,
    max_size=16,
  ).filter(lambda z: max(z) > -np.inf),
  st.integers(0, 1000),
)
def test_nothing_without_mass_is_ever_picked(z, seed):
  """Also where a block, or all but one, has none."""
  z_V = np.full(700, -np.inf, np.float32)
  z_V[::44] = z
  keys = tokens.row_keys(seed, 0, "rollout", ["a"], 8)
  y_R, logp_R, _ = drawn(
    jnp.tile(z_V, (8, 1)), keys, jnp.zeros(8, jnp.int32), each(8, SamplingParams())
  )
  assert np.isfinite(z_V[y_R]).all() and np.isfinite(logp_R).all()


def test_rare_tokens_are_drawn_as_often_as_they_should():
  """Probabilities far below the 2^-23 between two floats near 1."""
  rows, V = 4096, 512  # two blocks
  z_V = jnp.full(V, -18.0).at[0].set(0.0)  # 511 of 1.5e-8 each
  keys = tokens.row_keys(0, 0, "rollout", ["a"], rows)
  several = jax.jit(
    lambda t: tokens.draw(
      jnp.tile(z_V, (rows, 1)), keys, jnp.full(rows, t), each(rows, SamplingParams())
    )[0]
  )
  y = np.concatenate([several(t) for t in range(100)])
  rare = y[y > 0]  # 3.2 expected of 409,600
  assert 1 <= len(rare) <= 10 and len(set(rare)) > len(rare) // 2


def test_rounding_of_logits_changes_hardly_a_draw():
  """Caches of other sizes add in other orders; draws should not notice."""
  rng, rows, V = np.random.default_rng(0), 2000, 8000
  z = 3 * rng.normal(size=(rows, V)).astype(np.float32)
  near = z + rng.uniform(-3e-5, 3e-5, z.shape).astype(np.float32)
  keys = tokens.row_keys(0, 0, "rollout", ["a"], rows)
  y, y_near = (
    drawn(
      jnp.asarray(x), keys, jnp.zeros(rows, jnp.int32), each(rows, SamplingParams())
    )[0]
    for x in (z, near)
  )
  assert len(set(y.tolist())) > 1000
  assert (y != y_near).sum() <= 1


def by_sort(z_V, top_k, top_p, min_p):
  """(the smallest logit kept, how far the nucleus is from losing or winning
  a candidate), in float64."""
  desc_V = np.sort(z_V)[::-1]
  kth = desc_V[min(top_k, len(z_V)) - 1] if top_k else -np.inf
  with np.errstate(divide="ignore"):
    floor = desc_V[0] + np.log(min_p)
  p_V = np.where(desc_V >= kth, np.exp((desc_V - desc_V[0]).astype(float)), 0)
  mass_V = np.cumsum(p_V) / p_V.sum()
  before_V = np.append(0, mass_V[:-1])
  last = desc_V[(before_V < top_p).sum() - 1] if top_p < 1 else -np.inf
  return max(kth, last, floor), np.abs(mass_V - top_p).min()


filtered = jax.jit(
  lambda z_RxV, sampling: tokens.filtered(z_RxV, z_RxV.max(-1), sampling)
)
LOGITS = st.one_of(
  st.floats(-30, 30, width=32, allow_subnormal=False),
  # Nothing below 1.2e-38: XLA takes it for 0, a sort does not.
  st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 1.0, 2.0, 2e-38]),
)


@given(
  st.lists(LOGITS, min_size=20, max_size=20).filter(lambda z: max(z) > -30),
  st.integers(0, 25),
  st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.999, 1 - 1e-6, 1.0]),
  st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0]),
)
def test_filters_keep_what_a_sort_keeps(z, top_k, top_p, min_p):
  z_V = np.array(z, np.float32)
  low, margin = by_sort(z_V, top_k, top_p, min_p)
  if top_p < 1 and margin < 1e-6:
    return  # rounding decides
  got = filtered(
    jnp.asarray(z_V[None]), each(1, SamplingParams(1.0, top_k, top_p, min_p))
  )
  kept = np.isfinite(got[0])
  near = np.abs(z_V - low) < 1e-5 * (min_p > 0)  # log of min_p is rounded
  expected = np.isfinite(z_V) & (z_V >= low)
  np.testing.assert_array_equal(kept | near, expected | near)
  assert (np.asarray(got[0])[kept] == z_V[kept]).all()


def test_ties_at_the_threshold_are_kept():
  z = jnp.array([[2.0, 1.0, 1.0, 0.0]] * 3)
  sampling = SamplingParams(1.0, (2, 0, 2), (1.0, 0.6, 0.9), 0.0)
  kept = jnp.isfinite(filtered(z, each(3, sampling)))
  assert kept.tolist() == [[True, True, True, False]] * 3


@pytest.mark.parametrize(
  "bad",
  [
    SamplingParams(-1.0),
    SamplingParams(top_p=0.0),
    SamplingParams(top_p=1.1),
    SamplingParams(min_p=2.0),
  ],
)
def test_bad_sampling_is_refused(bad):
  with pytest.raises(ValueError, match="expected"):
    tokens.check(bad)
