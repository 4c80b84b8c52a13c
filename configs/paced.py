"""PACED: distil where the student is neither sure nor lost (2026, arXiv:2603.11178).

Each prompt counts p^a (1 - p)^b, p the share of its responses that are right; the
weights are divided by their mean over the batch, so that they do not change the rate.
a = b = 1 as in the third version; a = b = 0 is plain distillation. `stages=2`: forward
KL in the first half of the run and reverse KL in the second.

  python -m experiments.train --config=configs/paced.py --workdir=runs/paced

The paper, Qwen2.5-Math-7B-Instruct distilling itself: MATH 83.9 -> 93.7, AIME24 19.6 ->
31.6; a hard filter 92.0 and 28.9.
"""

from configs import base


def second(knots):
  """The other scale of two that add up to 1."""
  return tuple((step, 1.0 - value) for step, value in knots)


def get_config(arg=None):
  """`arg`: None or "tiny"; with each `stages=2`."""
  preset, options = base.parse(arg, ("tiny",), ("stages",))
  config = base.get_config(preset)
  config.rollout.prompts_per_step, config.rollout.samples_per_prompt = 2, 8
  config.routing.name, config.routing.a, config.routing.b = "pass_rate", 1.0, 1.0
  term = config.loss.distill
  term.scale, term.denominator = 1.0, "total_weight"
  term.divergence.name = "reverse_kl"
  if base.choice({"1": 1, "2": 2}, "stages", options.get("stages", "1")) == 2:
    half = config.steps // 2
    first = (0, 0.0), (half - 1, 0.0), (half, 1.0)
    # of the two terms one is on
    with config.unlocked():
      config.loss.forward = base.term("distill", 1.0, denominator="total_weight")
    config.schedule = (
      ("loss.distill.scale", *first),
      ("loss.forward.scale", *second(first)),
    )
  return config
