"""SCOPE: right responses are imitated, wrong ones corrected (2026, arXiv:2604.10688).

Of a prompt's right responses those that the student did not expect count more in the NLL;
of the wrong ones those that the teacher can follow count more in the divergence.

  python -m experiments.train --config=configs/scope.py --workdir=runs/scope

No figure of the paper is repeated here.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.rollout.prompts_per_step, config.rollout.samples_per_prompt = 2, 8
  config.routing.name = "by_verdict"
  config.loss.nll.update(scale=1.0, denominator="weighted_tokens")
  config.loss.nll.token_weight.name = "unlikely_response"
  term = config.loss.distill
  term.scale, term.divergence.name = 1.0, "reverse_kl"
  term.token_weight.name, term.denominator = "response_of_teacher", "weighted_tokens"
  return config
