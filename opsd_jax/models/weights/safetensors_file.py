"""The safetensors format: checked headers, counted reads, streamed writes.

A file holds the header's length in 8 bytes, the header in JSON, then the values,
row by row. Ranges are read with plain reads, not by mapping the file: the pages of
a mapping count as this process's memory.
"""

import json
import math
from typing import NamedTuple

import ml_dtypes
import numpy as np
from etils import epath

from opsd_jax.runtime.paths import is_remote

DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

MAX_HEADER = 100_000_000  # bytes, the format's own limit
# Fraction of each row from which whole rows are read: one long read is then faster
# than a short read for every row.
WHOLE_ROWS = 0.75


class Entry(NamedTuple):
  """Where a tensor's values are stored."""

  path: epath.Path
  dtype: np.dtype
  shape: tuple[int, ...]
  start: int  # byte in the file


def read_header(path: epath.Path) -> tuple[dict[str, Entry], int]:
  """(tensors of a file by name, bytes of the header with its length).

  Raises ValueError unless the tensors fill the file without gaps and overlaps, and
  have the sizes of their shapes.
  """
  try:
    return _parse(path)
  except (ValueError, TypeError, KeyError, AttributeError, OSError) as e:
    raise ValueError(f"{path} is not a readable safetensors file: {e}") from e


def _parse(path):
  size = path.stat().length
  with path.open("rb") as f:
    count = int.from_bytes(f.read(8), "little")
    if size < 8 or count > min(MAX_HEADER, size - 8):
      raise ValueError(f"{size} bytes do not hold a header of {count} bytes")
    header = json.loads(f.read(count))
  begin = 8 + count
  header.pop("__metadata__", None)
  expected, entries = begin, {}

  def offsets(item):
    return item[1]["data_offsets"]

  for name, info in sorted(header.items(), key=offsets):
    shape, (start, end) = tuple(info["shape"]), info["data_offsets"]
    if info["dtype"] not in DTYPES:
      raise ValueError(
        f"{name} has dtype {info['dtype']}, expected {', '.join(DTYPES)}; give the"
        " model in one of them, not quantised"
      )
    dtype = DTYPES[info["dtype"]]
    if any(type(n) is not int or n < 0 for n in (*shape, start, end)):
      raise ValueError(f"{name} has shape {shape} at {start} to {end}")
    if begin + start != expected:
      raise ValueError(f"{name} starts at byte {begin + start}, expected {expected}")
    expected = begin + end
    if end - start != math.prod(shape) * dtype.itemsize:
      raise ValueError(f"{name}, {dtype}{shape}, has {end - start} bytes")
    entries[name] = Entry(path, dtype, shape, begin + start)
  if expected != size:
    raise ValueError(f"it has {size} bytes, but its tensors end at {expected}")
  return entries, begin


class Reader:
  """The tensors of several files; `bytes_read` counts the bytes requested."""

  def __init__(self, paths):
    """Reads the headers; ValueError for a damaged file, or a tensor that two files
    hold."""
    self.entries = {}
    self.bytes_read = 0
    self._open = (None, None)
    for path in map(epath.Path, paths):
      entries, size = read_header(path)
      self.bytes_read += size
      for name in entries.keys() & self.entries.keys():
        raise ValueError(
          f"{name} is in two files: {path} and {self.entries[name].path}"
        )
      self.entries |= entries
    self.shapes = {name: e.shape for name, e in self.entries.items()}

  def read(self, name: str, rows: slice, columns: slice) -> np.ndarray:
    """Rows and columns of a tensor, seen as a matrix of its first axis by all
    others."""
    # Naive: read whole rows and slice. A local file is read part by part instead,
    # unless the part is nearly the whole row; in a remote file every read is a
    # request, so there whole rows are read.
    e = self.entries[name]
    width = math.prod(e.shape[1:])
    wanted, count = columns.stop - columns.start, rows.stop - rows.start
    row_bytes = width * e.dtype.itemsize
    first = e.start + rows.start * row_bytes
    if wanted >= WHOLE_ROWS * width or is_remote(e.path):
      values = np.frombuffer(self._read(e, first, count * row_bytes), e.dtype)
      return values.reshape(count, width)[:, columns]
    out = np.empty((count, wanted), e.dtype)
    first += columns.start * e.dtype.itemsize
    for i in range(count):
      data = self._read(e, first + i * row_bytes, wanted * e.dtype.itemsize)
      out[i] = np.frombuffer(data, e.dtype)
    return out

  def _read(self, entry, start: int, count: int) -> bytes:
    path, f = self._open
    if path != entry.path:
      self.close()
      # Unbuffered where local, so that no more is read than requested.
      f = (
        entry.path.open("rb")
        if is_remote(entry.path)
        else open(entry.path, "rb", buffering=0)
      )
      self._open = entry.path, f
    f.seek(start)
    data = f.read(count)
    while len(data) < count:
      more = f.read(count - len(data))
      if not more:
        raise ValueError(f"{entry.path} ended while it was read")
      data += more
    self.bytes_read += count
    return data

  def close(self) -> None:
    _, f = self._open
    if f is not None:
      f.close()
    self._open = (None, None)


def write(path, shapes: dict, dtype, read) -> None:
  """Writes a file of named tensors.

  Args:
    path: of the file.
    shapes: name -> shape, in the order of the file.
    dtype: of the written values.
    read: name -> numpy array; called for one tensor at a time.
  """
  dtype, start, header = np.dtype(dtype), 0, {"__metadata__": {"format": "pt"}}
  for name, shape in shapes.items():
    end = start + math.prod(shape) * dtype.itemsize
    header[name] = {
      "dtype": NAMES[dtype],
      "shape": list(shape),
      "data_offsets": [start, end],
    }
    start = end
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # values start at a multiple of 8
  with open(path, "wb") as f:
    f.write(len(text).to_bytes(8, "little") + text)
    for name, shape in shapes.items():
      value = np.ascontiguousarray(read(name), dtype)
      if value.shape != tuple(shape):
        raise ValueError(f"{name} has shape {value.shape}, expected {shape}")
      f.write(value.reshape(-1).view(np.uint8).data)
