"""REDI: wrong traces are unlearned (2025, arXiv:2505.24850).

The mean NLL of a right response less 0.8 times that of a wrong one, each by its own
length. Pairs of the data (data.rejected; without it another problem's solution), or
`source=student`: the student's own responses by their verdict. At 1.0 and a rate of
1e-6 it is reported to collapse; at 0 it is SFT.

  python -m experiments.train --config=configs/redi.py --workdir=runs/redi

The paper, Qwen2.5-Math-1.5B: mean of five 49.5, SFT on the right traces alone 45.8.
"""

from configs import base

ROUTES = {"pairs": "pairs", "student": "by_verdict"}


def get_config(arg=None):
  """`arg`: None or "tiny"; with each `source=pairs` or `student`."""
  preset, options = base.parse(arg, ("tiny",), ("source",))
  config = base.get_config(preset)
  source = options.get("source", "pairs")
  config.rollout.source = source
  config.routing.name = base.choice(ROUTES, "source", source)
  if source == "student":
    config.rollout.prompts_per_step, config.rollout.samples_per_prompt = 2, 8
  by_length = dict(token_weight={"name": "sequence_mean"}, denominator="responses")
  config.loss.nll.update(scale=1.0, **by_length)
  with config.unlocked():
    config.loss.unlikelihood = base.term("nll", -0.8, **by_length)
  config.optimizer.learning_rate = 1e-5
  return config
