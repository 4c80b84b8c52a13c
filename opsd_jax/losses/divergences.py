"""Divergences between student and teacher, as summands over the vocabulary.

`logp` is the student, `logq` the teacher: log-probabilities over the last axis,
float32, nats. A divergence is the sum of what its function returns; a support
maps both arguments before it, a clip the summands or their sum after it. In the
generator form D_f(q || p) = sum p f(q / p) (survey arXiv:2604.00626).
"""

import functools
import math

import jax
import jax.numpy as jnp

from opsd_jax.losses.bounds import (
  STEEPEST,
  bounded,
  clamp,
  exp_bounded,
  possible,
  weighted,
)
from opsd_jax.losses.label_losses import LABEL, TOKEN
from opsd_jax.registry import pick

sg = jax.lax.stop_gradient


def forward_kl(logp, logq):
  """KL(q || p) = sum q log(q / p): cover all that the teacher would say.

  Gradient in the student's logits: p - q.
  """
  return weighted(logq, logq - logp)


def reverse_kl(logp, logq):
  """KL(p || q) = sum p log(p / q): say only what the teacher would.

  Gradient in the student's logits: p (log(p / q) - KL).
  """
  return weighted(logp, logp - logq)


def reverse_kl_constant_ratio(logp, logq):
  """reverse_kl whose log-ratio is a constant of the gradient. Over the whole
  vocabulary that changes nothing; over part of it, it leaves out the gradient of the
  part's own mass, which would drive the student out of it even where it agrees
  (2026, arXiv:2605.11182)."""
  return weighted(logp, sg(logp - logq))


def jsd(logp, logq, *, beta):
  """beta KL(q || m) + (1 - beta) KL(p || m), m = beta q + (1 - beta) p.

  Agarwal et al. 2024 (GKD), arXiv:2306.13649, eq. 1. At beta 0 and 1 it is
  forward and reverse KL, as there: not the limits of the formula, which are 0.
  """
  if beta == 0:
    return forward_kl(logp, logq)
  if beta == 1:
    return reverse_kl(logp, logq)
  logm = jnp.logaddexp(logq + math.log(beta), logp + math.log1p(-beta))
  return beta * weighted(logq, logq - logm) + (1 - beta) * weighted(logp, logp - logm)


def total_variation(logp, logq):
  """sum |q - p| / 2, at most 1."""
  return 0.5 * jnp.abs(jnp.exp(logq) - jnp.exp(logp))


def squared_hellinger(logp, logq):
  """sum (sqrt q - sqrt p)^2, at most 2."""
  return jnp.square(jnp.exp(0.5 * logq) - jnp.exp(0.5 * logp))


def chi_square(logp, logq):
  """Pearson's sum (q - p)^2 / p; f = (u - 1)^2. q^2 / p counts at most e^20."""
  logp, logq = possible(logp, logq)
  half = clamp(logq - 0.5 * logp, high=STEEPEST / 2)
  return jnp.square(jnp.exp(half) - jnp.exp(0.5 * logp))


def alpha(logp, logq, *, alpha):
  """sum p f(q / p), f(u) = (u^a - a u + a - 1) / (a (a - 1)).

  a -> 1 is forward KL and a -> 0 reverse KL, which is what those values give
  (their sums; the summands differ by q - p, which sums to 0). q^a p^(1 - a) counts
  at most e^20.
  """
  if alpha == 1:
    return forward_kl(logp, logq)
  if alpha == 0:
    return reverse_kl(logp, logq)
  logp, logq = possible(logp, logq)
  p, q = jnp.exp(logp), jnp.exp(logq)
  power = exp_bounded(alpha * logq + (1 - alpha) * logp)
  # q^a p^(1 - a) less the nearer of p and q, which near a = 0 and 1 it almost is
  if alpha < 0.5:
    near, log_ratio, rest = p, alpha * (logq - logp), alpha * (p - q)
  else:
    near, log_ratio, rest = q, (alpha - 1) * (logq - logp), (1 - alpha) * (q - p)
  small = clamp(log_ratio, -1.0, 1.0)
  gap = jnp.where(log_ratio == small, near * jnp.expm1(small), power - near)
  return (gap + rest) / (alpha * (alpha - 1))


ALL = {
  "forward_kl": forward_kl,
  "reverse_kl": reverse_kl,
  "reverse_kl_constant_ratio": reverse_kl_constant_ratio,
  "jsd": jsd,
  "total_variation": total_variation,
  "squared_hellinger": squared_hellinger,
  "chi_square": chi_square,
  "alpha": alpha,
}


# ------------------------------------------------ supports: before the sum


def full(logp, logq):
  """The whole vocabulary."""
  return logp, logq


def on_top_k(logp, logq, *, k, support_from, finish):
  """Both sides on the k likeliest tokens of one; the choice has no gradient."""
  size = logp.shape[-1]
  if not 1 <= k <= size:
    raise ValueError(f"top-k support: k is {k}, expected 1 to {size} entries")
  _, ids = jax.lax.top_k(sg(logq if support_from == "teacher" else logp), k)

  def pick_k(x):
    return finish(jnp.take_along_axis(x, ids, -1))

  return pick_k(logp), pick_k(logq)


