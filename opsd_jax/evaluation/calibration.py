"""Calibration: whether a model's confidence equals its accuracy.

A confidence is a probability, stated in the completion or exp of its mean log-prob.
Training on privileged text may raise it beyond what the student can know (CaOPD,
arXiv:2604.16830), so it is reported beside accuracy.
"""

import math
import re
from typing import NamedTuple

import numpy as np

from opsd_jax.evaluation import statistics
from opsd_jax.evaluation.statistics import TAIL, Estimate
from opsd_jax.reporting import style
from opsd_jax.tasks.grading import extract

REQUEST = (  # appended to a question
  "On a last line of its own state how likely your answer is right, in the"
  ' form "Confidence: N%".'
)
NAMED = re.compile(r"\**confidence(?:\s+level)?\**\s*(?:([:=])|\bis\b)", re.IGNORECASE)
VALUE = re.compile(
  r"[\s*~≈$]*(\d+(?:\.\d+)?|\.\d+)\s*"
  r"(\\?%|percent\b|(?:/|(?:out )?of)\s*\d+)?(?:\s*\([^)\n]*\))?",
  re.IGNORECASE,
)
RANGE = re.compile(r",\d|\s*[-–]\s*\d")  # 99,5 or 85-90


class Bins(NamedTuple):
  """Completions by confidence, one entry a bin that is not empty."""

  count: np.ndarray
  confidence: np.ndarray  # mean
  accuracy: np.ndarray  # share of correct completions


# ---------------------------------------------------------------- confidence


def stated(text: str) -> tuple[str, float | None]:
  """(the reply without its last statement of confidence, the confidence in
  [0, 1] or None). What the completion thinks is no part of its reply.

  Read are "Confidence: 80%", "confidence is 0.8", "8/10" or "8 out of 10". A bare
  number above 1 is a percentage; 1 itself is certainty. "Confidence: high" and
  ranges give None, and the rest of their line is removed too.
  """
  text = extract.reply(text)
  named = list(NAMED.finditer(text))[::-1]
  for name in named:
    value = VALUE.match(text, name.end())
    if value and not RANGE.match(text, value.end()):
      return text[: name.start()] + text[value.end() :], read(*value.groups())
  for name in named:
    if name[1]:
      _, newline, rest = text[name.end() :].partition("\n")
      return text[: name.start()] + newline + rest, None
  return text, None


def read(number: str, unit: str | None) -> float | None:
  """The value of a written confidence; None outside [0, 1]."""
  value, unit = float(number), unit or ""
  if denominator := re.search(r"\d+", unit):
    whole = float(denominator[0])
    value = value / whole if whole else math.inf
  elif unit or value > 1:
    value /= 100
  return value if value <= 1 else None


def of_logp(logp: float, tokens: int) -> float | None:
  """exp(logp / tokens), the geometric mean of a completion's token probabilities.

  `logp` is the sum of their log-probs in nats; None where there are no tokens.
  """
  return min(math.exp(logp / tokens), 1.0) if tokens else None


# --------------------------------------------------------------------- error


def equal_width(confidence_R, bins: int):
  """Inner edges of the bins (0, 1/bins], ..., (1 - 1/bins, 1]; 0 is in the first (Guo et al. 2017, arXiv:1706.04599)."""
  return np.arange(1, bins) / bins


def equal_mass(confidence_R, bins: int):
  """Inner edges of bins of about equally many completions (Nguyen and O'Connor 2015,
  arXiv:1508.05154); equal confidences share a bin."""
  return np.quantile(confidence_R, np.arange(1, bins) / bins)


BINS = {"equal_width": equal_width, "equal_mass": equal_mass}


def binned(confidence_R, correct_R, kind: str, bins: int) -> Bins:
  """Count, mean confidence and accuracy of each bin that is not empty."""
  edges = BINS[kind](confidence_R, bins)
  bin_R = np.searchsorted(edges, confidence_R)  # left: an edge belongs to its bin

  def sums(w_R):
    return np.bincount(bin_R, w_R, len(edges) + 1)

  count = sums(np.ones(len(bin_R)))
  has = count > 0
  return Bins(
    count[has],
    sums(confidence_R)[has] / count[has],
    sums(np.asarray(correct_R, float))[has] / count[has],
  )


def ece(confidence_R, correct_R, *, kind: str = "equal_width", bins: int = 10):
  """Expected calibration error: sum over bins of share * |accuracy - mean
  confidence| (Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599, eq. 3).

  Biased upwards where a bin holds few completions.
  """
  b = binned(confidence_R, correct_R, kind, bins)
  return float((b.count * np.abs(b.accuracy - b.confidence)).sum() / b.count.sum())


