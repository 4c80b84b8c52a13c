"""u-OPSD: the majority is the privileged information (2026, arXiv:2608.06296).

The student answers eight times; where at least half agree, the longest response with
that answer is what the teacher reads, and the three longest that disagree are distilled
towards it. No reference and no verdict is read. Sources differ on the shortest or the
longest agreeing response; an EMA teacher did better than a frozen one.

  python -m experiments.train --config=configs/u_opsd.py --workdir=runs/u_opsd

The paper, Qwen3-4B and 8B without thinking: +8.5 and +10.7, +3.2 and +2.3 over OPSD with
references.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.rollout.prompts_per_step, config.rollout.samples_per_prompt = 2, 8
  config.context.template, config.context.privileged = "reprompt", "majority"
  config.context.agreement, config.context.most = 0.5, 3
  term = config.loss.distill
  term.scale, term.denominator = 1.0, "weighted_tokens"
  term.divergence.clip, term.divergence.tau = "signed", 0.05
  return config
