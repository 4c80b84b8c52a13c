"""Gathers finished runs into results.jsonl, draws figure.png, prints a table.

  python -m experiments.largest_number.figure runs/opsd runs/sft ...

Without arguments it draws the committed results again.
"""

import json
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = pathlib.Path(__file__).parent
# What a run is called, by its loss, rollouts and privileged text; its colour.
METHODS = {
    ("forward_kl", "on_policy", "solution"): ("OPSD", "#0072B2"),
    ("nll", "dataset", "solution"): ("SFT on the reference", "#D55E00"),
    ("forward_kl", "on_policy", "other"): (
        "control: another problem's answer", "#009E73",
    ),
    ("forward_kl", "on_policy", "none"): (
        "control: the wording alone", "#CC79A7",
    ),
}  # fmt: skip
EVALS = (
    "accuracy", "accuracy_ci_low", "accuracy_ci_high", "sampled_accuracy",
    "sampled_accuracy_ci_low", "sampled_accuracy_ci_high", "drift", "truncated",
    "tokens",
)  # fmt: skip


def gather(workdir: pathlib.Path) -> dict:
  """One run: what it was, its evaluations by step, its summary."""
  config = json.loads((workdir / "config.json").read_text())
  rows = map(json.loads, (workdir / "metrics.jsonl").open())
  method = (
      config["divergence"]["name"], config["rollout"]["source"],
      config["context"]["privileged"],
  )  # fmt: skip
  return {
      "method": METHODS[method][0], "seed": config["seed"],
      "evals": [
          {"step": r["step"], **{k: round(r[f"eval/{k}"], 4) for k in EVALS}}
          for r in rows
          if "eval/accuracy" in r
      ],
      "summary": json.loads((workdir / "summary.json").read_text()),
  }  # fmt: skip


def draw(runs: list[dict], path: pathlib.Path) -> None:
  """Held-out accuracy over steps, and against what else has changed."""
  figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
  named = set()
  for run in runs:
    colour = dict(METHODS.values())[run["method"]]
    label = None if run["method"] in named else run["method"]
    named.add(run["method"])
    read = lambda key, run=run: [e[key] for e in run["evals"]]
    axes[0].plot(read("step"), read("accuracy"), "o-", color=colour, label=label)
    axes[0].fill_between(
        read("step"), read("accuracy_ci_low"), read("accuracy_ci_high"),
        color=colour, alpha=0.08, lw=0,
    )  # fmt: skip
    axes[1].plot(read("drift"), read("accuracy"), "o-", color=colour)
  teacher = runs[0]["summary"]["accuracy_teacher"]
  for axis in axes:
    axis.axhline(teacher, color="#555555", ls="--", lw=1)
    axis.set(ylim=(0, 1.04), ylabel="greedy accuracy, 256 unseen questions")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.2)
  axes[0].text(0, teacher - 0.05, "privileged teacher", color="#555555")
  axes[0].set(xlabel="step (16 prompts each)", title="What was learned")
  axes[1].set(
      xlabel="KL(base || model) on unrelated prompts, nats a token",
      title="and what else changed",
  )
  axes[0].legend(frameon=False, loc="lower right")
  figure.savefig(path, dpi=130)


def table(runs: list[dict]) -> str:
  """The last evaluation of each run, in Markdown."""
  span = lambda e, key: (
      f"{e[key]:.3f} [{e[key + '_ci_low']:.3f}, {e[key + '_ci_high']:.3f}]"
  )
  base = runs[0]["evals"][0]
  lines = [
      "| | seed | greedy accuracy | sampled, temperature 1 | drift |",
      "|---|---|---|---|---|",
      f"| base | | {span(base, 'accuracy')} | {span(base, 'sampled_accuracy')} |"
      " 0 |",
  ]
  for run in runs:
    end = run["evals"][-1]
    lines.append(
        f"| {run['method']} | {run['seed']} | {span(end, 'accuracy')} |"
        f" {span(end, 'sampled_accuracy')} | {end['drift']:.3f} |"
    )
  told = {
      key.replace("_teacher", ""): value
      for key, value in runs[0]["summary"].items()
      if "_teacher" in key
  }
  lines.append(
      f"| privileged teacher | | {span(told, 'accuracy')} |"
      f" {span(told, 'sampled_accuracy')} | |"
  )
  return "\n".join(lines)


def main(workdirs) -> None:
  results = HERE / "results.jsonl"
  if workdirs:
    rows = [gather(pathlib.Path(w)) for w in workdirs]
    results.write_text("".join(json.dumps(r) + "\n" for r in rows))
  runs = [json.loads(line) for line in results.open()]
  draw(runs, HERE / "figure.png")
  print(table(runs))


if __name__ == "__main__":
  main(sys.argv[1:])
