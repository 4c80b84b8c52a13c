"""What the replies of an evaluation amount to, and two evaluations compared.

A workdir holds settings.json and, of every set, <set>.jsonl with one problem a
line, as harness.py leaves them; nothing else is read, and no model is needed.
"""

import json

import numpy as np

from opsd_jax.evaluation import calibration, statistics
from opsd_jax.runtime import paths
from opsd_jax.structs import UNVERIFIED
from opsd_jax.tasks.grading import answers, notation

COUNTS = {  # of a set's problems -> its row in the table
  "unpaired": "of one evaluation alone",
  "in_training": "in training",  # questions that the run has trained on
  "without_answer": "without an answer, not asked",
  "not_verified": "answers not verified",
  "asked_again": "asked again",
}


def read(workdir, name: str) -> list[dict]:
  """The problems of a set with their replies, as they were recorded."""
  return paths.read_rows(workdir / f"{name}.jsonl")


def settings(workdir) -> dict:
  """What was evaluated; ValueError where `workdir` holds none, or a part."""
  path = workdir / "settings.json"
  if not path.exists():
    raise ValueError(f"{path} does not exist: {workdir} holds no evaluation")
  there = paths.read_json(path)
  for name, about in there["sets"].items():
    file = workdir / f"{name}.jsonl"
    answered = file.read_text().count("\n") if file.exists() else 0  # whole
    if answered != about["problems"]:
      raise ValueError(
        f"{file} holds {answered} of {about['problems']} problems: run the"
        f" evaluation of {workdir} again, it goes on where it was"
      )
  return there


def per_problem_metrics(problems: list[dict], ks: list[int]) -> dict[str, tuple]:
  """name -> (one value a problem, whether it is a rate).

  avg, pass@k and maj@k for every k, truncated, no_answer, unverified, tokens. A
  reply is right when its score is 1; in a vote right replies are of one answer.
  """
  replies = [p["replies"] for p in problems]

  def of(field):
    return [[r[field] for r in group] for group in replies]

  correct_NxK = np.array([[s >= 1 for s in group] for group in of("score")])
  n, c_N = correct_NxK.shape[1], correct_NxK.sum(1)
  votes = [[vote(r) for r in group] for group in replies]

  def voted(k):
    return np.array(
      [
        statistics.maj_at_k(a, correct, k)
        for a, correct in zip(votes, correct_NxK, strict=True)
      ]
    )

  each = {"avg": (correct_NxK.mean(1), True)}
  each |= {f"pass@{k}": (statistics.pass_at_k(n, c_N, k), True) for k in ks}
  each |= {f"maj@{k}": (voted(k), True) for k in ks}

  def is_unverified(r):
    return r["feedback"].startswith(UNVERIFIED)

  unverified_NxK = np.array([[is_unverified(r) for r in g] for g in replies])
  no_answer_NxK = np.array([[r["answer"] is None for r in g] for g in replies])
  return each | {
    "truncated": (np.array(of("truncated")).mean(1), True),
    "no_answer": ((no_answer_NxK & ~unverified_NxK).mean(1), True),
    "unverified": (unverified_NxK.mean(1), True),
    "tokens": (np.array(of("tokens")).mean(1), False),
  }


def vote(reply: dict):
  """What a reply votes for: None without an answer; the right one, however it
  is written; a wrong one by its value where that can be read, else its text."""
  if reply["answer"] is None:
    return None
  if reply["score"] >= 1:
    return True
  text = notation.clean(reply["answer"][: answers.LONGEST])
  value = answers.read(text)
  return notation.folded(text) if value.data is None else value[:2]


def confidences(problems: list[dict], kind: str):
  """(confidence, right, problem) of every reply that has a confidence, and the
  share of replies that has none."""
  rows, count = [], 0
  for number, problem in enumerate(problems):
    for r in problem["replies"]:
      count += 1
      confidence = (
        r["confidence"]
        if kind == "stated"
        else calibration.of_logp(r["logp"], r["tokens"])
      )
      if confidence is not None:
        rows.append((confidence, r["score"] >= 1, number))
  parts = [np.array(x) for x in zip(*rows, strict=True)] or [np.zeros(0)] * 3
  return (*parts, 1 - len(rows) / count)


