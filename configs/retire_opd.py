"""The teacher is retired when it has no more to give (after RetireOPD, 2026,
arXiv:2609.20784).

Rewards and the privileged teacher together; once the score of ten steps is no better
than that of the ten before, the divergence ends and rewards go on alone.

  python -m experiments.train --config=configs/retire_opd.py --workdir=runs/retire_opd

No figure of the paper is repeated here.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.rollout.prompts_per_step, config.rollout.samples_per_prompt = 2, 8
  config.controller.name, config.controller.window = "retire_teacher", 10
  config.controller.change = 0.0
  config.loss.distill.scale = config.loss.policy_gradient.scale = 1.0
  config.optimizer.learning_rate, config.optimizer.decay = 5e-5, "constant"
  return config
