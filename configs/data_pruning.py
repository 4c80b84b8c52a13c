"""The fewer problems, the more of the teacher (after arXiv:2403.07854).

Imitation of the reference and distillation towards the weights that read it, on a share
f of the problems: the teacher's weight is 1 - f / 2, the label's f / 2. `kept=0.25` is f.

  python -m experiments.train --config=configs/data_pruning.py --workdir=runs/data_pruning

No figure of the paper is repeated here.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"; with each `kept=0.5`."""
  preset, options = base.parse(arg, ("tiny",), ("kept",))
  config, kept = base.get_config(preset), float(options.get("kept", 0.5))
  config.task.train_count = max(16, int(kept * config.task.train_count))
  config.rollout.source = "dataset"
  config.loss.nll.scale = kept / 2
  config.loss.distill.scale = 1 - kept / 2
  return config
