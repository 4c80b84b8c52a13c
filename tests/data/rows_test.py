"""Bad rows are named, dropped and counted; columns of the public files are found."""

import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax.data import rows
from tests.data.files import GOOD, WORKED, load, row, without, write

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
  (row(answer=["4", "5"]), "column 'answer': several answers: 2, expected one"),
  (row(answer=[["4"]]), "column 'answer': not text: a list"),
  (row(answer=[]), "column 'answer': not text: an empty list"),
  (row(solution=[]), "column 'solution': not text: an empty list"),
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
def test_columns_that_must_be_named(rows, words, tmp_path):
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
    (r"$x=\boxed{1}$ or $x=\boxed{2}$", "1, 2"),
    (r"\boxed{1}, \boxed{2}", "1, 2"),
    (r"it is \boxed{1}. By another way it is \boxed{2}.", "1, 2"),
    (r"it is \boxed{1}. By another way it is \boxed{1.0}.", "1.0"),
    (r"\boxed{x+1} or \boxed{1+x}", "1+x"),
    (r"\boxed{1}, as \boxed{} asks", "1"),
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
    (r"$x=-\boxed{3}$", None),
    (r"$\boxed{3}\times 10^4$", None),
    (r"so $\boxed{30}^\circ$", "30"),
    (r"<think>\boxed{3}</think>\boxed{4}", "4"),
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
  def lines(*questions):
    return [json.dumps({"problem": q, "answer": "1"}).encode() for q in questions]

  one = load(write(tmp_path / "1.jsonl", *lines("What?", "Who?", " what? "))).examples
  two = load(write(tmp_path / "2.jsonl", *lines("Who?", "What?"))).examples
  assert len({e.id for e in one}) == 3
  assert [two[1].id, two[0].id] == [e.id for e in one[:2]]
