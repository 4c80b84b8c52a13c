"""Token weights: `(stats, tokens, **kw) -> w_BxT`, how much each token counts.

`stats` are the statistics of the token's term (structs.TermStats, no gradient),
`tokens` what the batch says of it (structs.ResponseTokens). A weight of ALL
looks at its own token alone and is made inside a chunk, so neither chunks nor
micro-batches change it. A weight of WHOLE looks at others too: it is made of the
whole batch before anything is learned (scoring.weigh), where the mask holds
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


def skip_first(stats, tokens, *, count: int):
  """0 on a response's first `count` tokens, on which a teacher's opening phrases would
  be learned (SDFT, arXiv:2601.19897)."""
  return (tokens.index_BxT >= count) * 1.0


def early(stats, tokens, *, count: int, least: float):
  """From 1 at the first token evenly down to `least` at token `count` and after it
  (the window of safety self-distillation, arXiv:2605.15239)."""
  return jnp.maximum(1 - (1 - least) / count * tokens.index_BxT, least)


def later(stats, tokens, *, least: float, middle: float, width: float):
  """w + (1 - w) sigmoid((f - middle) / width), f = (index + 1/2) / length, w = least:
  a response's later tokens count more (PW-OPSD, arXiv:2605.21606)."""
  f = (tokens.index_BxT + 0.5) / jnp.maximum(tokens.length_BxT, 1)
  return least + (1 - least) * jax.nn.sigmoid((f - middle) / width)


def unsure_teacher(stats, tokens, *, threshold: float):
  """1 where the teacher's entropy is above `threshold` nats (EOPD, arXiv:2603.07079)."""
  return (stats.teacher_entropy_BxT > threshold) * 1.0


def unsure_student(stats, tokens, *, sharpness: float):
  """sigmoid(b (H_S - H_T)): where the student is less sure than the teacher (TSD-KD,
  arXiv:2603.13260)."""
  gap = stats.entropy_BxT - stats.teacher_entropy_BxT
  return jax.nn.sigmoid(sharpness * gap)


def disagreement(stats, tokens, *, threshold: float):
  """k / (k + threshold), k = KL between the two teachers that a `contrasted` target
  has found; at 0 all tokens count as 1 (RLCSD's code, arXiv:2606.11709)."""
  k = stats.numbers["disagreement"]
  return jnp.where(threshold > 0, k / jnp.maximum(k + threshold, 1e-30), 1.0)


def later_mean(stats, tokens, *, least: float, middle: float, width: float):
  """`later` over the tokens of its response: with the denominator `responses`, the mean
  over responses of their weighted token means."""
  weight = later(stats, tokens, least=least, middle=middle, width=width)
  return weight * sequence_mean(stats, tokens)


ALL = {
  "uniform": uniform,
  "sequence_mean": sequence_mean,
  "skip_first": skip_first,
  "early": early,
  "later": later,
  "later_mean": later_mean,
  "unsure_teacher": unsure_teacher,
  "unsure_student": unsure_student,
  "disagreement": disagreement,
}


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


def most_unsure(stats, tokens, *, kept_share: float):
  """1 on the `kept_share` of a response's tokens where the student's entropy is highest
  (TSD-KD's entropy term, arXiv:2603.13260: 0.9)."""
  return top_share(stats.entropy_BxT, tokens, kept_share)


def explore_then_refine(stats, tokens, *, kept_share: float, strength: float):
  """1 on tokens whose log-ratio log q(y) - log p(y) is at least log(l) / (1 - l), l =
  strength (0: all), and whose entropy is among the highest `kept_share` of all tokens
  that count (1: all): REOPOLD's two masks, switched by a schedule (arXiv:2603.11137)."""
  real = tokens.mask_BxT > 0
  gap_BxT = stats.teacher_logp_BxT - stats.logp_BxT
  falling = -jnp.sort(-jnp.where(real, stats.entropy_BxT, -jnp.inf).reshape(-1))
  count = jnp.maximum(jnp.floor(kept_share * real.sum() + 1e-4), 1).astype(jnp.int32)
  is_unsure = stats.entropy_BxT >= falling[count - 1]
  return (is_unsure & (gap_BxT >= floor_of(strength))) * tokens.mask_BxT


def floor_of(strength):
  """log(l) / (1 - l), nats; -inf at 0."""
  return jnp.log(strength) / (1 - strength)


def least_likely(stats, tokens, *, kept_share: float):
  """1 on the `kept_share` of a response's tokens that the student gives the least
  probability (OPSA of DripNowhy's code: 0.2)."""
  return top_share(-stats.logp_BxT, tokens, kept_share)


def opener(stats, tokens, *, kept_share: float):
  """1 on the shortest beginning of a response that holds `kept_share` of its summed
  entropy (TSD-KD's opener)."""
  h_BxT = stats.entropy_BxT * tokens.mask_BxT
  total_BxT = over_response(jax.ops.segment_sum, h_BxT, tokens)
  before_BxT = so_far(h_BxT, tokens) - h_BxT
  return (before_BxT < kept_share * total_BxT) * tokens.mask_BxT


