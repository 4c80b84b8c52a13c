"""GRPO: learning from the task's verdict alone (Shao et al. 2024,
arXiv:2402.03300).

As many responses a step as configs/opsd.py has, 8 to a prompt; a response's
advantage is its reward less the mean of its prompt's, over their standard
deviation. The KL to the base is off, as in most later work; to switch it on:
`--config=configs/grpo.py:kl=0.04`. The learning
rate is the better of two on other problems (task.seed=1, one seed): 5e-5 ends at
0.785 greedy and 0.715 sampled accuracy from 0.297 and 0.094, 1e-4 at 0.273 and
0.254 (no rows are kept; repeat with --config.task.seed=1).

  python -m experiments.train --config=configs/grpo.py --workdir=runs/grpo

Expected: 0.297 -> 0.781, 0.781, 0.637 greedy (seeds 0 to 2), 0.716 sampled, drift 0.15;
in seed 2 replies do not end; 7 minutes on two cores.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"; with each `kl=0.04`, the weight of a KL to the base."""
  preset, options = base.parse(arg, ("tiny",), ("kl",))
  config = base.get_config(preset)
  config.context.template, config.context.privileged = "plain", "none"
  config.rollout.prompts_per_step, config.rollout.samples_per_prompt = 2, 8
  config.loss.policy_gradient.scale = 1.0
  term = config.loss.policy_gradient
  term.token_weight.name, term.denominator = "sequence_mean", "responses"
  if "kl" in options:
    config.loss.kl_penalty = base.term(
      "kl_penalty",
      scale=float(options["kl"]),
      token_weight=term.token_weight,
      denominator=term.denominator,
    )
  config.optimizer.learning_rate, config.optimizer.decay = 5e-5, "constant"
  return config
