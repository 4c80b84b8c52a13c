"""RLCSD: a right hint against wrong ones (2026, arXiv:2606.11709).

What a token owes to the content of a hint and not to being hinted: the log-prob under a
right sibling less that under the mean of up to four wrong ones. Tokens where it is above
0.02 nats have an advantage moved by it, never turned, in a sum of its own; the others
have GRPO's. `target=clip`: instead forward KL to T_c^1.5 / T_w^0.5 where the hints
disagree, as the released code's opsd_ectr.

  python -m experiments.train --config=configs/rlcsd.py --workdir=runs/rlcsd

Its README, Qwen3-1.7B, AMC23 and AIME: 53.1 and 38.3, GRPO 51.6 and 37.2, SDPO 42.2 and
33.6, best checkpoint per set.
"""

from configs import base


def credit(config):
  """Two sums, over the tokens that the hints value otherwise and over the rest."""
  with config.unlocked():
    config.targets.wrong = base.target("mean", view=2)
    config.loss.hinted = base.term("policy_gradient", 1.0)
  config.targets.wrong.views = 4
  fields = dict(sharpness=50.0, strength=0.5)
  rest = config.loss.policy_gradient
  rest.scale, rest.denominator, rest.against = 1.0, "weighted_tokens", "wrong"
  rest.token_weight.update(name="not_hinted", threshold=0.02, **fields)
  config.loss.hinted.update(rest)
  config.loss.hinted.token_weight.name = "hinted"
  config.loss.hinted.credit.update(name="hint_contrast", **fields)


def clip(config):
  """Forward KL where a right and a wrong hint disagree."""
  config.context.also_privileged = ("wrong_hint",)
  target, term = config.targets.teacher, config.loss.distill
  target.name, target.strength = "contrasted", 0.5
  term.scale, term.denominator = 1.0, "weighted_tokens"
  term.token_weight.name, term.token_weight.threshold = "disagreement", 1.0
  term.divergence.clip, term.divergence.tau = "signed", 0.05


TARGETS = {"none": credit, "clip": clip}


def get_config(arg=None):
  """`arg`: None or "tiny"; with each `target=none` or `clip`."""
  preset, options = base.parse(arg, ("tiny",), ("target",))
  config = base.get_config(preset)
  config.rollout.prompts_per_step, config.rollout.samples_per_prompt = 2, 8
  config.context.template, config.context.privileged = "reprompt", "correct_hint"
  config.context.also_privileged = ("wrong_hint",) * 4
  config.teacher.name, config.teacher.every = "synced", 10
  base.choice(TARGETS, "target", options.get("target", "none"))(config)
  config.optimizer.learning_rate, config.optimizer.decay = 5e-5, "constant"
  return config
