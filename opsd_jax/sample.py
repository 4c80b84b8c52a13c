"""Sampling: prefill, then KV-cache decode on the device until all rows end.

One program is compiled per (rows, prompt bucket, n, window); temperature,
top-k, top-p, min-p and the end-of-turn ids are traced, so changing them costs
nothing. A row's random draws depend on its own key and the token's index alone,
never on its batch or slot.
"""

import functools
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opsd_jax import processes, sharding
from opsd_jax.models import attention, transformer

ROLES = {"rollout": 0, "evaluate": 1, "generate": 2}


class Knobs(NamedTuple):
  """How to sample; scalars, or one value a sample index (n of them).

  temperature 0 is greedy. top_k 0, top_p 1 and min_p 0 are off. Applied in
  this order: temperature, top-k, top-p on what top-k left, min-p relative to
  the likeliest token. Candidates that tie with the last one kept are kept.
  """

  temperature: float | tuple = 1.0
  top_k: int | tuple = 0
  top_p: float | tuple = 1.0
  min_p: float | tuple = 0.0


class Samples(NamedTuple):
  """R = prompts x n rows, a prompt's n samples adjacent; 0 after each end."""

  ids_RxT: np.ndarray  # int32, end-of-turn included where reached
  len_R: np.ndarray
  truncated_R: np.ndarray  # True where no end-of-turn came in time
  logp_RxT: np.ndarray  # nats, the model's own distribution (temperature 1)
  sampled_logp_RxT: np.ndarray  # nats, the distribution really sampled


def check(knobs: Knobs) -> Knobs:
  """The knobs, or a ValueError that names the bad one."""
  for name, low, high in (
      ("temperature", 0, np.inf), ("top_k", 0, np.inf),
      ("top_p", 0, 1), ("min_p", 0, 1),
  ):  # fmt: skip
    value = np.asarray(getattr(knobs, name), np.float64)
    bad = ~((value >= low) & (value <= high)) | (name == "top_p") & (value == 0)
    if bad.any():
      interval = f"{'(' if name == 'top_p' else '['}{low}, {high}]"
      raise ValueError(f"{name} is {getattr(knobs, name)}, expected {interval}")
  return knobs


def row_keys(seed: int, step: int, role: str, example_ids, n: int) -> jax.Array:
  """One key a row: fold_in(seed, step, role, example, sample index)."""
  base = jax.random.fold_in(jax.random.key(seed), step)
  base = jax.random.fold_in(base, ROLES[role])
  hashes = np.array([zlib.crc32(i.encode()) for i in example_ids], np.uint32)
  fold = jax.vmap(jax.random.fold_in)
  keys = fold(jnp.broadcast_to(base, len(hashes) * n), np.repeat(hashes, n))
  return fold(keys, np.tile(np.arange(n, dtype=np.uint32), len(hashes)))


def lowest_kept(z_V, top_k, top_p, min_p):
  """The smallest of one row's tempered logits that the filters keep."""
  desc_V = jnp.sort(z_V, descending=True)
  k = jnp.where(top_k > 0, jnp.minimum(top_k, z_V.size), z_V.size)
  kth = desc_V[k - 1]
  p_V = jax.nn.softmax(jnp.where(desc_V >= kth, desc_V, -jnp.inf))
  before_V = jnp.cumsum(p_V) - p_V  # mass of the likelier candidates
  last = desc_V[jnp.sum(before_V < top_p) - 1]
  nucleus = jnp.where(top_p < 1, last, -jnp.inf)
  return jnp.maximum(jnp.maximum(kth, nucleus), desc_V[0] + jnp.log(min_p))


