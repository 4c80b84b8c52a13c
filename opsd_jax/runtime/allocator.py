"""The host's memory: what the allocator keeps of it, how much is in use."""

import ctypes
import pathlib
import resource
import sys

import jax

# Parameters of glibc's mallopt (malloc.h).
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
CGROUP = pathlib.Path("/sys/fs/cgroup")


def keep_freed() -> bool:
  """Keeps freed memory in this process, and has its main thread run the programs on
  a CPU; True on success, which needs glibc.

  Must run before jax starts its threads, because a thread keeps its arena.
  """
  # By default glibc returns large freed blocks to the system, and every step faults
  # them in again, page by page. Where arrays live in host memory, that takes time.
  # Only the main thread's blocks are kept: it runs the programs itself, and the small
  # blocks of other threads, elsewhere, leave whole the place that a step frees.
  if not sys.platform.startswith("linux"):
    return False
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other libcs have none
  settings = ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (ARENA_MAX, 4))
  return bool(mallopt) and all(mallopt(*setting) for setting in settings)


def give_back() -> None:
  """Returns freed pieces to the system. What a compilation, an evaluation or a save
  leaves is in other pieces than a step needs: kept, they would add up."""
  if sys.platform.startswith("linux"):
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
      trim(0)


class Pieces:
  """Gives back what is left in pieces: after a compilation, an evaluation or a save,
  and once steps hold GROWN times what the first one after the last time held."""

  GROWN = 1.05

  def __init__(self):
    self.settled = None  # GB resident after that first step

  def after_step(self, row: dict, is_more: bool) -> None:
    """`row`: what a step logs; `is_more`: whether an evaluation or a save followed."""
    resident = row.get("memory/resident", 0.0)
    if is_more or row["compiles"] or resident > self.GROWN * (self.settled or resident):
      give_back()
      self.settled = None
    elif self.settled is None:
      self.settled = resident


def usage() -> dict[str, float]:
  """{"memory/resident", "memory/peak": GB of this process, "memory/left": the share
  of the machine's or the container's memory that is available}; without what the
  system does not tell."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
  found = {"memory/peak": peak / 1e9 * (1 if sys.platform == "darwin" else 1024)}
  statm, meminfo = pathlib.Path("/proc/self/statm"), pathlib.Path("/proc/meminfo")
  if statm.exists() and meminfo.exists():
    pages = int(statm.read_text().split()[1])
    found["memory/resident"] = pages * resource.getpagesize() / 1e9
    lines = (line.split() for line in meminfo.read_text().splitlines())
    kib = {name: int(size) for name, size, *_ in lines}
    found["memory/left"] = kib["MemAvailable:"] / kib["MemTotal:"]
    limit, used = (read(CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit and used:  # of a container, smaller than the machine
      found["memory/left"] = min(found["memory/left"], 1 - used / limit)
  return found


def read(path) -> int | None:
  """The number in a file; None where there is none."""
  try:
    return int(path.read_text())
  except (OSError, ValueError):
    return None
