"""Veto: what the student would never say is not asked of it (2026).

Forward KL to T S^b renormalised, b falling from 1 to 0 over the run.

  python -m experiments.train --config=configs/veto.py --workdir=runs/veto

No figure of the paper is repeated here.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.targets.teacher.name, config.targets.teacher.strength = "vetoed", 1.0
  config.loss.distill.scale = 1.0
  config.schedule = (("targets.teacher.strength", (0, 1.0), (config.steps, 0.0)),)
  return config