def of_set(problems, *, kinds, bins: int, resamples: int, seed: int) -> dict:
  """Every figure of one set with its interval, calibration by kind (of
  `confidences`)."""
  samples = len(problems[0]["replies"])
  named = per_problem_metrics(problems, statistics.powers_of_two(samples))
  values, is_rate = zip(*named.values(), strict=True)
  bootstrap = {"resamples": resamples, "seed": seed}
  found = statistics.estimates(np.stack(values, 1), is_rate, **bootstrap)
  figures = {
    f"avg@{samples}" if name == "avg" else name: estimate._asdict()
    for name, estimate in zip(named, found, strict=True)
  }
  by_kind = {}
  for kind in kinds:
    *rows, without = confidences(problems, kind)
    by_kind[kind] = {"replies": len(rows[0]), "without": without}
    if len(rows[0]):
      found = calibration.summarise(*rows, bins=bins, **bootstrap)
      by_kind[kind] |= {
        k: v._asdict() if hasattr(v, "_asdict") else v for k, v in found.items()
      }
  return {
    "problems": len(problems),
    "samples": samples,
    **figures,
    "calibration": by_kind,
  }


def summarise(workdir) -> dict:
  """Reads a finished evaluation; writes summary.json and the reliability
  diagrams, <set>_<kind>.png; returns the summary."""
  about = settings(workdir)
  kinds = ("logp", "stated") if about["confidence"] == "stated" else ("logp",)
  summary = {k: v for k, v in about.items() if k != "sets"} | {"sets": {}}
  for name, of in about["sets"].items():
    problems = read(workdir, name)
    summary["sets"][name] = of | of_set(problems, kinds=kinds, **about["summary"])
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
  text = json.dumps(summary, indent=2, ensure_ascii=False)
  paths.write_whole(workdir / "summary.json", text + "\n")
  return summary


def format_estimate(e: dict) -> str:
  """An estimate, with its p-value where it has one."""
  digits = 3 if max(abs(e["low"]), abs(e["high"])) < 10 else 1
  value, low, high = (f"{e[k]:z.{digits}f}" for k in ("value", "low", "high"))
  p = f" p={e['p']:.3g}" if "p" in e else ""
  return f"{value} [{low}, {high}]{p}"


def table(sets: dict[str, dict]) -> str:
  """Figures of all sets side by side, one a row."""

  def is_figure(x):
    return isinstance(x, dict) and "low" in x

  of_column = {}
  for name, of in sets.items():
    column = {"": name, "problems": str(of["problems"])}
    for key, title in COUNTS.items():
      if of.get(key) or (key == "in_training" and key in of):
        column[title] = str(of[key])
    column |= {f"dropped: {k}": str(n) for k, n in of.get("dropped", {}).items()}
    column |= {k: format_estimate(v) for k, v in of.items() if is_figure(v)}
    for kind, found in of.get("calibration", {}).items():
      for key, value in found.items():
        column[f"{kind} {key}"] = (
          format_estimate(value)
          if is_figure(value)
          else "-"
          if value is None
          else str(value)
          if isinstance(value, int)
          else f"{value:.3f}"
        )
    of_column[name] = column
  names = dict.fromkeys(k for column in of_column.values() for k in column)
  wide = [max(map(len, c.values())) for c in of_column.values()]
  first = max(map(len, names))
  return "\n".join(
    "  ".join(
      [key.ljust(first)]
      + [
        column.get(key, "").ljust(w)
        for column, w in zip(of_column.values(), wide, strict=True)
      ]
    ).rstrip()
    for key in names
  )


# ------------------------------------------------------------------- compare


def compare(workdir_a, workdir_b, *, resamples: int, seed: int):
  """(set -> figure -> difference b - a with interval and p, settings that
  differ), over the sets and problems (by id) that both evaluations have.

  Raises ValueError where a problem is not the same in both, or none is common.
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
    least = min(len(pa[0]["replies"]), len(pb[0]["replies"]))
    ks = statistics.powers_of_two(least)
    of_a, of_b = per_problem_metrics(pa, ks), per_problem_metrics(pb, ks)
    found[name] = {"problems": len(pa), "unpaired": unpaired} | {
      figure: statistics.compare(
        a_N, of_b[figure][0], is_rate, resamples=resamples, seed=seed
      )._asdict()
      for figure, (a_N, is_rate) in of_a.items()
    }
  return found, paths.differ(a, b)


def paired(a: list[dict], b: list[dict], name: str):
  """(problems of a, those of b in the same order, how many only one has)."""
  by_id = {p["id"]: p for p in b}
  both = [(p, by_id[p["id"]]) for p in a if p["id"] in by_id]

  def asked(p):
    return (p["question"], p["answer"])

  other = [p["id"] for p, q in both if asked(p) != asked(q)]
  if other or not both:
    what = f"{other[0]} is another" if other else "there is none in both"
    raise ValueError(
      f"problems of {name}: {what}; a paired comparison needs the same ones"
    )
  unpaired = len(a) + len(b) - 2 * len(both)
  return *map(list, zip(*both, strict=True)), unpaired


def compared(workdirs, resamples: int, seed: int) -> str:
  """`compare` of two workdirs, for people."""
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
