"""The summary of an evaluation, and the comparison of two evaluations.

Both read only what harness.py writes to a workdir: settings.json and, for every
set, <set>.jsonl with one problem a line. No model is needed.
"""

import numpy as np

from opsd_jax.evaluation import calibration, statistics
from opsd_jax.evaluation.columns import confidences, per_problem_metrics
from opsd_jax.runtime import paths

COUNTS = {  # count of problems in a set's summary: its row in the table
  "unpaired": "in one evaluation only",
  "in_training": "in training",  # questions that the run has trained on
  "without_answer": "without an answer, left out",
  "unverifiable": "answers that the task finds wrong",
  "repeated": "repeated questions",
}


def read(workdir, name: str) -> list[dict]:
  """The recorded problems of a set, with their completions."""
  return paths.read_rows(workdir / f"{name}.jsonl")


def settings(workdir) -> dict:
  """settings.json of a finished evaluation; ValueError where `workdir` holds none, or
  an unfinished one."""
  path = workdir / "settings.json"
  if not path.exists():
    raise ValueError(f"{path} does not exist: {workdir} holds no evaluation")
  found = paths.read_json(path)
  for name, about in found["sets"].items():
    file = workdir / f"{name}.jsonl"
    answered = file.read_text().count("\n") if file.exists() else 0
    if answered != about["problems"]:
      raise ValueError(
        f"{file} holds {answered} of {about['problems']} problems: run the"
        f" evaluation of {workdir} again, it resumes"
      )
  return found


def of_set(problems, *, kinds, bins: int, resamples: int, seed: int) -> dict:
  """Every metric of one set with its interval, and calibration by kind of
  `confidences`."""
  samples = len(problems[0]["completions"])
  columns = per_problem_metrics(problems, statistics.powers_of_two(samples))
  values, is_rate = zip(*columns.values(), strict=True)
  bootstrap = {"resamples": resamples, "seed": seed}
  estimates = statistics.estimates(np.stack(values, 1), is_rate, **bootstrap)
  metrics = {
    f"avg@{samples}" if name == "avg" else name: estimate._asdict()
    for name, estimate in zip(columns, estimates, strict=True)
  }
  by_kind = {}
  for kind in kinds:
    *rows, without = confidences(problems, kind)
    by_kind[kind] = {"completions": len(rows[0]), "without": without}
    if len(rows[0]):
      found = calibration.summarise(*rows, bins=bins, **bootstrap)
      by_kind[kind] |= {
        k: v._asdict() if hasattr(v, "_asdict") else v for k, v in found.items()
      }
  return {
    "problems": len(problems),
    "samples": samples,
    **metrics,
    "calibration": by_kind,
  }


def summarise(workdir) -> dict:
  """Writes summary.json and the reliability diagrams, <set>_<kind>.png, of a finished
  evaluation; returns the summary."""
  about = settings(workdir)
  kinds = ("logp", "stated") if about["confidence"] == "stated" else ("logp",)
  summary = {k: v for k, v in about.items() if k != "sets"} | {"sets": {}}
  for name, about_set in about["sets"].items():
    problems = read(workdir, name)
    summary["sets"][name] = about_set | of_set(
      problems, kinds=kinds, **about["summary"]
    )
    for kind in kinds:
      confidence, correct, *_ = confidences(problems, kind)
      if len(confidence):
        calibration.draw(
          workdir / f"{name}_{kind}.png",
          confidence,
          correct,
          bins=about["summary"]["bins"],
          title=f"{name}, {kind}",
        )
  text = paths.to_json(summary, indent=2, ensure_ascii=False)
  paths.write_whole(workdir / "summary.json", text + "\n")
  return summary


def format_estimate(e: dict) -> str:
  """`value [low, high]`, with the p-value where there is one."""
  digits = 3 if max(abs(e["low"]), abs(e["high"])) < 10 else 1
  value, low, high = (f"{e[k]:z.{digits}f}" for k in ("value", "low", "high"))
  p = f" p={e['p']:.3g}" if "p" in e else ""
  return f"{value} [{low}, {high}]{p}"


