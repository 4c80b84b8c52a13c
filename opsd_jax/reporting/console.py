"""Text for the terminal: a plan, the start of a run, its samples, its end."""

import json
import os
import sys
import textwrap

import numpy as np

from opsd_jax.models import transformer
from opsd_jax.reporting import plots
from opsd_jax.rollouts import collate
from opsd_jax.runtime import allocator, distributed, paths


def describe(config, run) -> str:
  """The start of a run: config, devices, sizes, the first prompts of both sides."""
  devices = run.mesh.devices.flatten()
  lines = [
    str(config),
    f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}),"
    f" mesh {dict(run.mesh.shape)}",
    f"{run.model_config.family}, {transformer.count(run.params):,} parameters",
    *run.tokenizer.notes,
    f"{len(run.train)} training and {len(run.eval)} evaluation problems;"
    f" removed as overlap: {run.removed_as_overlap};"
    f" dropped: {run.dropped or 'none'};"
    f" {', '.join(f'{k}: {n}' for k, n in run.counts.items())}",
    "--- the student reads",
    text(run, run.train[0].student_ids),
    "--- the teacher reads",
    text(run, run.train[0].teacher_ids) or "(made from the rollouts)",
    "---",
  ]
  return "\n".join(lines)


def text(run, ids) -> str:
  """Token ids as text, with special tokens."""
  return run.tokenizer.decode(ids, False)


def show_samples(config, run, directory, step: int, groups, batch, learned) -> None:
  """Writes a batch's first rollouts with their per-token divergence to a file and the
  terminal, on the first process."""
  name, values_BxT = next(iter(learned.stats.values.items()))
  local_BxT = distributed.to_local(values_BxT, run.mesh)
  if not distributed.is_first():
    return
  rollouts = [r for group in groups for r in group]
  values = collate.of_responses(local_BxT, batch.tokens, len(rollouts))
  rows = [
    {
      "step": step,
      "prompt": text(run, r.views[0]),
      "teacher_prompt": text(run, r.views[1]) if len(r.views) > 1 else "",
      "completion": r.completion.text,
      "role": r.role,
      "score": r.verdict and r.verdict.score,
      "tokens": [text(run, [i]) for i in r.completion.ids],
      # Of a masked response there is none.
      "kl": value.tolist() or [0.0] * len(r.completion.ids),
    }
    for r, value in zip(rollouts[: config.log.samples], values, strict=False)
  ]
  heading = f"rollouts of step {step}; {name} of each token, in nats"
  if rows:
    print(
      heading, *(coloured(r["tokens"], r["kl"]) for r in rows), sep="\n", flush=True
    )
  directory.mkdir(parents=True, exist_ok=True)
  table = "".join(paths.to_json(row) + "\n" for row in rows)
  (directory / f"rollouts_{step:06d}.jsonl").write_text(table)


RAMP = (255, 229, 222, 215, 208, 202, 196)  # ANSI: white over yellow to red


def coloured(tokens, kl, scale: float = 2.0) -> str:
  """A response with each token on a background from white (0) to red (`scale` nats);
  where the terminal has no colours, `token(kl)`."""
  if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
    return " ".join(f"{t!r}({k:.2f})" for t, k in zip(tokens, kl, strict=True))

  def level(k):
    return np.clip(np.nan_to_num(k, nan=scale) / scale, 0, 0.999)

  def shade(k):
    return RAMP[int(level(k) * len(RAMP))]

  return "".join(
    f"\x1b[30;48;5;{shade(k)}m{t}\x1b[0m" for t, k in zip(tokens, kl, strict=True)
  )


def finish(config, run, writer, workdir, seconds: float) -> dict:
  """Writes summary.json and summary.png; prints completions before and after
  training, and the metrics."""
  summary = summarise(writer.rows()) | {
    "steps": config.steps,
    "seconds": seconds,
    "peak_memory_gb": max(
      r.get("memory/peak", 0.0) for r in (allocator.usage(), *writer.rows())
    ),
    "eval_problems": len(run.eval),
    "examples_removed_as_overlap": run.removed_as_overlap,
    "dropped": run.dropped,
    "test_time": config.data.test_time,  # True: trained on the evaluation's problems
  }
  (workdir / "summary.json").write_text(paths.to_json(summary, indent=2) + "\n")
  plots.training(writer.rows(), summary, workdir / "summary.png")
  writer.close()
  print(before_and_after(workdir / "samples", config.steps, 5))
  print(
    results(summary, workdir), *next_commands(config, workdir), sep="\n", flush=True
  )
  return summary


def summarise(rows) -> dict:
  """Base, teacher and final metrics, from the rows of evaluations."""
  rows = [r for r in rows if "eval/accuracy" in r]
  summary = {}
  for name, row, key in (
    ("accuracy_base", rows[0], "eval/accuracy"),
    ("accuracy_teacher", rows[0], "eval/teacher_accuracy"),
    ("accuracy_final", rows[-1], "eval/accuracy"),
    ("sampled_accuracy_base", rows[0], "eval/sampled_accuracy"),
    ("sampled_accuracy_teacher", rows[0], "eval/teacher_sampled_accuracy"),
    ("sampled_accuracy_final", rows[-1], "eval/sampled_accuracy"),
    ("truncated_base", rows[0], "eval/truncated"),
    ("truncated_final", rows[-1], "eval/truncated"),
  ):
    for end in ("", "_ci_low", "_ci_high"):
      if key + end in row:
        summary[name + end] = row[key + end]
  return summary | {"drift": rows[-1]["eval/drift"]}


