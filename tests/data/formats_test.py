"""Files of every kind are read whole or refused by name: none becomes shorter."""

import bz2
import gzip
import io
import json
import lzma
import os

import numpy as np
import pytest

from opsd_jax.data import formats
from tests.data.files import GOOD, load, row

ROWS = [
  {"problem": f"é {i}?", "solution": f"It is {i}.", "answer": str(i), "id": f"p{i}"}
  for i in range(30)
]
JSONL = "".join(json.dumps(r) + "\n" for r in ROWS).encode()
ARRAY = json.dumps(ROWS, indent=1, ensure_ascii=False).encode()


def parquet(rows) -> bytes:
  import pyarrow
  import pyarrow.parquet

  f = io.BytesIO()
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), f)
  return f.getvalue()


def written(path, content: bytes) -> str:
  path.write_bytes(content)
  return str(path)


WHOLE = {
  "p.jsonl": JSONL,
  "p.json": ARRAY,
  "p.parquet": parquet(ROWS),
  "p.jsonl.gz": gzip.compress(JSONL),
  "p.json.gz": gzip.compress(ARRAY),
  "p.parquet.gz": gzip.compress(parquet(ROWS)),
  "UPPER.JSON.GZ": gzip.compress(ARRAY),
  # What a name says wrongly, the content says.
  "lines.json": JSONL,
  "array.jsonl": ARRAY,
  "packed.jsonl": gzip.compress(JSONL),
  "unpacked.jsonl.gz": JSONL,
  "table.json": parquet(ROWS),
  # Byte order marks, two members, spaces.
  "mark.json": b"\xef\xbb\xbf \n" + ARRAY + b"\n\n",
  "mark.jsonl": b"\xef\xbb\xbf" + JSONL,
  "members.jsonl.gz": gzip.compress(JSONL[:100]) + gzip.compress(JSONL[100:]),
}


@pytest.mark.parametrize("name", WHOLE)
def test_every_kind_of_file_holds_the_same_problems(name, tmp_path):
  expected = load(written(tmp_path / "expected.jsonl", JSONL)).examples
  path = written(tmp_path / name, WHOLE[name])
  assert len(expected) == 30 and expected[3].question == "é 3?"
  assert load(path).examples == expected
  assert load(f"jsonl:{path}").examples == expected
  bare = written(tmp_path / "no_suffix", WHOLE[name])
  assert load(f"jsonl:{bare}").examples == expected


