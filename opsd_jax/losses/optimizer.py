"""config.optimizer -> an optax transformation with its learning-rate schedule.

Arithmetic and state are float32 whatever the parameters' dtype, except the first
moment, whose dtype the config sets.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from opsd_jax.registry import pick


def constant(t, steps):
  """1 at every step."""
  return 1.0


def linear(t, steps):
  """1 - t / steps: 1 / steps at the last step."""
  return jnp.maximum(0.0, 1 - t / steps)


def cosine(t, steps):
  """Half a cosine, from 1 to 0."""
  return 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(1.0, t / steps)))


DECAYS = {"constant": constant, "linear": linear, "cosine": cosine}
MU_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def schedule(learning_rate, decay, warmup_steps, steps):
  """Step index (from 0) -> learning rate.

  Args:
    learning_rate: the peak.
    decay: a name in DECAYS, applied to the steps after the warm-up.
    warmup_steps: of a linear warm-up, whose first rate is above 0.
    steps: of the whole run.
  """
  decay_of = pick(DECAYS, decay, steps=max(1, steps - warmup_steps))

  def rate(t):
    warmup = jnp.minimum(1.0, (t + 1) / max(1, warmup_steps))
    return learning_rate * warmup * decay_of(jnp.maximum(0, t - warmup_steps))

  return rate


def decays(params):
  """Which leaves weight decay shrinks: matrices, by their last name; a norm's scale
  and a bias are left where the gradient puts them."""

  def is_matrix(path, leaf):
    names = [getattr(entry, "key", None) for entry in path]
    return not names or names[-1] not in ("scale", "bias")

  return jax.tree_util.tree_map_with_path(is_matrix, params)


def from_config(config) -> optax.GradientTransformation:
  """Clipping by global norm, then AdamW with the schedule.

  `config` is the whole ConfigDict. Raises ValueError for a value out of its range.
  """
  node = config.optimizer
  for name, low, high in (
    ("learning_rate", 0, math.inf),
    ("b1", 0, 1),
    ("b2", 0, 1),
    ("eps", 1e-30, 1),
    ("weight_decay", 0, math.inf),
    ("clip_norm", 0, math.inf),
    ("warmup_steps", 0, math.inf),
  ):
    if not low <= node[name] < high:
      raise ValueError(f"optimizer.{name} is {node[name]}, expected [{low}, {high})")
  rate = schedule(node.learning_rate, node.decay, node.warmup_steps, config.steps)
  adamw = optax.adamw(
    rate,
    b1=node.b1,
    b2=node.b2,
    eps=node.eps,
    weight_decay=node.weight_decay,
    mask=decays,
    mu_dtype=pick(MU_DTYPES, node.mu_dtype),
  )
  clip = optax.clip_by_global_norm(node.clip_norm) if node.clip_norm else None
  tx = in_float32(optax.chain(clip, adamw) if clip else adamw)
  # An adapter is float32 anyway.
  is_low_precision = config.model.param_dtype != "float32" and not config.lora.rank
  return with_master(tx) if node.master and is_low_precision else tx


def float32(tree):
  return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def in_float32(tx) -> optax.GradientTransformation:
  """The transformation applied to float32 copies of gradients and parameters."""
  return optax.GradientTransformation(
    init=lambda params: tx.init(float32(params)),
    update=lambda grads, opt, params: tx.update(float32(grads), opt, float32(params)),
  )


class Master(NamedTuple):
  """State of `with_master`."""

  weights: Any  # float32
  inner: Any  # state of the wrapped transformation


def with_master(tx) -> optax.GradientTransformation:
  """Keeps float32 weights in the state, which the parameters round."""

  # Naive: params + updates in bfloat16, where an update below 1/256 of a weight
  # rounds to nothing. In the float32 weights such updates accumulate.
  def init(params):
    weights = jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)
    return Master(weights, tx.init(weights))

  def update(grads, state, params):
    updates, inner = tx.update(grads, state.inner, state.weights)
    weights = optax.apply_updates(state.weights, updates)
    # `apply_updates` adds these differences in float32 and rounds the sum, which
    # yields the rounded weights.
    differences = jax.tree.map(jnp.subtract, weights, float32(params))
    return differences, Master(weights, inner)

  return optax.GradientTransformation(init, update)
