"""OPSD on worked solutions: a task that copying does not solve.

Grade-school word problems drawn from templates (GSM-Symbolic, Mirzadeh et al.
2024, arXiv:2410.05229, as reasoning-gym generates them); the teacher reads a
worked solution. Twenty steps, to look at what the solution tells the teacher:
compare teacher/nll with student/nll in metrics.jsonl.

  python -m experiments.train --config=configs/gsm_symbolic.py --workdir=runs/gsm
"""

from configs import base


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = base.get_config(arg)
  config.loss.distill.scale = 1.0
  config.task.name = "reasoning_gym:gsm_symbolic"
  config.task.privileged_field = "answer_cot"
  config.task.train_count = 1024
  config.task.eval_count = 32
  config.steps, config.optimizer.warmup_steps = 20, 4
  config.rollout.prompts_per_step = 8
  config.rollout.max_new_tokens = 160
  config.eval.max_new_tokens = 160
  config.eval.every = 20
  config.batch.pack_len = 768
  # Shapes to compile in 100 steps: about 14, with the defaults 40; the padding is
  # 13% instead of 8%.
  config.batch.bucket, config.batch.response_bucket = 128, 256
  if arg == "tiny":
    base.shrink(config)
  return config
