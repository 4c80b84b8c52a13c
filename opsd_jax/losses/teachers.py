"""Teachers: whose weights a target reads. Their memory is a pytree in State.

Like an optax transformation, a teacher is pure functions:

  init(params) -> memory              a copy: aliases would break donation
  kept(memory, params) -> params      the weights that it stands for now
  update(memory, params, step) -> memory, after every optimiser step

`params` are what trains: all weights, or an adapter. An adapter starts as
nothing, so what it was `from_base` is the empty tree: the base alone, and no
copy of it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from opsd_jax.registry import check_share


class Teacher(NamedTuple):
  init: Callable[[Any], Any]
  kept: Callable[[Any, Any], Any]
  update: Callable[[Any, Any, Any], Any]


def copy(params):
  return jax.tree.map(jnp.copy, params)


def keep(memory, params, step):
  return memory


def live() -> Teacher:
  """The student itself, with more to read."""
  return Teacher(lambda params: (), lambda memory, params: params, keep)


def fixed(from_base: bool = False) -> Teacher:
  """The student as it was at the start."""
  start = (lambda params: {}) if from_base else copy
  return Teacher(start, lambda memory, params: memory, keep)


def ema(rate: float) -> Teacher:
  """teacher <- (1 - rate) teacher + rate student, after every step.

  Kept in float32: in bfloat16 a small rate never moves it.
  """
  check_share("rate", rate)

  def f32(params):
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)

  return Teacher(
    f32,
    lambda memory, params: jax.tree.map(lambda t, p: t.astype(p.dtype), memory, params),
    lambda memory, params, step: optax.incremental_update(f32(params), memory, rate),
  )


def synced(every: int) -> Teacher:
  """The student as it was at the last step that `every` divides."""
  if every < 1:
    raise ValueError(f"every is {every}, expected at least 1 step")
  return Teacher(
    copy,
    lambda memory, params: memory,
    lambda memory, params, step: jax.tree.map(
      lambda t, p: jnp.where(step % every == 0, p, t), memory, params
    ),
  )


def shuffled(from_base: bool = False) -> Teacher:
  """The student at the start with every array's entries in another order: it knows
  nothing, and all that is learned from it comes of being told to be another (the
  control of Sarnthein et al. 2023, arXiv:2302.12091)."""
  if from_base:
    raise ValueError("a shuffled teacher is of all weights: set lora.rank to 0")

  def init(params):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))

    def shuffle(key, x):
      return jax.random.permutation(key, x.reshape(-1)).reshape(x.shape)

    return tree.unflatten([shuffle(k, x) for k, x in zip(keys, leaves, strict=True)])

  return Teacher(init, lambda memory, params: memory, keep)


ALL = {"live": live, "fixed": fixed, "ema": ema, "synced": synced, "shuffled": shuffled}
