"""config -> Objective: the only file that knows all families."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from opsd_jax import divergence, teacher, weighting
from opsd_jax.pick import pick


class Objective(NamedTuple):
  divergence: Callable  # as divergence.make returns
  token_weight: Callable  # (tok, token) -> w
  teacher: teacher.Teacher
  denominator: Callable  # the whole batch's tokens -> scalar
  temperature: float
  chunk: int


def tokens(token):
  """Response tokens of the whole batch, at least 1."""
  return jnp.maximum(token.mask_BxT.sum(), 1)


def responses(token):
  """Responses of the whole batch with a token, at least 1."""
  first_BxT = (token.index_BxT == 0) * token.mask_BxT
  return jnp.maximum(first_BxT.sum(), 1)


DENOMINATORS = {"tokens": tokens, "responses": responses}


def accepted(function, fields: dict) -> dict[str, Any]:
  """Those fields that a function takes. A config holds every member's fields
  (`beta` stands there also when the divergence is forward_kl)."""
  return {k: fields[k] for k in inspect.signature(function).parameters
          if k in fields}  # fmt: skip


def from_config(config) -> Objective:
  """Raises ValueError for unknown names, bad values and senseless mixtures."""
  d = config.divergence.to_dict()
  name = d.pop("name")
  own = accepted(pick({**divergence.ALL, **divergence.TOKEN}, name), d)
  common = {f: d[f] for f in ("support", "k", "owner", "clip", "tau")}
  t = config.teacher.to_dict() | {"from_base": config.lora.rank > 0}
  make_teacher = pick(teacher.ALL, t.pop("name"))
  if config.teacher.name == "none" and name != "nll":
    raise ValueError(f"divergence {name} needs a teacher, teacher.name is none")
  if not config.loss.temperature > 0:
    raise ValueError(
        f"loss.temperature is {config.loss.temperature}, expected above 0"
    )
  return Objective(
      divergence.make(name, **common, **own),
      pick(weighting.ALL, config.token_weight.name),
      make_teacher(**accepted(make_teacher, t)),
      pick(DENOMINATORS, config.loss.denominator),
      config.loss.temperature,
      config.loss.chunk,
  )
