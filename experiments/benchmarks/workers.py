"""Worker processes: each side of a benchmark runs in a process, on all cores.

A worker measures once for each order and sleeps in between. Orders and answers are
lines of JSON.
"""

import json
import os
import subprocess
import sys
import time
import zlib


class Worker:
  """The parent's end of a side's process; `about` is its first answer."""

  def __init__(self, side: str, settings: dict, python: str = sys.executable):
    self.side = side
    self.process = subprocess.Popen(
      [python, "-m", "experiments.bench", "worker", side],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self.about = self.request(**settings)

  def request(self, **order) -> dict:
    """Sends an order and returns its answer."""
    self.process.stdin.write(json.dumps(order) + "\n")
    self.process.stdin.flush()
    line = self.process.stdout.readline()
    if not line:
      raise RuntimeError(f"the worker of {self.side} ended early; its error is above")
    return json.loads(line)

  def close(self):
    self.process.stdin.close()
    self.process.wait(timeout=60)


class Channel:
  """The worker's end. Other output to stdout is redirected to stderr."""

  def __init__(self):
    self.answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    self.received = self.answered = time.process_time()
    self.orders = self.read()

  def read(self):
    """The parent's orders until it closes the pipe."""
    for line in sys.stdin:
      self.received = time.process_time()
      yield json.loads(line)

  def answer(self, **line):
    """Sends an answer, with the CPU time of this order and of the wait before it."""
    line["cpu_seconds"] = time.process_time() - self.received
    line["idle_cpu_seconds"] = self.received - self.answered
    print(json.dumps(line), file=self.answers, flush=True)
    self.answered = time.process_time()


def fingerprint(rows) -> int:
  """A checksum of lists of token ids, by which sides compare their prompts."""
  return zlib.crc32(json.dumps([list(map(int, row)) for row in rows]).encode())
