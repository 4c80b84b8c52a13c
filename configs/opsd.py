"""On-policy self-distillation (Zhao et al. 2026, arXiv:2601.18734).

The student answers from the question alone; the same weights as they were at
the start, shown the reference solution, judge every token of that answer, and
the student moves towards that judgement: forward KL over the full vocabulary.

  python -m experiments.train --config=configs/opsd.py --workdir=runs/opsd
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  return base.get_config(arg)
