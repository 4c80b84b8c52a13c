"""Sources, bad files, columns of the public ones, disjoint data."""

import json
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import opsd
from opsd_jax import setup, tasks
from opsd_jax.data import rows, sources
from opsd_jax.reporting import console
from opsd_jax.structs import Example
from opsd_jax.tasks import pool
from tests.runtime import distributed_test

GOOD = b'{"problem": "1 + 1?", "solution": "It is 2.", "answer": "2", "id": "a"}'


def write(path, *lines) -> str:
  path.write_bytes(b"\n".join(lines) + b"\n")
  return str(path)


def row(**fields) -> bytes:
  base = {"problem": "2 + 2?", "solution": "It is 4.", "answer": "4", "id": "b"}
  return json.dumps({**base, **fields}).encode()


def without(name) -> bytes:
  fields = {k: v for k, v in json.loads(row()).items() if k != name}
  return json.dumps(fields).encode()


def load(source, skip_bad=0, **columns):
  return sources.load(str(source), sources.Columns(**columns), skip_bad=skip_bad)


# ---------------------------------------------------------------- bad rows

# A line beside GOOD, and what is said of it.
BAD = [
  (b'{"problem": "caf\xe9"}', "bad UTF-8: byte 0xe9 at 16"),
  (row().decode().encode("utf-16"), "bad UTF-8: byte 0xff at 0"),
  (b"\x80" * 9, "bad UTF-8"),
  (b"\x1f\x8b\x08\x00", "bad UTF-8"),
  (b'{"problem": "x"', "invalid JSON: Expecting ',' delimiter"),
  (b"{'problem': 'x'}", "invalid JSON"),
  (b"problem,solution", "invalid JSON"),
  (row() + row(), "invalid JSON: Extra data"),
  (row()[:-9], "invalid JSON"),
  (b'{"problem": "a\tb"}', "invalid JSON: Invalid control character"),
  (row()[:-1] + b', "level": NaN}', "invalid JSON: NaN"),
  (row()[:-1] + b', "level": -Infinity}', "invalid JSON"),
  (b'{"answer": ' + b"9" * 5000 + b"}", "invalid JSON"),
  (b"[" * 200_000, "invalid JSON"),
  (b"\x00\x00", "invalid JSON"),
  (b'{"problem": "a", "problem": "b"}', "a key twice: 'problem'"),
  (b"[1, 2]", "no object: a list"),
  (b'"text"', "no object: a str"),
  (b"17", "no object: a int"),
  (b"null", "no object: a NoneType"),
  (row(problem=["x"]), "column 'problem': not text: a list"),
  (row(problem=7), "column 'problem': not text: a int"),
  (row(problem=None), "column 'problem': not text: null"),
  (row(solution={"a": 1}), "column 'solution': not text: a dict"),
  (row(solution=None), "column 'solution': not text: null"),
  (row(answer=["4"]), "column 'answer': not text: a list"),
  (row(answer=True), "column 'answer': not text: a bool"),
  (row(answer=None), "column 'answer': not text: null"),
  (row()[:-1].replace(b'"4"', b"1e999") + b"}", "column 'answer': not text"),
  (row(id=[1]), "column 'id': not text"),
  (row(problem="a\0b"), "column 'problem': control character: U+0000 at 1"),
  (row(solution="\frac12"), "control character: U+000C at 0"),
  (row(answer="\boxed{1}"), "control character: U+0008 at 0"),
  (row(problem="a\x85b"), "control character: U+0085 at 1"),
  (row(problem="\ud800x"), "column 'problem': lone surrogate: U+D800 at 0"),
  (row(solution="x\udfff"), "column 'solution': lone surrogate: U+DFFF at 1"),
  (row(problem=""), "column 'problem': empty"),
  (row(problem=" \n\t"), "column 'problem': empty"),
  (row(solution="\u3000"), "column 'solution': empty"),
  (row(answer=""), "column 'answer': empty"),
  (row(id=" "), "column 'id': empty"),
  (without("problem"), "column 'problem': missing"),
  (without("solution"), "column 'solution': missing"),
  (without("answer"), "column 'answer': missing"),
  (without("id"), "column 'id': missing"),
  (b"{}", "missing"),
  (row(id="a"), "column 'id': an id twice: 'a' is at {path}:1"),
  (row(problem="x" * 10_000_000), "a line of more than 4,000,000 bytes"),
]


