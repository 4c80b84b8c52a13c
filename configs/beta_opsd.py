"""beta-OPSD: a step towards the privileged self (2026, arXiv:2607.28582).

The target is softmax((1 - w) student + w teacher), w rising from 0.5 to 0.8 over the run:
the optimum of the teacher's log-ratio to a reference with a KL to it.

  python -m experiments.train --config=configs/beta_opsd.py --workdir=runs/beta_opsd

No figure of the paper is repeated here.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.targets.teacher.name, config.targets.teacher.teacher_share = "toward", 0.5
  config.loss.distill.scale, config.loss.distill.divergence.name = 1.0, "reverse_kl"
  config.schedule = (("targets.teacher.teacher_share", (0, 0.5), (config.steps, 0.8)),)
  return config
