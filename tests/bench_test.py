"""What a benchmark does beside measuring; no timings here."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments import bench, peers


def test_summary_of_steps():
  rows = [
      {"seconds": s, "response_tokens": n, "compiles": k}
      for s, n, k in ((4.0, 300, 0), (2.0, 310, 1), (8.0, 320, 0))
  ]
  got = bench.summary(rows)
  assert got["steps"] == 3
  assert got["steps_per_second"] == 0.25  # by the median
  assert got["seconds"] == {"median": 4.0, "min": 2.0, "max": 8.0}
  assert got["mean_response_tokens"] == 310
  assert got["compiles"] == 1


def test_lines_are_json_with_short_numbers(capsys):
  bench.say("x", seconds=1.23456789, of={"median": 2 / 3}, shape=[8, 64], n=3)
  assert json.loads(capsys.readouterr().out) == {
      "what": "x", "seconds": 1.2346, "of": {"median": 0.6667},
      "shape": [8, 64], "n": 3,
  }  # fmt: skip


@pytest.mark.parametrize(
    "argv", [["stap"], [], ["step", "--steps=0"], ["step", "--steps=many"],
             ["step", "--source=nowhere"]],
)  # fmt: skip
def test_a_wrong_flag_is_one_line(argv):
  with pytest.raises(SystemExit, match=r"^error: .*$"):
    bench.main(argv)


def test_prompts_are_told_apart():
  rows = [[1, 2, 3], [4]]
  same = [np.array(r, np.int64) for r in rows]
  assert peers.fingerprint(rows) == peers.fingerprint(same)
  assert peers.fingerprint(rows) != peers.fingerprint([[1, 2], [3, 4]])


def test_channel_keeps_other_output_apart():
  code = (
      "from experiments import peers\n"
      "c = peers.Channel()\n"
      "print('noise')\n"
      "for order in c.orders: c.answer(twice=2 * order['n'])\n"
  )
  done = subprocess.run(
      [sys.executable, "-c", code], input='{"n": 1}\n{"n": 4}\n', text=True,
      capture_output=True, env=os.environ, check=True,
  )  # fmt: skip
  answers = [json.loads(line) for line in io.StringIO(done.stdout)]
  assert [a["twice"] for a in answers] == [2, 8]
  assert all(a["cpu_seconds"] >= 0 for a in answers)
  assert "noise" in done.stderr
