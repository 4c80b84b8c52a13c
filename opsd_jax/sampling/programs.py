"""What sampling runs on the devices: a program to prefill, one to decode.

The prompt's last token is decoded again: it is a slot's first current token, so
prefill makes no logits. SamplingParams and end-of-turn ids are traced.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from opsd_jax.models import kv_cache, transformer
from opsd_jax.runtime import sharding_rules
from opsd_jax.sampling.tokens import SamplingParams, draw


class Slots(NamedTuple):
  """What decode is told of each slot."""

  y_R: jax.Array  # the token that comes next into the model
  pos_R: jax.Array  # its position
  t_R: jax.Array  # index of the response token that it predicts
  budget_R: jax.Array  # response tokens at most
  live_R: jax.Array  # False: free, or ended
  key_data_Rx2: jax.Array
  sampling: SamplingParams


class Chunk(NamedTuple):
  """The new tokens of each slot."""

  ids_RxT: jax.Array
  logp_RxT: jax.Array
  sampled_logp_RxT: jax.Array
  count_R: jax.Array
  live_R: jax.Array


@functools.partial(jax.jit, static_argnums=0)
@jax.named_scope("rollout")
def prefill(model_config, params, prompt_BxP):
  """The cache of some prompts, right-padded."""
  B, P = prompt_BxP.shape
  _, cache = transformer.apply(
    model_config,
    params,
    prompt_BxP,
    kv_cache.init(model_config, B, P),
    jnp.zeros(B, jnp.int32),
  )
  return kv_cache.laid_out(cache)


insert = jax.jit(kv_cache.insert, donate_argnums=0)
resize = jax.jit(kv_cache.resize, static_argnums=2)
init = jax.jit(kv_cache.init, static_argnums=(0, 1, 2))


def next_token_logits(model_config, params, h_RxD):
  """float32 logits_RxV, whole rows on each device."""
  W_VxD = transformer.unembedding(params).astype(model_config.dtype)
  logits_RxV = jnp.einsum(
    "rd,vd->rv",
    sharding_rules.constrain(h_RxD, "tokens"),
    W_VxD,
    preferred_element_type=jnp.float32,
    precision=sharding_rules.precision(model_config.dtype),
  )
  # Summed over fsdp before it is split over rows: the weights stay put.
  for what in ("token_logits", "logits", "rows"):
    logits_RxV = sharding_rules.constrain(logits_RxV, what)
  return logits_RxV


@functools.partial(
  jax.jit, static_argnames=("model_config", "steps"), donate_argnames="cache"
)
@jax.named_scope("rollout")
def decode(model_config, params, cache, slots: Slots, eos_E, enough, *, steps: int):
  """(cache, Chunk): up to `steps` tokens of every live slot.

  Ends early when no row is left, or when `enough` rows have ended.
  """
  R = len(slots.y_R)
  keys_R = jax.random.wrap_key_data(slots.key_data_Rx2)
  lowest = slots.live_R.sum() - enough

  def more(carry):
    i, now, _, _ = carry
    live = now.live_R.sum()
    return (i < steps) & (live > 0) & (live > lowest)

  def step(carry):
    i, now, out, cache = carry
    h_Rx1xD, cache = transformer.apply(
      model_config, params, now.y_R[:, None], cache, now.pos_R
    )
    # A slot without a row is greedy: it asks for nothing.
    sampling = SamplingParams(
      *(
        jnp.where(now.live_R, x_R, off)
        for x_R, off in zip(now.sampling, SamplingParams(0.0), strict=True)
      )
    )
    logits_RxV = next_token_logits(model_config, params, h_Rx1xD[:, 0])
    token = draw(logits_RxV, keys_R, now.t_R, sampling)
    out = tuple(
      jax.lax.dynamic_update_slice(
        o_RxT, jnp.where(now.live_R, x_R, 0)[:, None], (0, i)
      )
      for o_RxT, x_R in zip(out, token, strict=True)
    )
    t_R = now.t_R + now.live_R
    ended_R = (token[0][:, None] == eos_E).any(1) | (t_R >= now.budget_R)
    live_R = now.live_R & ~ended_R
    now = now._replace(y_R=token[0], pos_R=now.pos_R + live_R, t_R=t_R, live_R=live_R)
    return i + 1, now, out, cache

  empty = tuple(jnp.zeros((R, steps), d) for d in (jnp.int32, jnp.float32, jnp.float32))
  _, now, out, cache = jax.lax.while_loop(more, step, (0, slots, empty, cache))
  chunk = Chunk(*out, now.t_R - slots.t_R, now.live_R)
  return kv_cache.laid_out(cache), chunk