def early_disagreement(stats, tokens, *, strength: float):
  """1 + g (1 - sum over earlier tokens of |a| / sum over all), a = log q(y) - log p(y),
  g = strength: what comes before the teacher's objections counts more (IW-OPD,
  arXiv:2606.22600)."""
  a_BxT = jnp.abs(stats.teacher_logp_BxT - stats.logp_BxT) * tokens.mask_BxT
  total_BxT = over_response(jax.ops.segment_sum, a_BxT, tokens)
  before_BxT = so_far(a_BxT, tokens) - a_BxT
  return (
    1 + strength * (1 - before_BxT / jnp.maximum(total_BxT, 1e-8))
  ) * tokens.mask_BxT


def so_far(x_BxT, tokens):
  """The sum over its response up to each token, itself included."""
  sum_BxT = jnp.cumsum(x_BxT, 1)
  start_BxT = over_response(
    jax.ops.segment_min,
    jnp.where(tokens.mask_BxT > 0, sum_BxT - x_BxT, jnp.inf),
    tokens,
  )
  return jnp.where(tokens.mask_BxT > 0, sum_BxT - start_BxT, 0.0)


def label_confidence(stats, tokens):
  """p(y)^2 + 1 - its mean over all tokens that count (USKD's weight of the label, Yang
  et al. 2023, arXiv:2303.13005)."""
  p2_BxT = jnp.exp(2 * stats.logp_BxT) * tokens.mask_BxT
  mean = p2_BxT.sum() / jnp.maximum(tokens.mask_BxT.sum(), 1)
  return (p2_BxT + 1 - mean) * tokens.mask_BxT


def unlikely_response(stats, tokens, *, sharpness: float):
  """softmax over a prompt's responses that count of -b x the student's mean log p(y):
  right responses it did not expect (SCOPE, arXiv:2604.10688, eq. 4), b = 1 / tau."""
  return over_group_softmax(-sharpness * stats.logp_BxT, tokens)


def response_of_teacher(stats, tokens, *, sharpness: float):
  """softmax over a prompt's responses that count of b x the teacher's mean log q(y):
  wrong responses that it can follow (SCOPE, eq. 5), b = 1 / tau."""
  return over_group_softmax(sharpness * stats.teacher_logp_BxT, tokens)


def over_group_softmax(x_BxT, tokens):
  """softmax over each prompt's responses of the mean of x over their tokens, at each
  token; a response counts if the mask holds one of its tokens."""
  score_BxT = over_response(jax.ops.segment_sum, x_BxT * tokens.mask_BxT, tokens)
  score_BxT = score_BxT / jnp.maximum(tokens.length_BxT, 1)
  once_BxT = (tokens.index_BxT == 0) * tokens.mask_BxT
  group_N = tokens.group_BxT.reshape(-1)  # fewer than B x T, see collate

  def total(reduce, x_BxT):
    return reduce(x_BxT.reshape(-1), group_N, group_N.size)[group_N].reshape(
      x_BxT.shape
    )

  most = total(jax.ops.segment_max, jnp.where(once_BxT > 0, score_BxT, -jnp.inf))
  e_BxT = jnp.exp(jnp.where(tokens.mask_BxT > 0, score_BxT - most, -jnp.inf))
  sum_BxT = total(jax.ops.segment_sum, e_BxT * once_BxT)
  return e_BxT / jnp.maximum(sum_BxT, 1e-30) * tokens.mask_BxT


def hinted(stats, tokens, *, strength: float, sharpness: float, threshold: float):
  """1 on tokens that a right and a wrong hint value otherwise: |r| > threshold, r as in
  credit.hint_contrast (RLCSD, arXiv:2606.11709)."""
  r_BxT = contrast(stats, strength, sharpness)
  return (jnp.abs(r_BxT) > threshold) * tokens.mask_BxT


def not_hinted(stats, tokens, *, strength: float, sharpness: float, threshold: float):
  """1 on the others."""
  chosen_BxT = hinted(
    stats, tokens, strength=strength, sharpness=sharpness, threshold=threshold
  )
  return (1 - chosen_BxT) * tokens.mask_BxT


def contrast(stats, strength: float, sharpness: float):
  """l tanh(b e), e = log q(y) - log w(y) of the right and the wrong hint's teacher; 0
  where a response lacks one of them."""
  e_BxT = stats.teacher_logp_BxT - stats.against_logp_BxT
  return strength * jnp.tanh(sharpness * e_BxT) * stats.has_teacher_BxT


WHOLE = {
  "soft_or": soft_or,
  "sampled_entropy": sampled_entropy,
  "confident_mismatch": confident_mismatch,
  "calm_teacher": calm_teacher,
  "most_unsure": most_unsure,
  "explore_then_refine": explore_then_refine,
  "least_likely": least_likely,
  "opener": opener,
  "early_disagreement": early_disagreement,
  "label_confidence": label_confidence,
  "unlikely_response": unlikely_response,
  "response_of_teacher": response_of_teacher,
  "hinted": hinted,
  "not_hinted": not_hinted,
}
BOUNDS = {
  name: top_share_bound
  for name in ("soft_or", "sampled_entropy", "most_unsure", "least_likely")
}
