"""DAPO (Yu et al. 2025, arXiv:2503.14476): GRPO that keeps exploring.

The ratio may rise further than it may fall (so a batch of rollouts gives two
updates: at the first the ratio is 1), every token of the batch counts alike,
prompts whose responses are all right or all wrong are replaced by others (here
for at most 4 rounds of sampling, so a batch may cost four times as many
responses), and a response that comes near the end of its budget pays.

  python -m experiments.train --config=configs/dapo.py --workdir=runs/dapo

Not measured yet on the default task.
"""

from configs import grpo


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = grpo.get_config(arg)
  term = config.loss.policy_gradient
  term.surrogate.clip_high = 0.28
  term.token_weight.name, term.denominator = "uniform", "active_tokens"
  config.optimizer.updates_per_batch = 2
  config.rewards.dynamic_sampling_rounds = 4
  config.rewards.overlong_margin = config.rollout.max_new_tokens // 4
  return config
