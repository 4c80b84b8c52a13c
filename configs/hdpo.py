"""HDPO: where every response fails, the privileged self answers (2026,
arXiv:2603.23871).

GRPO, and on problems that no response solved the weights that read the solution answer
too; their right responses are distilled from the question alone, by JSD over the 64
likeliest entries and the rest as one.

  python -m experiments.train --config=configs/hdpo.py --workdir=runs/hdpo

No figure of the paper is repeated here.
"""

from configs import grpo


def get_config(arg=None):
  """`arg`: None or "tiny"; with each `kl=0.04`, the weight of a KL to the base."""
  config = grpo.get_config(arg)
  config.context.template, config.context.privileged = "short", "solution"
  config.teacher.name = "live"
  config.rollout.source, config.routing.name = "rescue", "rescued"
  term = config.loss.distill
  term.scale, term.denominator = 1.0, "weighted_tokens"
  term.divergence.name, term.divergence.beta = "jsd", 0.5
  term.divergence.support, term.divergence.k = "top_k_tail", 64
  return config
