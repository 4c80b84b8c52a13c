"""Targets: which teachers a term compares with, and how their logits mix.

A teacher is (view, weights): view 0 is the student's own prompt, 1, 2, ... what
config.context gives the teachers; weights are `live` (the student's), a memory
by its role (`teacher`, `reference`) or another model's (`external`). A target is

  teachers   ((view, weights), ...)
  mix        (student, *teachers, exists) -> (the target's logits, numbers), all
             [..., V], no gradient; `student` are the student's logits, `exists` says
             of each teacher where there is such a view, [...] or 1. The numbers, {name:
             [...]}, join the statistics, for token weights and for the log.
  needs      exists -> whether what there is suffices
  is_partial  whether it makes something of views of which some are missing

Each function of ALL makes one; `temperature` divides the mixed logits, None: as
config.loss.temperature says.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from opsd_jax.losses.bounds import bounded, weighted
from opsd_jax.registry import check_share


def every(exists):
  """All views are needed."""
  return jnp.prod(jnp.stack(jnp.broadcast_arrays(*map(jnp.float32, exists))), 0)


def some(exists):
  """One view suffices."""
  return jnp.max(jnp.stack(jnp.broadcast_arrays(*map(jnp.float32, exists))), 0)


class Target(NamedTuple):
  teachers: tuple[tuple[int, str], ...]
  mix: Callable
  temperature: float | None = None
  needs: Callable = every
  is_partial: bool = False


def mixture(teachers, mix, needs=every, is_partial=False) -> Target:
  """A target of a formula, which sees logits without an infinity: the difference of
  two would be no number. `mix` may return the logits alone."""

  def whole(student, *zs, exists=()):
    exists = exists or [1.0] * len(zs)
    mixed = mix(bounded(student), *map(bounded, zs), exists=exists)
    return mixed if isinstance(mixed, tuple) else (mixed, {})

  return Target(teachers, whole, needs=needs, is_partial=is_partial)


def log_softmaxes(*zs):
  return [jax.nn.log_softmax(z) for z in zs]


def one(*, view: int, weights: str) -> Target:
  """One teacher's distribution as it is."""
  return Target(((view, weights),), lambda student, z, exists=(): (z, {}))


# --------------------------------------------------- of a teacher and the student


def anchored(*, view: int, weights: str, anchor_weight: float) -> Target:
  """q ~ live^(1 - a) anchor^a: a mixture of distributions in log space, not of
  weights (SDPO's trust region, Hübotter et al. 2026, arXiv:2601.20802)."""
  check_share("anchor_weight", anchor_weight)
  return mixture(
    ((view, "live"), (view, weights)),
    lambda student, live, anchor, exists: (
      (1 - anchor_weight) * live + anchor_weight * anchor
    ),
  )


def toward(*, view: int, weights: str, teacher_share: float) -> Target:
  """softmax((1 - teacher_share) student + teacher_share teacher): a step from the student towards
  the teacher (beta-OPSD, arXiv:2607.28582)."""
  check_share("teacher_share", teacher_share)
  return mixture(
    ((view, weights),),
    lambda student, z, exists: (1 - teacher_share) * student + teacher_share * z,
  )


def averaged(
  *, view: int, weights: str, base: str, teacher_share: float, is_geometric: bool
) -> Target:
  """(1 - s) q + s p, or q^(1 - s) p^s, of what `base` and `weights` give in this view,
  s = teacher_share. With `base` a memory that is synced and `weights` the first
  teacher it is recursive meta-distillation: each round comes nearer to it by the
  factor 1 - s (arXiv:2601.13100)."""
  check_share("teacher_share", teacher_share)

  def mix(student, q, p, exists):
    q, p = log_softmaxes(q, p)
    if is_geometric:
      return (1 - teacher_share) * q + teacher_share * p
    near, far = jnp.log1p(-jnp.float32(teacher_share)), jnp.log(teacher_share)
    return bounded(jnp.logaddexp(near + q, far + p))

  return mixture(((view, base), (view, weights)), mix)


def vetoed(*, view: int, weights: str, strength: float) -> Target:
  """q ~ T S^b, b = strength: what the student would not say is not asked of it (Veto;
  at 0 it is the teacher)."""
  return mixture(
    ((view, weights),),
    lambda student, z, exists: z + strength * jax.nn.log_softmax(student),
  )


def demo_gated(*, view: int, weights: str, most: float, gain: float) -> Target:
  """q ~ T^(1 - a) S'^a, a = 2 most (sigmoid(gain d) - 1/2), d = JSD(S', T), S' the same
  weights on the question alone: where the demonstration changes much, less of it is
  followed (DemoPSD, arXiv:2607.02502). `gate` is a, `jsd` d."""

  def mix(student, teacher, alone, exists):
    t, s = log_softmaxes(teacher, alone)
    m = jnp.logaddexp(t, s) - jnp.log(2)
    d = (weighted(t, t - m) + weighted(s, s - m)).sum(-1) / 2
    a = 2 * most * (jax.nn.sigmoid(gain * d) - 0.5)
    return (1 - a[..., None]) * t + a[..., None] * s, {"gate": a, "jsd": d}

  return mixture(((view, weights), (0, weights)), mix)


