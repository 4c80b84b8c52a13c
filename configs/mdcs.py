"""Only what is right is distilled (after MDCS' confident sampling, arXiv:2308.09922).

OPSD on the student's right responses alone.

  python -m experiments.train --config=configs/mdcs.py --workdir=runs/mdcs

On thinking traces correct-only training is reported to shorten and to keep accuracy
(arXiv:2605.06188).
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.rollout.prompts_per_step, config.rollout.samples_per_prompt = 2, 8
  config.routing.name = "correct"
  config.loss.distill.scale, config.loss.distill.denominator = 1.0, "weighted_tokens"
  return config
