"""Statistics over problems: rates of k samples, intervals, comparisons.

A problem is one observation, however many completions it has: resampling and sign
flips take a problem with all its completions (a cluster bootstrap). An interval is
that of the mean over the population that the problems are drawn from.
"""

import math
from typing import NamedTuple

import numpy as np

LEVEL = 0.95  # of every interval
TAIL = (1 - LEVEL) / 2
BLOCK = 256  # resamples whose weights are in memory at once
FEW = 10  # with fewer problems unlike the others a bootstrap underestimates spread
Z = 1.959964  # standard normal quantile of LEVEL


class Estimate(NamedTuple):
  """A value and the bounds of its interval."""

  value: float
  low: float
  high: float


class Difference(NamedTuple):
  """The mean of b - a over the same problems."""

  value: float
  low: float
  high: float
  p: float  # two-sided, of the hypothesis of no difference


# -------------------------------------------------------------- of k samples


def pass_at_k(n, c, k: int):
  """The chance that k of a problem's n samples, drawn without replacement, hold
  one of the c correct ones: 1 - C(n-c, k) / C(n, k), as an array.

  Unbiased where the n samples are independent (Chen et al. 2021,
  arXiv:2107.03374, eq. 1). It is computed as 1 - prod_{i<k} (n-c-i) / (n-i), where
  nothing overflows or cancels.
  """
  n, c = np.broadcast_arrays(np.asarray(n), np.asarray(c))
  _check_k(k, int(n.min()))
  if (c < 0).any() or (c > n).any():
    raise ValueError(f"{c} correct of {n} samples, expected 0 to n")
  i = np.arange(k)
  n, c = n[..., None], c[..., None]
  return 1 - (np.maximum(n - c - i, 0) / (n - i)).prod(-1)


