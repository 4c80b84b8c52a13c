"""Rewards and a reverse KL to the privileged self ("OPSD" of Penaloza et al. 2026,
arXiv:2602.04942, Alg. 2; not that of configs/opsd.py).

The student answers from the question alone. Its reward is the task's less b times
the KL of its response from the same weights with the solution, and the KL of each
token's distribution has a gradient of its own.

  python -m experiments.train --config=configs/rl_reverse_kl.py --workdir=runs/rl_kl

The paper, Qwen3-8B on TravelPlanner: 37.5, RL alone 27.5.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.rollout.prompts_per_step, config.rollout.samples_per_prompt = 2, 8
  config.teacher.name = "live"
  # b
  config.loss.distill.scale, config.loss.distill.divergence.name = 0.5, "reverse_kl"
  config.loss.policy_gradient.scale = 1.0
  config.loss.policy_gradient.credit.name = "less_kl"
  config.loss.policy_gradient.credit.strength = 0.5  # b
  config.rewards.advantage = "mean_baseline"
  config.optimizer.learning_rate, config.optimizer.decay = 5e-5, "constant"
  return config
