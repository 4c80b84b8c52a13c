"""Pools of worker processes, from the side of the process that uses them.

  with Pool("maths", "answer", workers=2, timeout=1.5, memory_mb=1024) as pool:
    verdicts = pool(examples, texts)

A completion whose verification exceeds the time or memory limit, or ends its
process, is wrong and counted, and the process is replaced. Completions are sent in
batches and verdicts come back one by one, as lines of JSON.

The kernel enforces the time limit: a worker arms a timer before each completion
and the timer kills it, whatever it computes and whether or not its parent lives. A
worker whose parent is gone reads the end of its input and ends.
"""

import collections
import functools
import json
import os
import pathlib
import select
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref

from opsd_jax import tasks
from opsd_jax.structs import UNVERIFIED, Verdict
from opsd_jax.tasks.pool.codec import pack
from opsd_jax.tasks.pool.worker import EXIT_OUT_OF_MEMORY

LONGEST = 500_000  # characters of a completion; longer ones are not verified
BATCH = 64  # completions sent to a worker at once, at most
START = 120.0  # seconds for a worker to start and import its task
MAX_FAILED_STARTS = 5  # in a row, of workers that a signal killed
GRACE = 5.0  # seconds after the time limit until the parent kills a worker


class Worker:
  """One process, and the completions that it has not answered yet."""

  def __init__(self, task_name, privileged_field, timeout, memory_mb):
    root = pathlib.Path(__file__).parents[3]
    path = os.pathsep.join((str(root), os.environ.get("PYTHONPATH", "")))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    self.errors = tempfile.TemporaryFile()
    self.memory_mb = memory_mb
    self.process = subprocess.Popen(
      [
        sys.executable,
        "-P",
        "-c",
        "from opsd_jax.tasks.pool import worker; worker.main()",
        task_name,
        privileged_field,
        str(timeout),
        str(memory_mb),
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self.errors,
      env=os.environ | threads | {"PYTHONPATH": path.rstrip(os.pathsep)},
      start_new_session=True,
      bufsize=0,
    )
    os.set_blocking(self.process.stdin.fileno(), False)
    self.timeout, self.sent, self.rest = timeout, collections.deque(), b""
    self.is_ready, self.deadline = False, time.monotonic() + START

  def send(self, batch) -> None:
    """Sends [(index, example, text), ...]; earlier batches must be answered.

    A worker that does not read its input is killed at its deadline.
    """
    line = json.dumps([[pack(example), text] for _, example, text in batch])
    self.sent.extend(batch)
    self.extend_deadline()
    left, pipe = memoryview(line.encode() + b"\n"), self.process.stdin.fileno()
    try:
      while left and select.select([], [pipe], [], GRACE)[1]:
        left = left[os.write(pipe, left) :]
    except BrokenPipeError:
      pass  # its output ends too, which `receive` reports

  def extend_deadline(self) -> None:
    self.deadline = time.monotonic() + self.timeout + GRACE

  def receive(self) -> list | None:
    """The lines received so far; None at the end of the output."""
    data = os.read(self.process.stdout.fileno(), 1 << 16)
    if not data:
      return None
    self.extend_deadline()
    *lines, self.rest = (self.rest + data).split(b"\n")
    return [json.loads(line) for line in lines]

  def has_ended(self) -> bool:
    """Whether the process has ended; keeps its id, which `end` needs."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, self.process.pid, flags) is not None

  def end(self) -> int:
    """Kills the process and its children, waits, and returns its return code."""
    os.killpg(self.process.pid, signal.SIGKILL)
    code = self.process.wait()
    self.process.stdin.close()
    self.process.stdout.close()
    return code

  def stderr_tail(self) -> str:
    self.errors.seek(0)
    return self.errors.read()[-2000:].decode(errors="replace").strip()


class Pool:
  """Worker processes that verify completions of one task's problems.

  `timeout` is the limit of wall-clock seconds for a completion, `memory_mb` the
  address space of a worker in MiB. `timeouts` and `crashes` count the completions
  that ended a worker. Calls from several threads take turns. Raises ValueError for
  an unknown task, RuntimeError where workers cannot start.
  """

  def __init__(
    self,
    task_name: str,
    privileged_field: str,
    *,
    workers: int,
    timeout: float,
    memory_mb: int,
  ):
    for name, value in (
      ("workers", workers),
      ("timeout", timeout),
      ("memory_mb", memory_mb),
    ):
      if not value > 0:
        raise ValueError(f"{name} is {value}, expected above 0")
    tasks.open_task(task_name, privileged_field)
    self.arguments = (task_name, privileged_field, timeout, memory_mb)
    self.timeouts = self.crashes = self.failed_starts = 0
    self.lock = threading.Lock()
    self.workers = [Worker(*self.arguments) for _ in range(workers)]
    self.is_closed = False
    # Ends the workers when the pool is garbage-collected or the interpreter exits.
    weakref.finalize(self, end_all, self.workers)

  def __call__(self, examples, texts) -> list[Verdict]:
    """The verdict of each text, in order."""
    with self.lock:
      if self.is_closed:
        raise RuntimeError("this pool is closed")
      return self.verify(list(examples), list(texts))

  def verify(self, examples, texts) -> list[Verdict]:
    verdicts: list = [None] * len(texts)
    waiting = collections.deque()
    for item in zip(range(len(texts)), examples, texts, strict=True):
      if len(item[2]) > LONGEST:
        verdicts[item[0]] = too_long(item[2])
      else:
        waiting.append(item)
    size = max(1, min(BATCH, len(waiting) // (4 * len(self.workers))))
    try:
      while waiting or any(w.sent for w in self.workers):
        self.dispatch(waiting, size)
        self.collect(verdicts, waiting)
    except BaseException:
      self.abandon()
      raise
    return verdicts

  def dispatch(self, waiting, size: int) -> None:
    """Sends a batch to every idle worker; replaces one that died while idle."""
    for i, worker in enumerate(self.workers):
      if not waiting or worker.sent or not worker.is_ready:
        continue
      if worker.has_ended():
        worker.end()
        self.workers[i] = Worker(*self.arguments)
      else:
        batch, characters = [], 0
        while waiting and len(batch) < size and characters < LONGEST:
          batch.append(waiting.popleft())
          characters += len(batch[-1][2])
        worker.send(batch)

  def collect(self, verdicts, waiting) -> None:
    """Waits for verdicts, takes them, and replaces workers that ended or are late."""
    with selectors.DefaultSelector() as selector:
      for i, worker in enumerate(self.workers):
        if worker.sent or not worker.is_ready:
          selector.register(worker.process.stdout, selectors.EVENT_READ, i)
      now = time.monotonic()
      busy = [w for w in self.workers if w.sent or not w.is_ready]
      nearest = min(w.deadline for w in busy)
      ready = [key.data for key, _ in selector.select(max(0.0, nearest - now))]
    for i in ready:
      self.take(i, verdicts, waiting)
    for i, worker in enumerate(self.workers):
      is_due = worker.sent or not worker.is_ready
      if i not in ready and is_due and time.monotonic() > worker.deadline:
        self.replace_worker(i, verdicts, waiting, "took too long")

  def take(self, i: int, verdicts, waiting) -> None:
    worker = self.workers[i]
    lines = worker.receive()
    if lines is None:
      self.replace_worker(i, verdicts, waiting)
      return
    for line in lines:
      if line == "ready":
        worker.is_ready, self.failed_starts = True, 0
      elif isinstance(line, str):
        raise ValueError(line)
      else:
        index, *_ = worker.sent.popleft()
        verdicts[index] = Verdict(*line)

  def replace_worker(self, i: int, verdicts, waiting, reason: str = "") -> None:
    """Replaces a worker that ended or must end: the completion that it was verifying
    is wrong, and those behind it wait for another worker."""
    worker = self.workers[i]
    code = worker.end()
    self.workers[i] = Worker(*self.arguments)
    if not worker.is_ready:
      self.failed_starts += 1
      if code < 0 and not reason and self.failed_starts < MAX_FAILED_STARTS:
        return  # a signal from outside killed it: the new worker may start
      raise RuntimeError(
        f"a worker of {self.arguments[0]} did not start (return code {code}):"
        f" {worker.stderr_tail() or reason or 'it wrote no error'}"
      )
    if not worker.sent:
      return
    index, *_ = worker.sent.popleft()
    if reason or code == -signal.SIGALRM:
      self.timeouts += 1
      feedback = f"{UNVERIFIED} within {worker.timeout} s"
      feedback += ", nor ended by its timer" if reason else ""
    else:
      self.crashes += 1
      feedback = f"{UNVERIFIED}: the verifier died (return code {code})"
      if code == EXIT_OUT_OF_MEMORY:
        feedback = f"{UNVERIFIED} within {worker.memory_mb} MiB"
    verdicts[index] = Verdict(0.0, None, feedback)
    waiting.extendleft(reversed(worker.sent))

  def abandon(self) -> None:
    """Replaces the busy workers after an error, so that no later call reads their
    verdicts."""
    for i, worker in enumerate(self.workers):
      if worker.sent:
        worker.end()
        self.workers[i] = Worker(*self.arguments)

  def close(self) -> None:
    """Ends every worker; safe to call twice."""
    with self.lock:
      self.is_closed = True
      end_all(self.workers)

  def __enter__(self):
    return self

  def __exit__(self, *exc):
    self.close()


@functools.cache
def shared(task_name, privileged_field, *, workers, timeout, memory_mb) -> Pool:
  """The pool with these settings, shared by all runs of this process."""
  return Pool(
    task_name, privileged_field, workers=workers, timeout=timeout, memory_mb=memory_mb
  )


def end_all(workers: list) -> None:
  while workers:
    workers.pop().end()


def too_long(text: str) -> Verdict:
  return Verdict(
    0.0, None, f"{UNVERIFIED}: {len(text)} characters, the limit is {LONGEST}"
  )
