"""IW-OPD: what comes before the teacher's objections counts more (2026,
arXiv:2606.22600).

On-policy distillation of the sampled token; a token's weight is 1 + g times the share of
the response's disagreement that is still to come. g = 0 is plain.

  python -m experiments.train --config=configs/iw_opd.py --workdir=runs/iw_opd

No figure of the paper is repeated here.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  term = config.loss.distill
  term.scale, term.divergence.name = 1.0, "sampled_token"
  term.token_weight.name, term.token_weight.strength = "early_disagreement", 0.5
  config.optimizer.learning_rate, config.optimizer.decay = 5e-5, "constant"
  return config
