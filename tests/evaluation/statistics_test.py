"""Against enumeration of all subsets and all signs; coverage by simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax.evaluation import statistics

BOOTSTRAP = {"resamples": 2000, "seed": 0}


def subsets(n: int, k: int):
  return list(itertools.combinations(range(n), k))


@st.composite
def samples(draw):
  n = draw(st.integers(1, 7))
  return n, draw(st.integers(1, n)), draw(st.integers(0, 2**31))


@given(samples(), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(sizes, data):
  n, k, _ = sizes
  right = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
  hits = [any(right[i] for i in s) for s in subsets(n, k)]
  assert statistics.pass_at_k(n, sum(right), k) == pytest.approx(np.mean(hits))


def test_pass_at_k_of_many_samples_neither_overflows_nor_cancels():
  # 1 - C(n-1, k) / C(n, k) = k / n; C(10,000, 5,000) has 3,009 digits.
  assert statistics.pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5, abs=1e-12)
  assert statistics.pass_at_k([16, 16, 16], [0, 16, 1], 1).tolist() == [0, 1, 1 / 16]
  for n, c, k in ((4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1)):
    with pytest.raises(ValueError, match="expected [01] to"):
      statistics.pass_at_k(n, c, k)


def vote(answers, scores) -> float:
  """One vote, as its definition reads."""
  counts = {a: answers.count(a) for a in answers if a is not None}
  won = [a for a in counts if counts[a] == max(counts.values())]

  def mean(a):
    return np.mean([s for b, s in zip(answers, scores, strict=True) if b == a])

  return float(np.mean([mean(a) for a in won])) if won else 0.0


@given(samples())
def test_maj_at_k_is_the_mean_vote_of_all_subsets(sizes):
  n, k, seed = sizes
  rng = np.random.default_rng(seed)
  answers = [[None, "a", "b", "c"][i] for i in rng.integers(0, 4, n)]
  scores = rng.integers(0, 2, n).tolist()  # also within one answer
  expected = np.mean(
    [vote([answers[i] for i in s], [scores[i] for i in s]) for s in subsets(n, k)]
  )
  score = statistics.maj_at_k(answers, scores, k)
  assert score == pytest.approx(expected, abs=1e-12)


def test_maj_at_k_by_hand():
  maj = statistics.maj_at_k
  assert maj(["7", None, None, None], [1, 0, 0, 0], 4) == 1  # no vote
  assert maj([None, None], [1, 1], 2) == 0
  assert maj(["7", "8"], [1, 0], 2) == 0.5  # ties share
  assert maj(["7", "7", "8"], [1, 1, 0], 2) == pytest.approx(2 / 3)
  # 200 samples, 120 of them right: a vote of 100 is all but sure
  assert maj(["7"] * 120 + ["8"] * 80, [1] * 120 + [0] * 80, 100) > 0.99


def test_powers_of_two():
  assert statistics.powers_of_two(12) == [1, 2, 4, 8, 12]
  assert statistics.powers_of_two(1) == [1]


# Rates of problems, and samples of each. The problems are drawn anew in every
# repetition, as an interval over problems means it.
@pytest.mark.parametrize(
  "low,high,k",
  [(0.2, 0.8, 1), (0.2, 0.8, 8), (0.2, 0.2, 1), (0.5, 0.5, 1), (0.8, 0.8, 4)],
)
def test_intervals_cover_in_93_to_97_of_100(low, high, k):
  rng = np.random.default_rng(3)
  rates_NxM = rng.uniform(low, high, (100, 2000))
  values_NxM = rng.binomial(k, rates_NxM) / k
  found = statistics.estimates(values_NxM, [True] * 2000, **BOOTSTRAP)
  truth = (low + high) / 2
  covered = np.mean([e.low <= truth <= e.high for e in found])
  assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize("rate", [0.03, 0.06, 0.115, 0.13])
def test_intervals_cover_where_few_of_30_problems_are_right(rate):
  right = np.arange(31)
  x_NxM = (np.arange(30)[:, None] < right).astype(float)
  chance = [math.comb(30, c) * rate**c * (1 - rate) ** (30 - c) for c in right]
  found = statistics.estimates(x_NxM, [True] * 31, **BOOTSTRAP)
  covered = [e.low <= rate <= e.high for e in found]
  assert np.dot(chance, covered) > 0.92


def test_more_right_replies_never_lower_an_interval():
  # of 30 problems with 8 replies each: none right, one, two, ... of the first
  x_NxM = np.zeros((30, 9))
  x_NxM[0] = np.arange(9) / 8
  found = statistics.estimates(x_NxM, [True] * 9, **BOOTSTRAP)
  assert (np.diff([e.low for e in found]) >= 0).all()
  assert (np.diff([e.high for e in found]) > 0).all()


def test_where_nothing_varies_a_rate_has_wilsons_interval():
  x_NxM = np.stack([np.ones(30), np.zeros(30), np.full(30, 7.0)], 1)
  one, zero, tokens = statistics.estimates(x_NxM, [True, True, False], **BOOTSTRAP)
  assert one == (1, *statistics.wilson(30, 30)) and one.low < 0.9
  assert zero == (0, *statistics.wilson(0, 30))
  assert tokens == (7, 7, 7)


def test_a_problem_is_resampled_with_all_that_it_holds():
  x_NxM = np.random.default_rng(0).normal(size=(20, 1))
  both = np.concatenate([x_NxM, 3 * x_NxM, np.ones((20, 1))], 1)
  sums = statistics.bootstrap_sums(both, resamples=300, seed=1)
  np.testing.assert_allclose(sums[:, 1], 3 * sums[:, 0])
  assert (sums[:, 2] == 20).all() and len(np.unique(sums[:, 0])) == 300
  again = statistics.bootstrap_sums(both, resamples=300, seed=1)
  other = statistics.bootstrap_sums(both, resamples=300, seed=2)
  assert (sums == again).all() and not (sums == other).all()


# --------------------------------------------------------------- comparisons


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_sign_flip_equals_the_enumeration_of_all_signs(d):
  sums = [
    abs(sum(s * x for s, x in zip(signs, d, strict=True)))
    for signs in itertools.product((1, -1), repeat=len(d))
  ]
  expected = np.mean([s >= abs(sum(d)) for s in sums])
  assert statistics.sign_flip(d, resamples=256, seed=0) == expected


def test_tenths_that_sum_alike_count_as_alike():
  # All signs of 4, 1, 2, 1 sum to 0 or more; .4 - .1 - .2 - .1 to 3e-17.
  d = [0.4, -0.1, -0.2, -0.1]
  assert statistics.sign_flip(d, resamples=16, seed=0) == 1


@pytest.mark.parametrize("count,resamples", [(10, 1024), (40, 199)])
def test_p_is_uniform_where_there_is_no_difference(count, resamples):
  rng = np.random.default_rng(5)
  p = np.array(
    [
      statistics.sign_flip(
        rng.normal(size=count) * rng.exponential(size=count),
        resamples=resamples,
        seed=i,
      )
      for i in range(1500)
    ]
  )
  for level in (0.05, 0.25, 0.5, 0.75):
    error = math.sqrt(level * (1 - level) / len(p))
    assert np.mean(p <= level + 1e-9) == pytest.approx(level, abs=4 * error)


def test_p_is_small_where_there_is_a_difference():
  d = np.random.default_rng(0).normal(0.5, 1, 100)
  assert statistics.sign_flip(d, resamples=999, seed=0) == 1 / 1000
  found = statistics.compare(np.zeros(100), d, resamples=999, seed=0)
  assert found.p == 1 / 1000 and found.value == d.mean()
  assert 0 < found.low < 0.5 < found.high < 1


def test_a_run_does_not_differ_from_itself():
  a = np.random.default_rng(0).uniform(size=50)
  found = statistics.compare(a, a, **BOOTSTRAP)
  assert (found.value, found.p) == (0, 1)
  assert -found.low == found.high == pytest.approx(1.96 * 2**0.5 / 52, abs=1e-5)
  assert statistics.compare(a, a, False, **BOOTSTRAP) == (0, 0, 0, 1)
  with pytest.raises(ValueError, match="expected one value of each problem"):
    statistics.compare(a, a[:9], **BOOTSTRAP)


def test_five_of_five_is_no_certainty():
  found = statistics.compare([0] * 5, [1] * 5, **BOOTSTRAP)
  half = 1.959964 * math.sqrt((1 - (5 / 7) ** 2) / 7)  # six of +1, one of -1
  assert found == pytest.approx((1, 5 / 7 - half, 1, 1 / 16))


@pytest.mark.parametrize("gains,losses", [(0.02, 0.02), (0.05, 0.01), (0.0, 0.02)])
def test_paired_intervals_cover_where_few_problems_change(gains, losses):
  rng, covered = np.random.default_rng(4), 0
  for seed in range(1000):
    u_N = rng.uniform(size=100)
    d_N = (u_N < gains) * 1.0 - (u_N > 1 - losses)
    found = statistics.compare(0 * d_N, d_N, resamples=200, seed=seed)
    covered += found.low <= gains - losses <= found.high
  assert covered / 1000 > 0.92


def test_pairing_removes_what_the_problems_share():
  rng = np.random.default_rng(1)
  hard = rng.uniform(size=200)
  a, b = hard + 0.01 * rng.normal(size=200), hard + 0.05
  found = statistics.compare(a, b, **BOOTSTRAP)
  alone = statistics.estimates(b[:, None], [False], **BOOTSTRAP)[0]
  assert found.high - found.low < 0.1 * (alone.high - alone.low)


# ------------------------------------------------------------------ wilson


@pytest.mark.parametrize(
  "successes,n,low,high",
  [
    # Newcombe 1998, table I, method 3.
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
    (5, 10, 0.2366, 0.7634),
    (10, 10, 0.7225, 1.0),
    (0, 1, 0.0, 0.7935),
  ],
)
def test_wilson_against_known_numbers(successes, n, low, high):
  interval = statistics.wilson(successes, n)
  assert interval == pytest.approx((low, high), abs=6e-5)


@given(n=st.integers(1, 2000), share=st.floats(0, 1))
def test_wilson_holds_the_rate_and_mirrors(n, share):
  low, high = statistics.wilson(share * n, n)
  assert 0 <= low <= share + 1e-9 and share - 1e-9 <= high <= 1
  mirrored = statistics.wilson((1 - share) * n, n)
  assert (low, high) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]))
  wider = statistics.wilson(share * n, n, z=3)
  assert wider[0] <= low + 1e-9 and high <= wider[1] + 1e-9
