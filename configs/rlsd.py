"""RLSD: the verdict says which way, the privileged self how far (2026,
arXiv:2604.03128).

GRPO in which a token's advantage is A ((1 - l) + l clip((T / S)^sign(A), 1 -+ 0.2)): the
teacher, synced every ten steps, has read the answer. l falls from 0.5 to 0 over 50
steps, after which this is GRPO; the paper's algorithm, not its eq. 16.

  python -m experiments.train --config=configs/rlsd.py --workdir=runs/rlsd

The paper, Qwen3-VL-8B, mean of five: 56.2, GRPO 53.9, OPSD 52.5.
"""

from configs import grpo


def get_config(arg=None):
  """`arg`: None or "tiny"; with each `kl=0.04`, the weight of a KL to the base."""
  config = grpo.get_config(arg)
  term = config.loss.policy_gradient
  config.context.template, config.context.privileged = "short", "answer"
  config.teacher.name, config.teacher.every = "synced", 10
  term.credit.name, term.credit.strength, term.credit.margin = "evidence", 0.5, 0.2
  config.schedule = (("loss.policy_gradient.credit.strength", (0, 0.5), (50, 0.0)),)
  return config
