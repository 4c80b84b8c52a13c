"""Supervised fine-tuning on the reference solutions: the baseline.

The same prompts, steps, batch and evaluation as configs/opsd.py; the response
is the reference solution and the loss is its negative log-likelihood.

  python -m experiments.train --config=configs/sft.py --workdir=runs/sft

Expected: 0.297 -> 0.906, 0.910, 0.914 greedy (seeds 0 to 2), 0.811 sampled, drift 0.57;
8 minutes on two cores.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.rollout.source = "dataset"
  config.loss.nll.scale = 1.0
  return config
