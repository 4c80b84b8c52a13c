"""The program of a worker process, which may hang, exhaust memory or die."""

import json
import os
import resource
import signal
import sys

from opsd_jax import tasks
from opsd_jax.structs import UNVERIFIED, Example
from opsd_jax.tasks.pool.codec import decode
from opsd_jax.tasks.verify_only import NoReference

HEADROOM = 16 << 20  # bytes that must be free when a worker has started
EXIT_OUT_OF_MEMORY = 77  # return code of a worker whose verifier ran out of memory


def main() -> None:
  serve(*sys.argv[1:])


def serve(task_name, privileged_field, timeout, memory_mb) -> None:
  """Verifies batches of completions, one a line of input, until the input ends."""
  output = os.dup(1)
  os.dup2(2, 1)  # a verifier may print: that goes to stderr, not to the verdicts

  def write(value):
    return os.write(output, json.dumps(value).encode() + b"\n")

  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  verify = tasks.open_task(task_name, privileged_field).verify
  warm_up(verify)
  size = int(memory_mb) << 20
  resource.setrlimit(resource.RLIMIT_AS, (size, size))
  warm_up(verify)
  bytearray(HEADROOM)  # fails at start rather than in verdicts later
  signal.signal(signal.SIGALRM, signal.SIG_DFL)
  write("ready")
  for line in sys.stdin:
    for (*fields, metadata), text in json.loads(line):
      example = Example(*fields, decode(metadata))
      signal.setitimer(signal.ITIMER_REAL, float(timeout))
      try:
        verdict = verify_one(verify, example, text)
      except MemoryError:
        os._exit(EXIT_OUT_OF_MEMORY)  # its leftovers would fail the next completion
      signal.setitimer(signal.ITIMER_REAL, 0)
      write(verdict)


def warm_up(verify) -> None:
  """Runs a verifier once, so that imports do not count against a completion's time."""
  try:
    verify(Example("", "", "", "x + 1"), "the answer is \\boxed{1 + x}")
  except MemoryError:
    raise
  except Exception:
    pass  # the task cannot verify this example, and has imported what it needs


def verify_one(verify, example: Example, text: str):
  """The fields of a verdict; a message where the example has no reference."""
  try:
    v = verify(example, text)
    return [v.score, v.answer, v.feedback]
  except NoReference as e:
    return str(e)
  except MemoryError:
    raise
  except Exception as e:  # an unforeseen completion is wrong, and the reason is kept
    return [0.0, None, f"{UNVERIFIED}: {type(e).__name__}: {e}"[:500]]
