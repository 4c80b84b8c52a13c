"""The compiled programs of sampling: prefill and decode.

Prefill computes no logits; decoding starts by feeding the prompt's last token.
SamplingParams and end-of-turn ids are traced: changing them compiles nothing.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from opsd_jax.models import kv_cache, transformer
from opsd_jax.runtime import sharding_rules
from opsd_jax.sampling.tokens import SamplingParams, draw


class Slots(NamedTuple):
  """Inputs of decode, one of each for every slot."""

  y_R: jax.Array  # int32, the token to feed next
  pos_R: jax.Array  # int32, its position
  t_R: jax.Array  # int32, index of the response token that it predicts
  budget_R: jax.Array  # int32, response tokens at most
  live_R: jax.Array  # bool, False: free, or ended
  key_data_Rx2: jax.Array
  sampling: SamplingParams


class Chunk(NamedTuple):
  """Outputs of decode: the new tokens of each slot, 0 after count_R."""

  ids_RxT: jax.Array
  logp_RxT: jax.Array
  sampled_logp_RxT: jax.Array
  count_R: jax.Array
  live_R: jax.Array


@functools.partial(jax.jit, static_argnums=0)
@jax.named_scope("rollout")
def prefill(model_config, params, prompt_BxP: jax.Array):
  """The cache of right-padded prompts, as long as they are padded."""
  B, P = prompt_BxP.shape
  _, cache = transformer.apply(
    model_config,
    params,
    prompt_BxP,
    kv_cache.init(model_config, B, P),
    jnp.zeros(B, jnp.int32),
  )
  return kv_cache.constrain(cache)


insert = jax.jit(kv_cache.insert, donate_argnums=0)
resize = jax.jit(kv_cache.resize, static_argnums=2)
init = jax.jit(kv_cache.init, static_argnums=(0, 1, 2))


def next_token_logits(model_config, params, h_RxD: jax.Array) -> jax.Array:
  """float32 logits_RxV of states h_RxD, each row whole on one device."""
  W_VxD = transformer.unembedding(params).astype(model_config.dtype)
  logits_RxV = jnp.einsum(
    "rd,vd->rv",
    sharding_rules.constrain(h_RxD, "tokens"),
    W_VxD,
    preferred_element_type=jnp.float32,
    precision=sharding_rules.precision(model_config.dtype),
  )
  # Constraining to "rows" at once would gather the unembedding over fsdp. In these
  # steps the logits are summed over fsdp first, then split over rows: they move,
  # and the weights stay.
  for layout in ("token_logits", "logits", "rows"):
    logits_RxV = sharding_rules.constrain(logits_RxV, layout)
  return logits_RxV


@functools.partial(
  jax.jit, static_argnames=("model_config", "steps"), donate_argnames="cache"
)
@jax.named_scope("rollout")
def decode(model_config, params, cache, slots: Slots, eos_E, max_ended, *, steps: int):
  """Up to `steps` tokens of every live slot.

  Args:
    model_config, params: the model.
    cache: keys and values of the R slots, see kv_cache; donated.
    slots: the inputs of each slot.
    eos_E: ids that end a response.
    max_ended: returns early once so many rows have ended, or none is left.
    steps: decode steps at most.

  Returns:
    (cache, Chunk of [R, steps] tokens)
  """
  R = len(slots.y_R)
  keys_R = jax.random.wrap_key_data(slots.key_data_Rx2)
  min_live = slots.live_R.sum() - max_ended

  def goes_on(carry):
    i, now, _, _ = carry
    live = now.live_R.sum()
    return (i < steps) & (live > 0) & (live > min_live)

  def step(carry):
    i, now, out, cache = carry
    h_Rx1xD, cache = transformer.apply(
      model_config, params, now.y_R[:, None], cache, now.pos_R
    )
    # A slot without a row is greedy: no filter is computed on its account.
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
  _, now, out, cache = jax.lax.while_loop(goes_on, step, (0, slots, empty, cache))
  chunk = Chunk(*out, now.t_R - slots.t_R, now.live_R)
  return kv_cache.constrain(cache), chunk
