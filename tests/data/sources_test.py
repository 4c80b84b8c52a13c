"""Sources: names that cannot be, parquet, hubs, tfds, reasoning-gym."""

import json
import subprocess
import sys

import pytest

from configs import opsd
from opsd_jax import setup
from opsd_jax.data import formats, sources
from tests.data.files import GOOD, WORKED, load, write
from tests.runtime import distributed_test


@pytest.mark.parametrize(
  "source,words",
  [
    ("csv:x", "jsonl:.*tfds:.*hf:.*reasoning_gym:"),
    ("", "jsonl:"),
    ("x.json", "jsonl:"),
    ("jsonl:", "jsonl:"),
    ("task", "or for a run's data"),
    ("missing.jsonl", "missing.jsonl does not exist"),
    ("jsonl:missing", "missing does not exist"),
    ("jsonl:.", "does not exist: it is a directory"),
    (".", "it is a directory"),
    ("missing.parquet", "missing.parquet does not exist"),
    ("missing.json.gz", "missing.json.gz does not exist"),
    ("x.csv", "ends in .jsonl, .json, .parquet or one of them and .gz"),
    (f"{'x' * 5000}.jsonl", "data file xxx"),
    ("~nobody_of_this_name/x.jsonl", "nobody_of_this_name"),
    ("tfds:no_such_set", "no_such_set not found"),
    ("tfds:ai2_arc,splt=train", "'splt=train' is no option.*split="),
    ("tfds:opsd_jsonl,path=missing.jsonl", "missing.jsonl does not exist"),
    ("hf:a/b/c", "hf:org/name"),
    ("hf:a b", "hf:org/name"),
    ("hf:a/b,split", "'split' is no option"),
    ("reasoning_gym:chian_sum", "chain_sum"),
    ("reasoning_gym:chain_sum,min_termz=2", "min_termz"),
    ("reasoning_gym:chain_sum,size=many", "size=many"),
  ],
)
def test_a_source_that_cannot_be_is_refused(source, words, tmp_path):
  with pytest.raises(ValueError, match=words):
    sources.check(source) if source != "task" else sources.load(
      source, sources.Columns()
    )
  config = opsd.get_config("tiny")
  config.data.train = source
  if source != "task":
    with pytest.raises(ValueError, match=f"data.train: .*{words}"):
      setup.validate(config)


def test_reasoning_gym_by_size_and_seed():
  one = load("reasoning_gym:chain_sum,size=20,seed=1,min_terms=3,max_terms=3")
  two = load("reasoning_gym:chain_sum,size=20,seed=2,min_terms=3,max_terms=3")
  assert len(one.examples) == 20
  assert {e.metadata["metadata"]["num_terms"] for e in one.examples} == {3}
  assert not {e.question for e in one.examples} & {e.question for e in two.examples}
  assert len(load("reasoning_gym:chain_sum").examples) == 500
  (e,) = load("reasoning_gym:gsm_symbolic,size=1").examples
  assert e.solution == e.metadata["metadata"]["answer_cot"]


def parquet(path, rows):
  import pyarrow
  import pyarrow.parquet

  path.parent.mkdir(parents=True, exist_ok=True)
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_files_of_a_hub(tmp_path, monkeypatch):
  import huggingface_hub

  called = {}

  def snapshot(name, **kw):
    called.update(kw, name=name)
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
  for n in ("main", "socratic"):
    rows = [{"question": f"{n} {i}", "answer": WORKED, "x": [1]} for i in range(3)]
    parquet(tmp_path / n / "train-00000-of-00002.parquet", rows[:2])
    parquet(tmp_path / n / "train-00001-of-00002.parquet", rows[2:])
    parquet(tmp_path / n / "test-00000-of-00001.parquet", rows)
  write(tmp_path / "valid.jsonl", GOOD)
  found = load("hf:openai/gsm8k,config=main").examples
  assert [e.question for e in found] == ["main 0", "main 1", "main 2"]
  assert found[0].answer == "1,072"
  assert called["name"] == "openai/gsm8k" and called["repo_type"] == "dataset"
  assert load("hf:a/b,split=valid").examples[0].id == "a"
  with pytest.raises(ValueError, match="in 2 groups.*config=, a folder"):
    load("hf:openai/gsm8k,split=test")
  with pytest.raises(ValueError, match="0 jsonl or parquet files of split=dev"):
    load("hf:openai/gsm8k,split=dev")
  (tmp_path / "main" / "train-00000-of-00002.parquet").unlink()
  with pytest.raises(ValueError, match="are not the 2 parts of one file"):
    load("hf:openai/gsm8k,config=main")
  parquet(tmp_path / "main" / "train_2024.parquet", rows)  # another split
  assert len(load("hf:openai/gsm8k,config=main,split=train_2024").examples) == 3
  with pytest.raises(ValueError, match="parts|groups|0 jsonl"):
    load("hf:openai/gsm8k,config=main,split=tra?n")
  parquet(tmp_path / "bad" / "train.parquet", [{"problem": "a", "answer": "\0"}])
  with pytest.raises(ValueError, match="bad/train.parquet:1: .*control"):
    load("hf:openai/gsm8k,config=bad")


