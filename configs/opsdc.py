"""OPSDC (CRISP): the self that is told to be concise teaches (2026, arXiv:2603.05433).

Reverse KL to the weights, synced every 50 steps, that read an instruction to be brief.
Forward KL is reported to collapse at every sync.

  python -m experiments.train --config=configs/opsdc.py --workdir=runs/opsdc

The paper, Qwen3-14B on MATH: 70.0 -> 86.1 with 56.5% fewer tokens.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.context.template, config.context.privileged = "instruct", "instruction"
  config.context.instruction = (
    "Be concise: write no word that the answer does not need."
  )
  config.teacher.name, config.teacher.every = "synced", 50
  config.loss.distill.scale, config.loss.distill.divergence.name = 1.0, "reverse_kl"
  return config
