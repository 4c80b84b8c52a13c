"""REOPOLD: explore, then refine (2026, arXiv:2603.11137).

On-policy distillation as a policy gradient whose reward log T - log S has a floor. In the
first half of the run tokens below it are left out, in the second only the fifth of the
batch's tokens where the student is least sure counts, without the floor.

  python -m experiments.train --config=configs/reopold.py --workdir=runs/reopold

In PW-OPSD's code, Qwen3-4B, mean of three: 68.15, OPSD 70.27.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  term = config.loss.policy_gradient
  term.scale, term.denominator = 1.0, "weighted_tokens"
  term.credit.name, term.token_weight.name = "floored_log_ratio", "explore_then_refine"
  half = config.steps // 2
  jumps = lambda a, b: ((0, a), (half - 1, a), (half, b))  # noqa: E731
  config.schedule = (
    ("loss.policy_gradient.credit.strength", *jumps(0.1, 0.0)),
    ("loss.policy_gradient.token_weight.strength", *jumps(0.1, 0.0)),
    ("loss.policy_gradient.token_weight.kept_share", *jumps(1.0, 0.2)),
  )
  config.optimizer.learning_rate, config.optimizer.decay = 5e-5, "constant"
  return config