def sampling_logp(logits_RxV: jax.Array, knobs: Knobs) -> jax.Array:
  """log-probs of the distribution really sampled; -inf where filtered out.

  Every knob is an array of R. Rows at temperature 0 are returned as at 1: the
  caller takes their argmax.
  """
  temperature_R = jnp.where(knobs.temperature > 0, knobs.temperature, 1.0)
  z_RxV = logits_RxV / temperature_R[:, None]

  def filtered(z_RxV):
    low_R = jax.vmap(lowest_kept)(z_RxV, knobs.top_k, knobs.top_p, knobs.min_p)
    return jnp.where(z_RxV >= low_R[:, None], z_RxV, -jnp.inf)

  off = (knobs.top_k == 0) & (knobs.top_p >= 1) & (knobs.min_p == 0)
  z_RxV = jax.lax.cond(off.all(), lambda z: z, filtered, z_RxV)
  return jax.nn.log_softmax(z_RxV)


def draw(logits_RxV: jax.Array, keys_R: jax.Array, t, knobs: Knobs):
  """Token t of every row by the Gumbel trick -> (ids_R, logp_R, sampled_R)."""
  logp_RxV = sampling_logp(logits_RxV, knobs)
  noise = lambda key: jax.random.gumbel(
      jax.random.fold_in(key, t), logits_RxV.shape[1:]
  )
  y_R = jax.lax.cond(
      (knobs.temperature > 0).any(),
      lambda: jnp.argmax(logp_RxV + jax.vmap(noise)(keys_R), -1),
      lambda: jnp.zeros(len(logits_RxV), jnp.int32),
  )
  greedy_R = knobs.temperature == 0
  y_R = jnp.where(greedy_R, jnp.argmax(logits_RxV, -1), y_R).astype(jnp.int32)
  at = lambda x_RxV: jnp.take_along_axis(x_RxV, y_R[:, None], 1)[:, 0]
  sampled_R = jnp.where(greedy_R, 0.0, at(logp_RxV))  # greedy: probability 1
  return y_R, at(jax.nn.log_softmax(logits_RxV)), sampled_R


@functools.partial(jax.jit, static_argnames=("config", "n", "window"))
def _generate(
    config, params, prompt_BxP, len_B, live_B, keys_R, knobs, eos_E, n, window
):
  B, P = prompt_BxP.shape
  cache = transformer.init_cache(config, B, P + window)
  with jax.named_scope("prefill"):
    h_BxPxD, cache = transformer.apply(
        config, params, prompt_BxP, cache, jnp.zeros(B, jnp.int32)
    )
  h_BxD = jnp.take_along_axis(h_BxPxD, (len_B - 1)[:, None, None], 1)[:, 0]
  W_VxD = transformer.unembedding(params).astype(config.dtype)

  # From here on a prompt's n samples are n rows that start from one prefill.
  h_RxD, len_R, live_R = (jnp.repeat(x, n, 0) for x in (h_BxD, len_B, live_B))
  cache = jax.tree.map(lambda x: jnp.repeat(x, n, x.ndim - 4), cache)

  def emit(t, h_RxD, done_R, out):
    logits_RxV = jnp.einsum(
        "rd,vd->rv", sharding.constrain(h_RxD, "tokens"), W_VxD,
        preferred_element_type=jnp.float32,
        precision=attention.precision(config.dtype),
    )  # fmt: skip
    # Summed over fsdp before it is split over rows: the weights stay put.
    logits_RxV = sharding.constrain(logits_RxV, "token_logits")
    logits_RxV = sharding.constrain(logits_RxV, "logits")
    logits_RxV = sharding.constrain(logits_RxV, "rows")
    token = draw(logits_RxV, keys_R, t, knobs)
    out = tuple(
        o_RxT.at[:, t].set(jnp.where(done_R, 0, x_R))
        for o_RxT, x_R in zip(out, token, strict=True)
    )
    ended_R = (token[0][:, None] == eos_E).any(1)
    return token[0], done_R | ended_R, out

  def more(carry):
    t, _, done_R, _, _, _ = carry
    return (t < window) & ~done_R.all()

  def decode(carry):
    t, y_R, done_R, lengths_R, out, cache = carry
    h_Rx1xD, cache = transformer.apply(
        config, params, y_R[:, None], cache, len_R + t - 1
    )
    lengths_R = lengths_R + ~done_R
    y_R, done_R, out = emit(t, h_Rx1xD[:, 0], done_R, out)
    return t + 1, y_R, done_R, lengths_R, out, cache

  R = B * n
  empty = tuple(
      jnp.zeros((R, window), d) for d in (jnp.int32, jnp.float32, jnp.float32)
  )
  y_R, done_R, out = emit(0, h_RxD, ~live_R, empty)
  carry = (1, y_R, done_R, live_R.astype(jnp.int32), out, cache)
  with jax.named_scope("decode"):
    _, _, done_R, lengths_R, out, _ = jax.lax.while_loop(more, decode, carry)
  ids_RxT, logp_RxT, sampled_RxT = out
  return Samples(ids_RxT, lengths_R, ~done_R, logp_RxT, sampled_RxT)


