"""Numbers that no gradient makes infinite, and no NaN gets lost in."""

import jax.numpy as jnp

LOWEST = -1e4  # nats; below it a probability is 0 in float32 and far beyond
STEEPEST = 20.0  # nats; e^20 is 4.9e8


def clamp(x, low=-jnp.inf, high=jnp.inf):
  """x within [low, high], without gradient outside. NaN stays NaN, which a compiled
  jnp.clip does not promise: a broken teacher must be seen."""
  return jnp.where(x < low, low, jnp.where(x > high, high, x))


def bounded(logp):
  """Log-probs of at least LOWEST, so that no difference is infinite and no 0 meets
  an inf in a gradient."""
  return clamp(logp, low=LOWEST)


def exp_bounded(x):
  """e^x, at most e^20, where its gradient ends: one token's cannot make the whole
  batch's infinite."""
  return jnp.exp(clamp(x, high=STEEPEST))


def weighted(logw, x):
  """exp(logw) * x, 0 where the weight is 0 whatever x is; safe to
  differentiate. A NaN weight stays NaN: a broken teacher must be seen."""
  there = logw != -jnp.inf
  return jnp.where(there, jnp.exp(logw) * jnp.where(there, x, 0.0), 0.0)


def possible(logp, logq):
  """Both, but 0 where both are -inf: equal, such tokens then add nothing."""
  nowhere = jnp.maximum(logp, logq) == -jnp.inf
  return jnp.where(nowhere, 0.0, logp), jnp.where(nowhere, 0.0, logq)
