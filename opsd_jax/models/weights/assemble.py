"""Arrays made in their layout out of ranges of named matrices.

Every part of an array that this process's devices hold is filled once, block by
block; nothing else of it is read, and no other copy of it exists.
"""

import math
from typing import NamedTuple

import jax
import numpy as np

BLOCK = 2**24  # bytes read at once


class Leaf(NamedTuple):
  """An array and the tensors that it is made of."""

  names: tuple[str, ...]  # one tensor, or one for each layer of a stack
  shape: tuple[int, ...]
  stacked: bool
  transposed: bool  # the tensors are (out, in), the array is (in, out)


def array(leaf: Leaf, dtype, sharding, read) -> jax.Array:
  """The array, laid out as `sharding` says, or on one device where it is None.

  `read(name, rows, columns)` returns a block of a tensor, whose axes after the
  first are one.
  """
  whole = (slice(None),) * len(leaf.shape)
  indices = (
    [whole]
    if sharding is None
    else sharding.addressable_devices_indices_map(leaf.shape).values()
  )
  # Several devices may hold the same part.
  boxes = {box_of(index, leaf.shape) for index in indices}
  parts = {box: empty([b - a for a, b in box], dtype) for box in boxes}
  for layer, name in enumerate(leaf.names):
    fill(matrices(leaf, parts, layer), name, read)
  if sharding is None:
    return jax.device_put(parts[box_of(whole, leaf.shape)])
  x = jax.make_array_from_callback(
    leaf.shape, sharding, lambda index: parts[box_of(index, leaf.shape)]
  )
  return jax.block_until_ready(x)  # before the next one is read


def box_of(index, shape) -> tuple[tuple[int, int], ...]:
  return tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))


def empty(shape, dtype) -> np.ndarray:
  """np.empty at an address that the CPU backend takes over without a copy."""
  align, size = 64, math.prod(shape) * np.dtype(dtype).itemsize
  memory = np.empty(size + align, np.uint8)
  skip = -memory.ctypes.data % align
  return memory[skip : skip + size].view(dtype).reshape(shape)


def matrices(leaf: Leaf, parts: dict, layer: int) -> dict:
  """(rows, columns) of one tensor -> the memory that they belong in, as a
  matrix in the tensor's own order."""
  views = {}
  for box, part in parts.items():
    if leaf.stacked:
      (first, last), *box = box
      if not first <= layer < last:
        continue
      part = part[layer - first]
    if leaf.transposed:
      part, box = part.T, box[::-1]
    if len(box) == 1:
      part, box = part[:, None], (*box, (0, 1))
    views[tuple(box)] = part
  return views


def fill(views: dict, name: str, read) -> None:
  """Reads each row range in blocks, columns that touch in one piece.

  Layouts are grids: two row ranges are the same or apart, and so are columns.
  """
  for rows in sorted({rows for rows, _ in views}):
    here = {c: view for (r, c), view in views.items() if r == rows}
    for run in runs(here):
      row_bytes = 4 * (run[1] - run[0])  # at most, but for float64
      step = max(1, BLOCK // row_bytes)
      for start in range(*rows, step):
        stop = min(start + step, rows[1])
        block = read(name, slice(start, stop), slice(*run))
        for (a, b), view in here.items():
          if run[0] <= a and b <= run[1]:
            at = slice(start - rows[0], stop - rows[0])
            view[at] = block[:, a - run[0] : b - run[0]]


def runs(intervals) -> list[tuple[int, int]]:
  """Intervals that touch, joined."""
  joined = []
  for a, b in sorted(intervals):
    if joined and a <= joined[-1][1]:
      joined[-1] = (joined[-1][0], max(b, joined[-1][1]))
    else:
      joined.append((a, b))
  return joined
