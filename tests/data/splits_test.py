"""Training and evaluation are disjoint; what is dropped is counted."""

import json

import pytest

from configs import opsd
from opsd_jax import setup, tasks
from opsd_jax.data import sources, splits
from opsd_jax.reporting import console
from tests.data.files import row, tiny, write

TASK = {
  "name": "largest_number",
  "train_count": 6,
  "eval_count": 3,
  "seed": 0,
  "privileged_field": "answer",
}


def load(
  train, eval, train_limit=0, eval_limit=0, skip_bad=0, rewarded=False, test_time=False
):
  return splits.load(
    str(train),
    str(eval),
    sources.Columns(),
    skip_bad=skip_bad,
    task=TASK,
    train_limit=train_limit,
    eval_limit=eval_limit,
    rewarded=rewarded,
    test_time=test_time,
  )


def test_at_test_time_the_evaluation_alone_is_read(tmp_path):
  rows = [f'{{"problem": "q{i}?", "answer": "{i}"}}'.encode() for i in range(8)]
  path = write(tmp_path / "a.jsonl", *rows)
  d = load("jsonl:missing", path, test_time=True)
  assert d.train == d.eval[:6] and len(d.eval) == 8
  assert d.dropped == {"training: an evaluation problem beyond task.train_count": 2}
  own = load("task", "task", test_time=True)
  assert own.eval == load("task", "task").eval == own.train  # 3 of 3


def test_overlap_leaves_training_and_repeats_leave_evaluation(tmp_path):
  def lines(*asked):
    return [json.dumps({"problem": q, "answer": a}).encode() for q, a in asked]

  rows = lines(("Aa?", "1"), ("bb?", "2"), ("Bb? ", "3"), ("c?", "4"))
  a = write(tmp_path / "a.jsonl", *rows)
  rows = lines(("aa?", "5"), (" Aa?", "6"), ("d?", "7"))
  b = write(tmp_path / "b.jsonl", *rows, b"{")
  d = load(a, b, skip_bad=1)
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
  d = load(a, b, train_limit=1, eval_limit=1, skip_bad=1)
  assert [e.answer for e in d.train + d.eval] == ["2", "5"]
  assert d.dropped["training: beyond the limit of 1"] == 2
  assert d.dropped["evaluation: beyond the limit of 1"] == 1


@pytest.mark.parametrize("test_time", [False, True])
def test_limits_hold_of_a_tasks_own_problems_too(test_time):
  d = load("task", "task", train_limit=3, eval_limit=2, test_time=test_time)
  assert len(d.eval) == 2 and len(d.train) == (2 if test_time else 3)
  assert d.dropped["evaluation: beyond the limit of 2"] > 0


def test_evaluation_leaves_out_what_has_no_answer(tmp_path):
  lines = [
    json.dumps({"problem": s, "solution": s}).encode()
    for s in (r"\boxed{7}", "boxless")
  ]
  path = write(tmp_path / "a.jsonl", *lines)
  d = load("task", path)
  assert [e.answer for e in d.eval] == ["7"]
  assert d.dropped == {"evaluation: no answer": 1}
  assert [e.answer for e in load(path, "task").train] == ["7", None]
  d = load(path, "task", rewarded=True)
  assert [e.answer for e in d.train] == ["7"]
  assert d.dropped == {"training: no answer": 1}


def test_a_tasks_own_problems_are_as_they_were(tmp_path):
  generated = tasks.load(**TASK)
  d = load("task", "task")
  assert (d.train, d.eval) == (generated.train, generated.eval)
  line = json.dumps({"problem": generated.train[2].question, "answer": "1"}).encode()
  path = write(tmp_path / "a.jsonl", line)
  d = load("task", path)
  assert d.removed_as_overlap == 1 and len(d.train) == 6
  assert d.train[:2] + d.train[2:5] == generated.train[:2] + generated.train[3:]
  assert load(path, "task").eval == generated.eval


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
    setup.validate(config, with_problems=False)


def test_a_task_that_needs_its_own_records_is_refused():
  name = "reasoning_gym:chain_sum,min_terms=3"
  task = tasks.open_task(name, "answer")
  other = "reasoning_gym:gsm_symbolic,size=2"
  with pytest.raises(ValueError, match=f"data.eval={other}"):
    splits.check("task", other, name, task)
  splits.check("reasoning_gym:chain_sum,size=2", "task", name, task)


def test_a_task_without_problems_of_its_own_is_refused():
  def examples(seed):
    raise ValueError("only verifies")

  task = tasks.Task(examples, None)
  splits.check(*["reasoning_gym:chain_sum,size=2"] * 2, "verifying", task)
  with pytest.raises(ValueError, match="data.eval: only verifies"):
    splits.check("reasoning_gym:chain_sum,size=2", "task", "verifying", task)


def test_examples_without_an_answer_to_verify_are_dropped():
  source, task = "reasoning_gym:graph_color,size=2", dict(TASK)
  for name, count in (("exact", 0), ("reasoning_gym:graph_color", 2)):
    task["name"] = name
    d = splits.load(
      source,
      source.replace("size=2", "size=2,seed=1"),
      sources.Columns(),
      skip_bad=0,
      train_limit=0,
      eval_limit=0,
      rewarded=False,
      task=task,
    )
    assert len(d.eval) == count
    assert d.dropped == ({} if count else {"evaluation: no answer": 2})
