"""PW-OPSD: later positions count more (2026, arXiv:2605.21606).

OPSD with the pointwise clip, each token weighted by where it stands in its response; mean
over each response, then over responses. At `least` 1 it is OPSD.

  python -m experiments.train --config=configs/pw_opsd.py --workdir=runs/pw_opsd

Its code, Qwen3-4B at a fixed step 100, AIME24, 25, HMMT25: 76.20, 67.78, 43.33; OPSD
75.19, 66.67, 43.89.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  term = config.loss.distill
  term.scale, term.denominator = 1.0, "responses"
  term.token_weight.name, term.token_weight.least = "later_mean", 0.25
  term.token_weight.middle, term.token_weight.width = 0.3, 0.1
  term.divergence.clip, term.divergence.tau = "signed", 0.05
  return config
