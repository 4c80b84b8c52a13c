"""PS-KD: the label, softened by what the model said an epoch before (Kim et al. 2021,
arXiv:2006.12000).

Cross-entropy with (1 - a) the reference's token + a the teacher's distribution on the same
text: two terms. a rises to 0.8 over the run; the teacher is the student of the last sync.

  python -m experiments.train --config=configs/ps_kd.py --workdir=runs/ps_kd

No figure of the paper is repeated here.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.rollout.source = "dataset"
  config.context.template, config.context.privileged = "plain", "none"
  config.teacher.name, config.teacher.every = "synced", 20
  config.targets.teacher.view = 0
  config.loss.nll.scale = 1.0
  config.loss.distill.scale, config.loss.distill.divergence.name = 0.8, "cross_entropy"
  config.schedule = (
    ("loss.nll.scale", (0, 1.0), (config.steps, 0.2)),
    ("loss.distill.scale", (0, 0.0), (config.steps, 0.8)),
  )
  return config
