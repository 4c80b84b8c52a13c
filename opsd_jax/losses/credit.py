"""Credit: a response's advantage -> its tokens', `(stats, tokens, **kw) -> BxT`.

One of ALL looks at its own token alone; one of WHOLE at others too, and is made
of the whole batch before anything is learned (scoring.weigh), where the mask
holds the tokens that count in its term. tokens.weights["credit"], where routing
gives it, is how much of what the credit adds belongs to a response. A credit that
reads no advantage learns without rewards. None has a gradient.
"""

import jax
import jax.numpy as jnp

from opsd_jax.losses.policy_gradient import exp_clipped, old_logp
from opsd_jax.losses.token_weights import (
  contrast,
  floor_of,
  least_likely,
  over_response,
  rescaled,
)

# --------------------------------------------------------- of the token itself


def response(stats, tokens):
  """Its response's advantage."""
  return tokens.advantage_BxT


def log_ratio(stats, tokens):
  """log q(y) - log pi_old(y), no reward: on-policy distillation as a policy gradient
  (Thinking Machines 2025; arXiv:2306.13649 with the sampled token)."""
  return stats.teacher_logp_BxT - old_logp(stats, tokens)


def plus_log_ratio(stats, tokens, *, strength: float):
  """A + b (log q(y) - log pi_old(y)): the same beside a reward."""
  return tokens.advantage_BxT + strength * log_ratio(stats, tokens)


def floored_log_ratio(stats, tokens, *, strength: float):
  """max(log q(y) - log pi_old(y), log(l) / (1 - l)), l = strength: no single token is
  punished without bound (REOPOLD, arXiv:2603.11137, eq. 4)."""
  return jnp.maximum(log_ratio(stats, tokens), floor_of(strength))


def evidence(stats, tokens, *, strength: float, margin: float):
  """A ((1 - l) + l clip((q(y) / pi(y))^sign(A), 1 - m, 1 + m)), l = strength, m = margin:
  the teacher says how much a token did for the verdict, never which way (RLSD,
  arXiv:2604.03128, alg. 1). At l = 0 and where they agree it is A."""
  A_BxT = tokens.advantage_BxT
  ratio = exp_clipped(jnp.sign(A_BxT) * log_ratio(stats, tokens))
  return A_BxT * (1 - strength + strength * jnp.clip(ratio, 1 - margin, 1 + margin))


ALL = {
  "response": response,
  "log_ratio": log_ratio,
  "plus_log_ratio": plus_log_ratio,
  "floored_log_ratio": floored_log_ratio,
  "evidence": evidence,
}


# ------------------------------------------------------ of others as well


def less_kl(stats, tokens, *, strength: float):
  """A - b (KL - mean of its prompt's), KL = sum over the response of log pi(y) -
  log q(y), q the teacher: the advantage of the reward R - b KL (pi-Distill,
  Penaloza et al. 2026, arXiv:2602.04942, Alg. 1). Without gradient."""
  share_BxT = tokens.weights.get("credit", 1.0) * tokens.mask_BxT
  gap_BxT = (stats.logp_BxT - stats.teacher_logp_BxT) * share_BxT
  kl_BxT = over_response(jax.ops.segment_sum, gap_BxT, tokens)
  rest_BxT = kl_BxT - group_mean(kl_BxT, share_BxT, tokens)
  return tokens.advantage_BxT - strength * rest_BxT * (share_BxT > 0)


def group_mean(x_BxT, share_BxT, tokens):
  """The mean of x over a prompt's responses, each once, whatever part of the
  batch they are in; x is the same at all tokens of a response."""
  once_BxT = (tokens.index_BxT == 0) * (share_BxT > 0)
  group_N = tokens.group_BxT.reshape(-1)  # fewer than B x T, see collate

  def total(x):
    return jax.ops.segment_sum(x.reshape(-1), group_N, group_N.size)

  mean_G = total(x_BxT * once_BxT) / jnp.maximum(total(once_BxT * 1.0), 1)
  return mean_G[group_N].reshape(x_BxT.shape)


def returns(stats, tokens, *, discount: float):
  """sum over i >= t of g^(i - t) r_i / sum over i >= t of g^(i - t), r = log q(y) - log
  p(y), g = discount (MiniLLM, Gu et al. 2024, arXiv:2306.08543, length-normalised as
  its released code); at 0 it is r."""
  r_BxT = (stats.teacher_logp_BxT - stats.logp_BxT) * tokens.mask_BxT
  sums = discounted(jnp.stack([r_BxT, tokens.mask_BxT]), tokens, discount)
  return sums[0] / jnp.maximum(sums[1], 1e-30)


def discounted(x_NxBxT, tokens, discount: float):
  """sum over i >= t of g^(i - t) x_i within the response."""
  goes_on_BxT = (tokens.index_BxT + 1 < tokens.length_BxT) * jnp.float32(discount)

  def join(later, now):  # of affine maps, from the last token to the first
    return later[0] * now[0], now[1] + now[0] * later[1]

  factor = jnp.broadcast_to(goes_on_BxT, x_NxBxT.shape)
  return jax.lax.associative_scan(join, (factor, x_NxBxT), reverse=True, axis=2)[1]


def bounded_returns(stats, tokens, *, strength: float):
  """r_t + the mean of the later r, r = log(a q(y) / p(y) + 1 - a), a = strength: at
  least log(1 - a) (TOP-D, arXiv:2607.04751)."""
  gap = stats.teacher_logp_BxT - stats.logp_BxT
  r_BxT = jnp.log(strength * exp_clipped(gap) + 1 - strength) * tokens.mask_BxT
  later_BxT = discounted(r_BxT[None], tokens, 1.0)[0] - r_BxT
  count_BxT = tokens.length_BxT - tokens.index_BxT - 1
  return r_BxT + later_BxT / jnp.maximum(count_BxT, 1)


def unsure_is_worse(stats, tokens, *, kept_share: float):
  """-1/2 - (H - min H) / (max H - min H) / 2 on the `kept_share` of a response's least
  likely tokens, else 0: no teacher and no reward (OPSA of DripNowhy's code)."""
  chosen_BxT = least_likely(stats, tokens, kept_share=kept_share)
  masked = tokens._replace(mask_BxT=tokens.mask_BxT * chosen_BxT)
  return -(0.5 + 0.5 * rescaled(stats.entropy_BxT, masked)) * chosen_BxT


def hint_contrast(stats, tokens, *, strength: float, sharpness: float):
  """A + r, its sign never A's opposite, A = 0 stays: r = l tanh(b e), e the log-prob of
  the token under a right hint less that under wrong ones (RLCSD, arXiv:2606.11709)."""
  A_BxT = tokens.advantage_BxT
  moved = A_BxT + contrast(stats, strength, sharpness)
  return jnp.sign(A_BxT) * jnp.maximum(jnp.sign(A_BxT) * moved, 0.0)


WHOLE = {
  "less_kl": less_kl,
  "returns": returns,
  "bounded_returns": bounded_returns,
  "unsure_is_worse": unsure_is_worse,
  "hint_contrast": hint_contrast,
}