@pytest.mark.parametrize("line,words", BAD, ids=range(len(BAD)))
def test_a_bad_row_is_named_or_dropped_and_counted(line, words, tmp_path):
  path = write(tmp_path / "p.jsonl", GOOD, line, row(id="c"))
  with pytest.raises(ValueError) as e:
    load(path)
  message = str(e.value)
  assert message.startswith(f"{path}: 1 bad rows of 3, data.skip_bad allows 0")
  assert f"{path}:2: " in message and words.format(path=path) in message
  assert len(message) < 1000
  kept = load(path, skip_bad=1)
  assert [e.id for e in kept.examples] == ["a", "c"]
  ((reason, count),) = kept.dropped.items()
  assert count == 1 and reason in message and path not in reason


def test_there_are_forty_bad_files_and_more():
  assert len(BAD) >= 40


def test_skip_bad_is_a_cap_and_five_rows_are_named(tmp_path):
  bad = [b"{", row(problem=""), b"[]", b"{", row(answer=[]), b"1", b"{"]
  path = write(tmp_path / "p.jsonl", GOOD, *bad)
  with pytest.raises(ValueError, match="7 bad rows of 8, .* allows 6") as e:
    load(path, skip_bad=6)
  named = [x for x in str(e.value).splitlines() if x.startswith(f"  {path}:")]
  assert [x.split(":")[1] for x in named] == ["2", "3", "4", "5", "6"]
  assert "and 2 more" in str(e.value)
  assert load(path, skip_bad=7).dropped == {
    "invalid JSON": 3,
    "no object": 2,
    "column 'problem': empty": 1,
    "column 'answer': not text": 1,
  }


def test_what_is_not_bad(tmp_path):
  path = write(
    tmp_path / "p.jsonl",
    b"\xef\xbb\xbf" + GOOD + b"\r",
    b"",
    b"  \t",
    row(answer=-7, id=3),
    row(answer=2.5, id="d", note="a\0b", more=[1]),
    row(problem="tab\t, lines\r\n\n, \u2028, \U0001f600", id="e"),
    row(answer=" 4 ", id="long", problem="x" * 3_999_000),
  )
  found = load(path)
  assert [e.id for e in found.examples] == ["a", "3", "d", "e", "long"]
  assert [e.answer for e in found.examples] == ["2", "-7", "2.5", "4", "4"]
  assert not found.dropped
  last = write(tmp_path / "q.jsonl", GOOD)
  pathlib.Path(last).write_bytes(GOOD)  # no newline at the end
  assert len(load(last).examples) == 1


@pytest.mark.parametrize(
  "content,words",
  [
    (b"", "holds no problem"),
    (b"\n \n", "holds no problem"),
    (b"{\n{\n", "p.jsonl:1: invalid JSON"),
    (b'{"text": "x"}', "columns text, none for the problem"),
    (b'{"problem": "x"}', "none for a solution or an answer"),
  ],
)
def test_a_file_without_problems(content, words, tmp_path):
  (tmp_path / "p.jsonl").write_bytes(content)
  with pytest.raises(ValueError, match=words):
    load(tmp_path / "p.jsonl")


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(content):
  for line in content.split(b"\n"):
    try:
      parsed = rows.parse(line)
    except rows.Bad:
      continue
    assert parsed is None or isinstance(parsed, dict)


# ----------------------------------------------------------------- columns


