"""The control of a teacher that knows nothing (Sarnthein et al. 2023, arXiv:2302.12091).

OPSD whose teacher's weights are the student's in another order.

  python -m experiments.train --config=configs/random_teacher.py --workdir=runs/random_teacher

No figure of the paper is repeated here.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.teacher.name = "shuffled"
  config.loss.distill.scale = 1.0
  return config
