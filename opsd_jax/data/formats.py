"""Rows of a data file, by its content: jsonl, a JSON array or parquet, or one of
them gzipped. A file that cannot be read to its end is an error, never a shorter one.
"""

import contextlib
import gzip
import io
import json
import re
import zlib

import numpy as np

from opsd_jax.data import columns as data_columns
from opsd_jax.data.rows import DECODER, Bad, check_object, read_jsonl

SUFFIXES = (".jsonl", ".json", ".parquet")  # each of them may have .gz behind it
HEAD = 1 << 16  # bytes by which a file is known
GZIP, PARQUET, BOM = b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf"
OTHERS = {
  GZIP: "gzipped twice",
  b"PK\x03\x04": "a zip archive",
  b"\x28\xb5\x2f\xfd": "zstd-compressed",
  b"\xfd7zXZ\x00": "xz-compressed",
  b"BZh": "bzip2-compressed",
  b"ARROW1": "an Arrow file",
}
SPACE = re.compile(r"[ \t\r\n]*")
# Finds where a value ends that DECODER refuses.
LENIENT = json.JSONDecoder(strict=False, parse_int=str, parse_float=str)


def is_data_file(path: str) -> bool:
  """Whether a path ends as those of the files that `read_rows` reads."""
  return path.lower().removesuffix(".gz").endswith(SUFFIXES)


def read_rows(path, columns):
  """Yields ("path:row", object or Bad) of every row; of jsonl its line for the row,
  of parquet the columns that `columns` may choose.

  Raises ValueError where the file is of another kind, or damaged as a whole.
  """
  with opened(path) as f:
    head = f.read(HEAD)
    f.seek(0)
    name = path.name.lower().removesuffix(".gz")
    if head.startswith(PARQUET) or name.endswith(".parquet"):
      yield from parquet(path, f, columns)
      return
    check_head(path, head)
    if head.removeprefix(BOM).lstrip(b" \t\r\n").startswith(b"["):
      yield from array(path, f.read())
    else:
      yield from read_jsonl(path, f)


@contextlib.contextmanager
def opened(path):
  """The file, unpacked where it is gzipped; ValueError where it cannot be read."""
  try:
    with path.open("rb") as f:
      is_packed = f.read(len(GZIP)) == GZIP
      f.seek(0)
      yield gzip.GzipFile(fileobj=f) if is_packed else f
  except (OSError, EOFError, zlib.error) as e:
    raise ValueError(f"data file {path} cannot be read to its end: {e}") from e


def check_head(path, head: bytes) -> None:
  """Raises ValueError where a file begins as one of another kind does."""
  for magic, kind in OTHERS.items():
    if head.startswith(magic):
      raise ValueError(
        f"data file {path} is {kind}: unpack or convert it to jsonl, a JSON array or"
        " parquet"
      )
  encoding = json.detect_encoding(head).upper()
  if encoding.startswith(("UTF-16", "UTF-32")):
    raise ValueError(
      f"data file {path} is {encoding} text, expected UTF-8: convert it with"
      f" iconv -f {encoding} -t UTF-8"
    )


def array(path, content: bytes):
  """Rows of a JSON array; ValueError where the place of the next one is unknown."""
  try:
    text = content.decode("utf-8-sig")
  except UnicodeDecodeError as e:
    raise ValueError(
      f"data file {path}: bad UTF-8: byte {content[e.start]:#04x} at {e.start}"
    ) from e

  def skip_space(start):
    return SPACE.match(text, start).end()

  number, start = 0, skip_space(text.index("[") + 1)
  is_closed = text.startswith("]", start)
  while not is_closed:
    number += 1
    row, start = element(f"{path}:{number}", text, start)
    yield f"{path}:{number}", row
    start = skip_space(start)
    is_closed = text.startswith("]", start)
    if not is_closed and not text.startswith(",", start):
      raise ValueError(
        f"{path}: the JSON array does not go on after row {number}: expected ',' or"
        f" ']' at character {start:,}, where {end_or(text, start)}"
      )
    start = skip_space(start + (not is_closed))
  start = skip_space(start + 1)
  if start < len(text):
    raise ValueError(
      f"{path}: the JSON array ends after row {number}, expected nothing more at"
      f" character {start:,}, where {end_or(text, start)}"
    )


def end_or(text: str, start: int) -> str:
  if start >= len(text):
    return "the file ends"
  return f"{text[start : start + 20]!r} stands"


def element(where: str, text: str, start: int):
  """(object or Bad, its end) of the value that starts there."""
  try:
    row, end = DECODER.raw_decode(text, start)
    return check_object(row), end
  except (ValueError, RecursionError) as e:
    fault = e if isinstance(e, Bad) else Bad("invalid JSON", str(e))
  try:
    _, end = LENIENT.raw_decode(text, start)
  except (ValueError, RecursionError) as e:
    raise ValueError(f"{where}: invalid JSON in an array: {e}") from e
  return fault, end


def rows_of(batch):
  """Its rows, 16- and 32-bit numbers as the shortest text that is theirs: 0.1, and
  not 0.10000000149011612."""
  import pyarrow

  narrow = {pyarrow.float16(): np.float16, pyarrow.float32(): np.float32}

  def widened(value, type):
    if type in narrow and value is not None:
      return float(str(narrow[type](value)))
    if isinstance(value, list) and hasattr(type, "value_type"):
      return [widened(x, type.value_type) for x in value]
    if isinstance(value, dict):
      return {name: widened(x, type.field(name).type) for name, x in value.items()}
    return value

  rows = batch.to_pylist()
  for field in batch.schema:
    if "float" in str(field.type):  # and not double
      for row in rows:
        row[field.name] = widened(row[field.name], field.type)
  return rows


def parquet(path, f, columns):
  """Rows of an open parquet file.

  Raises ValueError where the file is damaged or its text is not UTF-8, or lacks a
  column that `columns` names.
  """
  import pyarrow.parquet  # deferred: only parquet files need it

  number = 0
  try:
    if isinstance(f, gzip.GzipFile):  # it cannot seek from its end
      f = io.BytesIO(f.read())
    table = pyarrow.parquet.ParquetFile(f)
    names = table.schema_arrow.names
    if twice := [n for n in set(names) if names.count(n) > 1]:
      raise ValueError(f"{path} has a column twice: {data_columns.list_names(twice)}")
    data_columns.check_named(str(path), names, columns)
    read = [n for n in names if data_columns.may_hold(n, columns)]
    for batch in table.iter_batches(columns=read or None):
      for row in rows_of(batch):
        number += 1
        yield f"{path}:{number}", row
  except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as e:
    reason = str(e).partition("\n")[0]
    raise ValueError(
      f"{path}: not readable as parquet after row {number}: {reason}"
    ) from e
