"""What a run records, by hand; what a kill leaves; what a person sees."""

import io
import json
import os

import numpy as np
import pytest
from etils.epath import backend, gpath

from configs import opsd
from opsd_jax.reporting import console, plots, step_metrics
from opsd_jax.runtime import metrics, paths
from opsd_jax.runtime import workdir as workdirs
from opsd_jax.structs import Batch, Completion, ResponseTokens, Rollout, TokenStats

# Two rows of three tokens, the second of one; nothing masked is 0 here, as if
# a mask had been forgotten.
MASK = np.array([[1.0, 1, 1], [1, 0, 0]], np.float32)


def stats_of(targets=("teacher",)):
  def rows(*two):
    return np.array(two, np.float32)

  return TokenStats(
    rows([-1, -2, -3], [-2, 9, 9]),
    rows([-1, -2, -3], [-2.5, 9, 9]),
    rows([1, 1, 1], [2, 9, 9]),
    {"distill": rows([0.1, 0.2, 0.3], [0.6, 9, 9])},
    {name: rows([-1, -1, -1], [-1, 9, 9]) for name in targets},
    {name: rows([0, 0, 0], [1, 9, 9]) for name in targets},
    {"distill": rows([0, 0.5, 0], [0.5, 9, 9])},
  )


def batch_of(mask=MASK, sampler=((-1, -2, -3), (-2, 0, 0))):
  index = np.broadcast_to(np.arange(3), (2, 3))
  sampler = np.array(sampler, np.float32)
  weights = {"distill": np.array([[1, 0, 1], [0, 9, 9]], np.float32)}
  return Batch((), ResponseTokens(None, mask, index, None, None, sampler, weights))


def rollout(logp=(), truncated=False, ids=(1,)):
  return Rollout(None, Completion("", ids, logp, truncated, logp), ())


def test_without_a_teacher_nothing_is_said_of_it():
  row = step_metrics.of_step(0.3, 2.0, stats_of(()), batch_of(), [rollout()] * 2)
  assert not [k for k in row if k.startswith("teacher")]


def test_a_step_in_numbers():
  row = step_metrics.of_step(
    0.3, 2.0, stats_of(), batch_of(), [rollout(), rollout(truncated=True)]
  )
  assert row == pytest.approx(
    {
      "loss": 0.3,
      "grad_norm": 2.0,
      "non_finite": 0,
      "distill/value": 0.3,  # (0.1 + 0.2 + 0.3 + 0.6) / 4
      "distill/first_token": 0.35,  # (0.1 + 0.6) / 2
      "distill/clipped": 0.25,
      "distill/weight": 0.5,
      "student/nll": 2.0,
      "student/entropy": 1.25,
      "teacher/nll": 1.0,
      "teacher/nll_gap": -1.0,
      "teacher/entropy": 0.25,
      "response_tokens": 4,
      "truncated": 0.5,
      "empty": 0,
      "sampler/logp_gap": 0.5,
    }
  )
  assert json.loads(json.dumps(row)) == row


def test_the_gap_needs_a_sampler():
  row = step_metrics.of_step(
    0.3, 2.0, stats_of(), batch_of(), [rollout(), rollout(logp=None)]
  )
  assert "sampler/logp_gap" not in row


@pytest.mark.parametrize("loss,norm", [(np.nan, 1.0), (1.0, np.inf), (np.inf, np.nan)])
def test_what_is_not_finite_is_counted(loss, norm):
  row = step_metrics.of_step(loss, norm, stats_of(), batch_of(), [rollout()] * 2)
  assert row["non_finite"] == 1


def test_empty_responses_are_counted_and_divide_nothing():
  row = step_metrics.of_step(
    0.3,
    2.0,
    stats_of(),
    batch_of(np.float32([[0, 0, 0], [1, 0, 0]])),
    [rollout(ids=()), rollout()],
  )
  assert row["empty"] == 1 and row["response_tokens"] == 1
  assert row["distill/first_token"] == pytest.approx(0.6)
  row = step_metrics.of_step(
    0.0, 0.0, stats_of(), batch_of(np.zeros((2, 3))), [rollout(ids=())] * 2
  )
  assert row["empty"] == 2 and row["distill/value"] == 0
  assert np.isfinite(list(row.values())).all()


