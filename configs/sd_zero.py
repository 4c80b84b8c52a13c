"""SD-Zero: a model that has learned to revise teaches itself (2026, arXiv:2604.12002).

`phase=1`: it answers, is told whether that is right, and answers again; where the
second answer is right, it is imitated from the first one, and both together from the
question alone. `phase=2`: on-policy distillation by reverse KL towards the model of
phase 1, which reads the student's whole attempt and its outcome:
`--config.model.source=run:<workdir of phase 1>`. The paper's second round begins
phase 2 again from its own end. Text and table give the temperature as 0.7 and 1.0;
here it is 1.

  python -m experiments.train --config=configs/sd_zero.py --workdir=runs/sd_zero

The paper, Qwen3-4B-Instruct, mean of eight sets: 60.3, phase 1 alone 57.6, GRPO 53.1,
base 49.8.
"""

from configs import base

PHASES = {"1": 1, "2": 2}


def get_config(arg=None):
  """`arg`: None or "tiny"; with each `phase=1` or `phase=2`."""
  preset, options = base.parse(arg, ("tiny",), ("phase",))
  config = base.get_config(preset)
  config.context.template, config.context.privileged = "reprompt", "own_attempt"
  if base.choice(PHASES, "phase", options.get("phase", "2")) == 1:
    config.rollout.source, config.routing.name = "revised", "by_verdict"
    config.loss.nll.scale, config.loss.nll.denominator = 1.0, "weighted_tokens"
  else:
    term = config.loss.distill
    term.scale, term.divergence.name = 1.0, "reverse_kl"
    term.divergence.support, term.divergence.k = "top_k_tail", 64
    term.divergence.support_from = "student"
  return config
