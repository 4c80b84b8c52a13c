"""SRPO: each response goes to the teacher that helps it (2026, arXiv:2604.02288).

Wrong responses whose group holds a right one are distilled towards a teacher that
reads it, tokens where that teacher is sure counting more; all others learn from
their rewards (GRPO without the standard deviation). One sum over all tokens.

  python -m experiments.train --config=configs/srpo.py --workdir=runs/srpo

The paper: 77.4 against 74.0 (GRPO) and 71.1 (SDPO), the mean of five tasks.
"""

from configs import sdpo


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = sdpo.get_config(arg)
  config.routing.name = "wrong_to_teacher"
  config.loss.distill.token_weight.name = "calm_teacher"
  config.loss.distill.token_weight.sharpness = 1.0
  config.loss.distill.denominator = "tokens"
  config.loss.policy_gradient.scale = 1.0
  config.loss.policy_gradient.surrogate.clip_high = 0.28
  config.rewards.advantage = "mean_baseline"
  return config
