"""The sampler against the full forward pass, in every way of batching."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsd_jax.models import families, transformer
from opsd_jax.runtime import monitoring
from opsd_jax.sampling import sampler, scheduler
from opsd_jax.sampling import tokens as token_sampling
from opsd_jax.sampling.tokens import SamplingParams

EOS = 7


@functools.cache
def tiny(scan_layers=False, max_positions=2048):
  config = dataclasses.replace(
    families.tiny(scan_layers=scan_layers), max_positions=max_positions
  )
  params = transformer.init_params(config, jax.random.key(1))
  # Sharper logits than at initialisation, so that sampling has something to do.
  params["embed"]["embedding"] = 4 * params["embed"]["embedding"]
  return config, params


@pytest.fixture(scope="module", params=[False, True], ids=["unrolled", "scan"])
def model(request):
  return tiny(request.param)


def prompts(count, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(10, 250, rng.integers(3, 20)).tolist() for _ in range(count)]


def run(model, prompts, sampling, *, n=1, new=12, eos=(EOS,), seed=0, **kw):
  ids = [str(p) for p in prompts]
  kw = {"slots": 64, "bucket": 8, "steps": 64} | kw
  return sampler.sample(
    *model,
    prompts,
    token_sampling.row_keys(seed, 0, "rollout", ids, n),
    sampling,
    n=n,
    max_new_tokens=new,
    eos_ids=eos,
    **kw,
  )


def full_logp(model, prompt, reply):
  """log p of every token of the reply, by one full forward pass."""
  config, params = model
  ids = jnp.array([[*prompt, *reply]])
  h, _ = transformer.apply(config, params, ids)
  logits = h[0] @ transformer.unembedding(params).T
  predictors = np.arange(len(prompt) - 1, len(prompt) + len(reply) - 1)
  return jax.nn.log_softmax(logits)[predictors]


def test_greedy_decode_is_argmax_of_the_full_forward(model):
  ragged = prompts(5)
  out = run(model, ragged, SamplingParams(temperature=0.0))
  assert len({len(p) for p in ragged}) > 1
  for r, prompt in enumerate(ragged):
    reply = out.ids_RxT[r, : out.len_R[r]]
    assert (full_logp(model, prompt, reply).argmax(-1) == reply).all()
    assert (out.sampled_logp_RxT[r] == 0).all()


def test_logp_is_the_full_forwards(model):
  ragged = prompts(5)
  out = run(model, ragged, SamplingParams(temperature=1.3, top_p=0.9), n=2)
  for r in range(10):
    reply = out.ids_RxT[r, : out.len_R[r]]
    logp = full_logp(model, ragged[r // 2], reply)
    expected = np.take_along_axis(np.asarray(logp), reply[:, None], 1)[:, 0]
    np.testing.assert_allclose(out.logp_RxT[r, : len(reply)], expected, atol=1e-4)
    scaled = jax.nn.log_softmax(logp * (1 / 1.3))
    unfiltered = np.take_along_axis(np.asarray(scaled), reply[:, None], 1)[:, 0]
    assert (out.sampled_logp_RxT[r, : len(reply)] >= unfiltered - 1e-4).all()


def test_a_row_does_not_know_its_batch(model):
  many = prompts(6)
  together = run(model, many, SamplingParams(), n=2)
  for i in (0, 5):
    alone = run(model, [many[i]], SamplingParams(), n=2)
    np.testing.assert_array_equal(alone.ids_RxT, together.ids_RxT[2 * i : 2 * i + 2])
    np.testing.assert_allclose(
      alone.logp_RxT, together.logp_RxT[2 * i : 2 * i + 2], atol=1e-4
    )
  in_threes = run(model, many, SamplingParams(), n=2, slots=4, bucket=32, steps=5)
  np.testing.assert_array_equal(in_threes.ids_RxT, together.ids_RxT)


def test_samples_of_a_prompt_differ_and_the_seed_repeats_them(model):
  one = prompts(1)
  first = run(model, one, SamplingParams(), n=4)
  assert len({tuple(r) for r in first.ids_RxT.tolist()}) == 4
  np.testing.assert_array_equal(
    first.ids_RxT, run(model, one, SamplingParams(), n=4)[0]
  )
  assert (first.ids_RxT != run(model, one, SamplingParams(), n=4, seed=1)[0]).any()


def test_several_ends_and_truncation(model):
  reply = run(model, prompts(1), SamplingParams(temperature=0.0), eos=())
  assert reply.truncated_R[0] and reply.len_R[0] == 12
  ends = tuple(reply.ids_RxT[0, [4, 9]].tolist())
  stop = next(t for t, y in enumerate(reply.ids_RxT[0]) if y in ends)
  out = run(model, prompts(1), SamplingParams(temperature=0.0), eos=ends)
  assert out.len_R[0] == stop + 1 and not out.truncated_R[0]
  assert out.ids_RxT[0, stop] in ends
  assert (out.ids_RxT[0, stop + 1 :] == 0).all()


def test_greedy_and_sampled_rows_side_by_side(model):
  both = run(model, prompts(3), SamplingParams(temperature=(0.0, 1.0)), n=2)
  greedy = run(model, prompts(3), SamplingParams(temperature=0.0))
  np.testing.assert_array_equal(both.ids_RxT[::2], greedy.ids_RxT)
  assert (both.ids_RxT[1::2] != greedy.ids_RxT).any()


def decode_programs() -> int:
  """Compiled by this process so far. jit's own cache forgets the oldest."""
  return monitoring.compiles().variants["jit(decode)"]


