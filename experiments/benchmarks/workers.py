"""A side of a benchmark is a process of its own, on all cores.

A worker measures when it is told to and sleeps between. Both ends of its pipes
speak JSON lines.
"""

import json
import os
import subprocess
import sys
import time
import zlib


class Worker:
  """A side's process, as the parent sees it; its other output is stderr."""

  def __init__(self, side: str, settings: dict, python: str = sys.executable):
    self.side = side
    self.process = subprocess.Popen(
      [python, "-m", "experiments.bench", "worker", side],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self.about = self.ask(**settings)

  def ask(self, **order) -> dict:
    """Sends an order and waits for its answer."""
    self.process.stdin.write(json.dumps(order) + "\n")
    self.process.stdin.flush()
    line = self.process.stdout.readline()
    if not line:
      raise RuntimeError(f"the worker of {self.side} ended early; see above")
    return json.loads(line)

  def close(self):
    self.process.stdin.close()
    self.process.wait(timeout=60)


class Channel:
  """The worker's end. Whatever else prints to stdout goes to stderr."""

  def __init__(self):
    self.answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    self.told = self.left = time.process_time()
    self.orders = self.read()

  def read(self):
    """The parent's orders until it closes the pipe."""
    for line in sys.stdin:
      self.told = time.process_time()
      yield json.loads(line)

  def answer(self, **reply):
    """Adds the processor time of this order and of the wait before it."""
    reply["cpu_seconds"] = time.process_time() - self.told
    reply["idle_cpu_seconds"] = self.told - self.left
    print(json.dumps(reply), file=self.answers, flush=True)
    self.left = time.process_time()


def fingerprint(rows) -> int:
  """A number for lists of token ids: both sides must read the same."""
  return zlib.crc32(json.dumps([list(map(int, row)) for row in rows]).encode())
