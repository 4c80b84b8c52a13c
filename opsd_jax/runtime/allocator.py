"""Host memory that stays with the process."""

import ctypes
import sys

# Of glibc's malloc.h: what mallopt is told to change.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8


def keep_freed() -> bool:
  """What this process frees stays with it; True where it could be arranged.

  glibc gives large blocks back to the system and faults them in again, page by
  page, at every step; where arrays live in host memory, that takes time. Does
  nothing but on Linux. Must come before jax starts its threads: a thread keeps
  the arena that it has.
  """
  if not sys.platform.startswith("linux"):
    return False
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other libcs have none
  never = ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (ARENA_MAX, 1))
  return bool(mallopt) and all(mallopt(*what) for what in never)
