"""NKD: the label's confidence, and apart from it the rest (Yang et al. 2023,
arXiv:2303.13005).

On the reference text: -T_y log S_y, and 1.5 times the cross-entropy of the distributions
without the label.

  python -m experiments.train --config=configs/nkd.py --workdir=runs/nkd

No figure of the paper is repeated here.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.rollout.source = "dataset"
  config.loss.distill.scale = 1.0

  config.loss.distill.divergence.name = "nkd"
  config.loss.distill.divergence.others_weight = 1.5
  return config
