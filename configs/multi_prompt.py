"""Several prompts, or several snapshots, are one teacher (MEAL V2, arXiv:2009.08453;
SD-DARTS' voting teachers).

Forward KL to the mean of what the weights say having read the solution, the answer alone,
and only the teacher's wording. `of=snapshots`: the mean of two memories that are synced
at different steps, both having read the solution.

  python -m experiments.train --config=configs/multi_prompt.py --workdir=runs/multi_prompt

MEAL V2, ResNet-50 on ImageNet: 80.67 without a label, from two teachers' mean.
"""

from configs import base

KINDS = {"prompts": "prompts", "snapshots": "snapshots"}


def get_config(arg=None):
  """`arg`: None or "tiny"; with each `of=prompts` or `of=snapshots`."""
  preset, options = base.parse(arg, ("tiny",), ("of",))
  config = base.get_config(preset)
  target = config.targets.teacher
  target.name = "mean"
  if base.choice(KINDS, "of", options.get("of", "prompts")) == "prompts":
    config.context.also_privileged = ("answer", "none")
    target.views = 3
  else:
    target.views, target.also = 1, ("reference",)
    config.teacher.name, config.teacher.every = "synced", 20
    config.reference.name, config.reference.every = "synced", 30
  config.loss.distill.scale = 1.0
  return config
