"""Curves of runs: one line a setting with a band over its seeds, and one run's."""

import itertools

import numpy as np
import pandas as pd

from opsd_jax.reporting import style
from opsd_jax.runtime import paths as file_paths
from opsd_jax.runtime import workdir

PANELS = (
  ("loss", "Training loss", "nats a token"),
  ("eval/accuracy", "Accuracy on unseen problems", "accuracy"),
)
STYLES = ("-", "--", ":")


def plot(runs, panels=PANELS):
  """Draws means over seeds, the range from lowest to highest shaded, over steps.

  A setting's line is labelled with the fields that differ between settings, without
  the seed. Where its seeds have reached different steps, the common ones are drawn.

  Args:
    runs: a table of `sweeps.run`, some of its rows, or a sweep's workdir.
    panels: (key of metrics.jsonl, title, unit) of each panel.

  Returns a matplotlib Figure.
  """
  curves_of = settings(directories(runs))
  figure = style.figure(5.2 * len(panels), 4.4)
  axes = figure.subplots(1, len(panels), squeeze=False)[0]
  for axis, (key, title, unit) in zip(axes, panels, strict=True):
    for i, (label, seeds) in enumerate(curves_of.items()):
      steps, mean, low, high = band([curve(rows, key) for rows in seeds])
      colour = style.COLOURS[i % len(style.COLOURS)]
      axis.plot(
        steps,
        mean,
        color=colour,
        label=f"{label} ({len(seeds)})",
        ls=STYLES[i // len(style.COLOURS) % len(STYLES)],
        marker="o" if len(steps) < 15 else "",
        ms=4,
      )
      axis.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
    axis.set(title=title, xlabel="step", ylabel=unit)
  style.frame(*axes)
  figure.legend(
    *axes[0].get_legend_handles_labels(),
    loc="outside lower center",
    frameon=False,
    title="setting (seeds)",
  )
  return figure


def directories(runs) -> list:
  """The workdirs of started runs, of a table or below a sweep's workdir."""
  if isinstance(runs, pd.DataFrame):
    found = [file_paths.open_workdir(path) for path in runs["workdir"]]
  else:
    workdir = file_paths.open_workdir(runs)
    if not workdir.exists():
      raise ValueError(f"{workdir} does not exist: expected a sweep's workdir")
    found = sorted(workdir.iterdir())
  started = [
    path
    for path in found
    if all((path / f).exists() for f in ("config.json", "metrics.jsonl"))
  ]
  if not started:
    raise ValueError("no run has been started: there is nothing to plot")
  return started


def settings(paths) -> dict[str, list]:
  """{label: rows of metrics.jsonl of each seed}."""
  configs = [file_paths.flat(file_paths.read_json(p / "config.json")) for p in paths]
  names = [
    k
    for k in dict.fromkeys(itertools.chain(*configs))
    if k != "seed"
    and not workdir.RESUMABLE_CHANGES.match(k)
    and len({repr(c.get(k)) for c in configs}) > 1
  ]
  runs = {}
  for path, config in zip(paths, configs, strict=True):
    label = ", ".join(f"{k}={config.get(k)}" for k in names) or "all"
    lines = (path / "metrics.jsonl").read_text().splitlines()
    runs.setdefault(label, []).append(file_paths.whole_rows(lines))
  return runs


def curve(rows, key: str) -> dict[int, float]:
  """{step: value} of one metric."""
  return {r["step"]: r[key] for r in rows if key in r}


def band(curves):
  """(steps, mean, lowest, highest) over curves, at their common steps."""
  steps = sorted(set.intersection(*(set(c) for c in curves)))
  values = np.array([[c[s] for s in steps] for c in curves])
  return steps, values.mean(0), values.min(0), values.max(0)


def training(rows, summary: dict, path):
  """Draws accuracy, loss and drift of a run over steps as a PNG; returns the figure."""
  evals = [r for r in rows if "eval/accuracy" in r]
  steps = [r["step"] for r in rows if "loss" in r]
  figure = style.figure(13, 4.4)
  axes = figure.subplots(1, 3)
  for key, label, colour in (
    ("eval/accuracy", "student, greedy", style.BLUE),
    ("eval/sampled_accuracy", "student, sampled", style.ORANGE),
  ):
    x = [r["step"] for r in evals if key in r]
    if not x:
      continue

    def column(end, key=key):
      return [r[key + end] for r in evals if key in r]

    axes[0].plot(x, column(""), "o-", color=colour, label=label)
    axes[0].fill_between(
      x, column("_ci_low"), column("_ci_high"), color=colour, alpha=0.15, lw=0
    )
  for name, label, dashes in (
    ("accuracy_teacher", "privileged teacher", "--"),
    ("accuracy_base", "base", ":"),
  ):
    if name in summary:
      axes[0].axhline(summary[name], color=style.GREY, ls=dashes, label=label)
  axes[0].set(
    title="Accuracy on unseen problems, 95% intervals",
    ylim=(0, 1.02),
    xlabel="step",
    ylabel="accuracy",
  )
  axes[0].legend(
    loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False
  )
  axes[1].plot(steps, [r["loss"] for r in rows if "loss" in r], color=style.BLUE)
  axes[1].set(title="Training loss", xlabel="step", ylabel="nats a token")
  axes[2].plot(
    [r["step"] for r in evals], [r["eval/drift"] for r in evals], "o-", color=style.BLUE
  )
  axes[2].set(
    title="Drift on unrelated prompts",
    xlabel="step",
    ylabel="KL(base || model), nats a token",
  )
  for axis in axes:
    axis.set_xlim(left=0)
  axes[2].set_ylim(bottom=0)
  style.frame(*axes)
  style.save(figure, path)
  return figure
