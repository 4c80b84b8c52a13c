"""OPSA, the control without a teacher: unlikely tokens are discouraged (2026,
DripNowhy's code; cf. arXiv:2608.31046).

No reward, no teacher: the 20% of a response's tokens that the student gave the least
probability have an advantage of -1/2 down to -1, the less sure it was. A gain that this
makes too is not the teacher's: every method should be compared with it.

  python -m experiments.train --config=configs/opsa.py --workdir=runs/opsa

Its README, without thinking, AIME24: Qwen3-1.7B 13.4 -> 48.9, 4B 23.3 -> 62.1, at
validation's best checkpoint.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.context.template, config.context.privileged = "plain", "none"
  term = config.loss.policy_gradient
  term.scale, term.credit.name, term.credit.kept_share = 1.0, "unsure_is_worse", 0.2
  term.token_weight.name, term.token_weight.kept_share = "least_likely", 0.2
  term.denominator = "weighted_tokens"
  config.optimizer.learning_rate, config.optimizer.decay = 1e-5, "constant"
  return config
