"""On-policy self-distillation (Zhao et al. 2026, arXiv:2601.18734).

The student answers from the question alone; the same weights as they were at
the start, shown the reference solution, judge every token of that answer, and
the student moves towards that judgement: forward KL over the full vocabulary.

  python -m experiments.train --config=configs/opsd.py --workdir=runs/opsd

Expected: 0.297 -> 0.906, 0.930, 0.914 greedy (seeds 0 to 2), 0.339 sampled, drift
0.11; its variants and controls are in experiments/largest_number; 12 to 16 minutes on
two cores.

Presets for accelerators: qwen3_0_6b, qwen3_1_7b, qwen3_4b, qwen3_8b, qwen3_32b,
llama3_1_8b. A bare preset tunes all weights with the paper's hyper-parameters,
32 rows of up to 3,072 tokens; `recipe=upstream` is the released LoRA recipe.
`control=none`, `control=other` and `control=answer` tell the teacher nothing,
another problem's solution, or the answer alone: what is left of the gain then
is not the solution's.

See what one needs before renting it:

  python -m experiments.plan --config=configs/opsd.py:qwen3_8b --topology=v5p:2x2x4
  python -m experiments.train --config=configs/opsd.py:qwen3_8b,recipe=upstream --workdir=gs://...
"""

from configs import base

MODELS = {
  "qwen3_0_6b": "Qwen/Qwen3-0.6B",
  "qwen3_1_7b": "Qwen/Qwen3-1.7B",
  "qwen3_4b": "Qwen/Qwen3-4B",
  "qwen3_8b": "Qwen/Qwen3-8B",
  "qwen3_32b": "Qwen/Qwen3-32B",
  "llama3_1_8b": "meta-llama/Llama-3.1-8B-Instruct",
}


def get_config(arg=None):
  """`arg`: None, "tiny", or a model above and after it `recipe=upstream`; with
  each of them `control=none`, `other` or `answer`."""
  presets = ("tiny", *MODELS)
  preset, options = base.parse(arg, presets, ("recipe", "control"))
  recipe, control = options.get("recipe"), options.get("control", "solution")
  if recipe and preset not in MODELS:
    raise ValueError(
      f"config argument {arg!r}: a recipe needs a model before it, one of"
      f" {', '.join(MODELS)}"
    )
  if control not in ("solution", "none", "other", "answer"):
    raise ValueError(f"control is {control!r}, known: none, other, answer")
  c = base.get_config(preset if preset == "tiny" else None)
  c.loss.distill.scale = 1.0
  c.context.privileged = control
  if preset not in MODELS:
    return c
  at_scale(c, preset)
  if recipe not in (None, "upstream"):
    raise ValueError(f"recipe is {recipe!r}, known: upstream")
  if recipe:
    c.lora.rank, c.lora.alpha = 64, 128.0
    c.loss.distill.divergence.clip = "signed"
    c.loss.distill.divergence.tau = 0.06 if preset == "qwen3_8b" else 0.05
  return c


def at_scale(c, preset):
  """The paper's hyper-parameters (its table 7 and released scripts)."""
  c.model.source = MODELS[preset]
  c.model.dtype = c.model.param_dtype = "bfloat16"
  c.model.scan_layers, c.model.remat = True, "full"
  if preset == "qwen3_32b":
    c.mesh.tensor = 2  # 32 rows split over at most 32 devices
  c.steps = 100
  c.task.name = "reasoning_gym:gsm_symbolic"
  c.task.privileged_field = "answer_cot"
  c.task.train_count = 3200
  c.context.template = "upstream"
  if preset.startswith("qwen3"):
    c.context.student_args.enable_thinking = False
    c.context.teacher_args.enable_thinking = True
  c.rollout.prompts = c.rollout.slots = 32
  c.rollout.max_new_tokens = 1024
  c.rollout.temperature = c.loss.temperature = 1.1
  c.rollout.top_p, c.rollout.top_k = 0.95, 20
  c.batch.max_row = 3072
  c.batch.row_tokens = 3072
  c.batch.bucket = c.batch.response_bucket = c.batch.prompt_bucket = 512
  c.loss.chunk = 512
  c.optimizer.learning_rate, c.optimizer.decay = 5e-6, "constant"
  c.optimizer.warmup_steps = 0
  c.optimizer.b2, c.optimizer.clip_norm = 0.999, 0.1
  c.eval.max_new_tokens = 1024
  c.eval.slots = 32
  c.eval.every = c.checkpoint.every = 25