@pytest.mark.parametrize(
  "fields,expected",
  [
    # AIME 2024, as three repositories have it; AIME 2025 and HMMT; MATH-500;
    # AMC; OpenThoughts; OpenMath; gsm_symbolic.
    (
      {
        "id": 60,
        "problem": "p",
        "solution": "s",
        "answer": "1",
        "url": "u",
        "year": "2024",
      },
      ("60", "s", "1"),
    ),
    (
      {"ID": "2024-I-1", "Problem": "p", "Solution": "s", "Answer": 1},
      ("2024-I-1", "s", "1"),
    ),
    (
      {"problem_idx": 1, "problem": "p", "answer": "1", "problem_type": ["x"]},
      ("1", None, "1"),
    ),
    (
      {
        "problem": "p",
        "solution": "s",
        "answer": "1",
        "unique_id": "t/1.json",
        "level": 2,
      },
      ("t/1.json", "s", "1"),
    ),
    ({"id": 0, "problem": "p", "answer": 142.0, "url": "u"}, ("0", None, "142.0")),
    (
      {
        "problem": "p",
        "deepseek_reasoning": "r",
        "ground_truth_solution": "s",
        "deepseek_solution": "d",
      },
      (None, "s", None),
    ),
    (
      {"question": "p", "expected_answer": "1", "generated_solution": "s"},
      (None, "s", "1"),
    ),
    ({"prompt": "p", "answer_cot": "s", "answer": "1"}, (None, "s", "1")),
  ],
)
def test_columns_of_the_public_files(fields, expected, tmp_path):
  path = write(tmp_path / "p.jsonl", json.dumps(fields).encode())
  (e,) = load(path).examples
  id, solution, answer = expected
  assert (e.question, e.solution, e.answer) == ("p", solution, answer)
  assert id is None or e.id == id


def test_a_named_column_and_none(tmp_path):
  path = write(tmp_path / "p.jsonl", row(other="the other"))
  (e,) = load(path, solution="other", id="").examples
  assert e.solution == "the other" and e.id != "b"
  with pytest.raises(ValueError, match="problem, solution, .* not 'othr'"):
    load(path, answer="othr")


def test_the_column_that_most_rows_have_is_taken(tmp_path):
  lines = [f'{{"question": "q{i}", "answer": "1"}}'.encode() for i in range(3)]
  path = write(tmp_path / "p.jsonl", b'{"problem": "q", "answer": "1"}', *lines)
  found = load(path, skip_bad=1)
  assert [e.question for e in found.examples] == ["q0", "q1", "q2"]
  assert found.dropped == {"column 'question': missing": 1}


def test_one_odd_row_does_not_choose_the_column(tmp_path):
  lines = [
    f'{{"problem": "p{i}", "prompt": "hint {i}", "answer": "1"}}'.encode()
    for i in range(9)
  ]
  path = write(tmp_path / "p.jsonl", *lines, b'{"prompt": "h", "answer": "1"}')
  with pytest.raises(ValueError, match="p.jsonl:10: column 'problem': missing"):
    load(path)
  assert load(path, skip_bad=1).examples[0].question == "p0"


@pytest.mark.parametrize(
  "rows,words",
  [
    (
      [{"solution": "s"}] * 3 + [{"solution": "s", "answer": "9"}],
      "column 'answer' is in 1 of 4 rows: set data.answer to it, or to ''",
    ),
    ([{"answer": "1", "Answer": "2"}], "one in two cases: set data.answer"),
    (
      [{"answer": "1", "solution": None}] * 3 + [{"answer": "1", "solution": "s"}],
      "column 'solution' is in 1 of 4 rows",
    ),
  ],
)
def test_columns_that_must_be_told(rows, words, tmp_path):
  lines = [json.dumps({"problem": "p"} | r).encode() for r in rows]
  with pytest.raises(ValueError, match=words):
    load(write(tmp_path / "p.jsonl", *lines))


def test_a_column_of_nulls_is_none(tmp_path):
  line = {"problem": "p", "solution": None, "generated_solution": "s", "answer": 1}
  path = write(tmp_path / "p.jsonl", json.dumps(line).encode())
  assert load(path).examples[0].solution == "s"
  with pytest.raises(ValueError, match="'answer' is the problem and another"):
    load(path, problem="answer")


def test_numbers_are_as_the_file_writes_them(tmp_path):
  numbers = (
    "0.12345678901234567890",
    "12345678901234567890.5",
    "0.00001",
    "1" + "0" * 400,
    "-7",
    "1.50",
  )
  lines = [f'{{"problem": "p", "answer": {n}}}'.encode() for n in numbers]
  found = load(write(tmp_path / "p.jsonl", *lines)).examples
  assert [e.answer for e in found] == list(numbers)


WORKED = "48/2 = <<48/2=24>>24 in May.\nSo 48+24 = <<48+24=72>>72.\n#### 1,072"


