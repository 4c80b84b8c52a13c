"""Compares methods over seeds on the default task: runs, table, picture.

  python -m experiments.largest_number.compare --workdir=runs/compare
  python -m experiments.largest_number.compare

The first command trains every unfinished cell, all methods of a seed before the next
seed, and gathers the finished ones into methods.jsonl, also after an interruption. A
cell with a line there is not trained again, in any directory: to repeat it, or after
a change of its config, delete its line and its directory. The second command draws
the committed results again. `--only=GRPO` takes the methods whose names contain that
text; `--commands` prints the commands that train single cells. Checkpoints of
finished cells, 2 GB each, are deleted.
"""

import argparse
import contextlib
import json
import pathlib
import shutil

import numpy as np

from opsd_jax.evaluation import statistics
from opsd_jax.reporting import style
from opsd_jax.runtime import paths

HERE = pathlib.Path(__file__).parent
SEEDS = (0, 1, 2)
OPSD = "configs/opsd.py"
COMMON = {"eval.every": [40], "checkpoint.every": [20]}  # of 40 steps
METHODS = {  # name: (config, {field: value that differs})
  "SFT on the reference": ("configs/sft.py", {}),
  "RFT": ("configs/rft.py", {}),
  "GRPO": ("configs/grpo.py", {}),
  "Dr. GRPO": ("configs/dr_grpo.py", {}),
  "OPSD": (OPSD, {}),
  "OPSD, live teacher": (OPSD, {"teacher.name": "live"}),
  "OPSD, EMA teacher": (OPSD, {"teacher.name": "ema"}),
  "OPSD, reverse KL": (OPSD, {"loss.distill.divergence.name": "reverse_kl"}),
  "OPSD, JSD": (OPSD, {"loss.distill.divergence.name": "jsd"}),
  "control: answer alone": (OPSD, {"context.privileged": "answer"}),
  "control: another's solution": (OPSD, {"context.privileged": "other"}),
  "control: wording alone": (OPSD, {"context.privileged": "none"}),
}
GROUPS = (("control", style.PINK), ("OPSD", style.BLUE), ("", style.ORANGE))


def cells_of(method: str) -> list:
  """The cells of a method, one a seed."""
  # In the function: the picture and the table need no jax.
  from opsd_jax.sweeps import run as sweep

  config, changed = METHODS[method]
  axes = {field: [value] for field, value in changed.items()}
  return sweep.grid(config, COMMON | axes | {"seed": SEEDS})


def train(only: str, workdir: pathlib.Path, known: list[dict] = ()) -> None:
  """Trains the cells of the methods whose names contain `only`, one seed after the
  other, without those that have a result in `known`."""
  # In the function: the picture and the table need no jax.
  from opsd_jax.sweeps import run as sweep

  finished = {(row["method"], row["seed"]) for row in known}
  for i, seed in enumerate(SEEDS):
    methods = [m for m in METHODS if only in m and (m, seed) not in finished]
    if not methods:
      continue
    table = sweep.run([cells_of(method)[i] for method in methods], workdir)
    print(table[["status", "error"]].to_string(), flush=True)
    for directory in table.workdir[table.status == "finished"]:
      shutil.rmtree(f"{directory}/checkpoints", ignore_errors=True)


def gathered(workdir: pathlib.Path, only: str = "") -> list[dict]:
  """`gather` of every finished cell of the methods whose names contain `only`."""
  # In the function: the picture and the table need no jax.
  from opsd_jax.sweeps import run as sweep

  runs = []
  for method in [m for m in METHODS if only in m]:
    found = sweep.table(cells_of(method), workdir)
    for row in found[found.status == "finished"].itertuples():
      runs.append(gather(method, row.seed, pathlib.Path(row.workdir)))
  return runs


