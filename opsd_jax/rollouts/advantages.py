"""Advantages: by how much a response is better than what is usual.

A function of the rewards of a step's responses, `(reward_PxN) -> advantage_PxN`,
numpy, P prompts and N responses each.

  Shao et al. 2024, arXiv:2402.03300 (GRPO); Liu et al. 2025, arXiv:2503.20783
  (Dr. GRPO); Yu et al. 2025, arXiv:2503.14476 (DAPO); Ahmadian et al. 2024,
  arXiv:2402.14740 (RLOO); Hu 2025, arXiv:2501.03262 (REINFORCE++)
"""

import numpy as np

EPS = 1e-4  # added to a standard deviation


# ----------------------------------------------------------------- rewards


def correct(score_PxN):
  """1 where the task scores a response 1, else 0: what evaluation counts."""
  return (score_PxN >= 1).astype(float)


def score(score_PxN):
  """The score itself, of tasks that give a part of it for a part."""
  return score_PxN


REWARDS = {"correct": correct, "score": score}


# -------------------------------------------------------------- advantages


def reward(reward_PxN):
  """The reward itself. With rewards of 0 and 1 and the surrogate `reinforce` this is
  rejection sampling: the NLL of right responses."""
  return reward_PxN


def mean_baseline(reward_PxN):
  """r - mean of its prompt's responses (Dr. GRPO)."""
  rest_PxN = reward_PxN - reward_PxN.mean(1, keepdims=True)
  return np.where(signal(reward_PxN)[:, None], rest_PxN, 0.0)  # exactly 0


def standardised(reward_PxN):
  """(r - mean) / (std + 1e-4) over its prompt's responses (GRPO, eq. 3), the
  standard deviation unbiased: of N - 1."""
  std_Px1 = reward_PxN.std(1, ddof=1, keepdims=True)
  return mean_baseline(reward_PxN) / (std_Px1 + EPS)


def leave_one_out(reward_PxN):
  """r - mean of its prompt's other responses (RLOO, eq. 8)."""
  N = reward_PxN.shape[1]
  return mean_baseline(reward_PxN) * N / (N - 1)


def whitened(reward_PxN):
  """What is left of r without its prompt's mean, over the standard deviation of
  that in the whole batch (REINFORCE++ with a baseline, eq. 9)."""
  rest_PxN = mean_baseline(reward_PxN)
  return rest_PxN / (rest_PxN.std() + EPS)


ALL = {
  "reward": reward,
  "mean_baseline": mean_baseline,
  "standardised": standardised,
  "leave_one_out": leave_one_out,
  "whitened": whitened,
}
ALONE = ("reward",)  # those that make sense of one response a prompt


def signal(reward_PxN) -> np.ndarray:
  """P booleans: whether a prompt's responses differ in reward."""
  return reward_PxN.min(1) < reward_PxN.max(1)


def teaches(name: str, reward_PxN) -> np.ndarray:
  """P booleans: whether some advantage of a prompt's responses is not 0."""
  return (reward_PxN != 0).any(1) if name in ALONE else signal(reward_PxN)


def overlong(length: int, most: int, margin: int) -> float:
  """The penalty of a long response (DAPO, eq. 13): 0 up to most - margin
  tokens, from there falling evenly to -1 at `most`."""
  return -min(max(length - (most - margin), 0) / margin, 1.0) if margin else 0.0
