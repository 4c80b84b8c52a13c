"""GKD: generalised knowledge distillation (Agarwal et al. 2024, arXiv:2306.13649).

Of every problem the student answers with probability lambda = rollout.student_share, else
the reference is read; either is distilled by JSD. lambda = 0 is supervised, 1 is
on-policy. The paper's teacher is another model: targets.teacher.weights=external.

  python -m experiments.train --config=configs/gkd.py --workdir=runs/gkd

No figure of the paper is repeated here.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.rollout.source, config.rollout.student_share = "mixed", 0.5
  term = config.loss.distill
  term.scale, term.divergence.name, term.divergence.beta = 1.0, "jsd", 0.5
  return config
