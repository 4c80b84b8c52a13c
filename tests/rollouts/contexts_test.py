"""What each view reads, word for word; the student never sees the rest."""

import collections
import contextlib
import functools
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax.registry import accepted
from opsd_jax.rollouts import contexts, host_memory
from opsd_jax.structs import Completion, Example, Prompts, Rollout, Verdict
from tests.families import context_keywords

CANARY, SHORT = "a canary solution", "a canary answer"


def example(i=0, solution=CANARY, answer=SHORT):
  return Example(f"e{i}", f"Question {i}?", solution, answer, metadata=CANARY)


OTHERS = tuple(example(i, f"the solution of {i}", f"answer {i}") for i in range(1, 4))
POOL = (example(), *OTHERS)
COMBINATIONS = [
  (template, kind)
  for template, kind in itertools.product(contexts.TEMPLATES, contexts.BEFORE)
  if template != "plain" or kind == "none"
]


def told(template, kind, e=POOL[0], pool=POOL) -> str:
  (message,) = contexts.teacher_messages(template, kind, e, pool)
  assert message.keys() == {"role", "content"} and message["role"] == "user"
  return message["content"]


def test_short_word_for_word():
  assert told("short", "solution") == (
    "Question 0?\n\nHere is a reference solution:\na canary solution\n\n"
    "Now write your own answer in the same form."
  )
  assert told("short", "none") == (
    "Question 0?\n\nNow write your own answer in the same form."
  )
  assert contexts.student_messages("short", POOL[0]) == [
    {"role": "user", "content": "Question 0?"}
  ]


@pytest.mark.parametrize(
  "template,start",
  [
    ("upstream", "Problem: Question 0?\n\nA reference solution"),
    ("paper", "Problem: Question 0?\n\nReference solution:\na canary solution"),
  ],
)
def test_the_others_order(template, start):
  assert told(template, "solution").startswith(start)
  (student,) = contexts.student_messages(template, POOL[0])
  assert student["content"] == f"Problem: Question 0?\n\n{contexts.BOXED}"


def test_upstream_marks_where_the_solution_begins_and_ends():
  assert (
    "=== Reference Solution Begin ===\na canary solution\n"
    "=== Reference Solution End ===\n"
  ) in told("upstream", "solution")
  assert told("upstream", "solution").endswith("\n\n" + contexts.BOXED)


@pytest.mark.parametrize("template", contexts.TEMPLATES)
def test_the_student_never_sees_what_is_privileged(template):
  (message,) = contexts.student_messages(template, POOL[0])
  assert "Question 0?" in message["content"]
  assert "canary" not in message["content"]


@pytest.mark.parametrize("template,kind", COMBINATIONS)
def test_the_teacher_sees_the_question_and_what_its_kind_says(template, kind):
  text = told(template, kind)
  assert text.count("Question 0?") == 1
  shown = {"solution": CANARY, "answer": SHORT, "other": OTHERS[0].solution}
  for name, privileged in shown.items():
    assert text.count(privileged) == (name == kind)


@pytest.mark.parametrize("template", ["short", "upstream", "paper"])
def test_a_control_differs_by_the_privileged_text_alone(template):
  bare = told(template, "none")
  assert "None" not in bare
  assert told(template, "answer") == told(template, "solution").replace(CANARY, SHORT)


def test_other_is_another_problems_solution_and_goes_round():
  seen = [told("short", "other", e) for e in POOL]
  for e, text, following in zip(POOL, seen, (*OTHERS, POOL[0]), strict=True):
    assert e.solution not in text and following.solution in text


def test_other_is_no_second_solution_of_the_same_problem():
  def make(i, question, solution, answer):
    return Example(str(i), question, solution, answer)

  pool = (
    make(0, "What is 1+1?", "one way", "2"),
    make(1, "what is 1 + 1?", "b", "3"),
    make(2, "What is 2 + 0?", "another's", "2"),
    make(3, "1?", "wrong", "1"),
  )
  assert "wrong" in told("short", "other", pool[0], pool)


def test_other_passes_over_equal_and_absent_solutions():
  same = (example(0), example(1), example(2, None), example(3, " "))
  pool = (*same, example(4, "the fourth", "4"))
  assert "the fourth" in told("short", "other", pool[0], pool)
  assert CANARY in told("short", "other", pool[4], pool)
  with pytest.raises(contexts.Missing, match="other problem"):
    told("short", "other", pool[0], same)


