"""SDPO on one hard question (arXiv:2601.20802, section 5): it is asked again and
again, and the weights follow the right answers that were found.

The question is the first of the evaluation; the summary says that it was learned
on. Once an answer was right it teaches all later ones.

  python -m experiments.train --config=configs/sdpo_test_time.py --workdir=runs/one
"""

from configs import sdpo


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = sdpo.get_config(arg)
  config.data.test_time, config.task.train_count, config.task.eval_count = True, 1, 1
  config.context.privileged = "remembered"
  config.rollout.prompts_per_step, config.rollout.samples_per_prompt = 1, 16
  return config
