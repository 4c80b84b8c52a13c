"""DED: few, diverse traces of the teacher that teaches best (2025, arXiv:2508.09883).

Several responses of an external model to each problem are imitated. Which model: sweep
external.source with this config and take the student's accuracy, not the teacher's.

  python -m experiments.train --config=configs/ded.py --workdir=runs/ded

No figure of the paper is repeated here.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.with_external(base.get_config(arg))
  config.rollout.source, config.rollout.samples_per_prompt = "external", 4
  config.rollout.prompts_per_step = 4
  config.loss.nll.scale = 1.0
  return config
