"""Metrics of each problem, from its completions as harness.py records them."""

import numpy as np

from opsd_jax.evaluation import calibration, statistics
from opsd_jax.structs import UNVERIFIED
from opsd_jax.tasks.grading import answers, notation


def per_problem_metrics(problems: list[dict], ks: list[int]) -> dict[str, tuple]:
  """{name: (one value a problem, whether it is a rate)}.

  Names are avg, pass@k and maj@k for every k of `ks`, truncated, no_answer,
  unverified, tokens. A completion is correct where its score is 1; in a vote all
  correct completions have the same answer.
  """
  groups = [p["completions"] for p in problems]

  def field(name):
    return np.array([[c[name] for c in group] for group in groups])

  correct_NxK = field("score") >= 1
  n, c_N = correct_NxK.shape[1], correct_NxK.sum(1)
  votes = [[vote(c) for c in group] for group in groups]

  def majority(k):
    return np.array(
      [
        statistics.maj_at_k(v, correct, k)
        for v, correct in zip(votes, correct_NxK, strict=True)
      ]
    )

  unverified_NxK = np.array(
    [[c["feedback"].startswith(UNVERIFIED) for c in group] for group in groups]
  )
  no_answer_NxK = np.array([[c["answer"] is None for c in group] for group in groups])
  return {
    "avg": (correct_NxK.mean(1), True),
    **{f"pass@{k}": (statistics.pass_at_k(n, c_N, k), True) for k in ks},
    **{f"maj@{k}": (majority(k), True) for k in ks},
    "truncated": (field("truncated").mean(1), True),
    "no_answer": ((no_answer_NxK & ~unverified_NxK).mean(1), True),
    "unverified": (unverified_NxK.mean(1), True),
    "tokens": (field("tokens").mean(1), False),
  }


def vote(completion: dict):
  """What a completion votes for: None without an answer; True for a correct one,
  however it is written; a wrong one's value where it can be read, else its text."""
  if completion["answer"] is None:
    return None
  if completion["score"] >= 1:
    return True
  text = notation.clean(completion["answer"][: answers.LONGEST])
  value = answers.read(text)
  return notation.folded(text) if value.data is None else value[:2]


def confidences(problems: list[dict], kind: str):
  """(confidence, correct, problem) of every completion that has a confidence, and
  the share of completions that have none. `kind` is "stated" or "logp"."""
  rows, count = [], 0
  for number, problem in enumerate(problems):
    for c in problem["completions"]:
      count += 1
      confidence = (
        c["confidence"]
        if kind == "stated"
        else calibration.of_logp(c["logp"], c["tokens"])
      )
      if confidence is not None:
        rows.append((confidence, c["score"] >= 1, number))
  columns = [np.array(x) for x in zip(*rows, strict=True)] or [np.zeros(0)] * 3
  return (*columns, 1 - len(rows) / count)
