"""Layouts of the public files, paths into a row, chats, lists of answers."""

import json

import pytest

from opsd_jax.data import columns, splits
from tests.data.files import load, write

ASKED = [{"role": "user", "content": "1 + 1?"}]
SYSTEM = {"role": "system", "content": "Think."}
OPEN = [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": r"\boxed{2}"}]


def one(tmp_path, *rows, skip_bad=0, **named):
  lines = [json.dumps(r).encode() for r in rows]
  return load(write(tmp_path / "p.jsonl", *lines), skip_bad, **named)


VERL = {
  "data_source": "math_dapo",
  "prompt": ASKED,
  "ability": "MATH",
  "reward_model": {"ground_truth": "2", "style": "rule-lighteval/MATH_v2"},
  "extra_info": {"index": "9a9b", "question": "one and one?", "answer": "It is 2."},
}
OLYMPIAD = {
  "id": 1606,
  "question": "1 + 1?",
  "solution": ["It is 2."],
  "final_answer": ["2"],
  "context": None,
  "is_multiple_answer": False,
  "unit": None,
  "answer_type": "Numerical",
  "error": None,
}
NUMINA = {
  "problem": "1 + 1?",
  "solution": "It is 2.",
  "answer": "2",
  "problem_type": "Algebra",
  "question_type": "math-word-problem",
  "problem_is_valid": "Yes",
  "solution_is_valid": "Yes",
  "source": "olympiads",
  "synthetic": False,
}


@pytest.mark.parametrize(
  "row,solution,answer,not_read",
  [
    (VERL, None, "2", {}),
    (VERL | {"prompt": [SYSTEM, *ASKED]}, None, "2", {"system turns": 1}),
    (VERL | {"reward_model": {"ground_truth": ["2"]}}, None, "2", {}),
    (VERL | {"reward_model": {"ground_truth": 2}}, None, "2", {}),
    ({"system": "Think.", "conversations": OPEN}, r"\boxed{2}", "2", {}),
    (
      {
        "messages": [SYSTEM, *ASKED, {"role": "assistant", "content": "It is 2."}],
        "answer": "2",
      },
      "It is 2.",
      "2",
      {"system turns": 1},
    ),
    ({"conversations": OPEN, "solution": "two"}, "two", None, {"replies": 1}),
    ({"messages": ASKED, "answer": "2"}, None, "2", {}),
    (OLYMPIAD, "It is 2.", "2", {}),
    (
      OLYMPIAD | {"solution": ["It is 2.", "Two.", "II"]},
      "It is 2.",
      "2",
      {"further solutions": 2},
    ),
    (OLYMPIAD | {"final_answer": ["2", "2"]}, "It is 2.", "2", {}),
    (NUMINA, "It is 2.", "2", {}),
    (NUMINA | {"answer": "proof"}, "It is 2.", None, {}),
    (NUMINA | {"answer": "notfound"}, "It is 2.", None, {}),
    (NUMINA | {"answer": " Not found"}, "It is 2.", None, {}),
    (NUMINA | {"answer": "proof 2"}, "It is 2.", "proof 2", {}),
    (NUMINA | {"messages": OPEN}, "It is 2.", "2", {}),
  ],
)
def test_a_layout_is_known_by_name(row, solution, answer, not_read, tmp_path):
  loaded = one(tmp_path, row)
  (e,) = loaded.examples
  assert (e.question, e.solution, e.answer) == ("1 + 1?", solution, answer)
  assert loaded.not_read == not_read and not loaded.dropped


def test_a_question_has_its_beginning_before_it(tmp_path):
  (e,) = one(tmp_path, OLYMPIAD | {"context": "Let a be 1."}).examples
  assert e.question == "Let a be 1.\n\n1 + 1?"
  other = {"question": "q", "context": "c", "answer": "1"}  # of another layout
  assert one(tmp_path, other).examples[0].question == "q"


@pytest.mark.parametrize("suffix", ["parquet", "json"])
def test_layouts_of_a_table_are_those_of_lines(suffix, tmp_path):
  import pyarrow
  import pyarrow.parquet

  for n, row in enumerate((VERL, {"conversations": OPEN}, OLYMPIAD, NUMINA)):
    path = tmp_path / f"{n}.{suffix}"
    if suffix == "json":
      path.write_text(json.dumps([row]))
    else:
      pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    assert load(path) == one(tmp_path, row)
  context = OLYMPIAD | {"context": "Let a be 1."}
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist([context]), tmp_path / "c")
  (e,) = load(f"jsonl:{tmp_path / 'c'}").examples
  assert e.question == "Let a be 1.\n\n1 + 1?"


