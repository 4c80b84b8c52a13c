"""AVSD: where several privileged views agree (2026, arXiv:2605.20643).

The teacher reads the solution in one view and the answer alone in another. The target is
the views' geometric mean, moved towards the arithmetic one where both move the student the
same way. The loss is of the sampled token.

  python -m experiments.train --config=configs/avsd.py --workdir=runs/avsd

No figure of the paper is repeated here.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.context.also_privileged = ("answer",)
  config.targets.teacher.name, config.targets.teacher.views = "consensus", 2
  config.loss.distill.scale, config.loss.distill.divergence.name = 1.0, "sampled_token"
  config.optimizer.learning_rate, config.optimizer.decay = 5e-5, "constant"
  return config
