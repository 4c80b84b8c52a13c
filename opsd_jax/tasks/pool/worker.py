"""What runs in a worker process: it may hang, swell or die."""

import json
import os
import resource
import signal
import sys

from opsd_jax import tasks
from opsd_jax.structs import UNVERIFIED, Example
from opsd_jax.tasks.judged import NoReference
from opsd_jax.tasks.pool.codec import decode

HEADROOM = 16 << 20  # bytes a worker must find free once it has started
EXIT_OUT_OF_MEMORY = 77  # return code


def main() -> None:
  serve(*sys.argv[1:])


def serve(task_name, privileged_field, timeout, memory_mb) -> None:
  """Judges lines of replies until its input ends."""
  output = os.dup(1)
  os.dup2(2, 1)  # what a verifier prints is no verdict

  def say(value):
    return os.write(output, json.dumps(value).encode() + b"\n")

  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  verify = tasks.open_task(task_name, privileged_field).verify
  warm_up(verify)
  size = int(memory_mb) << 20
  resource.setrlimit(resource.RLIMIT_AS, (size, size))
  warm_up(verify)
  bytearray(HEADROOM)  # a MemoryError here rather than wrong verdicts later
  signal.signal(signal.SIGALRM, signal.SIG_DFL)
  say("ready")
  for line in sys.stdin:
    for (*fields, metadata), text in json.loads(line):
      example = Example(*fields, decode(metadata))
      signal.setitimer(signal.ITIMER_REAL, float(timeout))
      try:
        verdict = verify_one(verify, example, text)
      except MemoryError:
        os._exit(EXIT_OUT_OF_MEMORY)  # what it holds on to would fail the next reply
      signal.setitimer(signal.ITIMER_REAL, 0)
      say(verdict)


def warm_up(verify) -> None:
  """So that no reply pays for imports."""
  try:
    verify(Example("", "", "", "x + 1"), "the answer is \\boxed{1 + x}")
  except MemoryError:
    raise
  except Exception:
    pass  # a task of other examples


def verify_one(verify, example: Example, text: str):
  """A verdict as a list; a message where the example is at fault."""
  try:
    v = verify(example, text)
    return [v.score, v.answer, v.feedback]
  except NoReference as e:
    return str(e)
  except MemoryError:
    raise
  except Exception as e:  # of a reply nobody foresaw: wrong, and said why
    return [0.0, None, f"{UNVERIFIED}: {type(e).__name__}: {e}"[:500]]
