"""Answers that the task cannot verify are refused or counted before a run."""

import json

import pytest

from opsd_jax.data import audit
from opsd_jax.problems import read_problems
from opsd_jax.structs import Example
from opsd_jax.tasks import pool
from tests.data.files import GOOD, row, tiny, write


def test_an_answer_that_cannot_be_verified_is_refused_before_a_model_loads(tmp_path):
  config = tiny(tmp_path)
  config.data.eval = write(tmp_path / "e.jsonl", row(answer="one half"), GOOD)
  with pytest.raises(ValueError, match="largest_number cannot verify problem b"):
    read_problems(config)
  config.data.eval = write(
    tmp_path / "e.jsonl",
    row(answer="7"),
    GOOD,
    json.dumps({"problem": "x", "solution": "y"}).encode(),
  )
  config.data.skip_bad = 1
  _, problems = read_problems(config)
  assert problems.counts["evaluation answers not verified"] == 0
  assert problems.dropped["evaluation: column 'answer': missing"] == 1


@pytest.mark.parametrize(
  "task,answers,expected",
  [("maths", ("204", "\\frac{1}{2}", "(3, 4]"), 0), ("maths", ("7", "{3"), 1)],
)
def test_answers_that_no_reply_can_match_are_counted(task, answers, expected):
  examples = [Example(a, f"{a}?", None, a, None) for a in answers]
  verify = pool.shared(task, "answer", workers=1, timeout=20, memory_mb=2048)
  assert audit.count_unverifiable(verify, examples, task, "a file") == expected


def test_solutions_that_end_in_another_answer_are_counted(tmp_path):
  config = tiny(tmp_path)
  config.task.name, config.rollout.prompts_per_step = "gsm8k", 1
  config.data.train = write(
    tmp_path / "t.jsonl", GOOD, row(answer="5"), row(id="c", solution="None.")
  )
  config.data.eval = write(tmp_path / "e.jsonl", row(problem="3 + 3?"))
  _, problems = read_problems(config)
  assert [n for k, n in problems.counts.items() if "another answer" in k] == [1]
  assert problems.counts["training questions with several answers"] == 1


def test_a_task_that_no_answer_suits_is_refused(tmp_path):
  config = tiny(tmp_path)
  config.task.name = "multiple_choice"
  config.data.eval = write(tmp_path / "e.jsonl", row(answer="(3, 4]"))
  with pytest.raises(
    ValueError, match="multiple_choice scores none of the 1 reference answers"
  ):
    read_problems(config)
