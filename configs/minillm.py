"""MiniLLM: reverse KL as a return (Gu et al. 2024, arXiv:2306.08543).

A token's advantage is the discounted, length-normalised sum of what the teacher thinks of
it and of the tokens after it, beside the exact reverse KL of its own step. Mixing the
teacher into the sampling, token by token, is left out.

  python -m experiments.train --config=configs/minillm.py --workdir=runs/minillm

No figure of the paper is repeated here.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.loss.policy_gradient.scale = 1.0
  config.loss.policy_gradient.credit.name = "returns"
  config.loss.policy_gradient.credit.discount = 0.5
  config.loss.distill.scale, config.loss.distill.divergence.name = 1.0, "reverse_kl"
  config.optimizer.learning_rate, config.optimizer.decay = 5e-5, "constant"
  return config
