"""The sampler against the full forward pass and against its distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsd_jax import sample
from opsd_jax.models import families, transformer
from opsd_jax.sample import Knobs

EOS = 7


@pytest.fixture(scope="module", params=[False, True], ids=["unrolled", "scan"])
def model(request):
  config = families.tiny(scan_layers=request.param)
  params = transformer.init_params(config, jax.random.key(1))
  # Sharper logits than at initialisation, so that sampling has something to do.
  params["embed"]["embedding"] = 4 * params["embed"]["embedding"]
  return config, params


def prompts(count, seed=0):
  rng = np.random.default_rng(seed)
  return [
      rng.integers(10, 250, rng.integers(3, 20)).tolist() for _ in range(count)
  ]


def run(model, prompts, knobs, *, n=1, new=12, eos=(EOS,), seed=0, **kw):
  ids = [str(p) for p in prompts]
  kw = {"batch_prompts": 64, "bucket": 8} | kw
  return sample.sample(
      *model, prompts, sample.row_keys(seed, 0, "rollout", ids, n), knobs, n=n,
      max_new_tokens=new, eos_ids=eos, **kw,
  )  # fmt: skip


def full_logp(model, prompt, reply):
  """log p of every token of the reply, by one full forward pass."""
  config, params = model
  ids = jnp.array([[*prompt, *reply]])
  h, _ = transformer.apply(config, params, ids)
  logits = h[0] @ transformer.unembedding(params).T
  at = np.arange(len(prompt) - 1, len(prompt) + len(reply) - 1)
  return jax.nn.log_softmax(logits)[at]


def test_greedy_decode_is_argmax_of_the_full_forward(model):
  ragged = prompts(5)
  out = run(model, ragged, Knobs(temperature=0.0))
  assert len({len(p) for p in ragged}) > 1
  for r, prompt in enumerate(ragged):
    reply = out.ids_RxT[r, : out.len_R[r]]
    assert (full_logp(model, prompt, reply).argmax(-1) == reply).all()
    assert (out.sampled_logp_RxT[r] == 0).all()


def test_logp_is_the_full_forwards(model):
  ragged = prompts(5)
  out = run(model, ragged, Knobs(temperature=1.3, top_p=0.9), n=2)
  for r in range(10):
    reply = out.ids_RxT[r, : out.len_R[r]]
    logp = full_logp(model, ragged[r // 2], reply)
    expected = np.take_along_axis(np.asarray(logp), reply[:, None], 1)[:, 0]
    np.testing.assert_allclose(
        out.logp_RxT[r, : len(reply)], expected, atol=1e-4
    )
    scaled = jax.nn.log_softmax(logp * (1 / 1.3))
    unfiltered = np.take_along_axis(np.asarray(scaled), reply[:, None], 1)[:, 0]
    assert (out.sampled_logp_RxT[r, : len(reply)] >= unfiltered - 1e-4).all()


def test_a_row_does_not_know_its_batch(model):
  many = prompts(6)
  together = run(model, many, Knobs(), n=2)
  for i in (0, 5):
    alone = run(model, [many[i]], Knobs(), n=2)
    np.testing.assert_array_equal(
        alone.ids_RxT, together.ids_RxT[2 * i : 2 * i + 2]
    )
    np.testing.assert_allclose(
        alone.logp_RxT, together.logp_RxT[2 * i : 2 * i + 2], atol=1e-4
    )
  in_threes = run(model, many, Knobs(), n=2, batch_prompts=4, bucket=32)
  np.testing.assert_array_equal(in_threes.ids_RxT, together.ids_RxT)


def test_samples_of_a_prompt_differ_and_the_seed_repeats_them(model):
  one = prompts(1)
  first = run(model, one, Knobs(), n=4)
  assert len({tuple(r) for r in first.ids_RxT.tolist()}) == 4
  np.testing.assert_array_equal(first.ids_RxT, run(model, one, Knobs(), n=4)[0])
  assert (first.ids_RxT != run(model, one, Knobs(), n=4, seed=1)[0]).any()


def test_several_ends_and_truncation(model):
  reply = run(model, prompts(1), Knobs(temperature=0.0), eos=())
  assert reply.truncated_R[0] and reply.len_R[0] == 12
  ends = tuple(reply.ids_RxT[0, [4, 9]].tolist())
  stop = next(t for t, y in enumerate(reply.ids_RxT[0]) if y in ends)
  out = run(model, prompts(1), Knobs(temperature=0.0), eos=ends)
  assert out.len_R[0] == stop + 1 and not out.truncated_R[0]
  assert out.ids_RxT[0, stop] in ends
  assert (out.ids_RxT[0, stop + 1 :] == 0).all()


def test_greedy_and_sampled_rows_side_by_side(model):
  both = run(model, prompts(3), Knobs(temperature=(0.0, 1.0)), n=2)
  greedy = run(model, prompts(3), Knobs(temperature=0.0))
  np.testing.assert_array_equal(both.ids_RxT[::2], greedy.ids_RxT)
  assert (both.ids_RxT[1::2] != greedy.ids_RxT).any()


def test_changing_knobs_does_not_recompile(model):
  run(model, prompts(2), Knobs())
  before = sample._generate._cache_size()
  run(model, prompts(2), Knobs(0.3, 5, 0.5, 0.1), eos=(3,))
  assert sample._generate._cache_size() == before


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


KNOBS = [
    Knobs(1.0), Knobs(0.7), Knobs(1.5), Knobs(1.0, top_k=5),
    Knobs(1.0, top_p=0.6), Knobs(1.0, min_p=0.15), Knobs(1.3, 6, 0.8, 0.05),
    Knobs(1.0, top_k=1), Knobs(1.0, top_k=10_000), Knobs(1.0, top_p=1e-6),
]  # fmt: skip


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_frequencies_match_the_softmax(knobs):
  rows, V = 20_000, 12
  z_V = np.random.default_rng(3).normal(size=V) * 1.5
  p_V = np.exp(z_V / knobs.temperature)
  p_V = reference(p_V / p_V.sum(), *knobs[1:])
  each = Knobs(*(jnp.full(rows, x) for x in knobs))
  logits = jnp.broadcast_to(jnp.asarray(z_V, jnp.float32), (rows, V))
  keys = sample.row_keys(0, 0, "rollout", ["a"], rows)
  y_R, logp_R, sampled_R = sample.draw(logits, keys, 0, each)
  counts = np.bincount(y_R, minlength=V)
  assert (counts[p_V == 0] == 0).all()
  live = p_V > 0
  chi2 = ((counts[live] - rows * p_V[live]) ** 2 / (rows * p_V[live])).sum()
  # 99.99% quantile of chi-square is below df + 4 sqrt(2 df) + 12.
  df = live.sum() - 1
  assert chi2 <= df + 4 * np.sqrt(2 * df) + 12
  np.testing.assert_allclose(sampled_R, np.log(p_V[y_R]), atol=1e-4)
  np.testing.assert_allclose(
      logp_R, jax.nn.log_softmax(z_V.astype(np.float32))[y_R], atol=1e-5
  )


def test_ties_at_the_threshold_are_kept():
  z = jnp.array([[2.0, 1.0, 1.0, 0.0]])
  each = Knobs(jnp.ones(1), jnp.array([2]), jnp.ones(1), jnp.zeros(1))
  kept = jnp.isfinite(sample.sampling_logp(z, each))[0]
  assert kept.tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    "bad", [Knobs(-1.0), Knobs(top_p=0.0), Knobs(top_p=1.1), Knobs(min_p=2.0)]
)
def test_bad_knobs_are_refused(bad):
  with pytest.raises(ValueError, match="expected"):
    sample.check(bad)


def test_no_room_is_an_error(model):
  with pytest.raises(ValueError, match="positions"):
    run(model, prompts(1), Knobs(), new=model[0].max_positions)
