"""config.optimizer -> an optax transformation and its learning-rate schedule.

State and arithmetic are float32 whatever the parameters' dtype.
"""

import math

import jax
import jax.numpy as jnp
import optax

from opsd_jax.pick import pick


def constant(t, steps):
  return 1.0


def linear(t, steps):
  """Falls in equal steps to 1 / steps at the last one."""
  return jnp.maximum(0.0, 1 - t / steps)


def cosine(t, steps):
  """Half a cosine, 1 to 0."""
  return 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(1.0, t / steps)))


DECAYS = {"constant": constant, "linear": linear, "cosine": cosine}


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
      ("learning_rate", 0, math.inf), ("b1", 0, 1), ("b2", 0, 1),
      ("eps", 1e-30, 1), ("weight_decay", 0, math.inf),
      ("clip_norm", 0, math.inf), ("warmup_steps", 0, math.inf),
  ):  # fmt: skip
    if not low <= c[name] < high:
      raise ValueError(
          f"optimizer.{name} is {c[name]}, expected [{low}, {high})"
      )
  rate = schedule(c.learning_rate, c.decay, c.warmup_steps, config.steps)
  adamw = optax.adamw(
      rate, b1=c.b1, b2=c.b2, eps=c.eps, weight_decay=c.weight_decay
  )
  clip = optax.clip_by_global_norm(c.clip_norm) if c.clip_norm else None
  tx = optax.chain(clip, adamw) if clip else adamw
  f32 = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
  return optax.GradientTransformation(
      init=lambda params: tx.init(f32(params)),
      update=lambda grads, opt, params: tx.update(f32(grads), opt, f32(params)),
  )