def test_damaged_parquet_is_reported(tmp_path):
  import pyarrow
  import pyarrow.parquet

  path = tmp_path / "train.parquet"
  parquet(path, [{"problem": f"{i}", "answer": "1"} for i in range(1000)])
  whole, read = (
    path.read_bytes(),
    lambda: list(formats.read_rows(path, sources.Columns())),
  )
  assert len(read()) == 1000
  middle = len(whole) // 4
  for broken in (
    b"",
    whole[:-9],
    b"{}\n" * 99,
    whole[:middle] + bytes(64) + whole[middle + 64 :],
  ):
    path.write_bytes(broken)
    with pytest.raises(ValueError, match="train.parquet: not readable as parquet"):
      read()
  array = pyarrow.array([b"1", b"\xff"]).cast(pyarrow.string(), safe=False)
  pyarrow.parquet.write_table(pyarrow.table({"problem": array}), path)
  with pytest.raises(ValueError, match="after row .*utf-8"):
    read()


def test_a_hub_out_of_reach_is_reported(monkeypatch):
  import huggingface_hub

  def offline(*_, **__):
    raise ConnectionError("no route\nto host")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
  with pytest.raises(ValueError, match="hub: ConnectionError: no route. .*jsonl:"):
    load("hf:openai/gsm8k")


TFDS = """
import sys
from opsd_jax.data import sources

path, made = sys.argv[1:]
source = f"tfds:opsd_jsonl,path={path},data_dir={made}"
plain = sources.load(path, sources.Columns(), skip_bad=1)
assert plain.dropped == {"invalid JSON": 1}
for _ in range(2):  # made, then found
  assert sources.load(source, sources.Columns(), skip_bad=1) == plain
part = sources.load(source + ",split=train[1:3]", sources.Columns(), skip_bad=1)
assert part.examples == plain.examples[1:3]
try:
  sources.load(source + ",split=test", sources.Columns(), skip_bad=1)
except ValueError as e:
  assert "split test" in str(e)
else:
  raise AssertionError
open(path, "a").write('{"problem": "new", "solution": "5"}')
assert len(sources.load(source, sources.Columns(), skip_bad=1).examples) == 5

import numpy as np
import tensorflow_datasets as tfds

class Other(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("1.0.0")
  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
        "question": tfds.features.Text(), "answer": tfds.features.Scalar(np.int64)}))
  def _split_generators(self, dl_manager):
    return {"train": ((i, {"question": q, "answer": i})
                      for i, q in enumerate(("é", "b", "c\\0")))}
  def _generate_examples(self):
    pass

other = sources.load(f"tfds:other,data_dir={made}", sources.Columns(), skip_bad=1)
assert {(e.question, e.answer) for e in other.examples} == {("é", "0"), ("b", "1")}
assert other.dropped == {"column 'question': control character": 1}
assert not {"tensorflow", "jax"} & set(sys.modules), "imported"
"""


def test_tfds_without_tensorflow(tmp_path):
  def line(i):
    return json.dumps(
      {"problem": f"é {i}?", "solution": r"\boxed{1}" if i % 2 else "x"}
    ).encode()

  path = write(tmp_path / "my set.jsonl", *map(line, range(4)), b"{")
  done = subprocess.run(
    [sys.executable, "-c", TFDS, path, str(tmp_path / "made")],
    capture_output=True,
    text=True,
    cwd=distributed_test.ROOT,
  )
  assert done.returncode == 0, done.stderr
