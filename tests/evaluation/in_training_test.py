"""Accuracy by hand; what the base is evaluated on."""

import types

import pytest

from opsd_jax.evaluation import in_training, statistics
from opsd_jax.structs import Completion, Example, Verdict


def test_rate_by_hand():
  low, high = statistics.wilson(2.5, 5)
  assert in_training.rate("x", [1, 0, 0.5, 1, 0]) == {
    "x": 0.5,
    "x_ci_low": low,
    "x_ci_high": high,
  }


def test_accuracy_by_hand():
  examples = [Example(str(i), f"q{i}", None, f"right {i}") for i in range(4)]
  # Greedy first: right, wrong, partly, right; then two samples each.
  texts = [
    ("right 0", "right 0", "wrong"),
    ("wrong", "right 1", "right 1"),
    ("part", "part", "wrong"),
    ("right 3", "wrong", "wrong"),
  ]
  calls = []

  def complete(params, prompts, ids, *, sampling, n):
    calls.append((params, prompts, ids, sampling.temperature, n))
    return [
      [Completion(t, (7,) * (i + 1), None, i == 2) for t in group]
      for i, group in enumerate(texts)
    ]

  def verify(examples, texts):
    return [
      Verdict(1.0 if text == e.answer else 0.9 * (text == "part"))
      for e, text in zip(examples, texts, strict=True)
    ]

  metrics, greedy = in_training.accuracy(
    "weights", "prompts", examples, verify, complete, temperature=0.7, samples=2
  )
  assert calls == [("weights", "prompts", ["0", "1", "2", "3"], (0.0, 0.7, 0.7), 3)]
  assert [r.text for r in greedy] == ["right 0", "wrong", "part", "right 3"]
  assert [r.score for r in greedy] == [1.0, 0.0, 0.9, 1.0]
  assert metrics == {
    **in_training.rate("accuracy", [1, 0, 0, 1]),
    # A problem is one observation, however many samples it has.
    **in_training.rate("sampled_accuracy", [0.5, 1, 0, 0]),
    "truncated": 0.25,
    "tokens": 2.5,
    "unverified": 0.0,
  }
  alone, _ = in_training.accuracy(
    "weights", "prompts", examples, verify, complete, temperature=0.7, samples=0
  )
  assert not any("sampled" in name for name in alone)


def test_stated_confidence_by_hand():
  """0.9 right, 0.9 wrong, 0.2 wrong; one states none."""
  replies = [("4\nConfidence: 0.9", 1), ("5\nConfidence: 0.9", 0), ("4", 1)]
  replies.append(("6\nConfidence: 0.20", 0.5))
  made = [in_training.ScoredCompletion(t, s, False, 1, True) for t, s in replies]
  found = in_training.of_stated_confidence(made)
  assert found["stated/share"] == 0.75
  assert found["stated/ece"] == pytest.approx((2 * 0.4 + 0.2) / 3)
  assert found["stated/overconfidence"] == pytest.approx(2 / 3 - 1 / 3)
  assert found["stated/separation"] == 0.5  # above 0.2, and as much as the other
  assert in_training.of_stated_confidence(made[2:3]) == {}


@pytest.mark.parametrize(
  "teacher_ids,sides",
  [((1, 2), ["teacher", "student"]), ((1,), ["student"]), ((), ["student"])],
)
def test_a_teacher_with_the_students_prompt_is_not_evaluated(teacher_ids, sides):
  """Its completions would be the student's."""
  evaluator, evaluated, rows = object.__new__(in_training.Evaluator), [], []
  evaluator.run = types.SimpleNamespace(
    eval=[types.SimpleNamespace(student_ids=(1,), teacher_ids=teacher_ids)]
  )
  evaluator.writer = types.SimpleNamespace(rows=lambda: [])
  evaluator.samples = 1

  def accuracy(params, side, samples):
    evaluated.append(side)
    return {"accuracy": {"student": 0.25, "teacher": 0.75}[side]}, []

  evaluator.accuracy = accuracy
  evaluator.evaluate = lambda params, step, more: rows.append(
    more(evaluator.accuracy(params, "student", 1)[0])
  )
  evaluator.evaluate_base({})
  assert evaluated == sides
  metrics = {"eval/teacher_accuracy": 0.75 if len(sides) > 1 else 0.25}
  assert rows == [metrics if teacher_ids else {}]  # no problem has a teacher's prompt