@pytest.mark.parametrize(
  "row,words",
  [
    (VERL | {"prompt": ASKED * 2}, "column 'prompt': several turns: user, user"),
    (VERL | {"prompt": [SYSTEM]}, "column 'prompt': several turns: none"),
    (VERL | {"prompt": [{"role": "tool", "content": "x"}]}, "several turns: tool"),
    (VERL | {"prompt": OPEN[1:]}, "column 'prompt': missing"),
    (VERL | {"prompt": OPEN * 30}, "several turns: user, .* and 40 more"),
    (VERL | {"prompt": []}, "column 'prompt': not text: an empty list"),
    (VERL | {"prompt": ["x"]}, "column 'prompt': not text: a list"),
    (
      VERL | {"prompt": [{"role": "user", "content": None}]},
      "column 'prompt': not text: null",
    ),
    (
      VERL | {"prompt": [{"role": "user", "content": [{"type": "text"}]}]},
      "column 'prompt': not text: a list",
    ),
    (VERL | {"reward_model": None}, "column 'reward_model.ground_truth': missing"),
    (
      VERL | {"reward_model": {"ground_truth": ["1", "2"]}},
      "several answers: 2, expected one; data.answer=reward_model.ground_truth.0",
    ),
    (
      OLYMPIAD | {"solution": [{"role": "user", "content": "x"}]},
      "column 'solution': missing",
    ),
  ],
)
def test_a_chat_or_list_of_another_form_is_a_bad_row(row, words, tmp_path):
  good = OLYMPIAD if "question" in row else VERL
  with pytest.raises(ValueError, match=f"p.jsonl:2: .*{words}") as e:
    one(tmp_path, good, row | {"id": 7} if "id" in row else row)
  assert len(str(e.value)) < 600


@pytest.mark.parametrize(
  "column,question",
  [
    ("prompt.0.content", "1 + 1?"),
    ("extra_info.question", "one and one?"),
    ("prompt", "1 + 1?"),
  ],
)
def test_a_path_names_a_column(column, question, tmp_path):
  (e,) = one(tmp_path, VERL, problem=column, solution="extra_info.answer").examples
  assert (e.question, e.solution) == (question, "It is 2.")
  assert one(tmp_path, VERL, id="extra_info.index").examples[0].id == "9a9b"


def test_a_key_with_dots_comes_before_a_path(tmp_path):
  row = {"a": {"b": "path?"}, "a.b": "key?", "answer": "1"}
  assert one(tmp_path, row, problem="a.b").examples[0].question == "key?"


@pytest.mark.parametrize(
  "column",
  ["extra_info.qestion", "prompt.1.content", "prompt.-1", "data_source.0", "."],
)
def test_a_path_that_leads_nowhere_is_refused(column, tmp_path):
  with pytest.raises(ValueError, match=f"extra_info.index.*, not '{column}': set data"):
    one(tmp_path, VERL, problem=column)


def test_answers_that_are_none_leave_evaluation_and_are_counted(tmp_path):
  rows = [
    NUMINA | {"problem": f"{i}?", "answer": answer}
    for i, answer in enumerate(("proof", "2", "notfound"))
  ]
  path = write(tmp_path / "a.jsonl", *(json.dumps(r).encode() for r in rows))
  chats = [{"messages": [SYSTEM, {"role": "user", "content": "q?"}], "answer": "2"}]
  other = write(tmp_path / "b.jsonl", *(json.dumps(r).encode() for r in chats))
  split = splits.load(
    other,
    path,
    columns.Columns(),
    skip_bad=0,
    train_limit=0,
    eval_limit=0,
    rewarded=False,
    task={"name": "maths"},
  )
  assert [e.answer for e in split.eval] == ["2"]
  assert split.dropped == {"evaluation: no answer": 2}
  assert split.counts["training system turns (not read)"] == 1


def test_long_lists_and_texts_in_errors_are_capped(tmp_path):
  wide = {f"column {i}": {"key": 1} for i in range(5000)}
  with pytest.raises(ValueError, match="and 9,980 more, none for the problem") as e:
    one(tmp_path, wide)
  assert len(str(e.value)) < 1000
  with pytest.raises(ValueError, match="999,9.. more characters") as e:
    one(tmp_path, {"x" * 1_000_000: 1})
  assert len(str(e.value)) < 1000
  twice = write(tmp_path / "q.jsonl", b'{"%s": 1, "%s": 2}' % ((b"y" * 1_000_000,) * 2))
  with pytest.raises(ValueError, match="a key twice: 'yyy") as e:
    load(twice)
  assert len(str(e.value)) < 1000
  row = {"problem": "p", "answer": "1", "id": "z" * 1_000_000}
  with pytest.raises(ValueError, match="an id twice: 'zzz") as e:
    one(tmp_path, row, row)
  assert len(str(e.value)) < 1000