def gather(method: str, seed: int, workdir: pathlib.Path) -> dict:
  """The line of a finished run: its evaluations, and whether its last completion of
  each problem is correct."""
  rows = paths.read_rows(workdir / "metrics.jsonl")
  evals = [r for r in rows if "eval/accuracy" in r]
  samples = workdir / "samples" / f"eval_{evals[-1]['step']:06d}.jsonl"
  scores = [row["score"] for row in paths.read_rows(samples)]
  config = paths.read_json(workdir / "config.json")
  is_sampled = config["rollout"]["source"] != "dataset"
  keys = ("accuracy", "sampled_accuracy", "drift", "tokens", "truncated")
  seconds = sum(r.get("time/rollout", 0) + r.get("time/step", 0) for r in rows)

  def of_teacher(key):
    value = evals[0].get(f"eval/{key}")  # absent where its prompt needs rollouts
    return round(value, 4) if value is not None and METHODS[method][0] == OPSD else None

  return {
    "method": method,
    "seed": seed,
    "evals": [
      {"step": r["step"], **{k: round(r[f"eval/{k}"], 4) for k in keys}} for r in evals
    ],
    "teacher": of_teacher("teacher_accuracy"),
    "teacher_sampled": of_teacher("teacher_sampled_accuracy"),
    "loss": round(next(r["loss"] for r in rows[::-1] if "loss" in r), 5),
    "correct": "".join(str(int(score >= 1)) for score in scores),
    "generated_tokens": sum(r.get("response_tokens", 0) for r in rows if is_sampled),
    "seconds": round(seconds),
  }


def read(results: pathlib.Path) -> list[dict]:
  return paths.read_rows(results) if results.exists() else []


def keep(results: pathlib.Path, runs: list[dict]) -> None:
  """Adds runs to the results, each replacing its older line: machines may share a
  study."""

  def by_cell(rows):
    return {(r["method"], r["seed"]): r for r in rows}

  found = by_cell(read(results)) | by_cell(runs)
  order = sorted(found, key=lambda key: (list(METHODS).index(key[0]), key[1]))
  text = "".join(json.dumps(found[key]) + "\n" for key in order)
  paths.write_whole(results, text)


def by_method(runs: list[dict]) -> dict[str, list[dict]]:
  """{method: its runs}, in the order of METHODS."""
  found = {m: [r for r in runs if r["method"] == m] for m in METHODS}
  return {method: rows for method, rows in found.items() if rows}


def interval(rows: list[dict]) -> tuple[float, float, float]:
  """(final accuracy over seeds, low, high), with the 95% interval of a bootstrap over
  problems, for these seeds."""
  correct_SxN = np.array([[int(c) for c in r["correct"]] for r in rows])
  each_Nx1 = correct_SxN.mean(0)[:, None]
  (found,) = statistics.estimates(each_Nx1, [True], resamples=10_000, seed=0)
  return found.value, found.low, found.high


def against_opsd(runs: list[dict], rows: list[dict]) -> str:
  """A method's accuracy minus OPSD's on the same problems and seeds, with the
  interval and p-value of statistics.compare."""
  opsd = {r["seed"]: r for r in runs if r["method"] == "OPSD"}
  both = [(opsd[r["seed"]], r) for r in rows if r["seed"] in opsd]
  if not both or rows[0]["method"] == "OPSD":
    return ""
  correct_2xSxN = [
    [[int(c) for c in r["correct"]] for r in side] for side in zip(*both, strict=True)
  ]
  a_N, b_N = np.mean(correct_2xSxN, 1)
  d = statistics.compare(a_N, b_N, resamples=10_000, seed=0)
  return f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}], p={d.p:.2g}"


def table(runs: list[dict]) -> str:
  """A Markdown table, one row a method. Minutes are those of rollouts and steps, the
  median of the seeds that ran on two cores (a run's `device` names another)."""
  lines = [
    "| | greedy accuracy | of each seed | less OPSD, paired | sampled |"
    " truncated | drift | generated tokens | minutes |",
    "|---|---|---|---|---|---|---|---|---|",
  ]

  def mean(rows, key):
    return float(np.mean([r[key] for r in rows]))

  first = [r["evals"][0] for r in runs]
  value = mean(first, "accuracy")
  N = len(runs[0]["correct"])
  low, high = statistics.wilson(value * N, N)
  lines.append(
    f"| base | {value:.3f} [{low:.3f}, {high:.3f}] | | |"
    f" {mean(first, 'sampled_accuracy'):.3f} |"
    f" {mean(first, 'truncated'):.2f} | 0 | | |"
  )
  for method, rows in by_method(runs).items():
    seconds = [r["seconds"] for r in rows if "device" not in r]
    minutes = f"{np.median(seconds) / 60:.1f}" if seconds else ""
    value, low, high = interval(rows)
    ends = [r["evals"][-1] for r in rows]
    each = " ".join(f"{e['accuracy']:.3f}" for e in ends)
    lines.append(
      f"| {method} | {value:.3f} [{low:.3f}, {high:.3f}] | {each}"
      f" | {against_opsd(runs, rows)} | {mean(ends, 'sampled_accuracy'):.3f}"
      f" | {mean(ends, 'truncated'):.2f} | {mean(ends, 'drift'):.3f}"
      f" | {mean(rows, 'generated_tokens'):,.0f}"
      f" | {minutes} |"
    )
  return "\n".join(lines)