# ---------------------------------------------------------------- Writer


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
  writer.write(1, {"loss": float("nan")})
  assert np.isnan(writer.rows()[0]["loss"])


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

  def at(self, path) -> str:
    return os.path.join(self.root, os.fspath(path).removeprefix("gs://"))

  def open(self, path, mode):
    if "a" in mode:
      raise OSError(f"{path}: an object cannot be appended to")
    if "w" in mode:
      self.written.append(os.path.basename(path))
      os.makedirs(os.path.dirname(self.at(path)), exist_ok=True)
    return super().open(self.at(path), mode)

  def exists(self, path):
    return super().exists(self.at(path))

  def mkdir(self, path, **how):
    pass  # there are no directories

  def makedirs(self, path, **how):
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


def test_a_store_that_cannot_be_reached_says_which_package_is_missing():
  pytest.importorskip("fsspec")
  with pytest.raises(ValueError, match="pip install gcsfs"):
    paths.open_workdir("gs://bucket/run")
  with pytest.raises(ValueError, match="no known store.*gs://bucket/path"):
    paths.open_workdir("ftp://host/run")


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


def terminal(monkeypatch, is_one=True):
  monkeypatch.delenv("NO_COLOR", raising=False)
  monkeypatch.setattr(metrics.sys.stdout, "isatty", lambda: is_one)


def test_without_a_terminal_or_colours_a_token_shows_its_number(monkeypatch):
  terminal(monkeypatch, False)
  assert console.coloured(["a", "\n"], [0.0, 1.256]) == r"'a'(0.00) '\n'(1.26)"
  terminal(monkeypatch)
  monkeypatch.setenv("NO_COLOR", "1")
  assert console.coloured(["a"], [0.5]) == "'a'(0.50)"


@pytest.mark.parametrize(
  "kl,shade",
  [
    (0.0, 255),
    (-0.1, 255),
    (0.28, 255),
    (0.3, 229),
    (1.0, 215),
    (1.99, 196),
    (2.0, 196),
    (50.0, 196),
  ],
)
def test_on_a_terminal_a_token_goes_from_white_to_red(kl, shade, monkeypatch):
  terminal(monkeypatch)
  assert console.coloured(["tok"], [kl]) == f"\x1b[30;48;5;{shade}mtok\x1b[0m"


# --------------------------------------------------------------- picture


def test_the_picture_shows_every_row(tmp_path):
  def evaluation(step, accuracy):
    return {
      "step": step,
      "eval/drift": step / 100,
      **{
        f"eval/{name}{end}": accuracy + d
        for name in ("accuracy", "sampled_accuracy")
        for end, d in (("", 0), ("_ci_low", -0.1), ("_ci_high", 0.1))
      },
    }

  rows = [
    evaluation(0, 0.2),
    {"step": 1, "loss": 0.9},
    {"step": 2, "loss": 0.4},
    evaluation(2, 0.8),
  ]
  summary = {"accuracy_teacher": 0.9, "accuracy_base": 0.2}
  figure = plots.training(rows, summary, tmp_path / "summary.png")
  data = (tmp_path / "summary.png").read_bytes()
  assert data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) > 10_000
  accuracy, loss, drift = figure.axes

  def points(line):
    return np.transpose(line.get_data()).tolist()

  assert points(accuracy.lines[0]) == [[0, 0.2], [2, 0.8]]
  assert points(loss.lines[0]) == [[1, 0.9], [2, 0.4]]
  assert points(drift.lines[0]) == [[0, 0.0], [2, 0.02]]
  labels = [t.get_text() for t in accuracy.get_legend().get_texts()]
  assert labels == ["student, greedy", "student, sampled", "privileged teacher", "base"]
  assert all(axis.get_xlabel() == "step" for axis in figure.axes)
  assert all(axis.get_ylabel() for axis in figure.axes)
