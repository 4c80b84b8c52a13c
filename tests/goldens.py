"""Writes tests/goldens.json: the first step of every config at `:tiny`.

  python -m tests.goldens            # all configs
  python -m tests.goldens opsd grpo  # some

If you did not mean to change what is computed, a difference is a bug.
"""

import importlib
import json
import os
import pathlib
import sys
import tempfile

PATH = pathlib.Path(__file__).with_name("goldens.json")
CONFIGS = sorted(
  p.stem
  for p in (PATH.parents[1] / "configs").glob("*.py")
  if not p.stem.startswith(("__", "base"))
)
# What a random model is sometimes right on, so that verdicts differ.
GUESSED = {
  "task.name": "reasoning_gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,"
  "max_digits=1",
  "rollout.max_new_tokens": 16,
}


# A random model's replies do not agree.
SPECIAL = {"u_opsd": {"context.agreement": 0.1}}


def tiny(name: str, arg: str = ""):
  """The config at `:tiny`, on a task that its verdicts say something about."""
  from opsd_jax.rollouts import collect

  config = importlib.import_module(f"configs.{name}").get_config(
    f"tiny,{arg}" if arg else "tiny"
  )
  config.compile_cache = ""
  if collect.needs_verdicts(config):
    config.update_from_flattened_dict(GUESSED)
    config.rollout.prompts_per_step = min(8, config.task.train_count)
  config.update_from_flattened_dict(SPECIAL.get(name, {}))
  return config


def first_step(workdir) -> tuple[float, float]:
  """(loss, gradient norm) of the first update of a run."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  row = next(r for r in map(json.loads, lines) if "loss" in r)
  return row["loss"], row["grad_norm"]


def main(names) -> None:
  os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
  from opsd_jax import train

  goldens = json.loads(PATH.read_text()) if PATH.exists() else {}
  for name in names or CONFIGS:
    config = tiny(name)
    config.steps = config.eval.every = config.checkpoint.every = (
      config.optimizer.updates_per_batch
    )
    with tempfile.TemporaryDirectory() as scratch:
      train.train_and_evaluate(config, scratch)
      goldens[name] = [float(f"{x:.6g}") for x in first_step(pathlib.Path(scratch))]
  kept = {name: goldens[name] for name in CONFIGS if name in goldens}
  PATH.write_text(json.dumps(kept, indent=2) + "\n")
  print(f"wrote {PATH}: {kept}")


if __name__ == "__main__":
  main(sys.argv[1:])
