"""Rejection-sampling fine-tuning (Yuan et al. 2023, arXiv:2308.01825), online as
RAFT is (Dong et al. 2023, arXiv:2304.06767).

The student answers, the verifier keeps what is right, and the loss is the
negative log-likelihood of that, mean over its tokens.

  python -m experiments.train --config=configs/rft.py --workdir=runs/rft

Expected: 0.297 -> 0.914, 0.762, 0.430 greedy (seeds 0 to 2: it varies), 0.638 sampled,
drift 0.22; in seeds 0 and 2 replies do not end; 6 minutes on two cores.
"""

from configs import grpo


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = grpo.get_config(arg)
  config.rewards.advantage = "reward"
  term = config.loss.policy_gradient
  term.surrogate.name = "reinforce"
  term.token_weight.name, term.denominator = "uniform", "active_tokens"
  return config
