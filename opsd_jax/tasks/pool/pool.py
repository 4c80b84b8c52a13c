"""Worker processes, seen from the process that asks them.

  with Pool("maths", "answer", workers=2, timeout=1.5, memory_mb=1024) as pool:
    verdicts = pool(examples, texts)

A reply that takes longer than its timeout, or more memory, or ends its process
is wrong, and counted; its process is replaced. Replies go out in batches and
verdicts come back one by one, as lines of JSON.

The time limit is the kernel's: a worker arms a timer before each reply and is
killed by it, whatever it is computing and whether or not its parent lives. A
worker whose parent is gone reads the end of its input, and ends.
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
from opsd_jax.tasks.pool.codec import packed
from opsd_jax.tasks.pool.worker import EXIT_OUT_OF_MEMORY

LONGEST = 500_000  # characters of a reply that is looked at
BATCH = 64  # replies a worker is sent at once, at most
START = 120.0  # seconds that a worker may take to import what its task needs
MAX_FAILED_STARTS = 5  # in a row, of workers that were killed meanwhile
GRACE = 5.0  # seconds after which a worker is killed that its timer did not end


class Worker:
  """One process, and the replies it has been sent and not answered."""

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
    """[(index, example, text), ...]; it must have answered all before.

    One that does not read is left to its deadline.
    """
    line = json.dumps([[packed(example), text] for _, example, text in batch])
    self.sent.extend(batch)
    self.expect()
    left, pipe = memoryview(line.encode() + b"\n"), self.process.stdin.fileno()
    try:
      while left and select.select([], [pipe], [], GRACE)[1]:
        left = left[os.write(pipe, left) :]
    except BrokenPipeError:
      pass  # its output ends too, and says why

  def expect(self) -> None:
    self.deadline = time.monotonic() + self.timeout + GRACE

  def receive(self) -> list | None:
    """The lines that have come; None at the end of its output."""
    data = os.read(self.process.stdout.fileno(), 1 << 16)
    if not data:
      return None
    self.expect()
    *lines, self.rest = (self.rest + data).split(b"\n")
    return [json.loads(line) for line in lines]

  def has_ended(self) -> bool:
    """Without taking its process id away, which `end` needs."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, self.process.pid, flags) is not None

  def end(self) -> int:
    """Kills it and whatever it started, and waits -> its return code."""
    os.killpg(self.process.pid, signal.SIGKILL)
    code = self.process.wait()
    self.process.stdin.close()
    self.process.stdout.close()
    return code

  def stderr_tail(self) -> str:
    self.errors.seek(0)
    return self.errors.read()[-2000:].decode(errors="replace").strip()


class Pool:
  """Worker processes that judge replies to one task.

  `timeout` is the wall-clock time of a reply in seconds at most, `memory_mb` the address
  space of a worker in MiB. `timeouts` and `crashes` count the replies that
  ended a worker. Calls from several threads take turns. Raises ValueError for
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
    # When nobody holds the pool any more, and when the interpreter ends.
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
        verdicts[item[0]] = refused(item[2])
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
    """A batch to every worker that has none; one that died idle is replaced."""
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
    """Takes what has come from any worker, and replaces those that ended."""
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
    """The worker has ended or must: its reply is wrong, the others wait."""
    worker = self.workers[i]
    code = worker.end()
    self.workers[i] = Worker(*self.arguments)
    if not worker.is_ready:
      self.failed_starts += 1
      if code < 0 and not reason and self.failed_starts < MAX_FAILED_STARTS:
        return  # somebody killed it
      raise RuntimeError(
        f"a worker of {self.arguments[0]} did not start (return code {code}):"
        f" {worker.stderr_tail() or reason or 'it said nothing'}"
      )
    if not worker.sent:
      return
    index, *_ = worker.sent.popleft()
    if reason or code == -signal.SIGALRM:
      self.timeouts += 1
      feedback = f"{UNVERIFIED} within {worker.timeout} s"
      feedback += ", nor stopped by its timer" if reason else ""
    else:
      self.crashes += 1
      feedback = f"{UNVERIFIED}: the verifier died (return code {code})"
      if code == EXIT_OUT_OF_MEMORY:
        feedback = f"{UNVERIFIED} within {worker.memory_mb} MiB"
    verdicts[index] = Verdict(0.0, None, feedback)
    waiting.extendleft(reversed(worker.sent))

  def abandon(self) -> None:
    """After an error nobody may read the answers to what was sent."""
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
  """The pool of these settings, one for all runs of this process."""
  return Pool(
    task_name, privileged_field, workers=workers, timeout=timeout, memory_mb=memory_mb
  )


def end_all(workers: list) -> None:
  while workers:
    workers.pop().end()


def refused(text: str) -> Verdict:
  return Verdict(
    0.0, None, f"{UNVERIFIED}: {len(text)} characters, at most {LONGEST} are looked at"
  )
