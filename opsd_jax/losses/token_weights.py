"""Token weights: `(stats, tokens, **kw) -> w_BxT`, how much each token counts.

`stats` are the statistics of the token's term (structs.TermStats, no gradient),
`tokens` what the batch says of it (structs.ResponseTokens). A weight of ALL
looks at its own token alone and is made inside a chunk, so neither chunks nor
micro-batches change it. A weight of WHOLE looks at others too: it is made of the
whole batch before anything is learned (objective.weigh), where the mask holds
the tokens that count in its term.

A weight that keeps few tokens says how many at most in BOUNDS, `(length_N, **kw)
-> count_N`, numpy; the others are dropped before the vocabulary's backward pass.
"""

import jax
import jax.numpy as jnp
import numpy as np


def uniform(stats, tokens):
  """1."""
  return jnp.ones_like(tokens.mask_BxT)


def sequence_mean(stats, tokens):
  """1 / the tokens of its response: with the denominator `responses`, the mean
  over responses of their token means (arXiv:2601.18734, eq. 6)."""
  return 1 / jnp.maximum(tokens.length_BxT, 1)


ALL = {"uniform": uniform, "sequence_mean": sequence_mean}


# --------------------------------------------- over the tokens of a response


def segments(tokens):
  """Which response of its part a token is of, from 0; padding: the last."""
  starts_BxT = (tokens.index_BxT == 0) * (tokens.length_BxT > 0)
  own_BxT = jnp.cumsum(starts_BxT, 1).astype(jnp.int32) - 1
  return jnp.where(tokens.length_BxT > 0, own_BxT, own_BxT.shape[1] - 1)


def over_response(reduce, x_BxT, tokens):
  """A reduction (jax.ops.segment_sum, ...) over its response, at each token."""

  def part(x_T, segment_T):
    return reduce(x_T, segment_T, len(segment_T))[segment_T]

  return jax.vmap(part)(x_BxT, segments(tokens))


def rank(x_BxT, tokens):
  """Place of a token in its response by falling x, from 0; ties by place."""

  def part(x_T, segment_T):
    order_T = jnp.lexsort((-x_T, segment_T))
    place_T = jnp.zeros_like(segment_T).at[order_T].set(jnp.arange(len(x_T)))
    first_T = jax.ops.segment_min(place_T, segment_T, len(x_T))
    return place_T - first_T[segment_T]

  return jax.vmap(part)(x_BxT, segments(tokens))


def rescaled(x_BxT, tokens):
  """(x - min) / (max - min) over its response; 0 where all are the same."""
  real = tokens.mask_BxT > 0
  low = over_response(jax.ops.segment_min, jnp.where(real, x_BxT, jnp.inf), tokens)
  high = over_response(jax.ops.segment_max, jnp.where(real, x_BxT, -jnp.inf), tokens)
  differ = real & (high > low)
  return jnp.where(differ, (x_BxT - low) / jnp.where(differ, high - low, 1), 0)


def top_share(score_BxT, tokens, kept_share):
  """1 on the max(1, floor(kept_share x length)) highest scores of each response."""
  score_BxT = jnp.where(tokens.mask_BxT > 0, score_BxT, -jnp.inf)
  # 0.2 * 5 is 1.0000000149 in float32, and 0.6 * 5 is 2.9999998.
  count_BxT = jnp.maximum(jnp.floor(kept_share * tokens.length_BxT + 1e-4), 1)
  return (rank(score_BxT, tokens) < count_BxT) * tokens.mask_BxT


def top_share_bound(length_N, *, kept_share: float):
  """How many tokens `top_share` keeps of responses of these lengths."""
  count_N = np.maximum(np.floor(kept_share * length_N + 1e-4), 1)
  return np.minimum(count_N, length_N).astype(int)


# -------------------------------------------------- those that look at others


def soft_or(stats, tokens, *, kept_share: float):
  """1 on the `kept_share` of a response's tokens where the student is unsure or far
  from the teacher: h + d - h d, h its entropy and d the divergence, both
  rescaled to [0, 1] over the response (TIP, arXiv:2604.14084, eqs. 3-5)."""
  h = rescaled(stats.entropy_BxT, tokens)
  d = rescaled(stats.value_BxT, tokens)
  return top_share(h + d - h * d, tokens, kept_share)


def sampled_entropy(stats, tokens, *, kept_share: float):
  """1 on a `kept_share` of a response's tokens, drawn without replacement with
  probabilities proportional to the student's entropy (TIP's entropy-only): the
  highest log h + Gumbel noise (Efraimidis & Spirakis 2006)."""
  h = jnp.log(jnp.maximum(stats.entropy_BxT, 1e-30))
  return top_share(h + tokens.gumbel_BxT, tokens, kept_share)


def confident_mismatch(stats, tokens):
  """d (1 - h), as in soft_or: high where the student is sure and far from the
  teacher (TIP's third quadrant)."""
  h = rescaled(stats.entropy_BxT, tokens)
  d = rescaled(stats.value_BxT, tokens)
  return d * (1 - h) * tokens.mask_BxT


def calm_teacher(stats, tokens, *, sharpness: float):
  """exp(-b H), H the teacher's entropy, divided by its mean over all tokens that
  count in the term; 0 where there is none (SRPO, arXiv:2604.02288)."""
  w_BxT = jnp.exp(-sharpness * stats.teacher_entropy_BxT) * tokens.mask_BxT
  return w_BxT * tokens.mask_BxT.sum() / jnp.maximum(w_BxT.sum(), 1e-30)


WHOLE = {
  "soft_or": soft_or,
  "sampled_entropy": sampled_entropy,
  "confident_mismatch": confident_mismatch,
  "calm_teacher": calm_teacher,
}
BOUNDS = {"soft_or": top_share_bound, "sampled_entropy": top_share_bound}
READ_NOISE = ("sampled_entropy",)  # tokens.gumbel_BxT, which collate draws
READ_TEACHER = ("calm_teacher",)  # the statistics of the term's target
