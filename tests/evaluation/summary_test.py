"""Figures from the files alone: a known coin, by hand, two runs compared."""

import json

import numpy as np
import pytest

from opsd_jax.evaluation import statistics
from opsd_jax.evaluation import summary as summaries

HOW = {"resamples": 500, "seed": 0}


def reply(score, answer="1", tokens=4, truncated=False, logp=-2.0):
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
    {"id": str(i), "question": f"q{i}", "answer": "1", "replies": group}
    for i, group in enumerate(groups)
  ]


def leave(path, groups, **sampling):
  """A finished evaluation's workdir with one set."""
  path.mkdir()
  asked = problems(groups)
  (path / "a.jsonl").write_text("".join(json.dumps(p) + "\n" for p in asked))
  (path / "settings.json").write_text(
    json.dumps(
      {
        "confidence": "logp",
        "sampling": sampling,
        "summary": {"bins": 4, "resamples": 200, "seed": 0},
        "sets": {"a": {"problems": len(asked), "dropped": {}}},
      }
    )
  )
  return path


def test_avg_at_k_of_a_known_coin():
  rng = np.random.default_rng(0)
  heads = rng.uniform(size=(600, 8)) < 0.3
  tossed = problems(
    [[reply(h, "heads" if h else "tails") for h in row] for row in heads]
  )
  found = summaries.of_set(tossed, kinds=(), bins=10, **HOW)

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
        [reply(1, "7"), reply(0.9, "8"), reply(1, "7"), reply(0, None)],
        [reply(0, None, 9, True), reply(0, "7", 9, True)] * 2,
      ]
    ),
    kinds=("logp",),
    bins=4,
    **HOW,
  )

  def value(name):
    return found[name]["value"]

  assert value("avg@4") == 0.25  # a score below 1 is not right
  assert value("pass@2") == pytest.approx((1 - 1 / 6) / 2)
  assert value("maj@4") == 0.5 and value("no_answer") == 3 / 8
  assert value("truncated") == 0.5 and value("tokens") == 6.5
  sure = [np.exp(-2 / 4)] * 4 + [np.exp(-2 / 9)] * 4
  right = [1, 0, 1, 0] + [0] * 4
  brier = np.mean((np.array(sure) - right) ** 2)
  assert found["calibration"]["logp"]["brier"]["value"] == pytest.approx(brier)


def test_equal_answers_vote_together():
  group = [
    reply(1, "1/2"),
    reply(1, "0.5"),
    reply(1, "\\frac12"),
    reply(0, "2"),
    reply(0, "2.0"),
  ]
  found = summaries.of_set(problems([group]), kinds=(), bins=4, **HOW)
  assert found["maj@5"]["value"] == 1
  lost = [r | {"score": 0.0} for r in group[:3]]
  assert (
    len({summaries.vote(r) for r in lost})
    == 1
    == len({summaries.vote(r) for r in group[3:]})
  )
  assert summaries.vote(reply(0, "no")) != summaries.vote(reply(0, "yes"))


def test_replies_that_could_not_be_judged_are_counted():
  late = reply(0, None) | {"feedback": "not verified within 1.5 s"}
  found = summaries.of_set(
    problems([[late, reply(0)], [reply(1), reply(0)]]), kinds=(), bins=4, **HOW
  )
  assert found["unverified"]["value"] == 0.25


def test_the_summary_is_of_the_files_and_the_table_of_it(tmp_path):
  path = leave(tmp_path / "a", [[reply(1), reply(0)], [reply(1), reply(1)]])
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
    return [[reply(x) for x in row] for row in draws < rate]

  a = leave(tmp_path / "a", toss(hard * 0.7), temperature=1.0)
  b = leave(tmp_path / "b", toss(hard), temperature=0.6)
  found, different = summaries.compare(a, b, **HOW)
  back, _ = summaries.compare(b, a, **HOW)
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
  a = leave(tmp_path / "a", [[reply(1), reply(0)], [reply(0), reply(1)]])
  found, different = summaries.compare(a, a, **HOW)
  for name, d in found["a"].items():
    if name not in ("problems", "unpaired"):
      assert (d["value"], d["p"]) == (0, 1) and d["low"] == -d["high"], name
  assert not different


def test_problems_are_paired_by_id(tmp_path):
  a = leave(tmp_path / "a", [[reply(1)], [reply(0)], [reply(1)]])
  b = leave(tmp_path / "b", [[reply(1)], [reply(0)], [reply(0)]])
  path = b / "a.jsonl"
  path.write_text("".join(path.read_text().splitlines(True)[::-1]))
  found, _ = summaries.compare(a, b, **HOW)
  assert found["a"]["avg"]["value"] == pytest.approx(-1 / 3)
  c = leave(tmp_path / "c", [[reply(0)], [reply(1)]])
  found, _ = summaries.compare(b, c, **HOW)
  assert (found["a"]["problems"], found["a"]["unpaired"]) == (2, 1)
  assert found["a"]["avg"]["value"] == 0  # -1 and +1
  assert "of one evaluation alone  1" in summaries.compared([b, c], 10, 0)


def test_runs_of_unequal_samples_share_what_both_have(tmp_path):
  a = leave(tmp_path / "a", [[reply(1), reply(0)]] * 3)
  b = leave(tmp_path / "b", [[reply(1)] * 8] * 3)
  found, _ = summaries.compare(a, b, **HOW)
  names = [f"{f}@{k}" for f in ("pass", "maj") for k in statistics.powers_of_two(2)]
  assert [n for n in found["a"] if "@" in n] == names


def test_what_cannot_be_compared_is_said(tmp_path):
  a = leave(tmp_path / "a", [[reply(1)], [reply(0)]])
  b = leave(tmp_path / "b", [[reply(1)]])
  whole = (b / "a.jsonl").read_text()
  for old, new, words in (
    ("q0", "q1", "0 is another"),
    ('"id": "0"', '"id": "x"', "none in both"),
    ("{", "{{", "a.jsonl:1 is not readable"),
  ):
    (b / "a.jsonl").write_text(whole.replace(old, new, 1))
    with pytest.raises(ValueError, match=words):
      summaries.compare(a, b, **HOW)
  (b / "a.jsonl").write_text(whole.strip()[:-9])  # killed as it wrote
  with pytest.raises(ValueError, match="holds 0 of 1 problems: run"):
    summaries.compare(a, b, **HOW)
  (b / "a.jsonl").write_text("")
  with pytest.raises(ValueError, match="holds 0 of 1 problems"):
    summaries.compare(a, b, **HOW)
  with pytest.raises(ValueError, match="holds no evaluation"):
    summaries.compare(a, tmp_path / "c", **HOW)
  with pytest.raises(ValueError, match="expected two workdirs"):
    summaries.compared([a], 10, 0)
