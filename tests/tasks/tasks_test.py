"""Problems, what is read from a reply, disjoint data, clear refusals."""

import itertools

import pytest

from opsd_jax import tasks
from opsd_jax.rollouts import contexts
from opsd_jax.structs import Example
from opsd_jax.tasks import largest_number, reasoning_gym


def first(name, count, seed="train/0", field="answer"):
  stream = tasks.open_task(name, field).examples(seed)
  return list(itertools.islice(stream, count))


# ------------------------------------------------------- largest_number

ASKED = Example("0", "", "", "930")


@pytest.mark.parametrize(
  "text,score,answer",
  [
    ("The largest of these numbers is 930.", 1, "930"),
    ("Of 412, 87, 930, 55 and 671 the largest is 930.", 1, "930"),
    ("930.0", 1, "930.0"),
    ("0930", 1, "0930"),
    ("930 is larger than 671.", 0, "671"),
    ("It is 93.", 0, "93"),
    ("-930", 0, "-930"),
    ("930.5", 0, "930.5"),
    ("9,300", 0, "9300"),
    ("930" * 2000, 0, "930" * 2000),
    ("<think>671</think>It is 930.", 1, "930"),
    ("<think>It is 930.</think>", 0, None),
    ("<think>It is 930", 0, None),
    ("I cannot say.", 0, None),
    ("", 0, None),
  ],
)
def test_a_completion_is_correct_when_its_last_number_is(text, score, answer):
  verdict = largest_number.verify(ASKED, text)
  assert (verdict.score, verdict.answer) == (score, answer)


def test_largest_number_asks_for_the_largest_of_five():
  for i, e in enumerate(first("largest_number", 200)):
    head, _, rest = e.question.partition(": ")
    assert head == "What is the largest of these numbers"
    numbers, _, end = rest.partition("?")
    assert end == " Answer in one short sentence."
    numbers = [int(n) for n in numbers.split(", ")]
    assert len(set(numbers)) == 5 and set(numbers) <= set(range(10, 1000))
    assert e.answer == str(max(numbers))
    assert e.solution == f"The largest of these numbers is {e.answer}."
    assert e.id == f"train/0/{i}"
    assert largest_number.verify(e, e.solution).score == 1
    assert largest_number.verify(e, str(min(numbers))).score == 0


@pytest.mark.parametrize(
  "name", ["largest_number", "reasoning_gym:chain_sum", "reasoning_gym:gsm_symbolic"]
)
def test_a_seed_decides_the_problems(name):
  assert first(name, 5) == first(name, 5)
  other = {e.question for e in first(name, 5, seed="train/1")}
  assert not other & {e.question for e in first(name, 5)}


# -------------------------------------------------------- reasoning_gym


def test_a_task_by_name_with_its_settings():
  name = "reasoning_gym:chain_sum,min_terms=3,max_terms=3,max_digits=1"
  for e in first(name, 20):
    assert e.metadata["metadata"]["num_terms"] == 3
    assert e.solution == e.answer == e.metadata["answer"]
    verify = tasks.open_task(name, "answer").verify
    assert verify(e, f"I get {e.answer}").score == 1
    assert verify(e, f"I get {int(e.answer) + 1}").score < 1


def test_a_metadata_field_is_the_privileged_solution():
  for e in first("reasoning_gym:gsm_symbolic", 5, field="answer_cot"):
    assert e.solution == e.metadata["metadata"]["answer_cot"]
    assert len(e.solution) > 40 and e.solution != e.answer
    verify = tasks.open_task("reasoning_gym:gsm_symbolic", "answer").verify
    assert verify(e, e.solution).score == 1


def test_blocks_of_a_stream_follow_each_other(monkeypatch):
  monkeypatch.setattr(reasoning_gym, "BLOCK", 3)
  stream = first("reasoning_gym:chain_sum", 9)
  assert [e.id for e in stream] == [f"train/0/{i}" for i in range(9)]
  assert len({e.question for e in stream}) == 9


def test_the_packages_own_scorer_verifies():
  # Any proper colouring is correct: there is no reference to compare with.
  (e,) = first("reasoning_gym:graph_color", 1)
  graph = e.metadata["metadata"]["possible_answer"]
  verify = tasks.open_task("reasoning_gym:graph_color", "answer").verify
  colouring = str({str(k): v for k, v in graph.items()}).replace("'", '"')
  assert verify(e, colouring).score == 1
  assert verify(e, "{}").score < 1


