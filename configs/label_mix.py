"""Even your teacher needs guidance: the label in every round (Borup & Andersen 2021,
arXiv:2102.13088).

As configs/ps_kd.py with a constant share: a onehot(y) + (1 - a) teacher on the reference
text. a = 1 is SFT, a = 0 pure distillation, which shrinks from round to round; the
weight that fits held-out text best has a closed form, losses/label_share.py.

  python -m experiments.train --config=configs/label_mix.py --workdir=runs/label_mix

The paper: without the label, repeated distillation ends in a collapse; with it, in one
fit of a stronger regularisation.
"""

from configs import base, ps_kd


def get_config(arg=None):
  """`arg`: None or "tiny"; with each `label=0.5`, a."""
  preset, options = base.parse(arg, ("tiny",), ("label",))
  config = ps_kd.get_config(preset)
  config.schedule, label = (), float(options.get("label", 0.5))
  config.loss.nll.scale, config.loss.distill.scale = label, 1 - label
  return config
