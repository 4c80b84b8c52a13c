"""PLD: the teacher's ranking after the label (2025, arXiv:2506.12542).

Plackett-Luce likelihood of the order: the reference's token first, then the teacher's
likeliest, each place weighted by the teacher's confidence.

  python -m experiments.train --config=configs/pld.py --workdir=runs/pld

No figure of the paper is repeated here.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.rollout.source = "dataset"
  config.loss.ranking.scale = 1.0
  config.loss.ranking.ranking.name, config.loss.ranking.ranking.k = "pld", 32
  return config
