"""What a function of the loss looks at: it is tried on a few numbers.

So a new weight, credit or surrogate needs no entry in a list of those that read a
teacher, a reward or noise.
"""

import jax
import jax.numpy as jnp

INTEGERS = ("y_BxT", "index_BxT", "length_BxT", "response_BxT", "group_BxT")


class Numbers(dict):
  """Stands for the numbers that a target's mixing has found."""

  def __init__(self, seen: set):
    self._seen = seen

  def __missing__(self, name: str):
    self._seen.add(f"numbers.{name}")
    return jnp.ones((1, 2))


class Watched:
  """Stands for statistics or tokens, and notes the fields that are read."""

  def __init__(self, seen: set, replaced: dict | None = None):
    self._seen, self._replaced = seen, replaced or {}

  def __getattr__(self, name: str):
    if name in self._replaced:
      return self._replaced[name]
    self._seen.add(name)
    if name == "weights":
      return {}
    if name == "numbers":
      return Numbers(self._seen)
    return jnp.ones((1, 2), jnp.int32 if name in INTEGERS else jnp.float32)

  def _replace(self, **fields):
    return Watched(self._seen, self._replaced | fields)


def reads(function) -> frozenset[str]:
  """The names of the fields that `(stats, tokens)` are asked for."""
  seen = set()
  jax.eval_shape(lambda: function(Watched(seen), Watched(seen)))
  return frozenset(seen)