def test_changing_sampling_does_not_recompile(model):
  run(model, prompts(2), SamplingParams())
  before = decode_programs()
  run(model, prompts(2), SamplingParams(0.3, 5, 0.5, 0.1), eos=(3,))
  assert decode_programs() == before
  run(model, prompts(2), SamplingParams(), steps=13)
  assert decode_programs() == before + 1


# -------------------------------------------------- all ways of batching

POOL, LONGEST = prompts(6), 16
drawn = jax.jit(token_sampling.draw)
KINDS = SamplingParams((1.0, 0.0, 1.3), (0, 0, 20), (1.0, 1.0, 0.9), 0.0)


@functools.partial(jax.jit, static_argnums=0)
def next_logits(config, params, ids_RxL, len_R):
  """After so many tokens of each row, by one full forward pass."""
  h_RxLxD, _ = transformer.apply(config, params, ids_RxL)
  h_RxD = jnp.take_along_axis(h_RxLxD, (len_R - 1)[:, None, None], 1)[:, 0]
  return h_RxD @ transformer.unembedding(params).T


@functools.cache
def plain():
  """Three samples of every prompt of the pool, LONGEST tokens each: for every
  token a forward pass over all before it, no cache."""
  len_R = np.repeat([len(p) for p in POOL], 3)
  ids_RxL = np.zeros((18, 40), np.int32)
  for r, size in enumerate(len_R):
    ids_RxL[r, :size] = POOL[r // 3]
  keys = token_sampling.row_keys(0, 0, "rollout", map(str, POOL), 3)
  types = np.float32, np.int32, np.float32, np.float32
  sampling = SamplingParams(
    *(
      np.tile(np.broadcast_to(np.asarray(x, t), 3), 6)
      for x, t in zip(KINDS, types, strict=True)
    )
  )
  tokens = []
  for t in range(LONGEST):
    logits = next_logits(*tiny(), ids_RxL, len_R + t)
    t_R = np.full(18, t, np.int32)
    tokens.append(jax.device_get(drawn(logits, keys, t_R, sampling)))
    ids_RxL[np.arange(18), len_R + t] = tokens[-1][0]
  return [np.stack(x, 1) for x in zip(*tokens, strict=True)]


def assert_is_plain(out, which, n, budgets, ends):
  """Rows are the plain sampler's, cut at the first end or at their budget."""
  for r, budget in enumerate(budgets):
    ids, *logps = (x[which[r // n] * 3 + r % n] for x in plain())
    stop = next((t + 1 for t, y in enumerate(ids) if y in ends), LONGEST + 1)
    size = min(stop, budget)
    assert out.len_R[r] == size
    assert out.truncated_R[r] == (stop > budget)
    np.testing.assert_array_equal(out.ids_RxT[r, :size], ids[:size])
    for found, logp in zip(out[3:], logps, strict=True):
      np.testing.assert_allclose(found[r, :size], logp[:size], atol=1e-4)
    assert not any(x[r, size:].any() for x in (out.ids_RxT, *out[3:]))


@settings(max_examples=15)
@given(st.data())
def test_every_way_of_batching_is_the_plain_sampler(data):
  which = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=7))
  n = data.draw(st.integers(1, 3))
  rows = len(which) * n
  budgets = data.draw(st.lists(st.integers(1, LONGEST), min_size=rows, max_size=rows))
  ends = data.draw(
    st.lists(st.sampled_from(sorted(set(plain()[0].flat))), min_size=2, max_size=2)
  )
  slots, bucket, steps = data.draw(
    st.sampled_from([(2, 16, 3), (16, 32, 5), (1, 64, LONGEST)])
  )
  out = run(
    tiny(),
    [POOL[w] for w in which],
    SamplingParams(*(x if np.ndim(x) == 0 else x[:n] for x in KINDS)),
    n=n,
    new=budgets,
    eos=ends,
    slots=slots,
    bucket=bucket,
    steps=steps,
  )
  assert out.ids_RxT.shape == (rows, max(budgets))
  assert_is_plain(out, which, n, budgets, ends)


def test_long_rows_in_a_growing_cache_are_those_of_one_chunk():
  model = tiny(max_positions=4096)
  budgets = [2048, 700, 1, 1500]

  def go(**kw):
    return run(model, prompts(4), SamplingParams(), new=budgets, eos=(-1,), **kw)

  plain = go(slots=4, bucket=4096, steps=2048)
  out = go(slots=3, bucket=512, steps=100)
  assert out.len_R.tolist() == budgets and out.truncated_R.all()
  np.testing.assert_array_equal(out.ids_RxT, plain.ids_RxT)
  np.testing.assert_allclose(out.logp_RxT, plain.logp_RxT, atol=1e-3)


def test_the_number_of_programs_is_bounded():
  """Many batches of many sizes: slots and positions are of two ladders, of as many
  slots as the batch needs (see scheduler_test)."""
  before, rng = decode_programs(), np.random.default_rng(0)
  for count in (1, 9, 40):
    budgets = rng.integers(1, 60, count).tolist()
    run(tiny(), prompts(count), SamplingParams(), new=budgets, slots=16, steps=11)
  # Slots 16, 8, 4; positions 8, 16, ..., 128: at most one decode of each.
  assert 3 < decode_programs() - before <= 3 * 5


@pytest.mark.parametrize("width,times", [(5, 1), (2, 2)])
def test_a_prompt_is_prefilled_once_for_its_samples(width, times, monkeypatch):
  """Or once for as many as there are slots."""
  seen, prefill = [], sampler.prefill

  def counted(config, params, prompt_BxP):
    seen.extend(row for row in prompt_BxP.tolist() if any(row))
    return prefill(config, params, prompt_BxP)

  monkeypatch.setattr(sampler, "prefill", counted)
  run(tiny(), POOL, SamplingParams(), n=4, slots=width)
  assert len(seen) == times * len(POOL)
  assert len({tuple(row) for row in seen}) == len(POOL)


def test_of_all_that_is_prefilled_little_is_empty(monkeypatch):
  """By one program, whatever ends when: few are compiled."""
  fractions, shapes, prefill = [], set(), sampler.prefill

  def counted(config, params, prompt_BxP):
    fractions.append(np.mean([any(row) for row in prompt_BxP.tolist()]))
    shapes.add(prompt_BxP.shape)
    return prefill(config, params, prompt_BxP)

  monkeypatch.setattr(sampler, "prefill", counted)
  budgets = np.random.default_rng(0).integers(1, 30, 2 * 70).tolist()
  run(tiny(), prompts(70), SamplingParams(), n=2, new=budgets, eos=(-1,), slots=64)
  assert len(fractions) > 5 and np.mean(fractions) >= 0.9
  assert {B for B, _ in shapes} == {8} and len(shapes) <= 3


@pytest.mark.parametrize("longest,padded", [(5, {8}), (20, {8, 16, 24})])
def test_calls_with_one_longest_prompt_take_the_same_programs(
  longest, padded, monkeypatch
):
  shapes, prefill = set(), sampler.prefill

  def counted(config, params, prompt_BxP):
    shapes.add(prompt_BxP.shape[1])
    return prefill(config, params, prompt_BxP)

  monkeypatch.setattr(sampler, "prefill", counted)
  for size in range(2, longest + 1, 3):
    run(tiny(), [[1] * size], SamplingParams(), longest_prompt=longest, bucket=8)
  assert shapes <= padded and scheduler.prompt_ladder(longest, 8)[0] in shapes


@pytest.mark.parametrize(
  "groups,size,width,batch",
  [
    (1, 1, 4, 1),
    (3, 1, 4, 4),
    (16, 1, 16, 16),  # all at once
    (40, 2, 80, 16),
    (256, 2, 64, 8),  # a quarter of the slots, then the next
    (9, 8, 8, 1),
  ],
)
def test_a_call_prefills_in_one_number_of_prompts(groups, size, width, batch):
  assert scheduler.prefill_batch(groups, size, width) == batch


@pytest.mark.parametrize("waiting,taken", [(1, [1]), (9, [8, 1]), (40, [8] * 5)])
def test_prompts_come_in_by_prefills_that_are_full(waiting, taken):
  state = scheduler.Scheduler(np.full(80, -1), 1, [80], [8], [8], 8)
  rows = collections.deque([2 * p, 2 * p + 1] for p in range(waiting))
  came = []
  while rows:
    (part,) = state.admit(rows)
    came.append([members for members, _ in part])
  assert [len(part) for part in came] == taken
  assert sum(came, []) == [[2 * p, 2 * p + 1] for p in range(waiting)]
  assert sorted(state.row_S[state.row_S >= 0]) == list(range(2 * waiting))


def test_a_row_that_has_ended_frees_its_slot_before_the_longest_is_done(monkeypatch):
  """Two slots and rows of 1, 1, ..., 1 and 12 tokens: the short ones pass
  beside the long one, which a batch after the other would wait for."""
  turns, decode = [], sampler.decode

  def counted(*args, **kw):
    turns.append(int(np.sum(args[3].live_R)))
    return decode(*args, **kw)

  monkeypatch.setattr(sampler, "decode", counted)
  run(tiny(), POOL, SamplingParams(), new=[12, 1, 1, 1, 1, 1], eos=(-1,), slots=2)
  assert turns == [2] * 5


def test_a_row_ends_where_stopped_says():
  """`stopped` sees every id of a row once as new; what it cuts is gone."""
  whole = run(tiny(), POOL, SamplingParams(), eos=(-1,), steps=12)
  seen, middle = {}, np.median(whole.ids_RxT[:, 0])

  def stopped(ids, known):
    assert seen.get(tuple(ids[:known]), 0) == known
    seen[tuple(ids)] = len(ids)
    return 7 if known < 7 <= len(ids) and ids[0] > middle else None

  out = run(
    tiny(), POOL, SamplingParams(), eos=(-1,), steps=5, slots=3, stopped=stopped
  )
  cut = whole.ids_RxT[:, 0] > middle
  assert 0 < cut.sum() < 6
  assert out.len_R.tolist() == np.where(cut, 7, 12).tolist()
  assert out.truncated_R.tolist() == (~cut).tolist()
  for r, size in enumerate(out.len_R):
    for found, expected in (
      (o[r], w[r])
      for o, w in zip((out.ids_RxT, *out[3:]), (whole.ids_RxT, *whole[3:]), strict=True)
    ):
      np.testing.assert_allclose(found[:size], expected[:size], atol=1e-4)
      assert (found[size:] == 0).all()


@pytest.mark.parametrize("budget", [0, [3, 0], [3], [[3, 3]]], ids=str)
def test_a_budget_that_makes_no_sense_is_refused(budget):
  with pytest.raises(ValueError, match="above 0 or one for each of 2 rows"):
    run(tiny(), prompts(2), SamplingParams(), new=budget)


def test_an_empty_prompt_is_refused():
  with pytest.raises(ValueError, match="empty"):
    run(tiny(), [[5], []], SamplingParams())


def test_too_few_positions_are_an_error(model):
  with pytest.raises(ValueError, match="positions"):
    run(model, prompts(1), SamplingParams(), new=model[0].max_positions)
