"""CaOPD: the confidence that is stated follows the model's own success (2026,
arXiv:2604.16830).

The student answers and states a confidence. Before it is distilled, that number is
overwritten in its text and in the teacher's solution with the share of the prompt's
responses that are right, so that the teacher, who has read the solution, does not
teach to be sure. The paper's eq. 7 is reverse KL; its released code runs forward KL:
`--config.loss.distill.divergence.name=forward_kl`. Evaluation reports ECE, the mean
confidence less accuracy (OCG) and how often a right answer states more than a wrong
one (SPR).

  python -m experiments.train --config=configs/caopd.py --workdir=runs/caopd

The paper, Qwen3-8B on science: ECE 0.266 at accuracy 50.0; SDFT alone 0.486 at 49.1,
the base 0.587 at 31.0.
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.rollout.prompts_per_step, config.rollout.samples_per_prompt = 2, 8
  config.rollout.source = "calibrated"
  config.rollout.max_new_tokens = config.eval.max_new_tokens = 32
  config.context.template = "confidence"
  config.context.privileged = "solution_and_confidence"
  config.teacher.name, config.teacher.rate = "ema", 0.01
  config.loss.distill.scale, config.loss.distill.divergence.name = 1.0, "reverse_kl"
  config.loss.distill.token_weight.name, config.loss.distill.token_weight.count = (
    "skip_first",
    3,
  )
  return config
