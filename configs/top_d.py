"""TOP-D: bounded rewards of the teacher, and their future (2026, arXiv:2607.04751).

A token's reward is log(a T / S + 1 - a), which no single token makes very low; its
advantage is that and the mean of the later ones.

  python -m experiments.train --config=configs/top_d.py --workdir=runs/top_d

No figure of the paper is repeated here.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  term = config.loss.policy_gradient
  term.scale, term.credit.name, term.credit.strength = 1.0, "bounded_returns", 0.5
  config.optimizer.learning_rate, config.optimizer.decay = 5e-5, "constant"
  return config
