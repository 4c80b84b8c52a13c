"""RLAD: rewards whose ratio is to the old policy and a teacher together (2026,
arXiv:2602.22495).

GRPO in which the trust region is around pi_old^a teacher^(1 - a): the teacher
stretches or stops a token's step, and never turns it. It is another model with the
same tokenizer, whose log-prob of the sampled token is all that is read; by default
the same model as the student's: give a stronger one by external.source.

  python -m experiments.train --config=configs/rlad.py --workdir=runs/rlad \\
    --config.external.source=<model>

The paper, Qwen3-8B-Base on maths: 66.5, GRPO 61.0. `a` is 0.5 there.
"""

from configs import base, grpo


def get_config(arg=None):
  """`arg`: None or "tiny"; with each `kl=0.04`, the weight of a KL to the base."""
  config = base.external_teacher(grpo.get_config(arg))
  config.loss.policy_gradient.surrogate.name = "trrd"
  config.loss.policy_gradient.surrogate.old_share = 0.5
  config.loss.policy_gradient.surrogate.clip_high = 0.28
  return config
