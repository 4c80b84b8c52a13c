"""Parsing of --set, and the problems that it names."""

import json

import pytest

from opsd_jax import tasks
from opsd_jax.evaluation import eval_sets
from opsd_jax.evaluation.eval_sets import Spec


@pytest.mark.parametrize(
  "text,expected",
  [
    ("aime24=data/a.jsonl", Spec("aime24", "data/a.jsonl", "maths")),
    ("a=x=y.jsonl,task=largest_number", Spec("a", "x=y.jsonl", "largest_number")),
    ("largest_number", Spec("largest_number", "largest_number", None)),
    ("n=largest_number", Spec("n", "largest_number", None)),
    ("largest_number=a.jsonl", Spec("largest_number", "a.jsonl", "maths")),
    (
      "reasoning_gym:chain_sum,max_terms=3",
      Spec("chain_sum", "reasoning_gym:chain_sum,max_terms=3", None),
    ),
    (
      "s=reasoning_gym:chain_sum,max_terms=3",
      Spec("s", "reasoning_gym:chain_sum,max_terms=3", None),
    ),
  ],
)
def test_parse(text, expected):
  assert eval_sets.parse(text) == expected


@pytest.mark.parametrize("text", ["a.jsonl", "", "a=", "../a=b.jsonl", "=b"])
def test_what_is_no_set_is_refused(text):
  with pytest.raises(ValueError, match="expected name=source"):
    eval_sets.parse(text)


def open_verifier(task):
  verify = tasks.open_task(task, "answer").verify
  return lambda examples, texts: list(map(verify, examples, texts))


ROWS = [
  {"id": 60, "problem": "1 + 1?", "solution": "It is 2.", "answer": 2},
  {"id": 61, "problem": "2 + 1?", "solution": "2 + 1 is 3.", "answer": 3},
]


def test_a_file_with_the_usual_columns(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
  spec = eval_sets.parse(f"a={path},task=largest_number")
  found = eval_sets.open_set(spec, count=None, seed=None, open_verifier=open_verifier)
  (one,) = eval_sets.open_set(
    spec, count=1, seed=None, open_verifier=open_verifier
  ).examples
  assert one == found.examples[0]
  fields = [(e.id, e.question, e.solution, e.answer) for e in found.examples]
  assert fields == [
    ("60", "1 + 1?", "It is 2.", "2"),
    ("61", "2 + 1?", "2 + 1 is 3.", "3"),
  ]
  verdicts = found.verify(found.examples, ["It is 2", "4"])
  assert [(v.score, v.answer) for v in verdicts] == [(1, "2"), (0, "4")]
  path.write_text(path.read_text() + '{"problem": "?"}\n')
  with pytest.raises(ValueError, match="a.jsonl:3: column"):
    eval_sets.open_set(spec, count=1, seed=0, open_verifier=open_verifier)


def test_a_problem_without_an_answer_is_left_out(tmp_path):
  path = tmp_path / "a.jsonl"
  rows = [
    {"id": str(i), "problem": p, "solution": s}
    for i, (p, s) in enumerate(
      (("1 + 1?", "\\boxed{2}"), ("x?", "no box"), ("1+1 ?", "\\boxed{2}"))
    )
  ]
  path.write_text("".join(json.dumps(r) + "\n" for r in rows))
  found = eval_sets.open_set(
    eval_sets.parse(f"a={path}"), count=None, seed=None, open_verifier=open_verifier
  )
  assert [e.id for e in found.examples] == ["0", "2"]
  assert (found.about["without_answer"], found.about["repeated"]) == (1, 1)


def test_what_no_field_takes_of_a_set_is_counted(tmp_path):
  path = tmp_path / "a.json"
  turns = [{"role": r, "content": r} for r in ("system", "user")]
  path.write_text(json.dumps([{"prompt": turns, "reward_model": {"ground_truth": 2}}]))
  found = eval_sets.open_set(
    eval_sets.parse(f"a={path}"), count=None, seed=None, open_verifier=open_verifier
  )
  assert [(e.question, e.answer) for e in found.examples] == [("user", "2")]
  assert found.about["system turns (not read)"] == 1


def test_a_task_gives_at_least_one_problem():
  with pytest.raises(ValueError, match="0 problems of largest_number"):
    eval_sets.open_set(
      eval_sets.parse("largest_number"), count=0, seed=0, open_verifier=open_verifier
    )


def test_ids_must_differ(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text((json.dumps(ROWS[0]) + "\n") * 2)
  spec = eval_sets.parse(f"a={path},task=largest_number")
  with pytest.raises(ValueError, match="an id twice: '60'"):
    eval_sets.open_set(spec, count=1, seed=0, open_verifier=open_verifier)
