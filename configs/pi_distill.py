"""pi-Distill: one policy with and without the privileged prompt learns from the
rewards of the first (Penaloza et al. 2026, arXiv:2602.04942).

The policy that reads the solution answers. alpha of the loss goes to the responses
as it read them, with a KL to the student in the reward; the rest to the same
responses from the question alone, with the ratio to the policy that drew them and a
KL from the teacher. `alpha=0`, `alpha=1`: only one of the two.

  python -m experiments.train --config=configs/pi_distill.py --workdir=runs/pi_distill

The paper, Qwen3-8B on TravelPlanner: 40.7, 41.1, 44.1 (alpha 0, .5, 1), RL 27.5.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"; with each `alpha=0.5`."""
  preset, options = base.parse(arg, ("tiny",), ("alpha",))
  config = base.get_config(preset)
  (
    config.rollout.source,
    config.rollout.prompts_per_step,
    config.rollout.samples_per_prompt,
  ) = "teacher_view", 4, 4
  config.teacher.name = "live"
  config.routing.name, config.routing.alpha = (
    "both_views",
    float(options.get("alpha", 0.5)),
  )
  config.loss.distill.scale = 0.25  # b
  config.loss.policy_gradient.scale = 1.0
  config.loss.policy_gradient.credit.name = "less_kl"
  config.loss.policy_gradient.credit.strength = 0.25  # b
  config.rewards.advantage = "mean_baseline"
  config.optimizer.learning_rate, config.optimizer.decay = 5e-5, "constant"
  return config
