"""Summaries from the files alone, by hand; two evaluations compared."""

import json

import numpy as np
import pytest

from opsd_jax.evaluation import columns, statistics
from opsd_jax.evaluation import summary as summaries

BOOTSTRAP = {"resamples": 500, "seed": 0}


def completion(score, answer="1", tokens=4, truncated=False, logp=-2.0):
  return {
    "score": float(score),
    "answer": answer,
    "tokens": tokens,
    "truncated": truncated,
    "logp": logp,
    "confidence": None,
    "feedback": "",
  }


def problems(groups):
  return [
    {"id": str(i), "question": f"q{i}", "answer": "1", "completions": group}
    for i, group in enumerate(groups)
  ]


def write_evaluation(path, groups, **sampling):
  """A finished evaluation's workdir with one set."""
  path.mkdir()
  recorded = problems(groups)
  (path / "a.jsonl").write_text("".join(json.dumps(p) + "\n" for p in recorded))
  (path / "settings.json").write_text(
    json.dumps(
      {
        "confidence": "logp",
        "sampling": sampling,
        "summary": {"bins": 4, "resamples": 200, "seed": 0},
        "sets": {"a": {"problems": len(recorded), "dropped": {}}},
      }
    )
  )
  return path


def test_avg_at_k_of_a_known_coin():
  rng = np.random.default_rng(0)
  heads = rng.uniform(size=(600, 8)) < 0.3
  tossed = problems(
    [[completion(h, "heads" if h else "tails") for h in row] for row in heads]
  )
  found = summaries.of_set(tossed, kinds=(), bins=10, **BOOTSTRAP)

  def near(p, name, n):
    return found[name]["value"] == pytest.approx(p, abs=4 * (p * (1 - p) / n) ** 0.5)

  assert near(0.3, "avg@8", 4800) and found["avg@8"] == found["pass@1"]
  assert found["maj@1"]["value"] == pytest.approx(found["pass@1"]["value"])
  assert near(1 - 0.7**2, "pass@2", 600) and near(1 - 0.7**8, "pass@8", 600)
  # of 8: more than half heads, or half of them and half the point
  pmf = [
    0.3**i * 0.7 ** (8 - i) * c for i, c in enumerate([1, 8, 28, 56, 70, 56, 28, 8, 1])
  ]
  assert near(sum(pmf[5:]) + pmf[4] / 2, "maj@8", 600)
  assert found["avg@8"]["low"] < 0.3 < found["avg@8"]["high"]


def test_figures_by_hand():
  found = summaries.of_set(
    problems(
      [
        [
          completion(1, "7"),
          completion(0.9, "8"),
          completion(1, "7"),
          completion(0, None),
        ],
        [completion(0, None, 9, True), completion(0, "7", 9, True)] * 2,
      ]
    ),
    kinds=("logp",),
    bins=4,
    **BOOTSTRAP,
  )

  def value(name):
    return found[name]["value"]

  assert value("avg@4") == 0.25  # a score below 1 is not correct
  assert value("pass@2") == pytest.approx((1 - 1 / 6) / 2)
  assert value("maj@4") == 0.5 and value("no_answer") == 3 / 8
  assert value("truncated") == 0.5 and value("tokens") == 6.5
  confidence = [np.exp(-2 / 4)] * 4 + [np.exp(-2 / 9)] * 4
  correct = [1, 0, 1, 0] + [0] * 4
  brier = np.mean((np.array(confidence) - correct) ** 2)
  assert found["calibration"]["logp"]["brier"]["value"] == pytest.approx(brier)


def test_equal_answers_vote_together():
  group = [
    completion(1, "1/2"),
    completion(1, "0.5"),
    completion(1, "\\frac12"),
    completion(0, "2"),
    completion(0, "2.0"),
  ]
  found = summaries.of_set(problems([group]), kinds=(), bins=4, **BOOTSTRAP)
  assert found["maj@5"]["value"] == 1
  wrong = [c | {"score": 0.0} for c in group[:3]]
  assert (
    len({columns.vote(c) for c in wrong})
    == 1
    == len({columns.vote(c) for c in group[3:]})
  )
  assert columns.vote(completion(0, "no")) != columns.vote(completion(0, "yes"))


def test_unverified_completions_are_counted():
  late = completion(0, None) | {"feedback": "not verified within 1.5 s"}
  found = summaries.of_set(
    problems([[late, completion(0)], [completion(1), completion(0)]]),
    kinds=(),
    bins=4,
    **BOOTSTRAP,
  )
  assert found["unverified"]["value"] == 0.25


