"""How much of the reference the teacher reads follows what the student makes of it
(after ATESD, 2026, arXiv:2605.11458).

OPSD whose teacher reads a beginning of the solution: all of it at first; after every
ten steps less where the student's score rose, and more where it did not. The paper
draws the share from a Beta distribution that is learned; here a controller steps it.

  python -m experiments.train --config=configs/atesd.py --workdir=runs/atesd

The paper: 0.95, 2.05 and 2.33 points above OPSD.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.context.privileged = "part_of_solution"
  config.controller.name, config.controller.window = "reference_part", 10
  config.loss.distill.scale = 1.0
  return config
