"""Everything of the benchmarks but their timings."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments import bench
from experiments.benchmarks import (
  figure,
  lines,
  loss,
  peers,
  scaling,
  shapes,
  steps,
  workers,
)


def test_summary_of_steps():
  rows = [
    {"seconds": s, "response_tokens": n, "compiles": k}
    for s, n, k in ((4.0, 300, 0), (2.0, 310, 1), (8.0, 320, 0))
  ]
  summary = steps.summary(rows)
  assert summary["steps"] == 3
  assert summary["steps_per_second"] == 0.25  # by the median
  assert summary["seconds"] == {"median": 4.0, "min": 2.0, "max": 8.0}
  assert summary["mean_response_tokens"] == 310
  assert summary["tokens_per_second"] == 930 / 14
  assert summary["compiles"] == 1


def test_lines_are_json_with_short_numbers(capsys):
  lines.say("x", seconds=1.23456789, of={"median": 2 / 3}, shape=[8, 64], n=3)
  assert json.loads(capsys.readouterr().out) == {
    "what": "x",
    "seconds": 1.2346,
    "of": {"median": 0.6667},
    "shape": [8, 64],
    "n": 3,
  }


@pytest.mark.parametrize(
  "argv",
  [
    ["stap"],
    [],
    ["step", "--steps=0"],
    ["step", "--steps=many"],
    ["step", "--source=nowhere"],
    ["step", "--shape=round"],
    ["sample", "--source=nowhere"],
    ["plot", "nowhere.jsonl"],
  ],
)
def test_a_wrong_flag_is_one_line(argv):
  with pytest.raises(SystemExit, match=r"^error: .*$"):
    bench.main(argv)


def test_different_prompts_have_different_fingerprints():
  rows = [[1, 2, 3], [4]]
  same = [np.array(r, np.int64) for r in rows]
  assert workers.fingerprint(rows) == workers.fingerprint(same)
  assert workers.fingerprint(rows) != workers.fingerprint([[1, 2], [3, 4]])


def test_channel_keeps_other_output_apart():
  code = (
    "from experiments.benchmarks import workers\n"
    "c = workers.Channel()\n"
    "print('noise')\n"
    "for order in c.orders: c.answer(twice=2 * order['n'])\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    input='{"n": 1}\n{"n": 4}\n',
    text=True,
    capture_output=True,
    env=os.environ,
    check=True,
  )
  answers = [json.loads(line) for line in io.StringIO(done.stdout)]
  assert [a["twice"] for a in answers] == [2, 8]
  assert all(a["cpu_seconds"] >= 0 for a in answers)
  assert "noise" in done.stderr


def test_response_lengths_are_the_committed_ones():
  lengths = shapes.response_lengths()
  drawn = np.random.default_rng(0).geometric(1 / 33, 64)
  assert lengths == tuple(np.minimum(drawn, 128))
  assert len(lengths) == 64 and max(lengths) == 128
  assert 31 < np.mean(lengths) < 34 and np.median(lengths) < 26


@pytest.mark.parametrize("table", [shapes.STEP, shapes.SAMPLE])
def test_a_shape_has_a_length_a_response(table):
  for name, shape in table.items():
    count = shape.prompts * shape.samples
    assert shape.lengths is None or len(shape.lengths) == count, name


@pytest.fixture
def sums():
  """(config, tokenizer) of random weights: a token is a byte."""
  from opsd_jax.models import tokenizer

  return shapes.experiment("tiny", "samples", 1), tokenizer.load("tiny")


def test_prompts_are_made_as_long_as_the_shape_says(sums):
  from opsd_jax.rollouts.prompts import build_prompts

  config, tokenizer = sums
  shape = shapes.Shape(2, student=201, teacher=403)
  (example, *_) = shapes.examples(config, shapes.Shape(2), tokenizer)
  made = shapes.lengthened(config.context, example, shape, tokenizer, "!")
  (prompts,) = build_prompts(config.context, tokenizer, [made], 999, {}, "x")
  assert (len(prompts.student_ids), len(prompts.teacher_ids)) == (201, 403)
  assert made.question.startswith(example.question)
  with pytest.raises(ValueError, match="expected 201 of the student"):
    shapes.lengthened(config.context, example, shape, tokenizer, "two")


def test_the_config_has_the_sizes_of_the_shape():
  config = shapes.experiment("tiny", "ragged", steps=3)
  assert config.rollout.prompts_per_step == 64 and config.rollout.max_new_tokens == 128
  assert config.steps == shapes.WARM_UP + 3
  assert shapes.experiment("tiny", "default", 3).rollout.max_new_tokens == 64


@pytest.mark.torch
def test_rows_end_at_their_lengths():
  torch = pytest.importorskip("torch")
  ends, made = peers.Ends([1, 3], end=2), []
  ids = torch.zeros(2, 5, dtype=torch.long)
  for _ in range(3):
    scores = torch.tensor([[0.0, 1.0, 9.0]]).repeat(2, 1)
    made.append(ends(ids, scores).argmax(1))
    ids = torch.cat([ids, made[-1][:, None]], 1)
  assert torch.stack(made, 1).tolist()[0][0] == 2
  assert torch.stack(made, 1).tolist()[1] == [1, 1, 2]


@pytest.mark.parametrize("name", loss.NAMES)
def test_both_ways_of_a_loss_agree(name):
  args = loss.inputs(tokens=10, V=50, D=8)
  (a, grads), (b, others) = (
    loss.gradient(function, name)(*args) for function in (loss.chunked, loss.dense)
  )
  assert float(b) > 1e-3
  np.testing.assert_allclose(a, b, rtol=1e-5)
  for gradient, expected in zip(grads, others, strict=True):
    assert np.abs(expected).max() > 1e-5
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


def test_slopes():
  sizes = np.array([1.0, 2.0, 4.0, 8.0])
  assert scaling.slope(sizes, 3 * sizes) == pytest.approx(1)
  assert scaling.slope(sizes, sizes**2 / 7) == pytest.approx(2)


def test_batches_that_grow_have_their_sizes():
  batch = scaling.batch_of(rows=3, length=32, vocabulary=7)
  assert batch.views[0].ids_RxL.shape == batch.views[1].ids_RxL.shape == (3, 32)
  assert batch.tokens.mask_BxT.sum() == 3 * 16
  assert batch.views[0].ids_RxL.max() == 6


def test_rollouts_that_grow_have_the_log_probs_of_a_forward_pass(monkeypatch, capsys):
  monkeypatch.setattr(scaling, "NEW_TOKENS", (30, 60))
  rows = dict(scaling.rollouts("tiny"))
  # 2 layers of 32 keys and as many values, float32: 512 bytes a position.
  assert [r["cache_bytes"] for r in rows.values()] == [
    512 * 4 * 64,
    512 * 4 * 128,  # 4 rows; the prompt has 34 bytes
  ]
  (forward,) = map(json.loads, capsys.readouterr().out.splitlines())
  assert forward["new_tokens"] == 60 and forward["most_logp_gap"] < 1e-4


@pytest.mark.parametrize("ceilings", [lines.ceilings, lines.device_ceilings])
def test_ceilings_are_positive(monkeypatch, ceilings):
  monkeypatch.setattr(lines, "SIZE", 2**16)
  monkeypatch.setattr(lines, "SIDE", 64)
  most = ceilings()
  assert list(most) == ["matmul_gflops", "read_gbytes", "copy_gbytes"]
  assert min(most.values()) > 0


def test_functions_alternate(monkeypatch):
  calls, clock = [], [0]

  def function(name, *seconds):
    left = list(seconds)

    def call():
      calls.append(name)
      clock[0] += left.pop(0)

    return call

  monkeypatch.setattr(lines.time, "perf_counter", lambda: clock[0])
  a, b = lines.seconds_of(
    function("a", 99, 1, 2, 6), function("b", 99, 3, 3, 3), times=3
  )
  assert calls == ["a", "b"] * 4  # once to warm up
  assert a == {"median": 2, "min": 1, "max": 6}
  assert b == {"median": 3, "min": 3, "max": 3}


@pytest.fixture
def measured(tmp_path):
  """Files of lines as the commands print them."""
  files = {
    "step": [
      {"what": "machine", "shape": "fixed"},
      {"what": "step", "side": "ours", "seconds": 2.0},
      {
        "what": "summary",
        "side": "ours",
        "steps_per_second": 0.5,
        "mean_response_tokens": 10,
      },
      {
        "what": "summary",
        "side": "trl",
        "steps_per_second": 0.25,
        "mean_response_tokens": 12,
      },
    ],
    "scaling": [{"what": "machine"}]
    + [
      {"what": "scaling", "axis": "rows", "size": n, "seconds": {"median": n / 3}}
      for n in (2, 4, 8)
    ],
    "sample": [
      {"what": "machine", "shape": "ragged"},
      {"what": "summary", "side": "ours", "tokens_per_second": 90.0},
      {"what": "decode", "side": "ours", "rows": 8, "tokens_per_second": 70.0},
    ],
    "divergence": [
      {"what": "machine"},
      {
        "what": "divergence",
        "name": "jsd",
        "side": "dense",
        "seconds": {"median": 3.0},
        "temporary_bytes_of": {"20": 5e9},
      },
    ],
  }
  paths = []
  for name, rows in files.items():
    paths.append(tmp_path / f"{name}.jsonl")
    paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
  return paths


def test_a_picture_of_what_was_measured(measured, tmp_path):
  drawn = figure.plot(measured, tmp_path / "speed.png")
  assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
  assert len(drawn.axes) == 6
  heights = [[bar.get_height() for bar in a.patches] for a in drawn.axes]
  assert heights == [[5.0, 3.0], [90.0], [70.0], [3.0], [5.0], []]
  assert drawn.axes[0].get_xticklabels()[0].get_text() == "fixed"
  assert "slope 1.00" in drawn.axes[5].get_legend().get_texts()[0].get_text()


def test_no_picture_of_nothing(measured, tmp_path):
  empty = tmp_path / "empty.jsonl"
  empty.write_text('{"what": "machine"}\n')
  with pytest.raises(ValueError, match="nothing to draw in .*empty.jsonl"):
    figure.plot([empty], tmp_path / "speed.png")
  empty.write_text('{"what": "machine"}\n{"wha\n')
  with pytest.raises(ValueError, match="empty.jsonl:2 is not .*a JSON object a line"):
    figure.plot([empty], tmp_path / "speed.png")