def brier(confidence_R, correct_R) -> float:
  """Mean of (confidence - correct)^2 (Brier 1950)."""
  return float(np.mean((np.asarray(confidence_R) - np.asarray(correct_R)) ** 2))


def separation(confidence_R, correct_R) -> float | None:
  """How often a correct completion has a higher confidence than a wrong one, ties not
  counted: P(c+ > c-) (CaOPD, arXiv:2604.16830). None without both."""
  c_R, is_R = np.asarray(confidence_R), np.asarray(correct_R, bool)
  wrong = np.sort(c_R[~is_R])
  if not is_R.any() or not len(wrong):
    return None
  below = np.searchsorted(wrong, c_R[is_R])  # left: strictly below
  return float(below.mean() / len(wrong))


def summarise(
  confidence_R, correct_R, problem_R, *, bins: int, resamples: int, seed: int
) -> dict:
  """ECE, Brier score and overconfidence (mean confidence - accuracy), with
  bootstrap intervals over problems, and separation.

  `problem_R` is the problem that a completion answers. The bins are those of the
  observed completions in every resample. A resample doubles the bias of the ECE, so
  its percentiles would lie above the truth; its interval is the reflected one,
  [2 ece - q_high, 2 ece - q_low], within [0, 1] (Davison and Hinkley 1997,
  eq. 5.6).
  """
  c_R, y_R = np.asarray(confidence_R, float), np.asarray(correct_R, float)
  names, row_R = np.unique(problem_R, return_inverse=True)
  gap_R, N = c_R - y_R, len(names)

  def by_problem(w_R):
    return np.bincount(row_R, w_R, N)

  columns = [by_problem(np.ones(len(c_R))), by_problem(gap_R**2), by_problem(gap_R)]
  places = {}
  for kind, make in BINS.items():
    edges = make(c_R, bins)
    bin_R = np.searchsorted(edges, c_R)
    start = len(columns)
    columns += [by_problem(gap_R * (bin_R == b)) for b in range(len(edges) + 1)]
    places[kind] = slice(start, len(columns))
  x_NxM = np.stack(columns, 1)
  sums_RxM = statistics.bootstrap_sums(x_NxM, resamples=resamples, seed=seed)

  def estimate(statistic, reflect=False):
    value = float(statistic(x_NxM.sum(0)))
    low, high = np.quantile(statistic(sums_RxM), [TAIL, 1 - TAIL])
    if reflect:
      low, high = np.clip([2 * value - high, 2 * value - low], 0, 1)
    return Estimate(value, float(low), float(high))

  def error(kind):
    return estimate(lambda s: np.abs(s[..., places[kind]]).sum(-1) / s[..., 0], True)

  return {
    "ece": error("equal_width"),
    "ece_equal_mass": error("equal_mass"),
    "brier": estimate(lambda s: s[..., 1] / s[..., 0]),
    "overconfidence": estimate(lambda s: s[..., 2] / s[..., 0]),
    "separation": separation(c_R, y_R),
  }


# ------------------------------------------------------------------- picture


def draw(path, confidence_R, correct_R, *, bins: int, title: str):
  """Draws a reliability diagram as PNG: accuracy over confidence in bins of equal
  width, the diagonal, and below it the number of completions in each bin."""
  b = binned(confidence_R, correct_R, "equal_width", bins)
  figure = style.figure(4.6, 5.6)
  top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
  top.plot([0, 1], [0, 1], ":", color=style.GREY, label="calibrated")
  top.vlines(b.confidence, b.confidence, b.accuracy, color=style.ORANGE, lw=1)
  top.plot(b.confidence, b.accuracy, "o-", color=style.BLUE, label="completions")
  error = ece(confidence_R, correct_R, bins=bins)
  top.set(
    title=f"{title}\nECE {error:.3f}",
    ylabel="accuracy",
    xlim=(0, 1),
    ylim=(-0.02, 1.02),
  )
  top.legend(frameon=False, loc="upper left")
  bin_R = np.searchsorted(equal_width(confidence_R, bins), confidence_R)
  below.bar(
    np.arange(bins) / bins,
    np.bincount(bin_R, minlength=bins),
    1 / bins,
    align="edge",
    color=style.BLUE,
    edgecolor="white",
  )
  below.set(xlabel="confidence", ylabel="completions")
  style.frame(top, below)
  style.save(figure, path)
  return figure
