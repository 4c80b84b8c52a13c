"""Stated confidence; calibration errors by hand; intervals by simulation."""

import math
import re

import matplotlib.image
import numpy as np
import pytest

from opsd_jax.evaluation import calibration


@pytest.mark.parametrize(
  "text,expected",
  [
    ("It is 7.\nConfidence: 80%", 0.8),
    ("confidence: 0.25", 0.25),
    ("Confidence is 60 percent.", 0.6),
    ("**Confidence:** 95%", 0.95),
    ("**Confidence**: 95 %", 0.95),
    ("Confidence level: 70", 0.7),
    ("CONFIDENCE = 8/10", 0.8),
    ("Confidence: 1", 1.0),
    ("confidence: 1%", 0.01),
    ("Confidence: .5", 0.5),
    ("Confidence: 0", 0.0),
    ("Confidence: 100%", 1.0),
    ("Confidence: 10% at first. Confidence: 90%", 0.9),
    ("Confidence: 120%", None),
    ("Confidence: 3/0", None),
    ("80%", None),
    ("Confidence: high", None),
    ("I have confidence in 80% of it", None),
    ("", None),
    ("Confidence: 85-90%", None),
    ("Confidence: 99,5%", None),
    ("Confidence: ~90%", 0.9),
    ("Confidence: $90\\%$", 0.9),
    ("Confidence: 9 of 10", 0.9),
    ("Confidence: 85% (8 out of 10)", 0.85),
    ("Confidence: 80%\nI say it with confidence: yes", 0.8),
  ],
)
def test_stated_confidence(text, expected):
  assert calibration.stated(text)[1] == (
    None if expected is None else pytest.approx(expected)
  )


def test_a_stated_confidence_is_no_part_of_the_answer():
  text, confidence = calibration.stated("It is 7.\nConfidence: 80%\n")
  assert (text, confidence) == ("It is 7.\n\n", 0.8)
  assert calibration.stated("It is 7.") == ("It is 7.", None)
  assert calibration.stated("<think>Confidence: 9%</think>7") == ("7", None)


@pytest.mark.parametrize(
  "said",
  [
    "85-90%",
    "9 of 10",
    "99,5%",
    "85% (8 out of 10)",
    "~90%",
    "$90\\%$",
    "high (90%)",
    "between 80 and 90%",
    "12/10",
    "about 90%",
  ],
)
def test_no_number_of_a_confidence_is_read_as_the_answer(said):
  text, _ = calibration.stated(f"It is 7.\nConfidence: {said}\n")
  assert re.findall(r"\d+", text) == ["7"]


def test_confidence_of_log_probs_is_their_geometric_mean():
  confidence = calibration.of_logp(math.log(0.5) + math.log(0.125), 2)
  assert confidence == pytest.approx(0.25)
  assert calibration.of_logp(0.0, 0) is None
  assert calibration.of_logp(1e-7, 1) == 1.0  # rounding above certainty


C = np.array([0.1, 0.2, 0.35, 0.8, 0.9, 1.0])
Y = np.array([0, 0, 1, 1, 0, 1])


def test_ece_and_brier_by_hand():
  # (0, .25]: 2 completions, mean .15, none correct; (.25, .5]: .35, correct;
  # (.75, 1]: 3 completions, mean .9, 2/3 correct.
  assert calibration.ece(C, Y, bins=4) == pytest.approx(
    (2 * 0.15 + 1 * 0.65 + 3 * (0.9 - 2 / 3)) / 6
  )
  # two bins of three: mean .65 / 3 with 1/3 correct, mean .9 with 2/3 correct
  assert calibration.ece(C, Y, kind="equal_mass", bins=2) == pytest.approx(
    ((1 / 3 - 0.65 / 3) + (0.9 - 2 / 3)) / 2
  )
  squares = [0.01, 0.04, 0.65**2, 0.04, 0.81, 0]
  assert calibration.brier(C, Y) == pytest.approx(np.mean(squares))


def test_edges_belong_to_the_bin_that_they_end():
  c = np.arange(11) / 10
  counts = calibration.binned(c, c > 2, "equal_width", 10).count
  assert counts.tolist() == [2] + [1] * 9


