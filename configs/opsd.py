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
  config = base.get_config(preset if preset == "tiny" else None)
  config.loss.distill.scale = 1.0
  config.context.privileged = control
  if preset not in MODELS:
    return config
  at_scale(config, preset)
  if recipe not in (None, "upstream"):
    raise ValueError(f"recipe is {recipe!r}, known: upstream")
  if recipe:
    config.lora.rank, config.lora.alpha = 64, 128.0
    config.loss.distill.divergence.clip = "signed"
    config.loss.distill.divergence.tau = 0.06 if preset == "qwen3_8b" else 0.05
  return config


def at_scale(config, preset):
  """The paper's hyper-parameters (its table 7 and released scripts)."""
  config.model.source = MODELS[preset]
  config.model.dtype = config.model.param_dtype = "bfloat16"
  config.model.scan_layers, config.model.remat = True, "full"
  if preset == "qwen3_32b":
    config.mesh.tensor = 2  # 32 rows split over at most 32 devices
  config.steps = 100
  config.task.name = "reasoning_gym:gsm_symbolic"
  config.task.privileged_field = "answer_cot"
  config.task.train_count = 3200
  config.context.template = "upstream"
  if preset.startswith("qwen3"):
    config.context.student_args = "enable_thinking=false"
    config.context.teacher_args = "enable_thinking=true"
  config.rollout.prompts_per_step = config.rollout.slots = 32
  config.rollout.max_new_tokens = 1024
  config.rollout.temperature = config.loss.temperature = 1.1
  config.rollout.top_p, config.rollout.top_k = 0.95, 20
  config.batch.micro_batches = 1
  config.batch.max_sequence_len = 3072
  config.batch.pack_len = 3072
  config.batch.bucket = config.batch.response_bucket = config.batch.prompt_bucket = 512
  config.loss.chunk = 512
  config.optimizer.learning_rate, config.optimizer.decay = 5e-6, "constant"
  config.optimizer.warmup_steps = 0
  config.optimizer.b2, config.optimizer.clip_norm = 0.999, 0.1
  config.eval.max_new_tokens = 1024
  config.eval.slots = 32
  config.eval.every = config.checkpoint.every = 25
