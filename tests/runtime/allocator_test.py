"""Freed memory is used again without a page fault."""

import pathlib
import subprocess
import sys

import pytest

from opsd_jax.runtime import allocator

ROUNDS, SIZE = 10, 64 * 2**20  # bytes
PROGRAM = f"""
import resource, sys
from opsd_jax.runtime import allocator
if sys.argv[1] == "keep":
  assert allocator.keep_freed()
before, blocks = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, []
for i in range({ROUNDS}):
  block = bytearray(b"1") * {SIZE}
  del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*command: str) -> int:
  out = subprocess.run(
    [sys.executable, "-c", *command], check=True, capture_output=True
  )
  return int(out.stdout)


# Temporaries of 4 x SIZE; what else is between the steps as in training.
STEPS = f"""
import resource
from opsd_jax.runtime import allocator
assert allocator.keep_freed()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: (jnp.tanh(x @ x.T) @ x).sum())
small = jax.jit(lambda x: jnp.tanh(x) * 2)
x, y, kept = jnp.ones((2 * 4096, 16)), jnp.ones((300, 300)), []
for i in range({ROUNDS} + 1):
  if i == 1:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  loss = step(x)
  y = small(y)
  kept.append(jnp.ones((100 + i, 70)))
  loss.block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


HUGE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
@pytest.mark.skipif(
  HUGE.exists() and "[always]" in HUGE.read_text(), reason="pages are huge"
)
def test_memory_is_faulted_in_once():
  once = SIZE // 4096
  assert faults(PROGRAM, "give back") > 0.9 * ROUNDS * once
  assert faults(PROGRAM, "keep") < 2 * once


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
@pytest.mark.skipif(
  HUGE.exists() and "[always]" in HUGE.read_text(), reason="pages are huge"
)
def test_the_temporaries_of_a_step_are_faulted_in_once():
  """All later steps together fault fewer pages in than one step has."""
  assert faults(STEPS) < 4 * SIZE // 4096


PIECES = """
from opsd_jax.runtime import allocator
allocator.keep_freed()
def leave_pieces():
  blocks = [bytes([1]) * 2**16 for _ in range(4096)]
  return blocks[::64]
few = leave_pieces()
before = allocator.usage()["memory/resident"]
allocator.give_back()
print(before, allocator.usage()["memory/resident"], allocator.usage()["memory/peak"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_pieces_between_what_is_in_use_go_back():
  """Of 268 MB every 64th piece stays."""
  out = subprocess.run(
    [sys.executable, "-c", PIECES], check=True, capture_output=True, text=True
  )
  before, after, peak = map(float, out.stdout.split())
  assert before - after > 0.2 and peak > 0.99 * before


def test_steps_that_hold_more_and_more_give_back(monkeypatch):
  """At 5% above the first step after the last time, whatever that one holds."""
  given, pieces = [], allocator.Pieces()
  steps = [  # GB, whether something else came after it, whether it gives back
    (7.2, True, True), (6.4, False, False), (6.6, False, False), (7.0, False, True),
    (6.7, False, False), (7.0, False, False), (7.1, False, True), (9.0, False, False),
    (9.4, False, False), (6.0, True, True), (6.0, False, False), (0.0, False, False),
  ]  # fmt: skip
  monkeypatch.setattr(allocator, "give_back", lambda: given.append(True))
  for resident, is_more, expected in steps:
    given.clear()
    pieces.after_step({"memory/resident": resident, "compiles": 0}, is_more)
    assert bool(given) == expected, resident
  pieces.after_step({"compiles": 1}, False)  # of a system that does not tell
  assert given
