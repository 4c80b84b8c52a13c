"""What the machine is at: programs compiled, a trace of some steps."""

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

SLOW = 0.5  # seconds; what compiles faster is counted, not said
LINES = 50  # said of a process in all; every further one is counted


class Compiles:
  """Counts the programs that this process compiles, and says which were slow.

  A program that the cache on disk had is counted too, and always said: only
  slow ones are kept there. `count` and `seconds` are of all programs so far.
  """

  def __init__(self):
    self.count, self.seconds, self.said, self.cached = 0, 0.0, 0, False
    self.variants = collections.Counter()

  def on_event(self, event: str, **_) -> None:
    if event == "/jax/compilation_cache/cache_hits":
      self.cached = True  # the program whose duration comes next

  def on_duration(self, event: str, seconds: float, **about) -> None:
    if event != "/jax/core/compile/backend_compile_duration":
      return
    cached, self.cached = self.cached, False
    name = about.get("fun_name", "a program")
    self.count, self.seconds = self.count + 1, self.seconds + seconds
    self.variants[name] += 1
    if cached or seconds >= SLOW:
      origin = "read from the cache" if cached else "compiled"
      self.say(f"{name} #{self.variants[name]} {origin} in {seconds:.1f} s")

  def say(self, line: str) -> None:
    """Prints above the progress bar, where there is one."""
    self.said += 1
    if self.said > LINES or not distributed.is_first():
      return
    if self.said == LINES:
      line += "; further ones are counted in metrics.jsonl"
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def keep_compiled(directory: str) -> None:
  """Programs that are slow to compile are kept there; "": nowhere."""
  if not directory:
    return
  path = pathlib.Path(directory).expanduser()
  jax.config.update("jax_compilation_cache_dir", str(path))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", SLOW)


@functools.cache
def compiles() -> Compiles:
  """Those of this process, from the first call on."""
  counted = Compiles()
  jax.monitoring.register_event_listener(counted.on_event)
  jax.monitoring.register_event_duration_secs_listener(counted.on_duration)
  return counted


class Profiler:
  """Writes a trace of steps [start, start + steps), for TensorBoard and XProf.

  Process 0 writes; 0 steps are none. A context, so that a trace is ended and
  written on an error too.
  """

  def __init__(self, directory, start: int, steps: int):
    self.directory, self.running = directory, False
    self.window = range(start, start + steps * distributed.is_first())
    self.step = contextlib.ExitStack()

  def begin_step(self, step: int) -> None:
    """Says that this step begins; the work of the one before is done."""
    self.step.close()
    if not self.running and step in self.window:
      self.begin()
    elif self.running and step not in self.window:
      self.end()
    if self.running:
      self.step.enter_context(jax.profiler.StepTraceAnnotation("train", step_num=step))

  def begin(self) -> None:
    # The profiler knows no object store.
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


def upload(local: pathlib.Path, to) -> None:
  """Moves a directory and all below it."""
  for path in [p for p in local.rglob("*") if p.is_file()]:
    there = to / path.relative_to(local).as_posix()
    there.parent.mkdir(parents=True, exist_ok=True)
    there.write_bytes(path.read_bytes())
  shutil.rmtree(local)