PACKED = gzip.compress(JSONL)
REFUSED = {
  # Cut short or damaged: never a shorter file.
  "cut.jsonl.gz": (PACKED[: len(PACKED) // 2], "cannot be read to its end"),
  "no_end.jsonl.gz": (PACKED[:-8], "cannot be read to its end"),
  "crc.jsonl.gz": (PACKED[:-8] + bytes(8), "cannot be read to its end: CRC"),
  "more.jsonl.gz": (PACKED + b"{}", "cannot be read to its end"),
  "cut.parquet.gz": (gzip.compress(parquet(ROWS))[:-20], "cannot be read to its end"),
  "cut.json": (ARRAY[:-2], "does not go on after row 30"),
  "half.json": (ARRAY[: len(ARRAY) // 2], r"half.json:\d+: invalid JSON in an array"),
  "comma.json": (ARRAY[:-2] + b",]", "comma.json:31: invalid JSON in an array"),
  "no_comma.json": (b"[{} {}]", "does not go on after row 1"),
  "two.json": (ARRAY + ARRAY, "ends after row 30, expected nothing more"),
  "open.json": (b"[", "open.json:1: invalid JSON"),
  "bytes.json": (b'[{"problem": "caf\xe9"}]', "bad UTF-8: byte 0xe9 at 17"),
  "deep.json": (b"[" * 200_000, "deep.json:1: invalid JSON"),
  # Of another kind.
  "wide.jsonl": (JSONL.decode().encode("utf-16"), "UTF-16 text, .*iconv -f UTF-16 -t"),
  "wide.json": (ARRAY.decode().encode("utf-16-le"), "UTF-16-LE text, expected UTF-8"),
  "big.jsonl": (JSONL.decode().encode("utf-16-be"), "UTF-16-BE text, expected UTF-8"),
  "widest.json": (ARRAY.decode().encode("utf-32"), "UTF-32 text, expected UTF-8"),
  "wide.json.gz": (gzip.compress(JSONL.decode().encode("utf-16")), "UTF-16 text"),
  "twice.jsonl.gz": (gzip.compress(PACKED), "is gzipped twice: unpack"),
  "x.jsonl": (lzma.compress(JSONL), "is xz-compressed: unpack"),
  "b.jsonl": (bz2.compress(JSONL), "is bzip2-compressed: unpack"),
  "z.jsonl": (b"\x28\xb5\x2f\xfd" + JSONL, "is zstd-compressed: unpack"),
  "zip.jsonl": (b"PK\x03\x04" + JSONL, "is a zip archive: unpack"),
  # Without a problem.
  "empty.json": (b"", "holds no problem"),
  "empty.jsonl.gz": (gzip.compress(b""), "holds no problem"),
  "none.json": (b" [ ] ", "holds no problem"),
  "none.parquet": (parquet(ROWS)[:0], "not readable as parquet"),
  "object.json": (b'{"data": [{"problem": "x"}]}', "has the columns data, none for"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_read_whole_is_one_clear_line(name, tmp_path):
  content, words = REFUSED[name]
  path = written(tmp_path / name, content)
  with pytest.raises(ValueError, match=words) as e:
    load(path, skip_bad=10_000)
  message = str(e.value).replace(str(tmp_path), "")
  assert name in message and len(message) < 300 and "\n" not in message


# A row between two good ones of an array, and what is said of it.
BAD = [
  (b"[1, [2]]", "no object: a list"),
  (b'"text, ] and \\" more"', "no object: a str"),
  (b"null", "no object: a NoneType"),
  (b'{"problem": "a", "problem": "b"}', "a key twice: 'problem'"),
  (b'{"x": {"a": 1, "a": 2}, "y": "]"}', "a key twice: 'a'"),
  (b'{"problem": NaN}', "invalid JSON: NaN is no JSON"),
  (b'{"problem": "a\tb"}', "invalid JSON: Invalid control character"),
  (b'{"answer": ' + b"9" * 5000 + b"}", "invalid JSON: Exceeds the limit"),
  (row(problem=" "), "column 'problem': empty"),
  (row(answer=None), "column 'answer': not text: null"),
]


@pytest.mark.parametrize("value,words", BAD, ids=range(len(BAD)))
def test_a_bad_row_of_an_array_is_named_or_dropped_and_counted(value, words, tmp_path):
  content = b"[" + GOOD + b",\n" + value + b",\n" + row(id="c") + b"]"
  path = written(tmp_path / "p.json", content)
  with pytest.raises(ValueError, match="1 bad rows of 3") as e:
    load(path)
  assert f"{path}:2: {words}" in str(e.value)
  kept = load(path, skip_bad=1)
  assert [e.id for e in kept.examples] == ["a", "c"]
  assert sum(kept.dropped.values()) == 1


def test_numbers_of_an_array_are_as_the_file_writes_them(tmp_path):
  path = written(tmp_path / "p.json", b'[{"problem": "p", "answer": 1.50}]')
  assert load(path).examples[0].answer == "1.50"


def test_parquet_reads_the_columns_it_needs_and_names_all_in_an_error(tmp_path):
  rows = [{"problem": "a?", "answer": 4.0, "junk": "\0", "info": {"key": {"q": "b?"}}}]
  path = written(tmp_path / "p.parquet", parquet(rows))
  (e,) = load(path).examples
  assert (e.question, e.answer) == ("a?", "4.0")
  assert load(path, problem="info.key.q").examples[0].question == "b?"
  for name in ("othr", "inf.key", "junk2"):
    with pytest.raises(ValueError, match=f"problem, answer, junk, info, not '{name}'"):
      load(path, problem=name)
  with pytest.raises(ValueError, match="info.key, not 'info.qey'"):
    load(path, problem="info.qey")
  path = written(tmp_path / "q.parquet", parquet([{"text": "x", "label": 1}]))
  with pytest.raises(ValueError, match="columns text, label, none for the problem"):
    load(path)


def test_a_column_twice_is_refused(tmp_path):
  import pyarrow
  import pyarrow.parquet

  table = pyarrow.table([["a?"], ["b?"], ["1"]], names=["problem", "problem", "answer"])
  pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
  with pytest.raises(ValueError, match="p.parquet has a column twice: problem"):
    load(tmp_path / "p.parquet")


def test_a_folder_and_a_pipe_are_no_files(tmp_path):
  for path in (tmp_path, f"jsonl:{tmp_path}", tmp_path / "none.parquet"):
    with pytest.raises(ValueError, match="does not exist"):
      load(path)
  end, start = os.pipe()
  os.write(start, JSONL)
  os.close(start)
  with pytest.raises(ValueError, match="cannot be read to its end: .*not seekable"):
    load(f"jsonl:/dev/fd/{end}")
  os.close(end)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_a_number_of_a_parquet_file_is_the_shortest_that_is_it(kind, tmp_path):
  import pyarrow
  import pyarrow.parquet

  numbers = np.array([0.1, 2.5, 7.0], kind)
  table = {"problem": ["a?", "b?", "c?"], "answer": pyarrow.array(numbers)}
  pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "p.parquet")
  examples = load(str(tmp_path / "p.parquet")).examples
  assert [float(e.answer) for e in examples] == [0.1, 2.5, 7.0]
  lists = pyarrow.array([[0.1], [2.5, 7.0], None], pyarrow.list_(table["answer"].type))
  nested = pyarrow.array(
    [{"n": x} for x in lists.to_pylist()], pyarrow.struct([("n", lists.type)])
  )
  batch = pyarrow.record_batch({"lists": lists, "nested": nested})
  assert formats.rows_of(batch) == [
    {"lists": x, "nested": {"n": x}} for x in ([0.1], [2.5, 7.0], None)
  ]
