"""A student that answers as its quantised self (Polino et al. 2018, arXiv:1802.05668).

The forward pass is that of the weights rounded to 8 bits, the
gradient goes to the full ones (straight-through), and so do rollouts and evaluations. Distillation towards the unrounded start, which has read the solution.

  python -m experiments.train --config=configs/quantised.py --workdir=runs/quantised

No figure of the paper is repeated here.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.model.transform = "int8"
  config.loss.distill.scale = 1.0
  return config
