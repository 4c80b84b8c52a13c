"""Recursive meta-distillation: each round nearer to one teacher (2026,
arXiv:2601.13100).

The target mixes the student of the last round (`reference`, synced) with the first
teacher (`teacher`, fixed, which has read the solution): arithmetically, which comes nearer
by at least the factor 1 - s a round, or `mean=geometric`.

  python -m experiments.train --config=configs/recursive_kd.py --workdir=runs/recursive_kd

The paper proves convergence to the teacher at a linear rate.
"""

from configs import base

MEANS = {"arithmetic": False, "geometric": True}


def get_config(arg=None):
  """`arg`: None or "tiny"; with each `mean=arithmetic` or `geometric`."""
  preset, options = base.parse(arg, ("tiny",), ("mean",))
  config = base.get_config(preset)
  config.reference.name, config.reference.every = "synced", 10
  target = config.targets.teacher
  target.name, mean = "averaged", options.get("mean", "arithmetic")
  target.base, target.teacher_share = "reference", 0.5
  target.is_geometric = base.choice(MEANS, "mean", mean)
  config.loss.distill.scale = 1.0
  return config
