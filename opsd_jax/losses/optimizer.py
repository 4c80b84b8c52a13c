"""config.optimizer -> an optax transformation and its learning-rate schedule.

Arithmetic is float32 whatever the parameters' dtype, and so is the state but
for the first moment, whose dtype the config names.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from opsd_jax.registry import pick


def constant(t, steps):
  return 1.0


def linear(t, steps):
  """Falls in equal steps to 1 / steps at the last one."""
  return jnp.maximum(0.0, 1 - t / steps)


def cosine(t, steps):
  """Half a cosine, 1 to 0."""
  return 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(1.0, t / steps)))


DECAYS = {"constant": constant, "linear": linear, "cosine": cosine}
MU_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def schedule(learning_rate, decay, warmup_steps, steps):
  """Step index (from 0) -> rate: a linear warm-up whose first step already
  learns, times the decay over the steps after it."""
  after = max(1, steps - warmup_steps)
  shape = pick(DECAYS, decay, steps=after)

  def rate(t):
    warm = jnp.minimum(1.0, (t + 1) / max(1, warmup_steps))
    return learning_rate * warm * shape(jnp.maximum(0, t - warmup_steps))

  return rate


def from_config(config) -> optax.GradientTransformation:
  """Clip by global norm, AdamW, schedule. `config` is the whole ConfigDict.

  Raises ValueError for a value out of its range.
  """
  c = config.optimizer
  for name, low, high in (
    ("learning_rate", 0, math.inf),
    ("b1", 0, 1),
    ("b2", 0, 1),
    ("eps", 1e-30, 1),
    ("weight_decay", 0, math.inf),
    ("clip_norm", 0, math.inf),
    ("warmup_steps", 0, math.inf),
  ):
    if not low <= c[name] < high:
      raise ValueError(f"optimizer.{name} is {c[name]}, expected [{low}, {high})")
  rate = schedule(c.learning_rate, c.decay, c.warmup_steps, config.steps)
  adamw = optax.adamw(
    rate,
    b1=c.b1,
    b2=c.b2,
    eps=c.eps,
    weight_decay=c.weight_decay,
    mu_dtype=pick(MU_DTYPES, c.mu_dtype),
  )
  clip = optax.clip_by_global_norm(c.clip_norm) if c.clip_norm else None
  tx = in_float32(optax.chain(clip, adamw) if clip else adamw)
  low = config.model.param_dtype != "float32" and not config.lora.rank
  return with_master(tx) if c.master and low else tx


def float32(tree):
  return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def in_float32(tx) -> optax.GradientTransformation:
  """The same, on float32 copies of gradients and parameters."""
  return optax.GradientTransformation(
    init=lambda params: tx.init(float32(params)),
    update=lambda grads, opt, params: tx.update(float32(grads), opt, float32(params)),
  )


class Master(NamedTuple):
  weights: Any  # float32
  inner: Any


def with_master(tx) -> optax.GradientTransformation:
  """Keeps float32 weights in the state; parameters are what they round to.

  In bfloat16 an update below a 256th of a weight is lost; here it adds up.
  """

  def init(params):
    weights = jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)
    return Master(weights, tx.init(weights))

  def update(grads, state, params):
    updates, inner = tx.update(grads, state.inner, state.weights)
    weights = optax.apply_updates(state.weights, updates)
    # What `apply_updates` adds, in float32, before it rounds.
    moves = jax.tree.map(jnp.subtract, weights, float32(params))
    return moves, Master(weights, inner)

  return optax.GradientTransformation(init, update)