@pytest.mark.parametrize(
  "answer,text,score",
  [
    ("5", "5", 1),
    ("5", "-5", 0),
    ("-5", "-5", 1),
    ("-5", "5", 0),
    ("5", "6", 0),
    ("5", "", 0),
    ("5.0", "5", 1),
  ],
)
def test_a_sign_counts_in_gsm_symbolic(answer, text, score):
  verify = tasks.open_task("reasoning_gym:gsm_symbolic", "answer").verify
  assert verify(Example("0", "", None, answer, {"answer": answer}), text).score == score


def test_without_a_solution_there_is_none_to_show():
  (e,) = first("reasoning_gym:graph_color", 1)
  assert e.solution is None and e.answer is None
  with pytest.raises(contexts.Missing, match="no solution"):
    contexts.teacher_messages("short", "solution", e, (e,))


@pytest.mark.parametrize(
  "text,answer,expected",
  [
    ("6 * 7 = 42, so\n#### 42\nI hope that helps 2 of you", "1", "42"),
    ("#### 1,234", "1", "1234"),
    ("#### 5 apples", "1", "5"),
    (r"\boxed{7}, no, \boxed{-8}", "1", "-8"),
    (r"so \boxed{\frac{1}{2}}.", "1/2", r"\frac{1}{2}"),
    ("The answer is 4. It was 6 - 2", "1", "2"),
    ("The answer is 4.\nIt was 6 - 2", "1", "4"),
    ("**Answer:** 42", "1", "42"),
    ("The answer is: 4.5.", "1", "4.5"),
    ("ANSWER: Alice", "Bob", "Alice"),
    ("The answer is **Alice**.", "x", "Alice"),
    ("answer: x. Final answer: y", "x", "y"),
    ("Answer:\n1 2\n3 4", "9 9\n9 9", "1 2\n3 4"),
    ("4 - 1 - 7 = -4", "-4", "-4"),
    ("12, 34", "1", "34"),
    ("<think>\\boxed{9}</think>\\boxed{8}", "1", "8"),
    (r"\boxed{7} or \boxed{-8}", "1", None),
    (" whole reply \n", "text", "whole reply"),
    ('{"1": 2}', None, '{"1": 2}'),
    ("The answer is 1/2", "2", None),
    ("1e3", "3", None),
    ("2^10", "10", None),
    ("minus 5", "5", None),
    ("50\\%", "50", "50"),
    ("no digits", "3", None),
    ("", "3", None),
    ("  ", "text", None),
  ],
)
def test_extraction(text, answer, expected):
  assert reasoning_gym.extract(text, answer) == expected


# ------------------------------------------------------------ refusals


@pytest.mark.parametrize(
  "name,field,words",
  [
    ("chess", "answer", "largest_number, reasoning_gym"),
    ("largest_number:ten", "answer", "no options"),
    ("reasoning_gym:chian_sum", "answer", "'chian_sum'.*chain_sum"),
    ("reasoning_gym:gsm", "answer", "gsm_symbolic"),
    ("reasoning_gym", "answer", "no task ''"),
    ("reasoning_gym:chain_sum,min_termz=2", "answer", "chain_sum.*min_termz"),
    ("reasoning_gym:chain_sum,min_terms=9,max_terms=2", "answer", "max_terms"),
    ("reasoning_gym:chain_sum,min_terms=x", "answer", "chain_sum"),
    ("reasoning_gym:chain_sum,min_terms=[2]", "answer", "chain_sum"),
    ("reasoning_gym:chain_sum", "answer_cot", "'answer_cot'.*expression"),
  ],
)
def test_a_task_that_cannot_be_is_refused_when_opened(name, field, words):
  with pytest.raises(ValueError, match=words):
    tasks.open_task(name, field)


# ---------------------------------------------------------------- data

# a + b and a - b of one digit each: 200 different questions.
NARROW = "reasoning_gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1"


def load(name, train, held_out, seed=0):
  return tasks.load(
    name, train_count=train, eval_count=held_out, seed=seed, privileged_field="answer"
  )


def texts(examples):
  return {tasks.normalize_question(e.question) for e in examples}


