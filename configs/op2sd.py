"""OP2SD: the worked solution of another problem (2026, arXiv:2608.09228).

OPSD whose teacher reads a solution that does not solve the question: the control that
tells the reference's content from its form. The same as configs/opsd.py:control=other.

  python -m experiments.train --config=configs/op2sd.py --workdir=runs/op2sd

The paper: on par with OPSD or above it; 8B without thinking on AIME24 55.8, OPSD 45.0.
"""

from configs import opsd


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = opsd.get_config(f"{arg},control=other" if arg else "control=other")
  return config
