"""DASD: what to imitate of a stronger model (2026, arXiv:2601.09088).

Three phases, each from the run before it (model.source=run:<workdir>): `phase=low`, the
external model's responses at temperature 0.6; `phase=high`, at 1.0, and of four the one
whose sentences it finds likely and the student does not; `phase=mixed`, the student's
own responses, continued by the external model where they were cut off. All tokens are
imitated: masking the student's part is reported to cost 2.5 points.

  python -m experiments.train --config=configs/dasd.py --workdir=runs/dasd

The paper, Qwen3-4B-Instruct, AIME24 and 25: 0.6 alone 81.7 and 71.9, then 1.0 85.2 and
81.3.
"""

from configs import base

PHASES = {  # source, temperature, responses
  "low": ("external", 0.6, 1),
  "high": ("most_taught", 1.0, 4),
  "mixed": ("continued", 1.0, 1),
}


def get_config(arg=None):
  """`arg`: None or "tiny"; with each `phase=low`, `high` or `mixed`."""
  preset, options = base.parse(arg, ("tiny",), ("phase",))
  config = base.with_external(base.get_config(preset))
  phase = options.get("phase", "high")
  config.rollout.source, config.rollout.temperature, n = base.choice(
    PHASES, "phase", phase
  )
  config.rollout.samples_per_prompt = n
  config.loss.nll.scale = 1.0
  return config