def test_gsm8k(tmp_path):
  lines = [
    json.dumps({"question": q, "answer": a}).encode()
    for q, a in (("q", WORKED), ("r", "no line"), ("s", "#### 5"))
  ]
  found = load(write(tmp_path / "p.jsonl", *lines), skip_bad=2)
  (e,) = found.examples
  assert e.answer == "1,072"
  assert e.solution == "48/2 = 24 in May.\nSo 48+24 = 72.\n#### 1,072"
  assert found.dropped == {
    "column 'answer': no line '#### answer'": 1,
    "column 'answer': empty": 1,
  }


@pytest.mark.parametrize(
  "text,answer",
  [
    (r"so $\boxed{2}$.", "2"),
    (r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\text{a {b} c}} }", r"\text{a {b} c}"),
    (r"\boxed{\{1,2\}}", r"\{1,2\}"),
    (r"\boxed{\left\{ x } ", r"\left\{ x"),
    (r"\fbox{7}", "7"),
    (r"\boxed 5$.", "5"),
    (r"\boxed {3}", "3"),
    (r"\boxed{1", None),
    ("none", None),
    (r"\boxed{}", None),
    (r"\boxedx{1}", None),
    (r"a \boxed", None),
    ("so 7\n#### 1,072\r\n", "1,072"),
    ("#### Sum\nIt is 7.", None),
    ("\\boxed{7}\n#### Done", "7"),
  ],
)
def test_maths_without_an_answer_column(text, answer, tmp_path):
  lines = json.dumps({"problem": "p", "level": "1", "solution": text}).encode()
  (e,) = load(write(tmp_path / "p.jsonl", lines)).examples
  assert (e.solution, e.answer) == (text, answer)


def test_without_ids_the_text_gives_one_whatever_the_file(tmp_path):
  def ask(*asked):
    return [json.dumps({"problem": q, "answer": "1"}).encode() for q in asked]

  one = load(write(tmp_path / "1.jsonl", *ask("What?", "Who?", " what? "))).examples
  two = load(write(tmp_path / "2.jsonl", *ask("Who?", "What?"))).examples
  assert len({e.id for e in one}) == 3
  assert [two[1].id, two[0].id] == [e.id for e in one[:2]]


# ----------------------------------------------------------------- sources


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
    ("jsonl:.", "does not exist"),
    ("tfds:no_such_set", "no_such_set not found"),
    ("tfds:ai2_arc,splt=train", "'splt=train' is no option.*split=..."),
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


def test_a_task_that_needs_its_own_records_is_refused():
  name = "reasoning_gym:chain_sum,min_terms=3"
  task = tasks.open_task(name, "answer")
  other = "reasoning_gym:gsm_symbolic,size=2"
  with pytest.raises(ValueError, match=f"data.eval={other}"):
    sources.check_both("task", other, name, task)
  sources.check_both("reasoning_gym:chain_sum,size=2", "task", name, task)


def test_a_task_without_problems_of_its_own_is_refused():
  def examples(seed):
    raise ValueError("judges only")

  task = tasks.Task(examples, None)
  sources.check_both(*["reasoning_gym:chain_sum,size=2"] * 2, "judging", task)
  with pytest.raises(ValueError, match="data.eval: judges only"):
    sources.check_both("reasoning_gym:chain_sum,size=2", "task", "judging", task)


def test_what_has_no_answer_for_its_judge_is_dropped():
  source, own = "reasoning_gym:graph_color,size=2", dict(OWN)
  for name, there in (("exact", 0), ("reasoning_gym:graph_color", 2)):
    own["name"] = name
    d = sources.both(
      source,
      source.replace("size=2", "size=2,seed=1"),
      sources.Columns(),
      skip_bad=0,
      train_limit=0,
      eval_limit=0,
      rewarded=False,
      task=own,
    )
    assert len(d.eval) == there
    assert d.dropped == ({} if there else {"evaluation: no answer": 2})


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

  asked = {}

  def snapshot(name, **how):
    asked.update(how, name=name)
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
  assert asked["name"] == "openai/gsm8k" and asked["repo_type"] == "dataset"
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


