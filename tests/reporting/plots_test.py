"""The picture of a run shows its rows."""

import numpy as np

from opsd_jax.reporting import plots


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
