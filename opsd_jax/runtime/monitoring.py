"""Compilations, counted and reported, and profiler traces of some steps."""

import collections
import contextlib
import functools
import pathlib
import shutil
import sys
import tempfile

import jax
from tqdm import tqdm

from opsd_jax.runtime import distributed, paths

SLOW = 0.5  # seconds; faster compilations are counted, not printed
LINES = 50  # printed by a process in all; further compilations are only counted


class Compiles:
  """Counts the programs that this process compiles, and prints the slow ones.

  Programs read from the cache on disk are counted too, and always printed, as only
  slow ones are kept there. `count` and `seconds` sum over all programs so far.
  """

  def __init__(self):
    self.count, self.seconds, self.printed, self.cached = 0, 0.0, 0, False
    self.variants = collections.Counter()

  def on_event(self, event: str, **_) -> None:
    if event == "/jax/compilation_cache/cache_hits":
      self.cached = True  # the program whose duration comes next

  def on_duration(self, event: str, seconds: float, **details) -> None:
    if event != "/jax/core/compile/backend_compile_duration":
      return
    cached, self.cached = self.cached, False
    name = details.get("fun_name", "a program")
    self.count, self.seconds = self.count + 1, self.seconds + seconds
    self.variants[name] += 1
    if cached or seconds >= SLOW:
      origin = "read from the cache" if cached else "compiled"
      self.print(f"{name} #{self.variants[name]} {origin} in {seconds:.1f} s")

  def print(self, line: str) -> None:
    """Prints a line above the progress bar, if any."""
    self.printed += 1
    if self.printed > LINES or not distributed.is_first():
      return
    if self.printed == LINES:
      line += "; further ones are counted in metrics.jsonl"
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def keep_compiled(directory: str) -> None:
  """Caches slow compilations in this directory; "" caches none."""
  if not directory:
    return
  path = pathlib.Path(directory).expanduser()
  jax.config.update("jax_compilation_cache_dir", str(path))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", SLOW)


@functools.cache
def compiles() -> Compiles:
  """The counter of this process, which counts from the first call on."""
  counted = Compiles()
  jax.monitoring.register_event_listener(counted.on_event)
  jax.monitoring.register_event_duration_secs_listener(counted.on_duration)
  return counted


class Profiler:
  """Writes a trace of steps [start, start + steps), for TensorBoard and XProf.

  Only process 0 writes. A context manager, so that an error ends and writes the
  trace too.
  """

  def __init__(self, directory, start: int, steps: int):
    self.directory, self.running = directory, False
    self.window = range(start, start + steps * distributed.is_first())
    self.step = contextlib.ExitStack()

  def begin_step(self, step: int, updates: int = 1) -> None:
    """Marks the beginning of `updates` steps on one batch and the end of those
    before."""
    self.step.close()
    inside = bool({*range(step, step + updates)} & {*self.window})
    if not self.running and inside:
      self.begin()
    elif self.running and not inside:
      self.end()
    if self.running:
      self.step.enter_context(jax.profiler.StepTraceAnnotation("train", step_num=step))

  def begin(self) -> None:
    # The profiler cannot write to an object store.
    remote = paths.is_remote(self.directory)
    self.local = tempfile.mkdtemp() if remote else str(self.directory)
    jax.profiler.start_trace(self.local)
    self.running = True

  def end(self) -> None:
    self.running = False
    jax.profiler.stop_trace()
    if paths.is_remote(self.directory):
      upload(pathlib.Path(self.local), self.directory)

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.step.close()
    if self.running:
      self.end()


def upload(local: pathlib.Path, target) -> None:
  """Moves a directory with all its files."""
  for path in [p for p in local.rglob("*") if p.is_file()]:
    copy = target / path.relative_to(local).as_posix()
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(path.read_bytes())
  shutil.rmtree(local)
