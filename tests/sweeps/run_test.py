"""Grids, names, what is run again and what is not; the notebook."""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import opsd
from opsd_jax import train
from opsd_jax.reporting import plots
from opsd_jax.runtime import metrics
from opsd_jax.runtime import workdir as workdirs
from opsd_jax.sweeps import grid as grids
from opsd_jax.sweeps import run as sweep
from opsd_jax.sweeps.run import grid, plot, run
from tests.holding import held

ROOT = pathlib.Path(__file__).parents[2]
TINY = "configs/opsd.py:tiny"
SEEDS = {"log.tensorboard": [False], "seed": [0, 1]}


def lasting(table):
  """A table without what differs from place to place and time to time."""
  return table.drop(columns=["workdir", "seconds"])


def same(a, b):
  pd.testing.assert_frame_equal(lasting(a), lasting(b))


@pytest.fixture
def trained(monkeypatch):
  """Stands in for training; lists the workdirs that were trained in."""
  seen = []

  def stand_in(config, workdir):
    seen.append(workdir.name)
    workdirs.write_config(config, workdir)
    if config.steps > 10:
      raise FloatingPointError("3 steps in a row were not finite")
    rows = [{"step": s, "loss": config.seed + s} for s in range(config.steps)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (workdir / "metrics.jsonl").write_text(text)
    summary = {"steps": config.steps, "drift": float(config.seed)}
    (workdir / "summary.json").write_text(json.dumps(summary))
    print("trained", config.seed)

  monkeypatch.setattr(train, "train_and_evaluate", stand_in)
  return seen


# --------------------------------------------------------------------- grid


def test_a_grid_is_every_combination_in_order():
  axes = {
    ("teacher.name", "teacher.rate"): [("ema", 0.1), ("live", 0)],
    "seed": range(2),
  }
  cells = grid(TINY, axes)
  held = [(c.config.teacher.name, c.config.teacher.rate, c.config.seed) for c in cells]
  assert held == [("ema", 0.1, 0), ("ema", 0.1, 1), ("live", 0.0, 0), ("live", 0.0, 1)]
  assert cells[3].overrides == {"teacher.name": "live", "teacher.rate": 0.0, "seed": 1}
  assert cells[3].config.steps == 4 and cells[3].config.is_locked


def test_a_config_is_not_changed_by_its_grid():
  config = opsd.get_config("tiny")
  cells = grid(config, {"seed": np.arange(3), "loss.temperature": [2]})
  assert config == opsd.get_config("tiny")
  assert [type(c.overrides["seed"]) for c in cells] == [int] * 3
  assert type(cells[0].config.loss.temperature) is float


@pytest.mark.parametrize(
  "name,value,words",
  [
    ("teacher.nam", "ema", "'teacher.nam'.*'teacher.name'"),
    ("teacher", "ema", "unknown config field 'teacher'"),
    ("seed", "1", "seed is '1', expected int"),
    ("seed", True, "seed is True, expected int"),
    ("seed", 0.5, "seed is 0.5, expected int"),
    ("teacher.name", None, "teacher.name is None, expected str"),
    ("rollout.stop", "a", "rollout.stop is 'a', expected tuple"),
    ("seed", np.arange(2), "expected int"),
    ("batch.mask_truncated", "no", "expected bool"),
  ],
)
def test_a_bad_override_is_a_cell_of_its_own(name, value, words):
  bad, good = (*grid(TINY, {name: [value]}), *grid(TINY, {"seed": [1]}))
  assert bad.config is None and good.error is None
  with pytest.raises(ValueError, match=words):
    raise ValueError(bad.error)
  with pytest.raises(ValueError, match=words):
    bad.command("w")


@pytest.mark.parametrize(
  "config,axes,words",
  [
    (TINY, {"teacher.name": "ema"}, "'ema', expected a list"),
    (TINY, {"seed": 3}, "expected a list"),
    (TINY, {"seed": []}, "no values"),
    (TINY, {("seed", "steps"): [(1, 2, 3)]}, "tuples of 2"),
    (TINY, {("seed", "steps"): [(1, 2)], "seed": [1]}, "twice"),
    (TINY, {3: [1]}, "a field's name"),
    ("configs/opsd.py:tiny_", {}, "known presets"),
    ("configs/no.py", {}, "no file 'configs/no.py'"),
    ("", {}, "no file"),
    (None, {}, "None, expected a ConfigDict"),
    ("README.md", {}, "'README.md' cannot be read"),
  ],
)
def test_what_is_no_grid_at_all(config, axes, words):
  with pytest.raises(ValueError, match=words):
    grid(config, axes)


@pytest.mark.parametrize("as_string", [True, False])
def test_a_command_says_the_cells_config(as_string):
  axes = {
    "rollout.stop": [("a b", "c"), ()],
    "optimizer.learning_rate": [1e-5],
    "context.student_args": ["enable_thinking=false"],
    "loss.chunk": [7],
    "model.source": ["it's a $HOME"],
  }
  for cell in grid(TINY if as_string else opsd.get_config("tiny"), axes):
    *start, config, overrides, workdir = split(cell.command("runs/s"))
    assert start == ["python", "-m", "experiments.train"]
    assert workdir == f"--workdir=runs/s/{cell.name}"
    assert grids.read(config, *overrides) == cell.config


def split(command):
  *start, workdir = shlex.split(command)
  return *start[:3], start[3].removeprefix("--config="), start[4:], workdir


def test_what_no_command_can_say():
  config = opsd.get_config("tiny")
  with config.unlocked():
    config.mine = 1
  with pytest.raises(ValueError, match=r"\['mine'\].*config string"):
    grid(config, {"seed": [0]})[0].command("w")


# -------------------------------------------------------------------- names


def test_names_are_readable_and_do_not_know_the_order():
  name = "opsd.tiny,seed=0,teacher.name=top_k,teacher.rate=1e-05"
  axes = {"teacher.rate": 1e-5, "teacher.name": "top_k", "seed": 0}
  assert grids.name_of(TINY, axes) == name
  assert grids.name_of(TINY, dict(sorted(axes.items()))) == name
  assert grids.name_of(None, {}) == "no-override"
  assert grids.name_of(None, {"model.source": "Qwen/Qwen3-8B"}).startswith(
    "model.source=Qwen-Qwen3-8B~"
  )


@pytest.mark.parametrize(
  "one,other",
  [
    ("ema", "Ema"),
    ("a/b", "a-b"),
    ("1", 1),
    ("true", True),
    (1, 1.0),
    ("x" * 200, "x" * 201),
    ("a,b=1", "a-b=1"),
    ((1, 2), "[1, 2]"),
    ("", " "),
    ("a", "a."),
    (float("nan"), "nan"),
    ("ü", "ö"),
  ],
)
def test_values_that_could_collide_do_not(one, other):
  a, b = (grids.name_of(TINY, {"field": x}).lower() for x in (one, other))
  assert a != b


VALUES = st.one_of(
  st.text("aA0=,.-_/ ", max_size=6),
  st.text(max_size=200),
  st.booleans(),
  st.integers(-3, 3),
  st.floats(width=16),
  st.none(),
  st.just("true"),
  st.lists(st.integers(0, 2), max_size=2).map(tuple),
  st.just("1"),
)
FIELDS = st.sampled_from(["a", "a.b", "b", "A", "a=1,b", "x y"])
SETTINGS = st.tuples(
  st.sampled_from(
    [
      None,
      TINY,
      "configs/opsd.py",
      "configs/opsd.py:Tiny",
      "more/configs/opsd.py",
      "configs/a=b.py:c,a=1",
    ]
  ),
  st.dictionaries(FIELDS, VALUES, max_size=3),
)


@given(settings=st.lists(SETTINGS, min_size=2, max_size=12))
def test_names_are_safe_and_do_not_collide(settings):
  whole = {
    json.dumps([source, sorted(o.items())]): grids.name_of(source, o).lower()
    for source, o in settings
  }
  assert len(set(whole.values())) == len(whole)
  for name in whole.values():
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.,=+-~")
    assert name[0] not in ".-~" and len(name) < 140


# ---------------------------------------------------------------------- run


def test_a_second_run_trains_nothing(trained, tmp_path):
  cells = grid(TINY, {"seed": range(3)})
  assert set(sweep.table(cells, tmp_path).status) == {"missing"}
  first = run(cells, tmp_path)
  assert trained == [c.name for c in cells] == list(first.index)
  assert list(first.status) == ["finished"] * 3
  assert list(first.drift) == [0.0, 1.0, 2.0] == list(first.seed)
  log = tmp_path / cells[1].name / "log.txt"
  assert log.read_text() == "trained 1\n"
  pd.testing.assert_frame_equal(run(cells, tmp_path), first)
  pd.testing.assert_frame_equal(sweep.table(cells, tmp_path), first)
  assert len(trained) == 3
  run(grid(TINY, {"seed": range(4)}), tmp_path)
  assert len(trained) == 4


def test_what_fails_fails_alone(trained, tmp_path):
  axes = {("steps", "seed"): [(2, 0), (99, 0), ("2", 0), (2, 1)]}
  cells = [*grid(TINY, axes), *grid(TINY, {"teacher.nam": ["ema"]})]
  table = run(cells, tmp_path)
  assert list(table.status) == ["finished", "failed", "failed", "finished", "failed"]
  assert table.error.iloc[1].startswith("FloatingPointError: 3 steps")
  assert "expected int" in table.error.iloc[2]
  assert "unknown config field" in table.error.iloc[4]
  assert table.drift.isna().tolist() == [False, True, True, False, True]
  assert "Traceback" in (tmp_path / cells[1].name / "log.txt").read_text()
  run(cells, tmp_path)  # what failed is tried again
  assert [c.name for c in cells[:2]] + [cells[3].name, cells[1].name] == trained


def test_a_directory_of_another_config_is_left_alone(trained, tmp_path):
  cell, other = grid(TINY, {"seed": [0, 1]})
  run([cell], tmp_path)
  (tmp_path / cell.name).rename(tmp_path / other.name)
  row = run([other], tmp_path).iloc[0]
  assert row.status == "failed" and "seed: 0 there, 1 now" in row.error
  assert len(trained) == 1


@pytest.mark.parametrize("text", ["", '{"steps": '])
def test_a_torn_summary_is_not_finished(trained, text, tmp_path):
  cells = grid(TINY, {"seed": [0]})
  whole = run(cells, tmp_path)
  (tmp_path / cells[0].name / "summary.json").write_text(text)
  assert sweep.table(cells, tmp_path).status.item() == "started"
  pd.testing.assert_frame_equal(run(cells, tmp_path), whole)
  assert len(trained) == 2


def test_cells_of_one_name_are_refused(trained, tmp_path):
  with pytest.raises(ValueError, match="two cells are named 'seed=0'"):
    run(
      grid(opsd.get_config(), {"seed": [0]})
      + grid(opsd.get_config("tiny"), {"seed": [0]}),
      tmp_path,
    )
  both = run(
    grid("configs/sft.py:tiny", {"seed": [0]}) + grid(TINY, {"seed": [0]}), tmp_path
  )
  assert list(both.config) == ["configs/sft.py:tiny", TINY]
  assert len(trained) == 2


def test_a_cell_of_another_process_is_waited_for(trained, tmp_path, monkeypatch):
  cells = grid(TINY, {"seed": range(3)})
  with held(tmp_path / ".locks" / cells[0].name) as other:
    attempt = sweep.attempt

    def and_kill_the_other(cell, workdir):
      if cell is cells[2]:
        other.kill()  # its lock goes with it
      return attempt(cell, workdir)

    monkeypatch.setattr(sweep, "attempt", and_kill_the_other)
    table = run(cells, tmp_path)
  assert trained == [cells[i].name for i in (1, 2, 0)]
  assert list(table.seed) == [0, 1, 2]
  assert set(table.status) == {"finished"}


# --------------------------------------------------------------------- plot


def test_a_line_a_setting_and_a_band_over_its_seeds(trained, tmp_path):
  table = run(grid(TINY, {"steps": [3, 2], "seed": [0, 2]}), tmp_path)
  (tmp_path / table.index[0] / "metrics.jsonl").open("a").write('{"torn')
  panels = [("loss", "Loss", "nats")]
  for what in (table, tmp_path):
    (axis,) = plot(what, panels).axes
    lines = {line.get_label(): line for line in axis.lines}
    assert set(lines) == {"steps=3 (2)", "steps=2 (2)"}
    line = lines["steps=3 (2)"]
    assert list(line.get_xdata()) == [0, 1, 2]
    assert list(line.get_ydata()) == [1, 2, 3]  # of seeds 0 and 2
    heights = {
      tuple(b.get_datalim(axis.transData).get_points()[:, 1]) for b in axis.collections
    }
    assert heights == {(0.0, 4.0), (0.0, 3.0)}
  (axis,) = plot(table[table.steps == 2], panels).axes
  assert [line.get_label() for line in axis.lines] == ["all (2)"]


def test_seeds_are_compared_where_all_have_been():
  ahead, behind = {1: 2.0, 2: 4.0, 4: 9.0}, {2: 8.0, 1: 0.0}
  steps, mean, low, high = plots.band([ahead, behind])
  assert steps == [1, 2]
  np.testing.assert_array_equal([mean, low, high], [[1, 6], [0, 4], [2, 8]])


def test_nothing_to_plot(tmp_path):
  for path in (tmp_path, tmp_path / "nowhere"):
    with pytest.raises(ValueError, match="no run has been|does not exist"):
      plot(path)


# --------------------------------------------------------------- real cells


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  return run(grid(TINY, SEEDS), tmp_path_factory.mktemp("whole"))


def test_interrupted_in_a_cell_and_run_again(whole, tmp_path, monkeypatch):
  cells, write = grid(TINY, SEEDS), metrics.Writer.write

  def interrupted(self, step, row):
    if cells[1].name in str(self.path) and step == 3:
      raise KeyboardInterrupt
    write(self, step, row)

  with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
    m.setattr(metrics.Writer, "write", interrupted)
    run(cells, tmp_path)
  assert list(sweep.table(cells, tmp_path).status) == ["finished", "started"]
  table = run(cells, tmp_path)
  log = (tmp_path / cells[1].name / "log.txt").read_text()
  assert "resumed at step 2" in log
  same(table, whole)
  assert table.drift.iloc[0] != table.drift.iloc[1] > 0


def test_a_command_makes_the_cells_summary(whole, tmp_path, monkeypatch):
  cells = grid(TINY, SEEDS)
  command = shlex.split(cells[1].command(tmp_path))
  flags = f"{os.environ['XLA_FLAGS']} {os.environ['FAST_COMPILATION']}"
  subprocess.run(
    [sys.executable, *command[1:]],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": flags},
    check=True,
    capture_output=True,
  )
  calls = []
  monkeypatch.setattr(train, "train_and_evaluate", lambda *a: calls.append(a))
  same(run(cells[1:], tmp_path), whole.iloc[1:])
  assert not calls


def test_the_notebook(tmp_path, monkeypatch):
  # One device compiles faster.
  monkeypatch.setenv("XLA_FLAGS", os.environ["FAST_COMPILATION"])
  book = nbformat.read(ROOT / "experiments" / "sweep.ipynb", 4)
  assert not any(cell.get("outputs") for cell in book.cells)
  (at,) = (
    i for i, c in enumerate(book.cells) if "parameters" in c.metadata.get("tags", ())
  )
  given = f"CONFIG, WORKDIR = {TINY!r}, {str(tmp_path)!r}"
  book.cells.insert(at + 1, nbformat.v4.new_code_cell(given))
  resources = {"metadata": {"path": str(ROOT / "experiments")}}
  nbclient.NotebookClient(book, timeout=300, resources=resources).execute()
  kinds = {k for out in book.cells[-1].outputs for k in out.get("data", ())}
  assert "image/png" in kinds
  assert len(list(tmp_path.glob("opsd.tiny,*/summary.json"))) == 4
