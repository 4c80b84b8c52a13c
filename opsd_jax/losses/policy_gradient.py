"""Surrogates of the expected reward, and estimators of a KL.

A surrogate turns a token's advantage into its loss, `(stats, tokens, **kw) ->
BxT`: its gradient goes through `stats.logp_BxT` alone, the rest are constants. A
KL estimator is `(logp, ref, ratio) -> BxT`, of one sampled token a place.

  Shao et al. 2024, arXiv:2402.03300 (GRPO); Yu et al. 2025, arXiv:2503.14476
  (DAPO); MiniMax 2025, arXiv:2506.13585 (CISPO); Schulman et al. 2017,
  arXiv:1707.06347 (PPO); Zhang et al. 2026, arXiv:2602.22495 (RLAD)
"""

import jax
import jax.numpy as jnp

from opsd_jax.losses.bounds import clamp

sg = jax.lax.stop_gradient


# -------------------------------------------------------------- surrogates


def old_logp(stats, tokens):
  """Log-prob of each token under the policy that drew it: as noted, else now,
  at the first update on this batch; without gradient."""
  now_BxT = sg(stats.logp_BxT)
  if tokens.old_logp_BxT is None:
    return now_BxT
  unknown = jnp.isnan(tokens.old_logp_BxT)
  return jnp.where(unknown, now_BxT, tokens.old_logp_BxT)


def exp_clipped(log_ratio):
  """e^x, with gradient, for |x| up to 20."""
  return jnp.exp(clamp(log_ratio, -20, 20))


def ratio(stats, tokens):
  """pi / pi_old, 1 in the first update on a policy's own responses."""
  return exp_clipped(stats.logp_BxT - old_logp(stats, tokens))


def reinforce(stats, tokens):
  """-A log pi (Williams 1992)."""
  return -tokens.advantage_BxT * stats.logp_BxT


def clipped(r, A, clip_low, clip_high):
  """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) (PPO, eq. 7).

  Without gradient where A > 0 and the ratio is above, or A < 0 and it is below.
  """
  kept = clamp(r, 1 - clip_low, 1 + clip_high) * A
  return -jnp.where(kept < r * A, kept, r * A)


def ppo(stats, tokens, *, clip_low: float, clip_high: float):
  """The clipped loss of pi / pi_old. DAPO's clip-higher is clip_high >
  clip_low."""
  r_BxT = ratio(stats, tokens)
  return clipped(r_BxT, tokens.advantage_BxT, clip_low, clip_high)


def trrd(stats, tokens, *, clip_low: float, clip_high: float, old_share: float):
  """The clipped loss of pi / (pi_old^a teacher^(1 - a)), a = old_share: a step
  that the teacher's opinion of the token lengthens or stops (RLAD, eq. 3). At 1
  it is `ppo`."""
  anchor_BxT = old_logp(stats, tokens)
  if old_share != 1:
    teacher_BxT = sg(stats.teacher_logp_BxT)
    anchor_BxT = old_share * anchor_BxT + (1 - old_share) * teacher_BxT
  r_BxT = exp_clipped(stats.logp_BxT - anchor_BxT)
  return clipped(r_BxT, tokens.advantage_BxT, clip_low, clip_high)


def cispo(stats, tokens, *, clip_low: float, clip_high: float):
  """-clip(ratio, 1 - clip_low, 1 + clip_high) A log pi, the clipped ratio a
  constant: every token keeps its gradient (CISPO, eq. 4)."""
  r_BxT = sg(clamp(ratio(stats, tokens), 1 - clip_low, 1 + clip_high))
  return -r_BxT * tokens.advantage_BxT * stats.logp_BxT


def importance_sampled(stats, tokens):
  """-(pi / pi_old) A, without a clip (Thinking Machines 2025)."""
  return -ratio(stats, tokens) * tokens.advantage_BxT


SURROGATES = {
  "reinforce": reinforce,
  "ppo": ppo,
  "cispo": cispo,
  "trrd": trrd,
  "importance_sampled": importance_sampled,
}


def importance(stats, tokens, cap: float):
  """min(pi_old / sampled, cap): the truncated weight of a token that was drawn
  from another distribution than the loss's, by filters, another temperature or
  rounding; without gradient (Yao et al. 2025, "Your efficient RL framework
  secretly brings you off-policy RL training")."""
  weight = jnp.exp(old_logp(stats, tokens) - tokens.sampled_logp_BxT)
  return sg(clamp(weight, high=cap))


# ----------------------------------------------------------- KL estimators


def k1(logp, ref, ratio):
  """log pi - log ref: the KL in expectation, but no gradient is."""
  return logp - ref


def k2(logp, ref, ratio):
  """(log pi - log ref)^2 / 2: a biased value, the gradient of KL(pi || ref)."""
  return jnp.square(logp - ref) / 2


def k3(logp, ref, ratio):
  """ref / pi - 1 - log(ref / pi): the KL in expectation, at least 0 each; its
  gradient is that of KL(ref || pi) (Schulman 2020). The log-ratio counts at most 20
  nats either way, without gradient there."""
  gap = clamp(ref - logp, -20, 20)
  return jnp.expm1(gap) - gap


def ratio_k3(logp, ref, ratio):
  """ratio k3: value and gradient of KL(pi || ref), the ratio's included."""
  return ratio * k3(logp, ref, ratio)


KL = {"k1": k1, "k2": k2, "k3": k3, "ratio_k3": ratio_k3}
