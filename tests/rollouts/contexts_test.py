"""What each view reads, word for word; the student never sees the rest."""

import collections
import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax.registry import accepted
from opsd_jax.rollouts import contexts, contexts_after, host_memory
from opsd_jax.structs import Completion, Example, Prompts, Rollout, Verdict
from tests.families import context_keywords

CANARY, SHORT = "a canary solution", "a canary answer"


def example(i=0, solution=CANARY, answer=SHORT):
  return Example(f"e{i}", f"Question {i}?", solution, answer, metadata=CANARY)


BRIEF = "Be brief."
OTHERS = tuple(example(i, f"the solution of {i}", f"answer {i}") for i in range(1, 4))
POOL = (example(), *OTHERS)
COMBINATIONS = [
  (template, kind)
  for template, kind in itertools.product(contexts.TEMPLATES, contexts.BEFORE)
  if template != "plain" or kind == "none"
]


def told(template, kind, e=POOL[0], pool=POOL) -> str:
  fields = {"instruction": BRIEF}
  (message,) = contexts.teacher_messages(template, kind, e, pool, fields)
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
  assert text.count("Question 0?") == (kind not in contexts.WITHOUT_QUESTION)
  shown = {CANARY: "solution", SHORT: "answer", OTHERS[0].solution: "other"}
  shown[BRIEF] = "instruction"
  for privileged, name in shown.items():
    assert text.count(privileged) == (name == kind.removesuffix("_alone"))


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
  with pytest.raises(ValueError, match="solution, answer, none, other, instruction"):
    told("short", "hint")


def group_of(*scores, feedback="", answers="abcdefgh", solution=CANARY):
  prompts = Prompts(example(0, solution), ((1,), ()))
  return [
    Rollout(
      prompts,
      Completion(f"response {i}", (1,) * (i + 1), None, False),
      prompts.views,
      verdict=Verdict(score, answer, feedback),
    )
    for i, (score, answer) in enumerate(zip(scores, answers, strict=False))
  ]


GROUP = group_of(1.0, 0.0, 1.0, 0.0, feedback="no", answers="abac")


def shown(name, group, i, **fields):
  f = contexts.AFTER[name]
  defaults = {**context_keywords(f), "memory": host_memory.HostMemory(), "nth": 0}
  return f(group, i, **accepted(f, defaults | fields))


@pytest.mark.parametrize("name", contexts.AFTER)
def test_what_a_verified_group_shows_is_text_or_nothing(name):
  for group in (group_of(0.0, 0.0), group_of(1.0, 0.0), group_of(0.0, feedback="no")):
    for i in range(len(group)):
      text = shown(name, group, i)
      assert text is None or text.strip()
  assert shown(name, GROUP, 1)
  nothing = shown(name, group_of(0.0, answers=[None], solution=None), 0)
  assert not nothing or name == "own_attempt"  # there always is one


def test_hints_are_the_others_and_need_both_outcomes():
  assert [shown("correct_hint", GROUP, 1, nth=n) for n in range(3)] == [
    "A solution to consider:\nresponse 0",
    "A solution to consider:\nresponse 2",
    None,
  ]
  assert shown("wrong_hint", GROUP, 1) == "A solution to consider:\nresponse 3"
  lone = group_of(1.0, 0.0, 0.0)
  assert shown("correct_hint", lone, 0) is shown("wrong_hint", lone, 0) is None
  assert shown("wrong_hint", lone, 1).endswith("response 2")


def test_an_attempt_comes_with_its_outcome():
  assert "response 0\n\nThis attempt is correct." in shown("own_attempt", GROUP, 0)
  assert "response 1\n\nThis attempt is not" in shown("own_attempt", GROUP, 1)


def test_the_longest_of_those_that_disagree_read_the_longest_that_agrees():
  """Answers a b a c: half agree. Of three that disagree only the longest `most`."""
  assert shown("majority", GROUP, 0) is shown("majority", GROUP, 2) is None
  assert shown("majority", GROUP, 1) == "A solution:\nresponse 2"
  assert shown("majority", GROUP, 1, agreement=0.6) is None
  assert shown("majority", GROUP, 1, most=1) is None
  assert shown("majority", GROUP, 3, most=1) == "A solution:\nresponse 2"
  agreed = group_of(0.0, 0.0, answers="aa")
  assert shown("majority", agreed, 0) is shown("majority", agreed, 1) is None


@pytest.mark.parametrize(
  "part,text", [(1.0, "a b c d"), (0.5, "a b"), (0.3, "a"), (0.0, "")]
)
def test_a_part_of_the_solution_is_its_beginning(part, text):
  group = group_of(0.0, solution="a b c d")
  assert shown("part_of_solution", group, 0, part=part) == text
  messages = contexts.messages_after(
    "short", ("part_of_solution",), 1, group, 0, {"part": part}
  )
  whole = Example("0", "Question 0?", text, None)
  kind = "solution" if text else "none"
  assert messages == contexts.teacher_messages("short", kind, whole, (whole,))


def test_a_confidence_is_overwritten_with_the_rate_of_success():
  assert shown("solution_and_confidence", GROUP, 0) == f"{CANARY}\nConfidence: 0.50"
  for text, expected in (
    ("It is 4.\nConfidence: 0.9", "It is 4.\nConfidence: 0.25"),
    ("Confidence: 1. No, Confidence: high", "Confidence: 1. No, Confidence: 0.25"),
    ("It is 4.\n", "It is 4.\nConfidence: 0.25"),
  ):
    assert contexts_after.with_confidence(text, 0.25) == expected


def test_the_nth_view_of_a_kind_reads_the_nth_text():
  kinds = ("correct_hint", "wrong_hint", "wrong_hint", "wrong_hint")
  texts = [
    contexts.messages_after("reprompt", kinds, view, GROUP, 0, {})
    for view in range(1, 5)
  ]
  for text, number in zip(texts[:3], (2, 1, 3), strict=True):
    assert f"response {number}\n" in text[0]["content"]
  assert texts[3] is None
