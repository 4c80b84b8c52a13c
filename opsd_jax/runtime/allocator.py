"""Settings of the host's memory allocator."""

import ctypes
import sys

# Parameters of glibc's mallopt (malloc.h).
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8


def keep_freed() -> bool:
  """Keeps freed memory in this process; True on success, which needs glibc.

  Must run before jax starts its threads, because a thread keeps its arena.
  """
  # By default glibc returns large freed blocks to the system, and every step faults
  # them in again, page by page. Where arrays live in host memory, that takes time.
  if not sys.platform.startswith("linux"):
    return False
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other libcs have none
  settings = ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (ARENA_MAX, 1))
  return bool(mallopt) and all(mallopt(*setting) for setting in settings)
