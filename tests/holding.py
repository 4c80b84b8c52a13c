"""Another process that holds a file's lock, as a second run of a workdir would."""

import contextlib
import subprocess
import sys

HOLD = """
import fcntl, sys
f = open(sys.argv[1], "w")
fcntl.flock(f, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def held(path):
  """The process, which ends with the block; killed it lets go at once."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with subprocess.Popen(
    [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
  ) as other:
    assert other.stdout.readline() == b"held\n"
    yield other
