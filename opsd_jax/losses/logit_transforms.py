"""Transforms of both sides' logits before a term compares them: `(z, zt, y, **kw) ->
(logp, logq)`, the student's logits and the target's, log-probs over the last axis.

They belong to one term of the kind distill; the policy's own log-prob is never
transformed. config.loss.temperature and the target's are those of `plain` alone.
"""

import jax
import jax.numpy as jnp

from opsd_jax.losses.bounds import clamp

log_softmax = jax.nn.log_softmax


def plain(z, zt, y):
  """Both as they are: objective.of_logits has them already, at the temperatures."""
  return log_softmax(z), log_softmax(zt)


def z_score(z, zt, y, *, tau: float):
  """softmax(Z(z) / tau), Z(z) = (z - mean) / std, the standard deviation of V - 1:
  a z + b with a > 0 gives the same, so that the student may be as sure as it likes
  (Sun et al. 2024, arXiv:2403.01427)."""

  def standardised(x):
    var = jnp.var(x, -1, keepdims=True, ddof=1)
    std = jnp.sqrt(clamp(var, low=1e-14))  # of equal logits it has no gradient
    return (x - x.mean(-1, keepdims=True)) / std

  return log_softmax(standardised(z) / tau), log_softmax(standardised(zt) / tau)


def softer_where_rare(z, zt, y, *, low: float, high: float):
  """Both at the temperature low + (high - low) (1 - q(y)): the less the teacher
  expects the token, the less of it is passed on (after Swing distillation,
  2022, arXiv:2212.08349, where a classifier says which tokens are private)."""
  q_y = jnp.take_along_axis(jax.nn.softmax(zt), y[..., None], -1)
  temperature = low + (high - low) * (1 - q_y)
  return log_softmax(z / temperature), log_softmax(zt / temperature)


ALL = {"plain": plain, "z_score": z_score, "softer_where_rare": softer_where_rare}