def draw(runs: list[dict], path: pathlib.Path) -> None:
  """Draws the final accuracy of every method, and accuracy over drift."""
  methods = by_method(runs)
  figure = style.figure(11, 0.32 * len(methods) + 1.6)
  bars, plane = figure.subplots(1, 2)
  base = runs[0]["evals"][0]["accuracy"]
  teacher = next((r["teacher"] for r in runs if r["teacher"]), None)
  places = []
  for y, (method, rows) in enumerate(methods.items()):
    colour = next(c for start, c in GROUPS if method.startswith(start))
    value, low, high = interval(rows)
    bars.plot([low, high], [y, y], color=colour, lw=5, alpha=0.25)
    ends = [r["evals"][-1] for r in rows]
    bars.plot([e["accuracy"] for e in ends], [y] * len(ends), ".", color=colour)
    bars.plot(value, y, "|", color=colour, ms=14, mew=2)
    drift = np.mean([e["drift"] for e in ends])
    plane.plot(drift, value, "o", color=colour)
    places.append((value, drift, method))
  height = np.inf  # of the label above, so that labels do not overlap
  for value, drift, method in sorted(places, reverse=True):
    height = min(value, height - 0.045)
    plane.annotate(
      method,
      (drift, value),
      xytext=(0.9, height),
      fontsize=7,
      va="center",
      arrowprops={"arrowstyle": "-", "lw": 0.3},
    )
  bars.set_yticks(range(len(methods)), methods, fontsize=8)
  bars.invert_yaxis()
  bars.set_xlabel("held-out accuracy, greedy; dots: seeds")
  plane.set(xlabel="drift: KL(base‖model), nats a token", ylabel="accuracy")
  for line, name in ((base, "base"), (teacher, "privileged teacher")):
    if line is None:
      continue
    bars.axvline(line, color=style.GREY, ls="--", lw=1)
    plane.axhline(line, color=style.GREY, ls="--", lw=1)
    bars.text(
      line,
      1.02,
      name,
      fontsize=7,
      ha="center",
      color=style.GREY,
      transform=bars.get_xaxis_transform(),
    )
  plane.set_xscale("log")
  plane.margins(x=0.3)
  style.frame(bars, plane, grid=None)
  style.save(figure, path)


def main(argv=None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", type=pathlib.Path, help="directory of all cells")
  parser.add_argument(
    "--only", default="", help="methods whose names contain this text"
  )
  parser.add_argument(
    "--commands", action="store_true", help="print the command of each cell, train none"
  )
  args = parser.parse_args(argv)
  results = HERE / "methods.jsonl"
  if not any(args.only in method for method in METHODS):
    raise SystemExit(
      f"error: no method's name contains {args.only!r}; known: {', '.join(METHODS)}"
    )
  if args.workdir and args.commands:
    for method in METHODS:
      for cell in cells_of(method) if args.only in method else ():
        print(cell.command(args.workdir))
    return
  if args.workdir:
    with contextlib.suppress(KeyboardInterrupt):
      train(args.only, args.workdir, read(results))
    keep(results, gathered(args.workdir, args.only))
  runs = read(results)
  if not runs:
    raise SystemExit(
      f"error: {results} has no finished cell: give --workdir to train them"
    )
  draw(runs, HERE / "methods.png")
  print(table(runs))


if __name__ == "__main__":
  main()
