"""Purified OPSD: what the question adds to the reference (2026, arXiv:2607.02234).

Three views: question and solution, the solution without its question, the question
alone. The target is the base moved by the centred log-ratio of the first two, squashed
at 10 nats: what the teacher would say of the reference anyway is taken out.

  python -m experiments.train --config=configs/purified_opsd.py --workdir=runs/purified_opsd

Reported: words of doubt ('wait') stay as frequent as the base's, where OPSD removes or
multiplies them.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.context.also_privileged = ("solution_alone",)
  target = config.targets.teacher
  target.name, target.strength, target.bound = "residual", 1.0, 10.0
  config.loss.distill.scale = 1.0
  config.loss.distill.divergence.name, config.loss.distill.divergence.beta = "jsd", 0.5
  return config