def test_the_summary_is_of_the_files_and_the_table_of_it(tmp_path):
  path = write_evaluation(
    tmp_path / "a", [[completion(1), completion(0)], [completion(1), completion(1)]]
  )
  summary = summaries.summarise(path)
  assert json.loads((path / "summary.json").read_text()) == summary
  text = summaries.table(summary["sets"])
  [row] = [line for line in text.splitlines() if line.startswith("avg@2")]
  e = summary["sets"]["a"]["avg@2"]
  assert row.split() == ["avg@2", "0.750", f"[{e['low']:.3f},", f"{e['high']:.3f}]"]
  assert (path / "a_logp.png").exists()


def test_differences_are_paired_and_signed(tmp_path):
  rng = np.random.default_rng(0)
  hard = rng.uniform(size=(40, 1))
  draws = rng.uniform(size=(40, 4))

  def toss(rate):
    return [[completion(x) for x in row] for row in draws < rate]

  a = write_evaluation(tmp_path / "a", toss(hard * 0.7), temperature=1.0)
  b = write_evaluation(tmp_path / "b", toss(hard), temperature=0.6)
  found, different = summaries.compare(a, b, **BOOTSTRAP)
  back, _ = summaries.compare(b, a, **BOOTSTRAP)
  avg = found["a"]["avg"]
  means = [(draws < rate).mean() for rate in (hard * 0.7, hard)]
  assert avg["value"] == pytest.approx(means[1] - means[0])
  assert avg["low"] > 0 and avg["p"] < 0.01
  assert back["a"]["avg"]["value"] == pytest.approx(-avg["value"])
  assert back["a"]["avg"]["p"] == avg["p"]
  assert different == {"sampling.temperature": (1.0, 0.6)}
  text = summaries.compared([a, b], 500, 0)
  assert "sampling.temperature: 1.0, 0.6" in text and "seed 0" in text


def test_a_run_does_not_differ_from_itself(tmp_path):
  a = write_evaluation(
    tmp_path / "a", [[completion(1), completion(0)], [completion(0), completion(1)]]
  )
  found, different = summaries.compare(a, a, **BOOTSTRAP)
  for name, d in found["a"].items():
    if name not in ("problems", "unpaired"):
      assert (d["value"], d["p"]) == (0, 1) and d["low"] == -d["high"], name
  assert not different


def test_problems_are_paired_by_id(tmp_path):
  a = write_evaluation(
    tmp_path / "a", [[completion(1)], [completion(0)], [completion(1)]]
  )
  b = write_evaluation(
    tmp_path / "b", [[completion(1)], [completion(0)], [completion(0)]]
  )
  path = b / "a.jsonl"
  path.write_text("".join(path.read_text().splitlines(True)[::-1]))
  found, _ = summaries.compare(a, b, **BOOTSTRAP)
  assert found["a"]["avg"]["value"] == pytest.approx(-1 / 3)
  c = write_evaluation(tmp_path / "c", [[completion(0)], [completion(1)]])
  found, _ = summaries.compare(b, c, **BOOTSTRAP)
  assert (found["a"]["problems"], found["a"]["unpaired"]) == (2, 1)
  assert found["a"]["avg"]["value"] == 0  # -1 and +1
  assert "in one evaluation only  1" in summaries.compared([b, c], 10, 0)


def test_runs_of_unequal_samples_share_what_both_have(tmp_path):
  a = write_evaluation(tmp_path / "a", [[completion(1), completion(0)]] * 3)
  b = write_evaluation(tmp_path / "b", [[completion(1)] * 8] * 3)
  found, _ = summaries.compare(a, b, **BOOTSTRAP)
  names = [f"{f}@{k}" for f in ("pass", "maj") for k in statistics.powers_of_two(2)]
  assert [n for n in found["a"] if "@" in n] == names


def test_what_cannot_be_compared_is_said(tmp_path):
  a = write_evaluation(tmp_path / "a", [[completion(1)], [completion(0)]])
  b = write_evaluation(tmp_path / "b", [[completion(1)]])
  whole = (b / "a.jsonl").read_text()
  for old, new, words in (
    ("q0", "q1", "0 differs"),
    ('"id": "0"', '"id": "x"', "none in both"),
    ("{", "{{", "a.jsonl:1 is not readable"),
  ):
    (b / "a.jsonl").write_text(whole.replace(old, new, 1))
    with pytest.raises(ValueError, match=words):
      summaries.compare(a, b, **BOOTSTRAP)
  (b / "a.jsonl").write_text(whole.strip()[:-9])  # killed as it wrote
  with pytest.raises(ValueError, match="holds 0 of 1 problems: run"):
    summaries.compare(a, b, **BOOTSTRAP)
  (b / "a.jsonl").write_text("")
  with pytest.raises(ValueError, match="holds 0 of 1 problems"):
    summaries.compare(a, b, **BOOTSTRAP)
  with pytest.raises(ValueError, match="holds no evaluation"):
    summaries.compare(a, tmp_path / "c", **BOOTSTRAP)
  with pytest.raises(ValueError, match="expected two workdirs"):
    summaries.compared([a], 10, 0)