def maj_at_k(answers, scores, k: int) -> float:
  """The expected score of a vote among k of a problem's n samples.

  The expectation is over all subsets of k of the n, as in `pass_at_k`, and
  exact. In a subset the most frequent answer wins, and a tie scores the mean of its
  answers' scores. None is no answer and never wins, so that a subset without an
  answer scores 0. Where samples with equal answers differ in score, the answer has
  their mean.
  """
  n = len(answers)
  _check_k(k, n)
  votes = {}
  for answer, score in zip(answers, scores, strict=True):
    votes.setdefault(answer, []).append(float(score))
  no_answer = len(votes.pop(None, ()))
  groups = [(len(v), sum(v) / len(v)) for v in votes.values()]
  most = max((size for size, _ in groups), default=0)
  if k == n:
    won = [score for size, score in groups if size == most]
    return sum(won) / len(won) if won else 0.0

  def chance(m):
    return np.array(
      [
        math.comb(m, i) * (k / n) ** i * (1 - k / n) ** (m - i)
        for i in range(min(m, k) + 1)
      ]
    )

  # Counts of the answers in a random subset are independent binomials given their
  # sum; j is the winning count, t how many answers have it.
  total = 0.0
  for j in range(1, min(most, k) + 1):
    # By (samples taken, t): the chance, and the chance times the sum of the scores
    # of the answers with count j.
    p, s = np.zeros((2, k + 1, k // j + 1))
    p[: min(no_answer, k) + 1, 0] = chance(no_answer)
    for m, score in groups:
      odds = chance(m)[: j + 1]
      new_p, new_s = np.zeros_like(p), np.zeros_like(s)
      for i, odd in enumerate(odds):
        to, of = slice(i, None), slice(0, k + 1 - i)
        if i < j:
          new_p[to] += odd * p[of]
          new_s[to] += odd * s[of]
        else:
          new_p[to, 1:] += odd * p[of, :-1]
          new_s[to, 1:] += odd * (s[of, :-1] + score * p[of, :-1])
      p, s = new_p, new_s
    total += (s[k, 1:] / np.arange(1, s.shape[1])).sum()
  return round(float(total / chance(n)[k]), 12)  # removes rounding errors


def powers_of_two(k: int) -> list[int]:
  """1, 2, 4, ... up to k, and k."""
  return sorted({2**i for i in range(k.bit_length())} | {k})


def _check_k(k: int, n: int) -> None:
  if not 1 <= k <= n:
    raise ValueError(f"k is {k}, expected 1 to {n}, the samples of a problem")


# ----------------------------------------------------------------- intervals


def wilson(successes: float, n: int, z: float = Z):
  """The Wilson score interval of a rate (Wilson 1927); 95% at the default z."""
  rate, zz = successes / n, z * z
  centre = (rate + zz / (2 * n)) / (1 + zz / n)
  half = z / (1 + zz / n) * math.sqrt(rate * (1 - rate) / n + zz / (4 * n * n))
  return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_sums(x_NxM, *, resamples: int, seed: int):
  """Sums over N problems drawn with replacement, `resamples` times -> RxM.

  Columns are resampled together (Efron 1979).
  """
  x_NxM = np.asarray(x_NxM, np.float64)
  rng, count = np.random.default_rng(seed), len(x_NxM)
  sizes = [min(BLOCK, resamples - i) for i in range(0, resamples, BLOCK)]
  fair = np.full(count, 1 / count)
  return np.concatenate([rng.multinomial(count, fair, size) @ x_NxM for size in sizes])


def estimates(x_NxM, is_rate, *, resamples: int, seed: int) -> list[Estimate]:
  """The mean of every column, one value a problem, with its percentile
  bootstrap interval.

  Where fewer than FEW problems of a rate (`is_rate`, one flag a column) differ from
  the others, resampling underestimates their spread. The interval is then Wilson's
  for N problems, which is wide enough for any values in [0, 1].
  """
  x_NxM = np.asarray(x_NxM, np.float64)
  N = len(x_NxM)
  means_RxM = bootstrap_sums(x_NxM, resamples=resamples, seed=seed) / N
  low_M, high_M = np.quantile(means_RxM, [TAIL, 1 - TAIL], axis=0)
  rows = []
  for m, rate in enumerate(is_rate):
    x_N, low, high = x_NxM[:, m], low_M[m], high_M[m]
    if rate and few_differ(x_N):
      low, high = wilson(x_N.sum(), N)
    rows.append(Estimate(float(x_N.mean()), float(low), float(high)))
  return rows


def few_differ(x_N) -> bool:
  """Whether fewer than FEW values differ from the most frequent one."""
  _, counts = np.unique(np.round(x_N, 12), return_counts=True)
  return len(x_N) - counts.max() < FEW


# --------------------------------------------------------------- comparisons


def compare(a_N, b_N, is_rate: bool = True, *, resamples: int, seed: int) -> Difference:
  """Mean difference b - a of two runs' values on the same problems, with its
  percentile bootstrap interval and the p-value of `sign_flip`.

  Where fewer than FEW differences of a rate differ from the others, the interval is
  that of `plus_two`.
  """
  a_N, b_N = np.asarray(a_N, np.float64), np.asarray(b_N, np.float64)
  if a_N.shape != b_N.shape or a_N.ndim != 1 or not len(a_N):
    raise ValueError(
      f"{a_N.shape} and {b_N.shape} values, expected one value of each problem in both"
    )
  d_N = b_N - a_N
  bootstrap = {"resamples": resamples, "seed": seed}
  [(value, low, high)] = estimates(d_N[:, None], [False], **bootstrap)
  if is_rate and few_differ(d_N):
    low, high = plus_two(d_N)
  return Difference(value, low, high, sign_flip(d_N, **bootstrap))


def plus_two(d_N) -> tuple[float, float]:
  """Bounds of the mean of differences between rates: the normal interval after
  adding two problems, with differences 1 and -1 (Bonett and Price 2012, for paired
  proportions)."""
  N = len(d_N) + 2
  mean = d_N.sum() / N
  half = Z * math.sqrt((((d_N**2).sum() + 2) / N - mean**2) / N)
  return max(-1.0, mean - half), min(1.0, mean + half)


def sign_flip(d_N, *, resamples: int, seed: int) -> float:
  """Two-sided permutation p-value of a mean difference of 0: how often random
  signs make |sum of d| as large (Fisher 1935).

  Differences of 0 (up to rounding) have no sign. All combinations of signs are
  tried where they are at most `resamples`; else `resamples` random ones and the
  observed one: (1 + hits) / (1 + resamples) (Phipson and Smyth 2010).
  """
  d_N = np.asarray(d_N, np.float64)
  d_N = d_N[np.abs(d_N) > 1e-12]
  # A sum in another order may round below the observed one.
  enough = abs(d_N.sum()) - 1e-9 * np.abs(d_N).sum()

  def as_large(signs):
    return int((np.abs(signs @ d_N) >= enough).sum())

  if len(d_N) < 63 and 2 ** len(d_N) <= resamples:
    every = np.arange(2 ** len(d_N))[:, None] >> np.arange(len(d_N)) & 1
    return as_large(1.0 - 2.0 * every) / len(every)
  rng = np.random.default_rng(seed)
  hits = 0
  for i in range(0, resamples, BLOCK):
    shape = min(BLOCK, resamples - i), len(d_N)
    hits += as_large(1.0 - 2.0 * rng.integers(0, 2, shape))
  return (1 + hits) / (1 + resamples)
