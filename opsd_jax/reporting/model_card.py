"""The model card of an exported model: recipe, data, accuracy, versions."""

import importlib.metadata
import json
import re

LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "transformers")
METRICS = (
  ("base, greedy", "accuracy_base"),
  ("this model, greedy", "accuracy_final"),
  ("privileged teacher, greedy", "accuracy_teacher"),
  ("base, sampled", "sampled_accuracy_base"),
  ("this model, sampled", "sampled_accuracy_final"),
  ("privileged teacher, sampled", "sampled_accuracy_teacher"),
)

CARD = """---
library_name: {library}
pipeline_tag: text-generation
tags: [on-policy-self-distillation, opsd_jax]{base_model}
---

# {title}

`{base}` after {step} of {steps} steps of opsd_jax: {method}.

## Recipe

Terms of the loss, summed over the tokens of the responses:

{terms}

Everything that differs from `configs/base.py`:

{differences}

## Data

`{task}`: {train_count} problems to train on, {eval_count} others to evaluate.

## Evaluation

{evaluation}

## Use

```python
{use}
```

Made with {versions}.

## Citation

```bibtex
@article{{zhao2026selfdistilled,
  title = {{Self-Distilled Reasoner: On-Policy Self-Distillation for Large
    Language Models}},
  author = {{Zhao, Siyan and others}},
  year = {{2026}},
  journal = {{arXiv:2601.18734}}
}}
```
"""
RESPONSES = {  # of config.rollout.source
  "student": "it learned from its own responses to the question alone",
  "teacher_view": "it learned from its own responses to a privileged prompt",
  "rescue": "it learned from its own responses to the question alone, and to a\n"
  "privileged prompt where all of them were wrong",
  "revised": "it learned from what it answered, having read its first attempt and\n"
  "whether that was right",
  "calibrated": "it learned from its own responses, in which the stated confidence was\n"
  "overwritten with its rate of success",
  "dataset": "it learned from the reference solutions",
  "mixed": "it learned from its own responses and from reference solutions",
  "pairs": "it learned from reference solutions and away from rejected responses",
  "external": "it learned from the responses of another model",
  "continued": "it learned from its own responses, continued by another model where\n"
  "they were cut off",
  "most_taught": "it learned from chosen responses of another model",
}
USE_MODEL = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("<this directory>")
tokenizer = AutoTokenizer.from_pretrained("<this directory>")

# or, in JAX
from opsd_jax import load_model

model = load_model("<this directory>")"""
USE_ADAPTER = """from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "<this directory>")"""


def card(
  config: dict,
  defaults: dict,
  *,
  step: int,
  summary: dict | None,
  adapter: bool = False,
) -> str:
  """The text of the model's README.md.

  Args:
    config, defaults: the run's config and configs/base.py, flat, {"a.b": value}.
    step: of the exported checkpoint.
    summary: summary.json of the run; None where it is not finished.
    adapter: whether a LoRA adapter alone is exported.
  """
  base = config["model.source"]
  differ = [
    f"    {key} = {json.dumps(value)}"
    for key, value in sorted(config.items())
    if defaults.get(key) != value
  ]
  terms = scales(config)
  return CARD.format(
    library="peft" if adapter else "transformers",
    title=f"{base}, {'an adapter' if adapter else 'trained'} with opsd_jax",
    base_model=f"\nbase_model: {base}" if is_repo(base) else "",
    base=base,
    step=step,
    steps=config["steps"],
    method=RESPONSES[config["rollout.source"]],
    terms="\n".join(
      f"* `{name}`: {function_of(config, name)}, scale {scale}{target_of(config, name)}"
      for name, scale in terms.items()
    ),
    differences="\n".join(differ) or "    nothing",
    task=config["task.name"],
    train_count=config["task.train_count"],
    eval_count=config["task.eval_count"],
    evaluation=evaluation(summary),
    use=USE_ADAPTER.format(base=base) if adapter else USE_MODEL,
    versions=", ".join(
      f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES
    ),
  )


def scales(config: dict) -> dict[str, str]:
  """{term: its scale}, of the terms that are on; a scheduled one has its knots."""
  scheduled = {path: knots for path, *knots in config.get("schedule") or ()}
  on = {}
  for key in config:
    if key.startswith("loss.") and key.endswith(".kind"):
      field = key.replace(".kind", ".scale")
      knots = [f"{value:g} at step {step}" for step, value in scheduled.get(field, ())]
      if knots or config[field]:
        on[key.split(".")[1]] = ", ".join(knots) or f"{config[field]:g}"
  return on


def target_of(config: dict, term: str) -> str:
  """Whose distribution a term reads; "" where it compares with none."""
  compares = ("divergence.name", "estimator", "ranking.name")
  if not any(f"loss.{term}.{field}" in config for field in compares):
    return ""
  target = f"targets.{config[f'loss.{term}.target']}"
  weights, view = config[f"{target}.weights"], config[f"{target}.view"]
  contexts = (config["context.privileged"], *config["context.also_privileged"])
  reads = "the question" if view == 0 else f"`{contexts[view - 1]}`"
  kept = f", `{config[f'{weights}.name']}`" if f"{weights}.name" in config else ""
  return (
    f"; target `{config[f'{target}.name']}` of `{weights}`{kept}, which reads {reads}"
  )


def function_of(config: dict, term: str) -> str:
  """What a term compares or learns by: its divergence, surrogate or estimator."""
  fields = ("divergence.name", "surrogate.name", "estimator", "ranking.name", "kind")
  return next(v for f in fields if (v := config.get(f"loss.{term}.{f}")))


def is_repo(source: str) -> bool:
  """Whether a model source is a Hugging Face repo id."""
  return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None


def evaluation(summary: dict | None) -> str:
  """Held-out accuracy as a Markdown table, with 95% intervals."""
  if summary is None:
    return "Not evaluated: the run is not finished."
  rows = [
    f"| {name} | {summary[key]:.3f} [{summary[key + '_ci_low']:.3f},"
    f" {summary[key + '_ci_high']:.3f}] |"
    for name, key in METRICS
    if key in summary
  ]
  return "\n".join(
    [
      f"Accuracy on {summary['eval_problems']} unseen problems, 95% Wilson intervals:",
      "",
      "| | accuracy |",
      "|---|---|",
      *rows,
      "",
      f"Drift, KL from the base on unrelated prompts: {summary['drift']:.3f}"
      " nats a token.",
    ]
  )
