"""What each side is told, as chat messages. Text only.

A template says how a question and privileged text are worded; a kind of
privilege says what that text is. The student never sees it.
"""

from collections.abc import Callable
from typing import NamedTuple

from opsd_jax.pick import pick
from opsd_jax.structs import Example
from opsd_jax.tasks import same_text


class Missing(ValueError):
  """An example lacks the privileged text that was asked for."""


class Template(NamedTuple):
  student: Callable[[str], str]  # question -> user turn
  teacher: Callable[[str, str | None], str]  # and privileged text, or None


BOXED = "Reason step by step, and put your final answer in \\boxed{}."


def short_teacher(question, privileged):
  told = f"Here is a reference solution:\n{privileged}\n\n" if privileged else ""
  return f"{question}\n\n{told}Now write your own answer in the same form."


def upstream_student(question):
  return f"Problem: {question}\n\n{BOXED}"


def upstream_teacher(question, privileged):
  """As OPSD's released code orders it (March 2026), in our words."""
  told = (
    "A reference solution to this problem follows.\n"
    "=== Reference Solution Begin ===\n"
    f"{privileged}\n"
    "=== Reference Solution End ===\n\n"
    if privileged
    else ""
  )
  return (
    f"Problem: {question}\n\n{told}"
    "Make sure that you understand why each step holds. Then, without copying"
    " or paraphrasing it, reach the same answer by your own reasoning and in"
    " your own words. Think step by step; you may explore other ways and go"
    f" back when one fails.\n\n{BOXED}"
  )


def paper_teacher(question, privileged):
  """The order of the paper's figure 2 (arXiv:2601.18734), in our words."""
  told = f"Reference solution:\n{privileged}\n\n" if privileged else ""
  return (
    f"Problem: {question}\n\n{told}"
    "Having read the reference, solve the problem in your own way.\n\n"
    "Answer:"
  )


def plain_teacher(question, privileged):
  """Exactly what the student reads; it has no place for privileged text."""
  assert not privileged, "see check"
  return question


TEMPLATES = {
  "short": Template(lambda question: question, short_teacher),
  "upstream": Template(upstream_student, upstream_teacher),
  "paper": Template(upstream_student, paper_teacher),
  "plain": Template(lambda question: question, plain_teacher),
}


def present(text: str | None, what: str) -> str:
  if text is None or not text.strip():
    raise Missing(f"no {what}")
  return text


def solution(example: Example, pool) -> str:
  """The worked reference."""
  return present(example.solution, "solution")


def answer(example: Example, pool) -> str:
  """The short final answer alone."""
  return present(example.answer, "answer")


def none(example: Example, pool) -> None:
  """Nothing: the control of the teacher's wording."""
  return None


def other(example: Example, pool) -> str:
  """Another problem's solution: the next in the pool whose question, solution
  and answer all read differently. The control of the reference's form."""
  ids = [e.id for e in pool]
  here = ids.index(example.id)
  for e in (*pool[here + 1 :], *pool[:here]):
    alike = (
      e.answer is not None
      and e.answer == example.answer
      or (e.solution or "").strip() in ("", (example.solution or "").strip())
      or same_text(e.question) == same_text(example.question)
    )
    if not alike:
      return e.solution
  raise Missing("other problem with another solution")


PRIVILEGED = {"solution": solution, "answer": answer, "none": none, "other": other}


def check(template: str, kind: str) -> None:
  """Raises ValueError for an unknown name, or a template that cannot show the
  privileged text."""
  pick(TEMPLATES, template), pick(PRIVILEGED, kind)
  if template == "plain" and kind != "none":
    raise ValueError(
      "template plain shows no privileged text: set context.privileged=none"
    )


def student_messages(template: str, example: Example) -> list[dict]:
  return user(pick(TEMPLATES, template).student(example.question))


def teacher_messages(template: str, kind: str, example: Example, pool) -> list[dict]:
  """`pool` is the examples that `other` may draw from, this one among them.

  Raises Missing where the example has no such privileged text, and ValueError
  as `check`.
  """
  check(template, kind)
  privileged = pick(PRIVILEGED, kind)(example, pool)
  return user(pick(TEMPLATES, template).teacher(example.question, privileged))


def user(content: str) -> list[dict]:
  return [{"role": "user", "content": content}]