def test_broken_parquet_is_said(tmp_path):
  import pyarrow
  import pyarrow.parquet

  path = tmp_path / "train.parquet"
  parquet(path, [{"problem": f"{i}", "answer": "1"} for i in range(1000)])
  whole, read = (
    path.read_bytes(),
    lambda: list(sources.parquet(path, sources.Columns())),
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
    with pytest.raises(ValueError, match="train.parquet: no parquet can be read"):
      read()
  array = pyarrow.array([b"1", b"\xff"]).cast(pyarrow.string(), safe=False)
  pyarrow.parquet.write_table(pyarrow.table({"problem": array}), path)
  with pytest.raises(ValueError, match="after row .*utf-8"):
    read()


def test_a_hub_out_of_reach_is_said(monkeypatch):
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
  def ask(i):
    return json.dumps(
      {"problem": f"é {i}?", "solution": r"\boxed{1}" if i % 2 else "x"}
    ).encode()

  path = write(tmp_path / "my set.jsonl", *map(ask, range(4)), b"{")
  done = subprocess.run(
    [sys.executable, "-c", TFDS, path, str(tmp_path / "made")],
    capture_output=True,
    text=True,
    cwd=distributed_test.ROOT,
  )
  assert done.returncode == 0, done.stderr


# ------------------------------------------------------------ train and eval

CANARY = "canary-{}-yranac"


def problems_file(path, count=11) -> str:
  """The tiny run draws 8 a step: 11 problems put every step in mid-epoch."""

  def ask(i):
    return {
      "problem": f"Which is larger, {i} or {i + 1}?",
      "answer": i + 1,
      "solution": CANARY.format(i),
    }

  return write(path, *(json.dumps(ask(i)).encode() for i in range(count)))


def tiny(scratch):
  config = opsd.get_config("tiny")
  config.data.train = problems_file(scratch / "p.jsonl")
  config.compile_cache = str(scratch / "programs")
  config.log.tensorboard = False
  return config


OWN = {
  "name": "largest_number",
  "train_count": 6,
  "eval_count": 3,
  "seed": 0,
  "privileged_field": "answer",
}


def both(train, eval, train_limit=0, eval_limit=0, skip_bad=0, rewarded=False):
  return sources.both(
    str(train),
    str(eval),
    sources.Columns(),
    skip_bad=skip_bad,
    task=OWN,
    train_limit=train_limit,
    eval_limit=eval_limit,
    rewarded=rewarded,
  )


def test_overlap_leaves_training_and_repeats_leave_evaluation(tmp_path):
  def ask(*asked):
    return [json.dumps({"problem": q, "answer": a}).encode() for q, a in asked]

  rows = ask(("Aa?", "1"), ("bb?", "2"), ("Bb? ", "3"), ("c?", "4"))
  a = write(tmp_path / "a.jsonl", *rows)
  rows = ask(("aa?", "5"), (" Aa?", "6"), ("d?", "7"))
  b = write(tmp_path / "b.jsonl", *rows, b"{")
  d = both(a, b, skip_bad=1)
  assert [e.answer for e in d.train] == ["2", "3", "4"]
  assert [e.answer for e in d.eval] == ["5", "7"]
  assert d.removed_as_overlap == 1
  assert d.dropped == {"evaluation: invalid JSON": 1}
  assert d.counts == {
    "evaluation rows": 4,
    "training rows": 4,
    "evaluation repeated (removed)": 1,
    "training repeated (kept)": 1,
    "training without solution": 3,
    "evaluation without solution": 2,
    "training questions with several answers": 1,
    "evaluation questions with several answers": 1,
  }
  d = both(a, b, train_limit=1, eval_limit=1, skip_bad=1)
  assert [e.answer for e in d.train + d.eval] == ["2", "5"]
  assert d.dropped["training: beyond the limit of 1"] == 2
  assert d.dropped["evaluation: beyond the limit of 1"] == 1


def test_evaluation_leaves_out_what_has_no_answer(tmp_path):
  lines = [
    json.dumps({"problem": s, "solution": s}).encode()
    for s in (r"\boxed{7}", "boxless")
  ]
  path = write(tmp_path / "a.jsonl", *lines)
  d = both("task", path)
  assert [e.answer for e in d.eval] == ["7"]
  assert d.dropped == {"evaluation: no answer": 1}
  assert [e.answer for e in both(path, "task").train] == ["7", None]
  d = both(path, "task", rewarded=True)
  assert [e.answer for e in d.train] == ["7"]
  assert d.dropped == {"training: no answer": 1}


def test_a_tasks_own_problems_are_as_they_were(tmp_path):
  own = tasks.load(**OWN)
  d = both("task", "task")
  assert (d.train, d.eval) == (own.train, own.eval)
  line = json.dumps({"problem": own.train[2].question, "answer": "1"}).encode()
  path = write(tmp_path / "a.jsonl", line)
  d = both("task", path)
  assert d.removed_as_overlap == 1 and len(d.train) == 6
  assert d.train[:2] + d.train[2:5] == own.train[:2] + own.train[3:]
  assert both(path, "task").eval == own.eval


def test_what_cannot_be_judged_is_said_before_a_model_loads(tmp_path):
  config = tiny(tmp_path)
  config.data.eval = write(tmp_path / "e.jsonl", row(answer="one half"), GOOD)
  with pytest.raises(ValueError, match="largest_number cannot judge problem b"):
    setup.read_problems(config)
  config.data.eval = write(
    tmp_path / "e.jsonl",
    row(answer="7"),
    GOOD,
    json.dumps({"problem": "x", "solution": "y"}).encode(),
  )
  config.data.skip_bad = 1
  _, problems = setup.read_problems(config)
  assert problems.counts["evaluation answers not verified"] == 0
  assert problems.dropped["evaluation: column 'answer': missing"] == 1


@pytest.mark.parametrize(
  "task,answers,expected",
  [("maths", ("204", "\\frac{1}{2}", "(3, 4]"), 0), ("maths", ("7", "{3"), 1)],
)
def test_answers_that_no_reply_can_match_are_counted(task, answers, expected):
  asked = [Example(a, f"{a}?", None, a, None) for a in answers]
  verify = pool.shared(task, "answer", workers=1, timeout=20, memory_mb=2048)
  assert setup.count_unverifiable(verify, asked, task, "a file") == expected


def test_solutions_that_end_in_another_answer_are_counted(tmp_path):
  config = tiny(tmp_path)
  config.task.name, config.rollout.prompts_per_step = "gsm8k", 1
  config.data.train = write(
    tmp_path / "t.jsonl", GOOD, row(answer="5"), row(id="c", solution="None.")
  )
  config.data.eval = write(tmp_path / "e.jsonl", row(problem="3 + 3?"))
  _, problems = setup.read_problems(config)
  assert [n for k, n in problems.counts.items() if "another answer" in k] == [1]
  assert problems.counts["training questions with several answers"] == 1


def test_a_task_that_no_answer_suits_is_refused(tmp_path):
  config = tiny(tmp_path)
  config.task.name = "multiple_choice"
  config.data.eval = write(tmp_path / "e.jsonl", row(answer="(3, 4]"))
  with pytest.raises(ValueError, match="multiple_choice finds none of the 1 answers"):
    setup.read_problems(config)


def test_what_was_read_is_printed(tmp_path):
  config = tiny(tmp_path)
  with open(config.data.train, "ab") as f:
    f.write(b"{\n" + row(problem="a <|im_end|> b") + b"\n")
  config.data.skip_bad = 1
  text = console.describe(config, setup.prepare(config))
  for words in (
    "11 training and 8 evaluation problems",
    "training rows: 13",
    "'training: invalid JSON': 1",
    "removed as overlap: 0",
    "'training: its text holds a control token': 1",
    "training repeated (kept): 0",
  ):
    assert words in text


@pytest.mark.parametrize(
  "overrides,words",
  [
    ({"data.skip_bad": -1}, "data.skip_bad"),
    ({"data.eval": "nope"}, "data.eval"),
    ({"data.eval_limit": -1}, "eval_limit"),
  ],
)
def test_a_bad_data_section_is_refused(overrides, words):
  config = opsd.get_config("tiny")
  config.update_from_flattened_dict(overrides)
  with pytest.raises(ValueError, match=words):
    setup.validate(config)
  if "data.eval" in overrides:  # a finished run's weights need no problems
    setup.validate(config, problems=False)
