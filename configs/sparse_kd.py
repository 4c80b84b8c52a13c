"""Only the teacher's top probabilities, softened by a power (2026).

Where a teacher gives its k likeliest entries alone: p^(1/T) renormalised over them, which is
their softmax at temperature T.

  python -m experiments.train --config=configs/sparse_kd.py --workdir=runs/sparse_kd

The abstract gives the error of n stages as O(1 / n).
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.rollout.source = "dataset"
  config.loss.distill.scale = 1.0

  config.targets.teacher.temperature = 2.0
  config.loss.distill.divergence.support = "top_k_renormalised"
  config.loss.distill.divergence.k = 32
  return config
