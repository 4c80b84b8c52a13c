"""metrics.jsonl on a disk and in an object store, after a kill; progress lines."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from etils.epath import backend, gpath

from configs import opsd
from opsd_jax.reporting import console, plots
from opsd_jax.runtime import metrics, paths
from opsd_jax.runtime import workdir as workdirs


def test_rows_come_back_and_rewinding_forgets_later_ones(tmp_path):
  writer = metrics.Writer(tmp_path, tensorboard=False)
  for step in (0, 1, 2, 3):
    writer.write(step, {"loss": step / 2})
  writer.write(2, {"eval/accuracy": 1.0})
  writer.rewind(2)
  expected = [
    {"step": 0, "loss": 0.0},
    {"step": 1, "loss": 0.5},
    {"step": 2, "loss": 1.0},
    {"step": 2, "eval/accuracy": 1.0},
  ]
  assert writer.rows() == expected
  assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_line_torn_by_a_kill_is_forgotten(cut, tmp_path):
  writer = metrics.Writer(tmp_path, tensorboard=False)
  for step in (1, 2, 3):
    writer.write(step, {"loss": 0.5})
  whole = writer.path.read_text()
  writer.path.write_text(whole[: -1 - cut])
  resumed = metrics.Writer(tmp_path, tensorboard=False)
  assert [r["step"] for r in resumed.rows()] == [1, 2]
  resumed.rewind(2)
  resumed.write(3, {"loss": 0.5})
  assert resumed.path.read_text() == whole


def test_a_number_that_is_not_finite_can_be_read_back(tmp_path):
  writer = metrics.Writer(tmp_path, tensorboard=False)
  writer.write(1, {"loss": float("nan"), "grad_norm": float("inf"), "x": 1.0})
  (line,) = writer.path.read_text().splitlines()
  assert json.loads(line, parse_constant=pytest.fail) == {
    "step": 1,
    "loss": None,
    "grad_norm": None,
    "x": 1.0,
    "nulls": 2,
  }
  assert np.isnan(writer.rows()[0]["loss"])


def test_tensorboard_shows_no_step_twice(tmp_path):
  """After a resume the events beyond the checkpoint are replaced."""
  from tensorboardX.proto.event_pb2 import Event, SessionLog

  writer = metrics.Writer(tmp_path, tensorboard=True)
  for step in (1, 2, 3):
    writer.write(step, {"loss": float(step)})
  writer.close()
  resumed = metrics.Writer(tmp_path, tensorboard=True)
  resumed.rewind(1)
  for step in (2, 3):
    resumed.write(step, {"loss": 10.0 * step})
  resumed.close()
  events = []
  for path in sorted((tmp_path / "tb").iterdir(), key=lambda p: p.stat().st_mtime_ns):
    data = path.read_bytes()
    while data:  # a record: size, its checksum, the event, its checksum
      size = int.from_bytes(data[:8], "little")
      events.append(Event.FromString(data[12 : 12 + size]))
      data = data[16 + size :]
  purged = [e.step for e in events if e.session_log.status == SessionLog.START]
  assert purged == [2]  # a reader forgets these and later steps that came before


def test_tensorboard_receives_the_rows(tmp_path):
  writer = metrics.Writer(tmp_path, tensorboard=True)
  writer.write(1, {"loss": 0.25})
  writer.close()
  (events,) = (tmp_path / "tb").iterdir()
  assert b"loss" in events.read_bytes()


# ----------------------------------------------------- in an object store


class Store(backend._OsPathBackend):
  """gs:// in a directory: whole objects, no appending, no renaming."""

  def __init__(self, root):
    self.root, self.written = root, []

  def local(self, path) -> str:
    return os.path.join(self.root, os.fspath(path).removeprefix("gs://"))

  def open(self, path, mode):
    if "a" in mode:
      raise OSError(f"{path}: an object cannot be appended to")
    if "w" in mode:
      self.written.append(os.path.basename(path))
      os.makedirs(os.path.dirname(self.local(path)), exist_ok=True)
    return super().open(self.local(path), mode)

  def exists(self, path):
    return super().exists(self.local(path))

  def mkdir(self, path, **kw):
    pass  # there are no directories

  def makedirs(self, path, **kw):
    pass

  def replace(self, path, dst):
    raise OSError(f"{path}: an object cannot be renamed")


@pytest.fixture
def store(tmp_path, monkeypatch):
  store = Store(tmp_path)
  monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", store)
  return store


def test_an_object_is_written_at_every_flush_alone(store):
  workdir = paths.open_workdir("gs://bucket/run")
  writer = metrics.Writer(workdir, tensorboard=False)
  writer.write(1, {"loss": 1.0})
  writer.write(2, {"loss": 0.5})
  assert store.written == []
  assert [r["step"] for r in writer.rows()] == [1, 2]
  writer.flush()
  writer.write(3, {"loss": 0.25})
  assert store.written == ["metrics.jsonl"]
  writer.close()
  assert store.written == ["metrics.jsonl"] * 2
  text = writer.path.read_text()
  assert [json.loads(x)["loss"] for x in text.splitlines()] == [1, 0.5, 0.25]
  assert sorted(p.name for p in store.root.rglob("*.*")) == ["metrics.jsonl"]


