"""SDPG: the privileged self teaches what was better than average (2026,
arXiv:2606.04036).

A policy gradient on standardised rewards, reverse KL over the vocabulary to the live
weights that read the solution, on responses with an advantage above 0, and a KL to the
frozen start (UFKL: k3; URKL: k2). The teacher's scale rises over 50 steps and falls at the end. `gate=off`
distils every response, as the released script does; its README calls the KL forward.

  python -m experiments.train --config=configs/sdpg.py --workdir=runs/sdpg

The paper, Qwen3-4B on AIME24, last of 400 steps: 0.380, RLSD 0.378, GRPO 0.280.
"""

from configs import base

GATES = {"on": "above_mean", "off": "all"}


def get_config(arg=None):
  """`arg`: None or "tiny"; with each `gate=on` or `off`."""
  preset, options = base.parse(arg, ("tiny",), ("gate",))
  config = base.get_config(preset)
  config.rollout.prompts_per_step, config.rollout.samples_per_prompt = 2, 8
  config.teacher.name = "live"
  config.routing.name = base.choice(GATES, "gate", options.get("gate", "on"))
  config.loss.policy_gradient.scale = 1.0
  config.loss.policy_gradient.surrogate.name = "reinforce"
  config.loss.distill.scale, config.loss.distill.divergence.name = 1e-3, "reverse_kl"
  config.loss.kl_penalty.scale, config.loss.kl_penalty.estimator = 1e-3, "k3"
  up = max(1, config.steps // 8)
  down = max(up + 1, config.steps * 7 // 8)
  config.schedule = (
    ("loss.distill.scale", (0, 0.0), (up, 1e-3), (down, 1e-3), (config.steps, 0.0)),
  )
  config.optimizer.learning_rate, config.optimizer.decay = 5e-5, "constant"
  return config
