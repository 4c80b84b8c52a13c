"""Teachers: whose weights judge. Their memory is a pytree kept in State.

Like an optax transformation, a teacher is pure functions:

  init(params) -> memory              a copy: aliases would break donation
  members(memory, params) -> ((weight, params), ...)
  update(memory, params, step) -> memory, after every optimiser step

The teacher's logits are the weighted sum of its members' logits. `params` are
what trains: all weights, or an adapter. An adapter starts as nothing, so what
it was `from_base` is the empty tree: the base alone, and no copy of it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Teacher(NamedTuple):
  init: Callable[[Any], Any]
  members: Callable[[Any, Any], tuple[tuple[float, Any], ...]]
  update: Callable[[Any, Any, Any], Any]


def copy(params):
  return jax.tree.map(jnp.copy, params)


def keep(memory, params, step):
  return memory


def live() -> Teacher:
  """The student itself, told more."""
  return Teacher(lambda params: (), lambda ts, params: ((1.0, params),), keep)


def at_start(from_base: bool):
  """params -> the student as it was at the start, to keep."""
  return (lambda params: {}) if from_base else copy


def fixed(from_base: bool = False) -> Teacher:
  """The student as it was at the start."""
  return Teacher(at_start(from_base), lambda ts, params: ((1.0, ts),), keep)


def ema(rate: float) -> Teacher:
  """teacher <- (1 - rate) teacher + rate student, after every step.

  Kept in float32: in bfloat16 a small rate never moves it.
  """
  check("rate", rate)

  def f32(params):
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)

  def as_params(ts, params):
    return jax.tree.map(lambda t, p: t.astype(p.dtype), ts, params)

  return Teacher(
    f32,
    lambda ts, params: ((1.0, as_params(ts, params)),),
    lambda ts, params, step: optax.incremental_update(f32(params), ts, rate),
  )


def synced(every: int) -> Teacher:
  """The student as it was at the last step that `every` divides."""
  if every < 1:
    raise ValueError(f"every is {every}, expected at least 1 step")
  return Teacher(
    copy,
    lambda ts, params: ((1.0, ts),),
    lambda ts, params, step: jax.tree.map(
      lambda t, p: jnp.where(step % every == 0, p, t), ts, params
    ),
  )


def anchored(pull: float, from_base: bool = False) -> Teacher:
  """q ~ live^(1 - pull) start^pull: a mixture of distributions in log space,
  not of weights (SDPO's trust region, arXiv:2601.20802)."""
  check("pull", pull)
  return Teacher(
    at_start(from_base), lambda ts, params: ((1.0 - pull, params), (pull, ts)), keep
  )


def none() -> Teacher:
  """Nobody judges: the loss needs the response alone."""
  return Teacher(lambda params: (), lambda ts, params: (), keep)


def check(name: str, value: float) -> None:
  if not 0 <= value <= 1:
    raise ValueError(f"{name} is {value}, expected 0 to 1")


ALL = {
  "live": live,
  "fixed": fixed,
  "ema": ema,
  "synced": synced,
  "anchored": anchored,
  "none": none,
}