def with_tail(logp_K):
  """Appends the log of the mass that the k entries leave.

  The divergence of the coarser distributions: never more than the full one
  (data processing), and never negative.
  """
  mass = clamp(jax.nn.logsumexp(logp_K, -1, keepdims=True), high=-1e-7)
  return jnp.concatenate([logp_K, jnp.log(-jnp.expm1(mass))], -1)


def renormalised(logp_K):
  """As if nothing but the k entries existed; no gradient to the others."""
  return jax.nn.log_softmax(logp_K, -1)


def raw(logp_K):
  """The k entries as they are: their mass is not 1, see reverse_kl_constant_ratio."""
  return logp_K


SUPPORTS = {
  "full": full,
  "top_k_raw": functools.partial(on_top_k, finish=raw),
  "top_k_tail": functools.partial(on_top_k, finish=with_tail),
  "top_k_renormalised": functools.partial(on_top_k, finish=renormalised),
}


# ------------------------------------------------------- clips: after it


def signed(s, logp, logq, tau, kind):
  """sum min(s_v, tau), each vocabulary entry apart (OPSD, arXiv:2601.18734).

  Summands of a KL are signed, so the sum may be negative and its gradient may
  point away from the teacher (methods: the clipped entry is pushed down).
  """
  clipped = s > tau
  return jnp.where(clipped, tau, s).sum(-1), clipped.mean(-1)


def generalized(s, logp, logq, tau, kind):
  """sum min(g_v, tau) with g_v >= 0: the KLs' summands plus p - q (forward) or
  q - p (reverse), which leaves the unclipped sum as it is."""
  if kind == "forward":
    s = s + jnp.exp(logp) - jnp.exp(logq)
  elif kind == "reverse":
    s = s + jnp.exp(logq) - jnp.exp(logp)
  return signed(s, logp, logq, tau, kind)


def token_sum(s, logp, logq, tau, kind):
  """min(sum s_v, tau): the token's whole divergence."""
  total = s.sum(-1)
  clipped = total > tau
  return jnp.where(clipped, tau, total), clipped.astype(total.dtype)


def unclipped(s, logp, logq, tau, kind):
  return s.sum(-1), jnp.zeros(s.shape[:-1], s.dtype)


CLIPS = {
  "none": unclipped,
  "signed": signed,
  "generalized": generalized,
  "token_sum": token_sum,
}


def make(
  name, *, support="full", k=0, support_from="teacher", clip="none", tau=0.0, **kw
):
  """f(logp_..xV, logq_..xV, y_..) -> (divergence_.., clipped fraction_..).

  Raises ValueError for unknown names or keywords and senseless combinations.
  """
  support_of, clip_of = pick(SUPPORTS, support), pick(CLIPS, clip)
  if support_from not in ("teacher", "student"):
    raise ValueError(f"support_from is {support_from!r}, expected teacher or student")
  if support != "full":
    if k < 1:
      raise ValueError(f"support {support} needs k >= 1, got {k}")
    support_of = functools.partial(support_of, k=k, support_from=support_from)
  if clip != "none" and not tau > 0:
    raise ValueError(f"clip {clip} needs tau > 0, got {tau}")
  if not 0 <= kw.get("beta", 0) <= 1:
    raise ValueError(f"beta is {kw['beta']}, expected 0 to 1")
  if name in TOKEN or name in LABEL:
    if support != "full" or clip != "none":
      raise ValueError(f"{name} takes no support and no clip")
    if name in TOKEN:
      return functools.partial(_of_token, pick(TOKEN, name, **kw))
    return functools.partial(_of_label, pick(LABEL, name, **kw))
  summands = pick({**ALL, **TOKEN, **LABEL}, name, **kw)
  if support == "top_k_raw" and name != "reverse_kl_constant_ratio":
    raise ValueError(
      f"support top_k_raw with {name} has a gradient through the k entries' own mass,"
      " which is not 0 where the student agrees: take reverse_kl_constant_ratio, or"
      " the support top_k_renormalised or top_k_tail"
    )
  kind = {
    ("forward_kl", None): "forward",
    ("reverse_kl", None): "reverse",
    ("jsd", 0): "forward",
    ("jsd", 1): "reverse",
    ("alpha", 1): "forward",
    ("alpha", 0): "reverse",
  }.get((name, kw.get("beta", kw.get("alpha"))))

  def divergence(logp, logq, y):
    logp, logq = support_of(bounded(logp), bounded(logq))
    return clip_of(summands(logp, logq), logp, logq, tau, kind)

  return divergence


def _of_token(loss, logp, logq, y):
  def of_response(x):
    return bounded(jnp.take_along_axis(x, y[..., None], -1)[..., 0])

  return loss(of_response(logp), of_response(logq)), jnp.zeros(y.shape, logp.dtype)


def _of_label(loss, logp, logq, y):
  return loss(bounded(logp), bounded(logq), y), jnp.zeros(y.shape, logp.dtype)
