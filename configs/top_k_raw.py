"""The student's top k without renormalising, with the right gradient (2026,
arXiv:2605.11182).

Reverse KL over the student's 16 likeliest entries as they are. Its log-ratio is a
constant of the gradient: else descent drives mass out of them even where the student
agrees with the teacher, and that is refused.

  python -m experiments.train --config=configs/top_k_raw.py --workdir=runs/top_k_raw

No figure of the paper is repeated here.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  term = config.loss.distill
  term.scale, term.divergence.name = 1.0, "reverse_kl_constant_ratio"
  term.divergence.support, term.divergence.k = "top_k_raw", 16
  term.divergence.support_from = "student"
  return config