def next_unlike(place, pool):
  """`other` as it is defined, one example after another."""
  e = pool[place]
  for f in (*pool[place + 1 :], *pool[:place]):
    alike = (
      e.answer is not None
      and e.answer == f.answer
      or (f.solution or "").strip() in ("", (e.solution or "").strip())
      or e.question.strip() == f.question.strip()
    )
    if not alike:
      return f.solution
  return None


@given(
  st.lists(
    st.tuples(
      st.integers(0, 3), st.sampled_from(["", " ", *"abcd"]), st.integers(0, 3)
    ),
    max_size=14,
  )
)
def test_other_is_the_next_unlike_one_whatever_is_alike(rows):
  pool = tuple(
    Example(str(i), f"Question {q}?", solution or None, f"{a}" if a else None)
    for i, (q, solution, a) in enumerate(rows)
  )
  others = contexts.Pool(pool).others
  assert others == {e.id: next_unlike(i, pool) for i, e in enumerate(pool)}


def alternating(i):
  """Every second example shares the answer of all last ones, the others their
  solution."""
  return ("A", f"s{i}") if i % 2 else (f"a{i}", "S")


@pytest.mark.parametrize(
  "answer_and_solution",
  [
    lambda i: (f"a{i}", f"s{i}"),
    lambda i: ("A", f"s{i}"),
    lambda i: (f"a{i}", "S"),
    lambda i: ("A" if i < 400 else "B", f"s{i}"),
    lambda i: alternating(i) if i < 400 else ("A", "S"),
  ],
)
def test_other_takes_linear_time_whatever_is_alike(answer_and_solution, monkeypatch):
  calls = collections.Counter()

  def counted(name):
    function = getattr(contexts, name)

    def call(*args):
      calls[name] += 1
      return function(*args)

    monkeypatch.setattr(contexts, name, call)

  for name in ("normalize_question", "alike"):
    counted(name)
  pool = contexts.Pool(
    Example(str(i), f"Question {i}?", solution, answer)
    for i in range(800)
    for answer, solution in [answer_and_solution(i)]
  )
  for e in pool:
    with contextlib.suppress(contexts.Missing):
      contexts.other(e, pool)
  assert calls["normalize_question"] == 800
  assert calls["alike"] <= 800 * 2 * (8 + 9 * 12)


@pytest.mark.parametrize("absent", [None, "", " \n\t"])
@pytest.mark.parametrize("kind", ["solution", "answer"])
def test_absent_privileged_text_is_missing_not_invented(kind, absent):
  e = example(**{kind: absent})
  with pytest.raises(contexts.Missing, match=f"no {kind}"):
    told("short", kind, e, (e,))
  assert contexts.student_messages("short", e)


@pytest.mark.parametrize("kind", ["solution", "answer", "other"])
def test_plain_shows_no_privileged_text_and_says_so(kind):
  with pytest.raises(ValueError, match="context.privileged=none") as error:
    told("plain", kind)
  assert not isinstance(error.value, contexts.Missing)  # not dropped: refused
  assert told("plain", "none") == "Question 0?"


def test_unknown_names_are_refused_with_the_known_ones():
  with pytest.raises(ValueError, match="upstream"):
    told("long", "solution")
  with pytest.raises(ValueError, match="solution, answer, none, other, sibling"):
    told("short", "hint")


def group_of(*scores, feedback=""):
  prompts = Prompts(example(0), ((1,), ()))
  return [
    Rollout(
      prompts,
      Completion(f"response {i}", (1,), None, False),
      prompts.views,
      verdict=Verdict(score, feedback=feedback),
    )
    for i, score in enumerate(scores)
  ]


@pytest.mark.parametrize("name", contexts.AFTER)
def test_what_a_verified_group_shows_is_text_or_nothing(name):
  f = contexts.AFTER[name]
  fields = {**context_keywords(f), "memory": host_memory.HostMemory()}
  show = functools.partial(f, **accepted(f, fields))
  for group in (group_of(0.0, 0.0), group_of(1.0, 0.0), group_of(0.0, feedback="no")):
    for i in range(len(group)):
      text = show(group, i)
      assert text is None or text.strip()
  # Something to show: another right response, and feedback on this one.
  assert show(group_of(1.0, 0.0, feedback="no"), 1)
  assert show(group_of(0.0), 0) is None  # nothing to show