def test_an_object_is_written_now_and_then(store, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(metrics.time, "time", lambda: now[0])
  workdir = paths.open_workdir("gs://bucket/run")
  writer = metrics.Writer(workdir, tensorboard=False, every=60)
  for step in range(10):
    now[0] += 25
    writer.write(step, {"loss": 1.0})
  assert len(store.written) == 3  # at 75, 150 and 225 of 250 seconds


def test_a_killed_run_resumes_from_what_was_flushed(store):
  workdir = paths.open_workdir("gs://bucket/run")
  killed = metrics.Writer(workdir, tensorboard=False)
  for step in (1, 2, 3):
    killed.write(step, {"loss": step / 4, "time/step": 2.0})
  killed.flush()
  killed.write(4, {"loss": 9.0})  # and is killed
  resumed = metrics.Writer(workdir, tensorboard=False)
  assert [r["step"] for r in resumed.rows()] == [1, 2, 3]
  resumed.rewind(2)
  assert resumed.seconds() == 4.0
  resumed.write(3, {"loss": 0.75})
  resumed.close()
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(x)["step"] for x in lines] == [1, 2, 3]


def test_a_store_holds_all_that_a_workdir_does(store):
  workdir = paths.open_workdir("gs://bucket/run")
  config = opsd.get_config("tiny")
  workdirs.write_config(config, workdir)
  workdirs.write_config(config, workdir)
  with config.unlocked():
    config.seed = 1
  with pytest.raises(ValueError, match="seed: 0 there, 1 now"):
    workdirs.write_config(config, workdir)
  record = {"question": "q?", "completion": "r.", "score": 1.0}
  for step in (0, 4):
    path = workdir / "samples" / f"eval_{step:06d}.jsonl"
    path.write_text(json.dumps(record) + "\n")
  words = console.before_and_after(workdir / "samples", 4, 5)
  assert words.splitlines()[0] == "Q: q?"
  rows = [
    {
      "step": s,
      "eval/drift": 0.0,
      "eval/accuracy": 0.5,
      "eval/accuracy_ci_low": 0.1,
      "eval/accuracy_ci_high": 0.9,
    }
    for s in (0, 4)
  ]
  summary = {"accuracy_teacher": 0.9, "accuracy_base": 0.2}
  plots.training(rows, summary, workdir / "summary.png")
  assert (workdir / "summary.png").read_bytes().startswith(b"\x89PNG")


def test_a_writer_of_another_process_writes_nothing(tmp_path):
  writer = metrics.Writer(tmp_path, tensorboard=True, writes=False)
  writer.write(1, {"loss": 1.0})
  writer.rewind(0)
  writer.flush()
  writer.close()
  assert list(tmp_path.iterdir()) == []


def test_a_board_that_cannot_be_written_is_one_warning(store, capsys):
  workdir = paths.open_workdir("gs://bucket/run")
  writer = metrics.Writer(workdir, tensorboard=True)
  writer.write(1, {"loss": 1.0})
  writer.close()
  (line,) = capsys.readouterr().out.splitlines()
  assert line.startswith("warning: no TensorBoard in gs://bucket/run/tb")
  assert "google-cloud-storage" in line


@pytest.mark.parametrize(
  "url,words",
  [
    ("gs://bucket/run", "pip install gcsfs"),
    ("ftp://host/run", "no known store; give a directory or gs://bucket/path"),
  ],
)
def test_a_store_that_cannot_be_reached_says_which_package_is_missing(url, words):
  """In a process of its own: libraries that other tests import bring stores."""
  pytest.importorskip("fsspec")
  code = (
    "import sys; from opsd_jax.runtime import paths; paths.open_workdir(sys.argv[1])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, url], capture_output=True, text=True
  )
  assert done.returncode and "ValueError" in done.stderr and words in done.stderr


# --------------------------------------------------------- on a terminal


def test_progress_without_a_terminal_is_lines_of_text(monkeypatch):
  monkeypatch.setattr(metrics, "EVERY", 0)
  out = io.StringIO()
  with metrics.progress(5, 2, "train", shown=True, file=out) as bar:
    for loss in (3, 2, 1.2345):
      bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
      bar.update()
  lines = out.getvalue().split("\r")
  assert [line.split(", ")[0] for line in lines[2:5]] == [
    f"train {n}/5" for n in (3, 4, 5)
  ]
  assert "loss 1.234" in lines[4] and "00:00 left" in lines[4]


def test_progress_without_a_terminal_speaks_now_and_then():
  out = io.StringIO()
  with metrics.progress(1000, 0, "train", shown=True, file=out) as bar:
    for _ in range(1000):
      bar.update()
  assert out.getvalue().count("train") == 2  # at the start and at the end


def test_progress_of_other_processes_is_not_shown():
  out = io.StringIO()
  with metrics.progress(5, 0, "train", shown=False, file=out) as bar:
    bar.set_postfix_str("loss 1")
    bar.update()
  assert out.getvalue() == ""
