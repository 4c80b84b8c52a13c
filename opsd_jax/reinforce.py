"""Learning from rewards: advantages, surrogates, KL estimators.

An advantage says by how much a response is better than what is usual: a
function of the rewards of a step's responses, `(reward_PxN, **kw) ->
advantage_PxN`, numpy, P prompts and N responses each. A surrogate turns it into
a loss a token, `(tok, token, **kw) -> BxT`: its gradient goes through
`tok.logp_BxT` alone, the rest are constants. A KL estimator is `(logp, ref,
ratio) -> BxT`, of one sampled token a place.

  Shao et al. 2024, arXiv:2402.03300 (GRPO); Liu et al. 2025, arXiv:2503.20783
  (Dr. GRPO); Yu et al. 2025, arXiv:2503.14476 (DAPO); Ahmadian et al. 2024,
  arXiv:2402.14740 (RLOO); Hu 2025, arXiv:2501.03262 (REINFORCE++); MiniMax
  2025, arXiv:2506.13585 (CISPO); Schulman et al. 2017, arXiv:1707.06347 (PPO)
"""

import jax
import jax.numpy as jnp
import numpy as np

sg = jax.lax.stop_gradient
EPS = 1e-4  # added to a standard deviation


# ----------------------------------------------------------------- rewards


def right(score_PxN):
  """1 where the task scores a response 1, else 0: what evaluation counts."""
  return (score_PxN >= 1).astype(float)


def score(score_PxN):
  """The score itself, of tasks that give a part of it for a part."""
  return score_PxN


REWARDS = {"right": right, "score": score}


# -------------------------------------------------------------- advantages


def reward(reward_PxN):
  """The reward itself. With rewards of 0 and 1 and the plain surrogate this is
  rejection sampling: the NLL of right responses."""
  return reward_PxN


def centred(reward_PxN):
  """r - mean of its prompt's responses (Dr. GRPO)."""
  rest_PxN = reward_PxN - reward_PxN.mean(1, keepdims=True)
  return np.where(signal(reward_PxN)[:, None], rest_PxN, 0.0)  # exactly 0


def standardised(reward_PxN):
  """(r - mean) / (std + 1e-4) over its prompt's responses (GRPO, eq. 3), the
  standard deviation unbiased: of N - 1."""
  std_Px1 = reward_PxN.std(1, ddof=1, keepdims=True)
  return centred(reward_PxN) / (std_Px1 + EPS)


def leave_one_out(reward_PxN):
  """r - mean of its prompt's other responses (RLOO, eq. 8)."""
  N = reward_PxN.shape[1]
  return centred(reward_PxN) * N / (N - 1)


def whitened(reward_PxN):
  """What is left of r without its prompt's mean, over the standard deviation of
  that in the whole batch (REINFORCE++ with a baseline, eq. 9)."""
  rest_PxN = centred(reward_PxN)
  return rest_PxN / (rest_PxN.std() + EPS)


ADVANTAGES = {
  "reward": reward,
  "centred": centred,
  "standardised": standardised,
  "leave_one_out": leave_one_out,
  "whitened": whitened,
}
ALONE = ("reward",)  # those that make sense of one response a prompt


def signal(reward_PxN) -> np.ndarray:
  """P booleans: whether a prompt's responses differ in reward."""
  return reward_PxN.min(1) < reward_PxN.max(1)


def overlong(length: int, most: int, margin: int) -> float:
  """The penalty of a long response (DAPO, eq. 13): 0 up to most - margin
  tokens, from there falling evenly to -1 at `most`."""
  return -min(max(length - (most - margin), 0) / margin, 1.0) if margin else 0.0


# -------------------------------------------------------------- surrogates


def old_logp(tok, token):
  """Log-prob of each token at the first update on this batch, which is now
  where nothing is noted; without gradient."""
  now_BxT = sg(tok.logp_BxT)
  if token.old_logp_BxT is None:
    return now_BxT
  first = jnp.isnan(token.old_logp_BxT)
  return jnp.where(first, now_BxT, token.old_logp_BxT)


def ratio(tok, token):
  """pi / pi_old, 1 in the first update; with gradient up to e^20."""
  log_ratio = tok.logp_BxT - old_logp(tok, token)
  return jnp.exp(jnp.clip(log_ratio, -20, 20))


def plain(tok, token):
  """-A log pi: REINFORCE (Williams 1992)."""
  return -token.advantage_BxT * tok.logp_BxT


def ppo(tok, token, *, clip_low: float, clip_high: float):
  """-min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) (PPO, eq. 7).

  Without gradient where A > 0 and the ratio is above, or A < 0 and it is below.
  DAPO's clip-higher is clip_high > clip_low.
  """
  r, A = ratio(tok, token), token.advantage_BxT
  return -jnp.minimum(r * A, jnp.clip(r, 1 - clip_low, 1 + clip_high) * A)


def cispo(tok, token, *, clip_low: float, clip_high: float):
  """-clip(ratio, 1 - clip_low, 1 + clip_high) A log pi, the clipped ratio a
  constant: every token keeps its gradient (CISPO, eq. 4)."""
  r = sg(jnp.clip(ratio(tok, token), 1 - clip_low, 1 + clip_high))
  return -r * token.advantage_BxT * tok.logp_BxT


SURROGATES = {"plain": plain, "ppo": ppo, "cispo": cispo}


def importance(tok, token, cap: float):
  """min(pi_old / sampled, cap): the truncated weight of a token that was drawn
  from another distribution than the loss's, by filters, another temperature or
  rounding; without gradient (Yao et al. 2025, "Your efficient RL framework
  secretly brings you off-policy RL training")."""
  weight = jnp.exp(old_logp(tok, token) - token.sampled_logp_BxT)
  return sg(jnp.minimum(weight, cap))


# ----------------------------------------------------------- KL estimators


def k1(logp, ref, ratio):
  """log pi - log ref: the KL in expectation, but no gradient is."""
  return logp - ref


def k2(logp, ref, ratio):
  """(log pi - log ref)^2 / 2: a biased value, the gradient of KL(pi || ref)."""
  return jnp.square(logp - ref) / 2


def k3(logp, ref, ratio):
  """ref / pi - 1 - log(ref / pi): the KL in expectation, at least 0 each; its
  gradient is that of KL(ref || pi) (Schulman 2020)."""
  return jnp.expm1(ref - logp) - (ref - logp)


def ratio_k3(logp, ref, ratio):
  """ratio k3: value and gradient of KL(pi || ref), the ratio's included."""
  return ratio * k3(logp, ref, ratio)


KL = {"k1": k1, "k2": k2, "k3": k3, "ratio_k3": ratio_k3}