def softened(
  *, view: int, weights: str, low: float, high: float, rise: float, pivot: float
) -> Target:
  """z / t, t in [low, high] such that the entropy H becomes H + rise sigmoid(2 (H
  - pivot)); 20 bisections (CurioSFT, arXiv:2602.02244). `temperature` is t."""

  def entropy(z):
    logp = jax.nn.log_softmax(z)
    return -(jnp.exp(logp) * logp).sum(-1)

  def mix(student, z, exists):
    H = entropy(z)
    wanted = H + rise * jax.nn.sigmoid(2 * (H - pivot))

    def halve(_, bounds):
      a, b = bounds
      t = (a + b) / 2
      less = entropy(z / t[..., None]) < wanted
      return jnp.where(less, t, a), jnp.where(less, b, t)

    start = jnp.full_like(H, low), jnp.full_like(H, high)
    t, _ = jax.lax.fori_loop(0, 20, halve, start)
    return z / t[..., None], {"temperature": t}

  return mixture(((view, weights),), mix)


# ------------------------------------------------------------ of several teachers


def extrapolated(*, view: int, weights: str, base: str, strength: float) -> Target:
  """base + strength (teacher - base), the base being the weights `base` on the
  question alone ("": the teacher's own); above 1 beyond the teacher, at 1 the teacher
  (G-OPD, arXiv:2602.12125)."""
  return mixture(
    ((view, weights), (0, base or weights)),
    lambda student, z, base, exists: base + strength * (z - base),
  )


def residual(*, view: int, weights: str, strength: float, bound: float) -> Target:
  """base + b tanh(d / b) / strength, d the centred log-ratio of the teacher to
  the one that reads the next view, the reference without the question: what the
  question adds (Purified OPSD, arXiv:2607.02234)."""

  def mix(student, teacher, hint, base, exists):
    d = jax.nn.log_softmax(teacher) - jax.nn.log_softmax(hint)
    d = d - d.mean(-1, keepdims=True)
    return base + bound * jnp.tanh(d / bound) / strength

  return mixture(((view, weights), (view + 1, weights), (0, weights)), mix)


def contrasted(*, view: int, weights: str, strength: float, k: int) -> Target:
  """q ~ T^(1 + a) / max(W, e^-30)^a over the k likeliest entries of T and the rest as
  T has it, W the same weights on the next view, a wrong hint, a = strength (opsd_ectr
  of RLCSD's code, arXiv:2606.11709). `disagreement` is KL(T || W)."""

  def mix(student, teacher, hint, exists):
    t, w = log_softmaxes(teacher, hint)
    kth = jax.lax.top_k(t, min(k, t.shape[-1]))[0][..., -1:]
    tilted = t + strength * (t - jnp.maximum(w, -30.0))
    both = jnp.broadcast_to(jnp.float32(exists[1]), t.shape[:-1])
    mixed = jnp.where((t >= kth) & (both[..., None] > 0), tilted, t)
    return mixed, {"disagreement": weighted(t, t - w).sum(-1) * both}

  return mixture(((view, weights), (view + 1, weights)), mix, is_partial=True)


def mean(*, view: int, weights: str, views: int, also: tuple) -> Target:
  """log of the arithmetic mean of the probabilities that the views `view`, ..., view +
  views - 1 give, each to `weights` and to those of `also`: several prompts, several
  memories, or both (MEAL V2, Shen & Savvides 2020, arXiv:2009.08453; snapshots as in
  SD-DARTS). A view that a response lacks is left out of the mean."""

  def mix(student, *zs, exists):
    logq = jnp.stack(log_softmaxes(*zs))
    there = jnp.stack(
      [jnp.broadcast_to(jnp.float32(e), zs[0].shape[:-1]) for e in exists]
    )
    there = jnp.where(there.sum(0) > 0, there, 1.0)  # none: whatever, it has weight 0
    logw = jnp.log(jnp.maximum(there, 1e-30)) - jnp.log(there.sum(0))
    return bounded(jax.nn.logsumexp(logq + logw[..., None], 0))

  chosen = [(v, w) for v in range(view, view + views) for w in (weights, *also)]
  return mixture(tuple(chosen), mix, needs=some, is_partial=True)


def consensus(*, view: int, weights: str, views: int) -> Target:
  """q ~ q_g e^(gate J), per vocabulary entry: q_g and q_a the geometric and the
  arithmetic mean of the views `view`, ..., view + views - 1, J = max(log q_a - log q_g,
  0) where they disagree, m the mean over views of log T - log S, c = |m| / the mean of
  |log T - log S|, gate = c |m| / (|m| + J) (AVSD, arXiv:2605.20643). `gate` is its
  mean under q_g."""

  def mix(student, *zs, exists):
    logt = jnp.stack(log_softmaxes(*zs))
    s = jax.nn.log_softmax(student)
    log_g = logt.mean(0)
    J = jnp.maximum(jax.nn.logsumexp(logt, 0) - jnp.log(len(zs)) - log_g, 0)
    gaps = logt - s
    m, size = jnp.abs(gaps.mean(0)), jnp.abs(gaps).mean(0)
    c = m / jnp.maximum(size, 1e-30)
    gate = c * m / jnp.maximum(m + J, 1e-30)
    weight = jax.nn.softmax(log_g)
    return log_g + gate * J, {"gate": (weight * gate).sum(-1)}

  return mixture(tuple((v, weights) for v in range(view, view + views)), mix)


ALL = {
  "one": one,
  "anchored": anchored,
  "toward": toward,
  "averaged": averaged,
  "vetoed": vetoed,
  "demo_gated": demo_gated,
  "softened": softened,
  "extrapolated": extrapolated,
  "residual": residual,
  "contrasted": contrasted,
  "mean": mean,
  "consensus": consensus,
}
