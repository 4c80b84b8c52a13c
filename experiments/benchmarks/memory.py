"""Draws the resident memory of runs, step by step.

python -m experiments.benchmarks.memory memory.png before=runs/old now=runs/opsd
"""

import itertools
import pathlib
import sys

from opsd_jax.reporting import style
from opsd_jax.runtime import paths


def main(out: str, *runs: str) -> None:
  """Writes the picture; `runs` are label=workdir."""
  figure = style.figure(6.4, 3.2)
  axis, last = figure.subplots(), 0
  colours = itertools.cycle((style.ORANGE, style.BLUE, style.GREEN))
  for run, colour in zip(runs, colours, strict=False):
    label, workdir = run.split("=", 1)
    rows = paths.read_rows(pathlib.Path(workdir) / "metrics.jsonl")
    rows = [r for r in rows if "memory/resident" in r]
    steps = [r["step"] for r in rows]
    peak = rows[-1]["memory/peak"]
    axis.plot(steps, [r["memory/resident"] for r in rows], color=colour)
    axis.plot(steps, [r["memory/peak"] for r in rows], color=colour, ls=":")
    last = max(last, *steps)
    axis.annotate(f" {label}, peak {peak:.1f}", (steps[-1], peak), color=colour)
  axis.set(xlabel="step", ylabel="GB, dotted: peak so far", ylim=(0, None))
  axis.set_xlim(0, 1.3 * last)  # room for the labels
  style.frame(axis)
  style.save(figure, pathlib.Path(out))


if __name__ == "__main__":
  main(*sys.argv[1:])
