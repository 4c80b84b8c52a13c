"""Swing distillation: rare tokens are passed on more softly (2022,
arXiv:2212.08349).

KL on the reference text at a temperature from 1 to 2, the higher the less the teacher
expects the token; the paper's classifier of private tokens is left out.

  python -m experiments.train --config=configs/swing.py --workdir=runs/swing

No figure of the paper is repeated here.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.rollout.source = "dataset"
  config.loss.distill.scale = 1.0

  config.loss.distill.logits.name = "softer_where_rare"
  config.loss.distill.logits.low, config.loss.distill.logits.high = 1.0, 2.0
  return config
