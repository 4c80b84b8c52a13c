"""Logits of another scale: only their order of distances is taught (Sun et al. 2024,
arXiv:2403.01427).

KL of z-scores at temperature 2, times 9 tau^2, and 0.1 NLL on the reference text. It does
not teach how sure to be.

  python -m experiments.train --config=configs/logit_standardisation.py --workdir=runs/logit_standardisation

No figure of the paper is repeated here.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.rollout.source = "dataset"
  config.loss.distill.scale = 1.0

  config.loss.nll.scale, config.loss.distill.scale = 0.1, 36.0
  config.loss.distill.logits.name, config.loss.distill.logits.tau = "z_score", 2.0
  return config