def sample(
    config,
    params,
    prompts,
    keys_R: jax.Array,
    knobs: Knobs,
    *,
    n: int = 1,
    max_new_tokens: int,
    eos_ids,
    batch_prompts: int,
    bucket: int,
) -> Samples:
  """n responses to each prompt (a list of token ids), `batch_prompts` at once.

  Prompts are padded to a multiple of `bucket`. Under a mesh each process brings
  prompts of its own, as many as the others, and is given their responses;
  `batch_prompts` are those of all. Raises ValueError where a prompt is empty or
  leaves no room for max_new_tokens within the model's positions.
  """
  check(knobs)
  mesh = jax.sharding.get_mesh()
  longest, of = max(map(len, prompts)), 1
  if not mesh.empty:
    (longest,), of = processes.maximum([longest]), processes.count()
  if min(map(len, prompts)) == 0 or max_new_tokens < 1 or n < 1:
    raise ValueError("a prompt is empty, or max_new_tokens or n is below 1")
  if longest + max_new_tokens > config.max_positions:
    raise ValueError(
        f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the"
        f" model's {config.max_positions} positions"
    )
  width = -(-longest // bucket) * bucket
  rows = min(-(-batch_prompts // of), len(prompts))  # of this process
  if not mesh.empty:  # whole rows on every device
    split = int(np.prod([mesh.shape[a] for a in sharding.ROWS])) // of
    rows = -(-rows // split) * split
  tile = lambda x, dtype: np.tile(
      np.broadcast_to(np.asarray(x, dtype), n), rows
  )
  knobs_R = Knobs(
      tile(knobs.temperature, np.float32), tile(knobs.top_k, np.int32),
      tile(knobs.top_p, np.float32), tile(knobs.min_p, np.float32),
  )  # fmt: skip
  parts = []
  for i in range(0, len(prompts), rows):
    part = prompts[i : i + rows]
    absent = rows - len(part)
    prompt_BxP = np.zeros((rows, width), np.int32)
    for b, ids in enumerate(part):
      prompt_BxP[b, : len(ids)] = ids
    len_B = np.array([len(p) for p in part] + [1] * absent, np.int32)
    keys = keys_R[i * n : (i + rows) * n]
    keys = jnp.concatenate([keys, jnp.broadcast_to(keys[0], absent * n)])
    own = (
        prompt_BxP, len_B, np.arange(rows) < len(part),
        np.asarray(jax.random.key_data(keys)), knobs_R,
    )  # fmt: skip
    if not mesh.empty:
      own = processes.put_rows(own, mesh)
    *inputs, key_data, knobs_R_ = own
    samples = _generate(
        config, params, *inputs, jax.random.wrap_key_data(key_data), knobs_R_,
        np.asarray(eos_ids, np.int32), n=n, window=max_new_tokens,
    )  # fmt: skip
    samples = processes.own_rows(samples, mesh)
    parts.append(Samples(*(x[: len(part) * n] for x in samples)))
  return Samples(*(np.concatenate(x) for x in zip(*parts, strict=True)))
