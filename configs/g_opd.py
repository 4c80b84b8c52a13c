"""G-OPD: on-policy distillation beyond the teacher (2026, arXiv:2602.12125).

The target is base + strength (teacher - base) in log space, the base being the student
as it was; above 1 the teacher's change of the base is extrapolated (ExOPD), at 1 it is
on-policy distillation. The loss is of the sampled token.

  python -m experiments.train --config=configs/g_opd.py --workdir=runs/g_opd

No figure of the paper is repeated here.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.external_teacher(base.get_config(arg))
  target = config.targets.teacher
  target.name, target.base, target.strength = "extrapolated", "reference", 1.25
  config.loss.distill.scale, config.loss.distill.divergence.name = 1.0, "sampled_token"
  config.optimizer.learning_rate, config.optimizer.decay = 5e-5, "constant"
  return config
