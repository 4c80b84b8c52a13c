"""What is compiled is counted and said; a trace holds the parts of a step."""

import io
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from configs import opsd
from opsd_jax import setup
from opsd_jax.runtime import monitoring

ROOT = pathlib.Path(__file__).parents[2]
SCOPES = ("rollout", "teacher", "student", "loss", "optimizer")


def test_programs_are_counted_once_a_variant():
  f, x = jax.jit(lambda x: x * 3 + 1), jnp.ones(7)
  before = monitoring.compiles().count
  f(x), f(x + 0)
  once = monitoring.compiles().count
  f(jnp.ones(11))
  assert once - before in (1, 2)  # with the eager sum
  assert monitoring.compiles().count - once in (1, 2)  # with the eager ones
  before = monitoring.compiles().count
  f(x), f(jnp.ones(11))
  assert monitoring.compiles().count == before


def told(monkeypatch, capsys, *events):
  """What a new counter says of (seconds, in the cache)."""
  monkeypatch.setattr(monitoring, "LINES", 3)
  compiles = monitoring.Compiles()
  for seconds, cached in events:
    if cached:
      compiles.on_event("/jax/compilation_cache/cache_hits")
    compiles.on_event("/jax/compilation_cache/other")
    compiles.on_duration("/jax/core/compile/jaxpr_trace_duration", 9.0)
    compiles.on_duration(
      "/jax/core/compile/backend_compile_duration", seconds, fun_name="f"
    )
  return compiles, capsys.readouterr().out.splitlines()


def test_slow_and_cached_programs_are_said(monkeypatch, capsys):
  compiles, lines = told(monkeypatch, capsys, (0.1, False), (2.0, False), (0.1, True))
  assert lines == ["f #2 compiled in 2.0 s", "f #3 read from the cache in 0.1 s"]
  assert compiles.count == 3 and compiles.seconds == pytest.approx(2.2)


def test_lines_are_bounded(monkeypatch, capsys):
  compiles, lines = told(monkeypatch, capsys, *[(1.0, False)] * 5)
  assert len(lines) == 3 and "counted in metrics.jsonl" in lines[-1]
  assert compiles.count == 5


def test_jax_tells_what_came_from_its_cache(tmp_path):
  """The events have the names that we listen to."""
  code = (
    "import jax\n"
    "from opsd_jax.runtime import monitoring\n"
    "monitoring.SLOW = 0\n"
    "monitoring.compiles()\n"
    "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
    "jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)\n"
    "jax.jit(lambda x: x + 1)(2.0)\n"
  )
  env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
  env["JAX_PLATFORMS"] = "cpu"

  def run():
    return subprocess.run(
      [sys.executable, "-c", code],
      capture_output=True,
      text=True,
      env=env,
      check=True,
      cwd=pathlib.Path(__file__).parents[2],
    ).stdout

  assert "(<lambda>) #1 compiled in" in run()
  assert "(<lambda>) #1 read from the cache in" in run()


# A process of its own: jax's profiler crashes where libtpu has been loaded to
# compile for TPUs, as other tests do.
PROGRAM = """
import pathlib, sys
import jax, pytest
from configs import opsd
from opsd_jax import train

config = opsd.get_config("tiny")
config.compile_cache, config.log.tensorboard = "", False
config.profile.start, config.profile.steps = 1, 2
config.eval.samples, config.eval.max_new_tokens = 0, 1
config.steps = config.eval.every = 3

def full(manager, *saved):
  raise OSError("no space left")

train.checkpoint.save = full
with pytest.raises(OSError, match="no space"):
  train.train_and_evaluate(config, sys.argv[1])
jax.profiler.start_trace(sys.argv[1] + "/another")  # none is running
jax.profiler.stop_trace()
"""


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
  """The workdir of a run that fails while its step 1 is traced."""
  workdir = tmp_path_factory.mktemp("traced")
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, str(workdir)],
    cwd=ROOT,
    text=True,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    capture_output=True,
  )
  assert done.returncode == 0, done.stderr
  return workdir


def test_an_error_ends_the_trace(traced):
  (path,) = traced.glob("profile/**/*.xplane.pb")
  names = {
    event.name
    for plane in ProfileData.from_file(str(path)).planes
    for line in plane.lines
    for event in line.events
  }
  assert any("train_step" in name for name in names)
  assert list(traced.glob("another/**/*.xplane.pb"))


@pytest.mark.parametrize("scope", SCOPES)
def test_a_trace_names_the_parts_of_a_step(traced, scope):
  (path,) = traced.glob("profile/**/*.xplane.pb")
  programs = path.read_bytes()  # with the operations' names
  assert any(f"/{name}/".encode() in programs for name in (scope, f"jvp({scope})"))


def test_rows_count_programs(traced):
  rows = [json.loads(line) for line in (traced / "metrics.jsonl").open()]
  counts = [row["compiles"] for row in rows if "compiles" in row]
  assert len(counts) == 2
  assert counts[0] > 0 and counts[1] < counts[0]


def test_steps_outside_the_window_are_not_traced(tmp_path, monkeypatch):
  log = io.StringIO()
  monkeypatch.setattr(jax.profiler, "start_trace", lambda _: print("begin", file=log))
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: print("end", file=log))
  with monitoring.Profiler(tmp_path, start=2, steps=2) as profiler:
    for step in range(6):
      profiler.begin_step(step)
      print(step, file=log)
  assert log.getvalue().split() == "0 1 begin 2 3 end 4 5".split()
  with monitoring.Profiler(tmp_path, start=0, steps=0) as profiler:
    profiler.begin_step(0)
  assert log.getvalue().count("begin") == 1


def test_a_trace_reaches_an_object_store(tmp_path, monkeypatch):
  from etils import epath

  written = []  # by a profiler that can only write to a disk

  def begin(directory):
    written.append(pathlib.Path(directory, "plugins", "a.xplane.pb"))

  def end():
    written[0].parent.mkdir()
    written[0].write_bytes(b"trace")

  monkeypatch.setattr(jax.profiler, "start_trace", begin)
  monkeypatch.setattr(jax.profiler, "stop_trace", end)
  monkeypatch.setattr(monitoring.paths, "is_remote", lambda path: True)
  with monitoring.Profiler(epath.Path(tmp_path / "store"), 0, 1) as profiler:
    profiler.begin_step(0)
  there = tmp_path / "store" / "plugins" / "a.xplane.pb"
  assert there.read_bytes() == b"trace"
  assert not os.path.exists(profiler.local)


@pytest.mark.parametrize("field", ["start", "steps"])
def test_a_negative_window_is_refused(field):
  config = opsd.get_config("tiny")
  config.profile[field] = -1
  with pytest.raises(ValueError, match=f"profile.{field} is -1, expected at"):
    setup.validate(config)