def test_equal_confidences_share_a_bin_whatever_their_order():
  rng = np.random.default_rng(0)
  c = rng.choice([0.3, 0.3, 0.3, 0.7, 0.9], 200)
  y = rng.uniform(size=200) < c
  whole = calibration.binned(c, y, "equal_mass", 10)
  order = rng.permutation(200)
  other = calibration.binned(c[order], y[order], "equal_mass", 10)
  assert len(whole.count) == 3 and whole.count.sum() == 200
  np.testing.assert_allclose(whole, other)


def test_equal_mass_bins_hold_as_many():
  c = np.random.default_rng(0).beta(8, 2, 1000)
  assert set(calibration.binned(c, c > 2, "equal_mass", 10).count) == {100}


def test_separation_by_hand():
  # correct: .35, .8, 1; wrong: .1, .2, .9; ties do not count
  assert calibration.separation(C, Y) == pytest.approx((2 + 2 + 3) / 9)
  assert calibration.separation([0.5, 0.5], [0, 1]) == 0
  assert calibration.separation([0.5, 0.6], [1, 1]) is None


def completions(seed, problems=60, k=4, rate=0.5, confidence=0.9):
  rng = np.random.default_rng(seed)
  of = np.repeat(np.arange(problems), k)
  return np.full(len(of), confidence), rng.uniform(size=len(of)) < rate, of


def test_the_summary_has_the_plain_values():
  rng = np.random.default_rng(0)
  c, of = rng.uniform(size=240), np.repeat(np.arange(60), 4)
  y = rng.uniform(size=240) < c**2
  found = calibration.summarise(c, y, of, bins=10, resamples=500, seed=0)
  assert found["ece"].value == pytest.approx(calibration.ece(c, y))
  assert found["ece_equal_mass"].value == pytest.approx(
    calibration.ece(c, y, kind="equal_mass")
  )
  assert found["brier"].value == pytest.approx(calibration.brier(c, y))
  assert found["overconfidence"].value == pytest.approx(c.mean() - y.mean())
  assert found["separation"] == calibration.separation(c, y)
  for name in ("ece", "ece_equal_mass", "brier", "overconfidence"):
    assert found[name].low < found[name].value < found[name].high
  again = calibration.summarise(c, y, of, bins=10, resamples=500, seed=0)
  assert again == found


def test_the_interval_of_ece_covers():
  settings = {"bins": 10, "resamples": 500, "seed": 0}
  found = [calibration.summarise(*completions(s), **settings) for s in range(300)]
  covered = np.mean([f["ece"].low <= 0.4 <= f["ece"].high for f in found])
  assert 0.91 <= covered <= 0.98


def test_the_interval_of_ece_does_not_lie_above_its_biased_value():
  rng = np.random.default_rng(0)
  c, of = rng.uniform(size=100), np.arange(100)
  y = rng.uniform(size=100) < c  # calibrated: what is measured is all bias
  e = calibration.summarise(c, y, of, bins=10, resamples=500, seed=0)["ece"]
  assert e.value > 0.05 and (e.low + e.high) / 2 < e.value and e.low >= 0


def test_problems_are_resampled_whole():
  c, y, of = completions(0)
  y = np.repeat(y[::4], 4)  # all completions of a problem alike
  settings = {"bins": 10, "resamples": 1000, "seed": 0}
  whole = calibration.summarise(c, y, of, **settings)["brier"]
  alone = calibration.summarise(c, y, np.arange(len(c)), **settings)["brier"]
  ratio = (whole.high - whole.low) / (alone.high - alone.low)
  assert ratio == pytest.approx(2, rel=0.15)  # sqrt of 4 completions


def test_the_diagram_is_a_picture_of_the_bins(tmp_path):
  figure = calibration.draw(tmp_path / "a.png", C, Y, bins=4, title="a set")
  assert matplotlib.image.imread(tmp_path / "a.png").shape[:2] == (672, 552)
  top, below = figure.axes
  [points] = [line for line in top.lines if line.get_label() == "completions"]
  np.testing.assert_allclose(points.get_xydata(), [(0.15, 0), (0.35, 1), (0.9, 2 / 3)])
  assert [p.get_height() for p in below.patches] == [2, 1, 0, 3]