@pytest.mark.parametrize("name", ["largest_number", NARROW])
def test_training_and_evaluation_share_no_question(name):
  data = load(name, 300, 40)
  assert len(data.train) == 300 and len(data.eval) == 40
  assert not texts(data.train) & texts(data.eval)
  assert len(texts(data.eval)) == 40
  ids = [e.id for e in (*data.train, *data.eval)]
  assert len(set(ids)) == len(ids)


def test_what_is_removed_is_counted_and_replaced():
  data = load(NARROW, 300, 40)
  asked = texts(data.eval)
  # The stream as it comes, up to the last problem kept.
  last = int(data.train[-1].id.rpartition("/")[2])
  stream = first(NARROW, last + 1, seed="train/0")
  overlap = [e for e in stream if tasks.normalize_question(e.question) in asked]
  assert data.removed_as_overlap == len(overlap) > 50
  assert len(stream) == 300 + len(overlap)
  drawn = int(data.eval[-1].id.rpartition("/")[2]) + 1
  assert data.removed_as_repeated == drawn - 40 > 0


def test_case_and_spaces_do_not_make_a_question_new():
  for text in ("what is 1 + 1?", "What is $1+1$?", "What is 1 ＋ 1 ?"):
    assert tasks.normalize_question("What  is\n1 + 1?") == tasks.normalize_question(
      text
    )
  for one, two in (
    (r"\dfrac12", r"\frac{1}{2}"),
    ("5²⁰", "5^20"),
    ("5^{20}", "5^20"),
    ("Janet's 3-year", "janet’s 3–year"),
    ("5 − 3", "5 - 3"),
    ("“a”", '"a"'),
    (r"\(x\)", "$x$"),
    (r"\[ x \]", "$$x$$"),
    (r"\left( 1 \right)", "(1)"),
    (r"a \leq b", r"a\le b"),
    (r"\$5 more", "$5 more"),
    ("so\u200b on", "so on"),
    ("Find x.", "find x"),
    ("x₁", "x_1"),
    (r"x_{12}", "x_12"),
  ):
    assert tasks.normalize_question(one) == tasks.normalize_question(two), (one, two)
  for one, two in (
    ("1 2", "12"),
    ("1 + 1", "1 + 2"),
    ("5²⁰", "520"),
    ("2ⁿ", "2n"),
    ("101₂", "1012"),
    ("$S_n$", "$s_n$"),
    (r"\Delta", r"\delta"),
    ("$5$$6$", "56"),
    ("5!", "5"),
    ("x^{2}3", "x^{23}"),
    ("10⁻²", "10-2"),
  ):
    assert tasks.normalize_question(one) != tasks.normalize_question(two), (one, two)


def test_data_differ_by_seed_and_repeat_by_seed():
  assert load("largest_number", 5, 5) == load("largest_number", 5, 5)
  one, two = load("largest_number", 5, 5), load("largest_number", 5, 5, seed=1)
  assert not texts((*one.train, *one.eval)) & texts((*two.train, *two.eval))


@pytest.mark.parametrize(
  "held_out,words",
  [
    (201, "gave 200 usable .* expected 201: lower .*eval_count"),
    (200, "gave 0 usable .* expected 10: lower task.train_count"),
  ],
)
def test_too_few_different_questions_are_an_error(held_out, words):
  with pytest.raises(ValueError, match=words):
    load(NARROW, 10, held_out)


def test_a_scorer_that_fails_on_a_reply_is_a_wrong_answer():
  task = tasks.open_task("reasoning_gym:prime_factorization", "answer")
  example = next(iter(task.examples("train/0")))
  verdict = task.verify(example, "the answer is garbage")
  assert verdict.score == 0 and "not scored" in verdict.feedback


@pytest.mark.parametrize("name", [*reasoning_gym.EVAL, *reasoning_gym.PARSE_EXPR])
def test_no_scorer_runs_a_reply(name, tmp_path):
  task = tasks.open_task(f"reasoning_gym:{name}", "answer")
  example = next(iter(task.examples("train/0")))
  assert task.verify(example, example.answer).score == 1
  made = tmp_path / "made"
  for code in (
    f"__import__('pathlib').Path({str(made)!r}).touch()",
    f"[open({str(made)!r}, 'w')]",
    "exec(" + "+".join(f"chr({ord(c)})" for c in f"open('{made}','w')") + ")",
  ):
    assert task.verify(example, code).score < 1
    assert task.verify(example, f"\\boxed{{{code}}}").score < 1
  assert not made.exists()
