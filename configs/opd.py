"""On-policy distillation (Thinking Machines 2025; the sampled form of arXiv:2306.13649).

The student answers; another model's log-prob of each token less the student's own is
that token's advantage, in an importance-sampled policy gradient without a clip. By
default the teacher is the same model: give a stronger one.

  python -m experiments.train --config=configs/opd.py --workdir=runs/opd

The authors, Qwen3-8B on AIME24: 74.4 in 1,800 GPU hours, RL 67.6 in 17,920.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.external_teacher(base.get_config(arg))
  term = config.loss.policy_gradient
  term.scale, term.surrogate.name = 1.0, "importance_sampled"
  term.credit.name = "log_ratio"
  config.optimizer.learning_rate, config.optimizer.decay = 5e-5, "constant"
  return config
