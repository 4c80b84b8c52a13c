"""SC-SDPO: SDPO where the outcome is open (2026, arXiv:2605.27765).

SDPO with each prompt's weight sqrt(p (1 - p)), p its share of right responses, divided by
the batch's mean.

  python -m experiments.train --config=configs/sc_sdpo.py --workdir=runs/sc_sdpo

No figure of the paper is repeated here.
"""

from configs import sdpo


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = sdpo.get_config(arg)
  config.routing.name, config.routing.a, config.routing.b = "pass_rate", 0.5, 0.5
  config.loss.distill.denominator = "total_weight"
  return config
