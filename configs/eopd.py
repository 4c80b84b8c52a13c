"""EOPD: cover the teacher where it is unsure (2026, arXiv:2603.07079).

On-policy distillation by the sampled token (log T - log S as a clipped policy
gradient), and where the teacher's entropy is above 0.8 nats also forward KL over its 16
likeliest entries, so that its alternatives survive. The paper's teacher is another
model: targets.teacher.weights=external.

  python -m experiments.train --config=configs/eopd.py --workdir=runs/eopd

The paper, Qwen3-4B-Base: +1.8 avg@8 and +5.05 pass@8 over on-policy distillation.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.loss.policy_gradient.scale = 1.0
  config.loss.policy_gradient.credit.name = "log_ratio"
  term = config.loss.distill
  term.scale, term.divergence.name = 1.0, "forward_kl"
  term.divergence.support, term.divergence.k = "top_k_renormalised", 16
  term.token_weight.name, term.token_weight.threshold = "unsure_teacher", 0.8
  config.optimizer.learning_rate, config.optimizer.decay = 5e-5, "constant"
  return config
