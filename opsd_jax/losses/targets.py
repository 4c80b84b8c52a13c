"""Targets: which teachers a term compares with, and how their logits mix.

A teacher is (view, weights): view 0 is the student's own prompt, 1, 2, ... what
config.context gives the teachers; weights are `live` (the student's), a memory
by its role (`teacher`, `reference`) or another model's (`external`). A target is

  teachers   ((view, weights), ...)
  mix        (student, *teachers) -> the target's logits, all [..., V], no gradient;
             `student` are the student's logits

Each function of ALL makes one; `temperature` divides the mixed logits, None: as
config.loss.temperature says.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from opsd_jax.losses.divergences import bounded
from opsd_jax.registry import check_share


class Target(NamedTuple):
  teachers: tuple[tuple[int, str], ...]
  mix: Callable
  temperature: float | None = None


def mixture(teachers, mix) -> Target:
  """A target of a formula, which sees logits without an infinity: the difference of
  two would be no number."""
  return Target(teachers, lambda *zs: mix(*map(bounded, zs)))


def one(*, view: int, weights: str) -> Target:
  """One teacher's distribution as it is."""
  return Target(((view, weights),), lambda student, z: z)


def anchored(*, view: int, weights: str, anchor_weight: float) -> Target:
  """q ~ live^(1 - a) anchor^a: a mixture of distributions in log space, not of
  weights (SDPO's trust region, Hübotter et al. 2026, arXiv:2601.20802)."""
  check_share("anchor_weight", anchor_weight)
  return mixture(
    ((view, "live"), (view, weights)),
    lambda student, live, anchor: (1 - anchor_weight) * live + anchor_weight * anchor,
  )


def toward(*, view: int, weights: str, teacher_share: float) -> Target:
  """softmax((1 - teacher_share) student + teacher_share teacher): a step from the student towards
  the teacher (beta-OPSD, arXiv:2607.28582)."""
  check_share("teacher_share", teacher_share)
  return mixture(
    ((view, weights),),
    lambda student, z: (1 - teacher_share) * student + teacher_share * z,
  )


def extrapolated(*, view: int, weights: str, strength: float) -> Target:
  """base + strength (teacher - base), the base being the same weights on the
  question alone; above 1 beyond the teacher (G-OPD, arXiv:2602.12125)."""
  return mixture(
    ((view, weights), (0, weights)),
    lambda student, z, base: base + strength * (z - base),
  )


def residual(*, view: int, weights: str, strength: float, bound: float) -> Target:
  """base + b tanh(d / b) / strength, d the centred log-ratio of the teacher to
  the one that reads the next view, the reference without the question: what the
  question adds (Purified OPSD, arXiv:2607.02234)."""

  def mix(student, teacher, hint, base):
    d = jax.nn.log_softmax(teacher) - jax.nn.log_softmax(hint)
    d = d - d.mean(-1, keepdims=True)
    return base + bound * jnp.tanh(d / bound) / strength

  return mixture(((view, weights), (view + 1, weights), (0, weights)), mix)


def mean(*, weights: str, views: int) -> Target:
  """log of the arithmetic mean of the probabilities that views 1, ..., `views`
  give (MEAL V2, Shen & Savvides 2020, arXiv:2009.08453)."""

  def mix(student, *zs):
    logq = jnp.stack([jax.nn.log_softmax(z) for z in zs])
    return jax.nn.logsumexp(logq, 0) - jnp.log(len(zs))

  return mixture(tuple((v, weights) for v in range(1, views + 1)), mix)


def softened(
  *, view: int, weights: str, low: float, high: float, rise: float, pivot: float
) -> Target:
  """z / t, t in [low, high] such that the entropy H becomes H + rise sigmoid(2 (H
  - pivot)); 20 bisections (CurioSFT, arXiv:2602.02244)."""

  def entropy(z):
    logp = jax.nn.log_softmax(z)
    return -(jnp.exp(logp) * logp).sum(-1)

  def mix(student, z):
    H = entropy(z)
    wanted = H + rise * jax.nn.sigmoid(2 * (H - pivot))

    def halve(_, bounds):
      a, b = bounds
      t = (a + b) / 2
      less = entropy(z / t[..., None]) < wanted
      return jnp.where(less, t, a), jnp.where(less, b, t)

    start = jnp.full_like(H, low), jnp.full_like(H, high)
    t, _ = jax.lax.fori_loop(0, 20, halve, start)
    return z / t[..., None]

  return mixture(((view, weights),), mix)


ALL = {
  "one": one,
  "anchored": anchored,
  "toward": toward,
  "extrapolated": extrapolated,
  "residual": residual,
  "mean": mean,
  "softened": softened,
}