def table(sets: dict[str, dict]) -> str:
  """Metrics of all sets side by side, one a row."""
  columns = {name: column_of(name, summary) for name, summary in sets.items()}
  names = dict.fromkeys(k for column in columns.values() for k in column)
  widths = [max(map(len, c.values())) for c in columns.values()]
  first = max(map(len, names))
  lines = []
  for key in names:
    cells = [
      column.get(key, "").ljust(width)
      for column, width in zip(columns.values(), widths, strict=True)
    ]
    lines.append("  ".join([key.ljust(first), *cells]).rstrip())
  return "\n".join(lines)


def column_of(name: str, summary: dict) -> dict[str, str]:
  """{row: text} of one set of `table`."""
  column = {"": name, "problems": str(summary["problems"])}
  for key, title in COUNTS.items():
    if summary.get(key) or (key == "in_training" and key in summary):
      column[title] = str(summary[key])
  dropped = summary.get("dropped", {})
  column |= {f"dropped: {reason}": str(count) for reason, count in dropped.items()}
  column |= {k: format_estimate(v) for k, v in summary.items() if is_estimate(v)}
  for kind, found in summary.get("calibration", {}).items():
    column |= {f"{kind} {key}": format_cell(value) for key, value in found.items()}
  return column


def is_estimate(x) -> bool:
  return isinstance(x, dict) and "low" in x


def format_cell(x) -> str:
  if x is None:
    return "-"
  if is_estimate(x):
    return format_estimate(x)
  return str(x) if isinstance(x, int) else f"{x:.3f}"


# ------------------------------------------------------------------- compare


def compare(workdir_a, workdir_b, *, resamples: int, seed: int):
  """({set: {metric: difference b - a with interval and p}}, settings that differ),
  over the sets and the problems (by id) that both evaluations have.

  Raises ValueError where a problem differs between the two, or none is in both.
  """
  a, b = settings(workdir_a), settings(workdir_b)
  common = [name for name in a["sets"] if name in b["sets"]]
  if not common:
    raise ValueError(
      f"{workdir_a} has the sets {', '.join(a['sets'])}, {workdir_b} has"
      f" {', '.join(b['sets'])}: none of them in both"
    )
  found = {}
  for name in common:
    pa, pb, unpaired = paired(read(workdir_a, name), read(workdir_b, name), name)
    samples = min(len(pa[0]["completions"]), len(pb[0]["completions"]))
    ks = statistics.powers_of_two(samples)
    of_a, of_b = per_problem_metrics(pa, ks), per_problem_metrics(pb, ks)
    found[name] = {"problems": len(pa), "unpaired": unpaired} | {
      metric: statistics.compare(
        a_N, of_b[metric][0], is_rate, resamples=resamples, seed=seed
      )._asdict()
      for metric, (a_N, is_rate) in of_a.items()
    }
  return found, paths.differ(a, b)


def paired(a: list[dict], b: list[dict], name: str):
  """(problems of a, those of b in the same order, how many are in only one)."""
  by_id = {p["id"]: p for p in b}
  both = [(p, by_id[p["id"]]) for p in a if p["id"] in by_id]

  def content(p):
    return (p["question"], p["answer"])

  differing = [p["id"] for p, q in both if content(p) != content(q)]
  if differing or not both:
    what = f"{differing[0]} differs" if differing else "there is none in both"
    raise ValueError(
      f"problems of {name}: {what}; a paired comparison needs the same problems"
    )
  unpaired = len(a) + len(b) - 2 * len(both)
  return *map(list, zip(*both, strict=True)), unpaired


def compared(workdirs, resamples: int, seed: int) -> str:
  """`compare` of two workdirs, as text."""
  if len(workdirs) != 2:
    raise ValueError(f"compare {workdirs}, expected two workdirs")
  first, second = map(paths.open_workdir, workdirs)
  found, different = compare(first, second, resamples=resamples, seed=seed)
  return "\n".join(
    [
      f"{second} - {first}: mean difference over the same problems, 95%"
      f" interval ({resamples} resamples, seed {seed}), p of no difference",
      table(found),
      "settings that differ:" if different else "all settings are the same",
      *(f"  {k}: {a!r}, {b!r}" for k, (a, b) in different.items()),
    ]
  )