def before_and_after(samples_dir, steps: int, count: int) -> str:
  """The first evaluation questions with the base's and the final completion."""

  def read(step):
    return [
      json.loads(line)
      for line in (samples_dir / f"eval_{step:06d}.jsonl").read_text().splitlines()
    ]

  lines = []
  for before, after in list(zip(read(0), read(steps), strict=True))[:count]:

    def mark(row):
      return "correct" if row["score"] >= 1 else "wrong"

    def short(text):
      return textwrap.shorten(text, 200, placeholder=" ...")

    lines += [
      f"Q: {short(before['question'])}",
      f"  before ({mark(before)}): {short(before['completion'])}",
      f"  after  ({mark(after)}): {short(after['completion'])}",
    ]
  return "\n".join(lines)


def next_commands(config, workdir) -> list[str]:
  """What to do with a finished run."""
  held_out = config.task.name
  if config.data.eval != "task":
    held_out = f"held_out={config.data.eval},task={config.task.name}"
  return [
    "next, weights that transformers loads, and a longer evaluation:",
    f"  python -m experiments.export_hf --workdir={workdir} --out=exported",
    f"  python -m experiments.evaluate --run={workdir} --workdir=evaluated"
    f" --set={held_out} --samples=8 --max_new_tokens={config.eval.max_new_tokens}",
  ]


def results(summary: dict, workdir) -> str:
  """Accuracies with 95% intervals, and drift."""

  def interval(k):
    return (
      f"{summary[k]:.3f} [{summary[k + '_ci_low']:.3f}, {summary[k + '_ci_high']:.3f}]"
    )

  labels = (
    ("base", "accuracy_base"),
    ("privileged teacher", "accuracy_teacher"),
    ("final", "accuracy_final"),
    ("base, sampled", "sampled_accuracy_base"),
    ("teacher, sampled", "sampled_accuracy_teacher"),
    ("final, sampled", "sampled_accuracy_final"),
  )
  title = f"held-out accuracy on {summary['eval_problems']} unseen problems"
  if summary["test_time"]:
    title = f"accuracy on {summary['eval_problems']} problems, trained on too"
  lines = [f"{title}, 95% intervals"]
  lines += [f"  {n:20}{interval(k)}" for n, k in labels if k in summary]
  lines += [
    f"drift {summary['drift']:.3f} nats a token from the base on unrelated prompts",
    f"truncated: {summary['truncated_base']:.0%} of the base's completions,"
    f" {summary['truncated_final']:.0%} of the final ones",
    f"{summary['steps']} steps, {summary['seconds']:.0f} s, at most"
    f" {summary['peak_memory_gb']:.1f} GB; see {workdir / 'summary.png'}",
  ]
  return "\n".join(lines)


def plan(account: dict) -> str:
  """A plan's account (planning.account.make_account) as a table."""
  lines = [
    f"{account['model']}, {account['chips']} chips of {account['topology']},"
    f" mesh {account['mesh']}",
    f"{account['rows']} rows of {account['row_tokens']} tokens,"
    f" {account['new_tokens']} of them new; attention"
    f" {account['attention']}, remat {account['remat']}, LoRA rank"
    f" {account['lora_rank']}",
    "bytes a chip",
  ]

  def gigabytes(name, x):
    return f"  {name:34}{x / 1e9:9.2f} GB"

  lines += [gigabytes(k, v) for k, v in account["resident"].items()]

  def value_of(phase, key):
    return account.get(phase, {}).get(key)

  for phase, key, name in (
    ("score", "bytes", "score: total"),
    ("train", "activations", "train: activations, temporaries"),
    ("train", "bytes", "train: total"),
    ("decode", "cache", "sample: cache"),
    ("decode", "temporaries", "sample: cache and temporaries"),
    ("decode", "bytes", "sample: total"),
  ):
    if value_of(phase, key) is not None:
      lines.append(gigabytes(name, value_of(phase, key)))
  if account["hbm"]:
    lines.append(gigabytes("published HBM", account["hbm"]))
  for phase, name in (
    ("score", "scoring"),
    ("train", "a train step"),
    ("decode", "a rollout"),
  ):
    if phase in account:
      lines += plan_phase(account[phase], name)
  lines.append("fits" if account["fits"] else f"does not fit: {account['advice']}")
  return "\n".join(lines)


def plan_phase(p: dict, name: str) -> list[str]:
  """The lines of one phase's account: FLOPs, traffic, and the estimate of time."""
  volumes = ", ".join(
    f"{k} {v / 1e9:.2f} GB ({p['collective_counts'][k]:.0f})"
    for k, v in p["collective_bytes"].items()
  )
  lines = [
    f"{name}, a chip: {p['executed_flops'] / 1e12:.1f} TFLOP"
    f" ({p['useful_flops'] / 1e12:.1f} useful), {p['hbm_bytes'] / 1e9:.0f} GB"
    f" of memory traffic; compiled in {p['compile_seconds']:.0f} s",
    f"  collectives: {volumes or 'none'}",
  ]
  if "seconds" in p:
    lines.append(
      f"  estimate: {p['seconds']:.2f} s = {p['compute_seconds']:.2f} compute"
      f" + {p['memory_seconds']:.2f} memory + {p['collective_seconds']:.2f}"
      f" collectives; MFU {100 * p['mfu']:.0f}%"
    )
  if "tokens_per_second" in p:
    lines.append(f"  {p['tokens_per_second']:,.0f} tokens/s with all slots occupied")
  return lines
