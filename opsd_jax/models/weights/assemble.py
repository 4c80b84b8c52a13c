"""Sharded arrays assembled from ranges of named tensors.

Every shard that this process's devices hold is filled once, block by block; nothing
else is read, and no second copy of the array exists.
"""

import math
from typing import NamedTuple

import jax
import numpy as np

BLOCK = 2**24  # bytes read at once


class NotFinite(ValueError):
  """A tensor holds NaN or Inf, or a number that the array's dtype cannot hold."""


class Leaf(NamedTuple):
  """An array and the tensors that it is assembled from."""

  names: tuple[str, ...]  # one tensor, or one for each layer of a stack
  shape: tuple[int, ...]
  stacked: bool
  transposed: bool  # the tensors are (out, in), the array is (in, out)


def array(leaf: Leaf, dtype, sharding, read) -> jax.Array:
  """Assembles one array.

  Args:
    leaf: the array and its tensors.
    dtype: of the array.
    sharding: its layout; None puts it whole on the default device.
    read: (name, rows, columns) -> block of a tensor, seen as a matrix of its first
      axis by all others; rows and columns are slices.

  Raises NotFinite, naming the tensor.
  """
  whole = (slice(None),) * len(leaf.shape)
  indices = (
    [whole]
    if sharding is None
    else sharding.addressable_devices_indices_map(leaf.shape).values()
  )
  # Several devices may hold the same shard.
  boxes = {to_box(index, leaf.shape) for index in indices}
  parts = {box: empty([b - a for a, b in box], dtype) for box in boxes}
  for layer, name in enumerate(leaf.names):
    fill(matrices(leaf, parts, layer), name, read)
  if sharding is None:
    return jax.device_put(parts[to_box(whole, leaf.shape)])
  x = jax.make_array_from_callback(
    leaf.shape, sharding, lambda index: parts[to_box(index, leaf.shape)]
  )
  # Transfers end before the next array is read: at most one is in host memory.
  return jax.block_until_ready(x)


def to_box(index, shape) -> tuple[tuple[int, int], ...]:
  """((start, stop), ...) of a shard's index."""
  return tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))


def empty(shape, dtype) -> np.ndarray:
  """np.empty, aligned so that the CPU backend takes it over without a copy."""
  align, size = 64, math.prod(shape) * np.dtype(dtype).itemsize
  memory = np.empty(size + align, np.uint8)
  skip = -memory.ctypes.data % align
  return memory[skip : skip + size].view(dtype).reshape(shape)


def matrices(leaf: Leaf, parts: dict, layer: int) -> dict:
  """(rows, columns) of one tensor -> view of the shard that they fill, as a matrix
  in the tensor's orientation."""
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
  """Fills the views of a tensor: reads each row range in blocks of rows, and
  adjacent columns together."""
  # Layouts are grids: two row ranges are equal or disjoint, and so are columns.
  for rows in sorted({rows for rows, _ in views}):
    by_columns = {c: view for (r, c), view in views.items() if r == rows}
    for run in joined(by_columns):
      row_bytes = 4 * (run[1] - run[0])  # twice as many for float64
      step = max(1, BLOCK // row_bytes)
      for start in range(*rows, step):
        stop = min(start + step, rows[1])
        block = read(name, slice(start, stop), slice(*run))
        for (a, b), view in by_columns.items():
          if run[0] <= a and b <= run[1]:
            part = view[start - rows[0] : stop - rows[0]]
            with np.errstate(over="ignore"):
              part[...] = block[:, a - run[0] : b - run[0]]
            if not is_finite(part):
              refuse(name, block, part.dtype)


def is_finite(x: np.ndarray) -> bool:
  """Whether no value is NaN or Inf."""
  # Naive: np.isfinite(x).all(), which makes an array of booleans and is slow in
  # bfloat16. Instead the bits are read as integers: those of NaN and Inf are at
  # least those of Inf, with its sign bit or without.
  if not x.size:
    return True
  signed, unsigned = (x.view(f"{kind}{x.itemsize}").max() for kind in "iu")
  inf, minus_inf = np.array([np.inf, -np.inf], x.dtype).view(f"u{x.itemsize}")
  return signed < inf and unsigned < minus_inf


def refuse(name: str, block: np.ndarray, dtype) -> None:
  """Raises NotFinite for a block that was read of a tensor."""
  if np.isfinite(block.astype(np.float64)).all():
    size = np.abs(block.astype(np.float64)).max()
    raise NotFinite(f"{name} holds a weight of size {size:.6g}, too large for {dtype}")
  raise NotFinite(f"{name} holds NaN or Inf: its file is damaged")


def joined(intervals) -> list[tuple[int, int]]:
  """The intervals, adjacent and overlapping ones joined."""
  runs = []
  for a, b in sorted(intervals):
    if runs and a <= runs[-1][1]:
      runs[-1] = (runs[-1][0], max(b, runs[-1][1]))
    else:
      runs.append((a, b))
  return runs
