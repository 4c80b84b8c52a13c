"""Weights that look at other tokens: by hand, and against plain loops."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsd_jax.losses import credit, token_weights
from opsd_jax.losses.reads import reads
from opsd_jax.rollouts import collate
from opsd_jax.structs import TermStats
from tests.families import credit_keywords, token_weight_keywords


def tokens_of(lengths, parts=1):
  rows = [
    collate.Row(((1,),), (2,) * n, group=g, gumbel=tuple(np.linspace(0, 1, n)))
    for g, n in enumerate(lengths)
  ]
  return collate.collate(
    rows, pad_id=0, bucket=8, response_bucket=8, parts=parts
  ).tokens


def stats_of(tokens, value=0.0, entropy=0.0, logp=0.0, teacher_entropy=0.0):
  """Values of the tokens in their order, 0 on padding."""

  def put(x):
    out = np.zeros(tokens.mask_BxT.shape, np.float32)
    out[tokens.mask_BxT > 0] = x
    return jnp.asarray(out)

  zero = put(0.0)
  return TermStats(
    put(value), put(logp), put(entropy), zero, put(teacher_entropy), zero
  )


def at(w_BxT, tokens):
  return np.asarray(w_BxT)[tokens.mask_BxT > 0]


H, DIV = (0.9, 0.1, 0.5, 0.05), (0.8, 0.9, 0.1, 0.02)


@pytest.mark.parametrize(
  "share,kept", [(0.1, 1), (0.25, 1), (0.5, 2), (0.6, 2), (0.75, 3), (1.0, 4)]
)
def test_soft_or_by_hand(share, kept):
  """Scores 1, 1, .5722, 0: the best floor(share x 4), at least one."""
  tokens = tokens_of([4])
  w = token_weights.soft_or(stats_of(tokens, DIV, H), tokens, kept_share=share)
  assert at(w, tokens).tolist() == [1.0] * kept + [0.0] * (4 - kept)


def test_confident_mismatch_by_hand():
  tokens = tokens_of([4])
  w = token_weights.confident_mismatch(stats_of(tokens, DIV, H), tokens)
  np.testing.assert_allclose(at(w, tokens), [0, 0.9412, 0.0428, 0], atol=5e-5)


def test_calm_teacher_by_hand():
  tokens = tokens_of([2, 1])
  stats = stats_of(tokens, teacher_entropy=np.log([1.0, 2, 3]))
  w = token_weights.calm_teacher(stats, tokens, sharpness=1.0)
  np.testing.assert_allclose(at(w, tokens), [1.6364, 0.8182, 0.5455], atol=5e-5)
  alike = token_weights.calm_teacher(stats, tokens, sharpness=0.0)
  np.testing.assert_allclose(at(alike, tokens), 1)
  nothing = tokens._replace(mask_BxT=0 * tokens.mask_BxT)
  assert not token_weights.calm_teacher(stats, nothing, sharpness=1.0).any()


def test_equal_values_are_no_better_than_each_other():
  tokens = tokens_of([3, 1])
  scaled = token_weights.rescaled(jnp.ones_like(tokens.mask_BxT), tokens)
  assert not scaled.any()
  w = token_weights.soft_or(stats_of(tokens, 1.0, 1.0), tokens, kept_share=0.5)
  assert at(w, tokens).tolist() == [1, 0, 0, 1]


lengths = st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any)


@settings(max_examples=10)
@given(lengths, st.integers(1, 3), st.integers(0, 99), st.floats(0.05, 1))
def test_each_response_keeps_its_best(lengths, parts, seed, share):
  """Whatever stands beside it; as many as the bound says."""
  tokens = tokens_of(lengths, parts)
  count = int(tokens.mask_BxT.sum())
  rng = np.random.default_rng(seed)
  h, d = rng.random(count), rng.random(count)
  w = at(
    token_weights.soft_or(stats_of(tokens, d, h), tokens, kept_share=share), tokens
  )
  start, bounds = 0, token_weights.top_share_bound(np.array(lengths), kept_share=share)
  for n, most in zip(lengths, bounds, strict=True):
    here = slice(start, start + n)
    start += n
    assert w[here].sum() == most == min(max(int(share * n + 1e-4), 1), n)
    if n > 1:
      scaled = [(x[here] - x[here].min()) / np.ptp(x[here]) for x in (h, d)]
      score = scaled[0] + scaled[1] - scaled[0] * scaled[1]
      worst_kept = score[w[here] > 0].min()
      assert (score[w[here] == 0] <= worst_kept + 1e-5).all()


def test_entropy_draws_tokens_without_replacement_in_proportion():
  """One of three, entropies 1, 2, 5: drawn 1/8, 2/8, 5/8 of the time."""
  tokens = tokens_of([3])
  stats = stats_of(tokens, entropy=(1.0, 2.0, 5.0))
  rng, found = np.random.default_rng(0), np.zeros(3)
  for _ in range(600):
    noise = np.zeros(tokens.mask_BxT.shape, np.float32)
    noise[0, :3] = rng.gumbel(size=3)
    drawn = tokens._replace(gumbel_BxT=noise)
    found += at(token_weights.sampled_entropy(stats, drawn, kept_share=0.34), tokens)
  np.testing.assert_allclose(found / 600, [1 / 8, 2 / 8, 5 / 8], atol=0.06)


def random_stats(tokens, seed=0):
  rng = np.random.default_rng(seed)
  count = int(tokens.mask_BxT.sum())

  def draw():
    return rng.exponential(size=count)

  return stats_of(tokens, draw(), draw(), -draw(), draw())


@pytest.mark.parametrize("name", token_weights.WHOLE)
def test_whole_weights_do_not_see_parts_and_keep_what_they_say(name):
  f = token_weights.WHOLE[name]
  kw = token_weight_keywords(f)
  lengths = [4, 0, 3, 1, 5, 2]
  found = []
  for parts in (1, 2, 3):
    tokens = tokens_of(lengths, parts)
    w = np.asarray(f(random_stats(tokens), tokens, **kw))
    assert w.shape == tokens.mask_BxT.shape and np.isfinite(w).all()
    assert not w[tokens.mask_BxT == 0].any()
    found.append(at(w, tokens))
    if name in token_weights.BOUNDS:
      bound = token_weights.BOUNDS[name]
      assert (w != 0).sum() <= bound(np.array(lengths), **kw).sum()
  for other in found[1:]:
    np.testing.assert_allclose(other, found[0], rtol=1e-5)


# ---------------------------------------------------------------------- credit


@pytest.mark.parametrize("name", [*credit.ALL, *credit.WHOLE])
def test_a_credit_without_a_difference_is_the_advantage(name):
  """Teacher and student agree: nothing is taken from the reward, and there is none
  where no reward is read."""
  f = {**credit.ALL, **credit.WHOLE}[name]
  read = reads(functools.partial(f, **credit_keywords(f)))
  if not read & {"advantage_BxT", "teacher_logp_BxT"}:
    pytest.skip("neither a reward nor a teacher")
  rows = [collate.Row(((1,),), (2,) * n, advantage=0.5, group=0) for n in (1, 3)]
  tokens = collate.collate(rows, pad_id=0, bucket=8, response_bucket=8).tokens
  got = f(stats_of(tokens), tokens, **credit_keywords(f))
  np.testing.assert_allclose(at(got, tokens), 0.5 * ("advantage_BxT" in read))


def test_less_kl_by_hand():
  """Two responses of one prompt, one of another; log-ratios of .1 a token."""
  rows = [
    collate.Row(((1,),), (2,) * n, advantage=a, group=g)
    for n, a, g in ((1, 1.0, 0), (3, -1.0, 0), (2, 0.5, 1))
  ]
  tokens = collate.collate(rows, pad_id=0, bucket=8, response_bucket=8).tokens
  stats = stats_of(tokens, logp=0.1)
  got = at(credit.less_kl(stats, tokens, strength=2.0), tokens)
  # KLs .1 and .3, their mean .2; alone in its group a response loses nothing.
  np.testing.assert_allclose(got, [1.2, -1.2, -1.2, -1.2, 0.5, 0.5], atol=1e-6)
  share = stats_of(tokens, value=[1, 0, 0, 0, 1, 1]).value_BxT
  routed = tokens._replace(weights={"credit": share})
  got = at(credit.less_kl(stats, routed, strength=2.0), tokens)
  np.testing.assert_allclose(got, [1, -1, -1, -1, 0.5, 0.5], atol=1e-6)


@given(lengths, st.integers(1, 3), st.integers(0, 99))
def test_group_means_do_not_see_how_a_batch_is_cut(lengths, parts, seed):
  rng = np.random.default_rng(seed)
  x = np.concatenate(
    [np.full(n, v) for n, v in zip(lengths, rng.random(len(lengths)), strict=True)]
  )
  group = rng.integers(0, 2, len(lengths))
  rows = [
    collate.Row(((1,),), (2,) * n, group=int(g))
    for n, g in zip(lengths, group, strict=True)
  ]
  tokens = collate.collate(
    rows, pad_id=0, bucket=8, response_bucket=8, parts=parts
  ).tokens
  stats = stats_of(tokens, value=x)
  got = at(credit.group_mean(stats.value_BxT, tokens.mask_BxT, tokens), tokens)
  ends = np.cumsum(lengths)
  first = [x[e - n] if n else None for e, n in zip(ends, lengths, strict=True)]
  means = [
    np.mean([v for v, k in zip(first, group, strict=True) if v is not None and k == g])
    if n
    else 0
    for g, n in zip(group, lengths, strict=True)
  ]
  np.testing.assert_allclose(got, np.repeat(means, lengths), rtol=1e-5)
