"""config -> Objective: the only file that knows all families."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from opsd_jax import divergence, reinforce, teacher, weighting
from opsd_jax.pick import pick


class Objective(NamedTuple):
  divergence: Callable  # as divergence.make returns
  token_weight: Callable  # (tok, token) -> w
  token_loss: Callable  # (tok, token) -> what is weighted and summed
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


def active_tokens(token):
  """Tokens of the whole batch's responses with an advantage, at least 1: those
  that a reward moves."""
  active_BxT = (token.advantage_BxT != 0) * token.mask_BxT
  return jnp.maximum(active_BxT.sum(), 1)


def budget(token, max_new_tokens: int):
  """Responses of the whole batch times the tokens that each may have: a
  constant, where lengths must not matter (Dr. GRPO, arXiv:2503.20783)."""
  return responses(token) * max_new_tokens


DENOMINATORS = {
  "tokens": tokens,
  "responses": responses,
  "active_tokens": active_tokens,
  "budget": budget,
}


def token_loss(tok, token, *, distill, weight, surrogate, kl, kl_weight, cap):
  """distill * divergence + weight * (importance * surrogate + kl_weight * kl).

  The KL's reference is the teacher. Without a weight, the rewards are not
  looked at; without a cap, tokens count as drawn from the loss's distribution.
  """
  loss = distill * tok.div_BxT
  if not weight:
    return loss
  term = surrogate(tok, token)
  if cap:
    term *= reinforce.importance(tok, token, cap)
  if kl_weight:
    ratio = reinforce.ratio(tok, token)
    term += kl_weight * kl(tok.logp_BxT, tok.teacher_logp_BxT, ratio)
  return loss + weight * term


def of_rewards(config) -> dict[str, Any]:
  """config.reinforce as token_loss takes it, checked."""
  r, samples = config.reinforce, config.rollout.samples
  for name in ("weight", "kl_weight", "importance_cap", "clip_low", "clip_high"):
    if r[name] < 0:
      raise ValueError(f"reinforce.{name} is {r[name]}, expected at least 0")
  surrogate = pick(reinforce.SURROGATES, r.surrogate)
  pick(reinforce.REWARDS, r.reward)
  pick(reinforce.ADVANTAGES, r.advantage)
  kl = pick(reinforce.KL, r.kl)
  if r.weight and r.advantage not in reinforce.ALONE and samples < 2:
    raise ValueError(
      f"reinforce.advantage={r.advantage} compares responses to one prompt:"
      f" set rollout.samples to at least 2, it is {samples}"
    )
  if r.weight and config.rollout.source != "on_policy":
    raise ValueError(
      "rewards are learned from with rollout.source=on_policy, it is"
      f" {config.rollout.source}"
    )
  if r.weight and r.kl_weight and config.teacher.name == "none":
    raise ValueError(
      "reinforce.kl_weight needs a reference: set teacher.name=fixed,"
      " context.template=plain and context.privileged=none"
    )
  everywhere = config.loss.distill or r.kl_weight or not r.weight
  if config.loss.denominator == "active_tokens" and everywhere:
    raise ValueError(
      "loss.denominator=active_tokens counts the tokens of responses with an"
      " advantage: it needs a reinforce.weight, and goes neither with"
      " loss.distill nor with reinforce.kl_weight, which all tokens share"
    )
  if r.weight and not config.rollout.temperature > 0:
    raise ValueError(
      f"rollout.temperature is {config.rollout.temperature}: greedy responses"
      " to a prompt are all the same, so rewards say nothing"
    )
  drawn = config.rollout
  is_as_drawn = drawn.temperature == config.loss.temperature and (
    (drawn.top_k, drawn.top_p, drawn.min_p) == (0, 1, 0)
  )
  if r.weight and not is_as_drawn and not r.importance_cap:
    raise ValueError(
      f"rollout.temperature={drawn.temperature}, top_k={drawn.top_k},"
      f" top_p={drawn.top_p}, min_p={drawn.min_p} draw from another"
      f" distribution than loss.temperature={config.loss.temperature} learns:"
      " make them equal, without filters, or set reinforce.importance_cap"
      " (2, say)"
    )
  unused = [
    n for n, off in (("kl_weight", 0), ("rounds", 1), ("overlong", 0)) if r[n] != off
  ]
  if unused and not r.weight:
    raise ValueError(
      f"reinforce.{unused[0]} is {r[unused[0]]} and reinforce.weight 0: no"
      " rewards are learned from, so it would do nothing"
    )
  if r.overlong > drawn.max_new_tokens:
    raise ValueError(
      f"reinforce.overlong is {r.overlong}, expected at most"
      f" rollout.max_new_tokens = {drawn.max_new_tokens}"
    )
  if not (r.weight or config.loss.distill):
    raise ValueError(
      "nothing to learn from: loss.distill and reinforce.weight are both 0"
    )
  return {
    "weight": r.weight,
    "kl": kl,
    "kl_weight": r.kl_weight,
    "cap": r.importance_cap,
    "surrogate": functools.partial(surrogate, **accepted(surrogate, r.to_dict())),
  }


def accepted(function, fields: dict) -> dict[str, Any]:
  """Those fields that a function takes. A config holds every member's fields
  (`beta` stands there also when the divergence is forward_kl)."""
  return {k: fields[k] for k in inspect.signature(function).parameters if k in fields}


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
    raise ValueError(f"loss.temperature is {config.loss.temperature}, expected above 0")
  denominator = pick(DENOMINATORS, config.loss.denominator)
  return Objective(
    divergence.make(name, **common, **own),
    pick(weighting.ALL, config.token_weight.name),
    functools.partial(token_loss, distill=config.loss.distill, **of_rewards(config)),
    make_teacher(**accepted(make_teacher, t)),
    functools.partial(denominator, **accepted(denominator, config.rollout.to_dict())),
    config.loss.temperature,
    config.loss.chunk,
  )
