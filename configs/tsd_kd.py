"""TSD-KD: token-selective dual distillation (2026, arXiv:2603.13260).

JSD (beta 0.9) where the student is less sure than the teacher; on the opener, the
beginning that holds a tenth of the response's entropy, the student's ten likeliest
entries ranked as the teacher ranks them; and the entropy of the surest 90% lowered. The
released code ranks in the reverse order; here the right one.

  python -m experiments.train --config=configs/tsd_kd.py --workdir=runs/tsd_kd

The paper, Qwen2.5-14B to 1.5B: up to 54.4% over the baseline (relative).
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  term = config.loss.distill
  term.scale, term.divergence.name, term.divergence.beta = 1.0, "jsd", 0.9
  term.token_weight.name, term.token_weight.sharpness = "unsure_student", 1.0
  config.loss.ranking.scale = 0.1
  config.loss.ranking.token_weight.name = "opener"
  config.loss.ranking.token_weight.kept_share = 0.1
  config.loss.entropy.scale, config.loss.entropy.denominator = 1.0, "weighted_tokens"
  config.loss.entropy.token_weight.name = "most_unsure"
  config.loss.entropy.token_weight.kept_share = 0.9
  return config
