"""USKD's target weight: sure labels count more (Yang et al. 2023, arXiv:2303.13005).

SFT whose token counts p(y)^2 + 1 less the batch's mean of p(y)^2. The ranks of the rest
mean nothing over 50,000 entries and are left out.

  python -m experiments.train --config=configs/uskd.py --workdir=runs/uskd

No figure of the paper is repeated here.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.rollout.source = "dataset"
  config.loss.nll.scale = 1.0
  config.loss.nll.token_weight.name = "label_confidence"
  return config
