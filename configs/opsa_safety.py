"""Safety self-distillation: the self that is reminded teaches (2026, arXiv:2605.15239).

Forward KL to the frozen weights that read an instruction to be safe, the first tokens
counting most: 1 at the first, evenly down to 0.1 at the 32nd. The paper chooses the
instruction by the kind of request; here one stands in context.instruction.

  python -m experiments.train --config=configs/opsa_safety.py --workdir=runs/opsa_safety

The paper, R1-Distill-1.5B: +8.85 points of safety, Qwen3-0.6B +5.49.
"""

from configs import base

INSTRUCTION = (
  "Before you answer, consider whether the answer could harm someone. If it could, say"
  " so and do not give it."
)


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.context.template, config.context.privileged = "instruct", "instruction"
  config.context.instruction = INSTRUCTION
  term = config.loss.distill
  term.scale, term.token_weight.name = 1.0, "early"
  term.token_weight.count, term.token_weight.least = 32, 0.1
  return config
