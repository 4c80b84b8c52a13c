"""Dr. GRPO: GRPO without its two biases (Liu et al. 2025, arXiv:2503.20783).

The advantage is not divided by the standard deviation, so that easy and hard
prompts count alike, and tokens are summed over a constant, so that a long wrong
response is not punished less a token than a short one.

  python -m experiments.train --config=configs/dr_grpo.py --workdir=runs/dr_grpo

Expected: 0.297 -> 0.750, 0.688, 0.000 greedy (seeds 0 to 2), 0.470 sampled, drift 0.22.
In seed 0 replies do not end; seed 2 is right on all of step 20's and falls apart in the
next three. 8 minutes on two cores.
"""

from configs import grpo


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = grpo.get_config(arg)
  config.rewards.advantage = "mean_baseline"
  term = config.loss.policy_gradient
  term.token_weight.name, term.denominator = "uniform", "budget"
  return config
