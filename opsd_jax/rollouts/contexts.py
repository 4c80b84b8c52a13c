"""What each view reads, as chat messages. Text only.

A template says how a question and privileged text are worded; a context says
what that text is. The student never sees it. A context is

  BEFORE  (example, pool, **kw) -> text, before any rollout
  AFTER   (group, i, **kw) -> text or None, of verified responses: contexts_after.py

Keywords are fields of config.context.
"""

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

from opsd_jax.registry import accepted, pick
from opsd_jax.rollouts.contexts_after import AFTER, BARE
from opsd_jax.structs import Example
from opsd_jax.tasks import normalize_question


class Missing(ValueError):
  """An example lacks the privileged text that was asked for."""


class Template(NamedTuple):
  student: Callable[[str], str]  # question -> user turn
  teacher: Callable[[str, str | None], str]  # and privileged text, or None


BOXED = "Reason step by step, and put your final answer in \\boxed{}."


def short_teacher(question, privileged):
  privileged_text = (
    f"Here is a reference solution:\n{privileged}\n\n" if privileged else ""
  )
  return f"{question}\n\n{privileged_text}Now write your own answer in the same form."


def upstream_student(question):
  return f"Problem: {question}\n\n{BOXED}"


def upstream_teacher(question, privileged):
  """As OPSD's released code orders it (March 2026), in our words."""
  privileged_text = (
    "A reference solution to this problem follows.\n"
    "=== Reference Solution Begin ===\n"
    f"{privileged}\n"
    "=== Reference Solution End ===\n\n"
    if privileged
    else ""
  )
  return (
    f"Problem: {question}\n\n{privileged_text}"
    "Make sure that you understand why each step holds. Then, without copying"
    " or paraphrasing it, reach the same answer by your own reasoning and in"
    " your own words. Think step by step; you may explore other ways and go"
    f" back when one fails.\n\n{BOXED}"
  )


def paper_teacher(question, privileged):
  """The order of the paper's figure 2 (arXiv:2601.18734), in our words."""
  privileged_text = f"Reference solution:\n{privileged}\n\n" if privileged else ""
  return (
    f"Problem: {question}\n\n{privileged_text}"
    "Having read the reference, solve the problem in your own way.\n\n"
    "Answer:"
  )


def plain_teacher(question, privileged):
  """Exactly what the student reads; it has no place for privileged text."""
  assert not privileged, "see check"
  return question


def reprompt_teacher(question, privileged):
  """What attempts have shown, then the question once more (SDPO,
  arXiv:2601.20802, in our words)."""
  known = f"{privileged}\n\n" if privileged else ""
  return f"{question}\n\n{known}Now solve the question above correctly."


def reprompt_boxed_teacher(question, privileged):
  return f"{reprompt_teacher(f'Problem: {question}', privileged)} {BOXED}"


def instruct_teacher(question, privileged):
  """The question, and an instruction that the student does not read."""
  return f"{question}\n\n{privileged}" if privileged else question


def instruct_boxed_teacher(question, privileged):
  return f"{instruct_teacher(f'Problem: {question}', privileged)}\n\n{BOXED}"


def confidence_student(question):
  return f"{question}\n\n{SAY_CONFIDENCE}"


def confidence_teacher(question, privileged):
  return f"{short_teacher(question, privileged)} {SAY_CONFIDENCE}"


SAY_CONFIDENCE = (
  "On the last line write 'Confidence: ' and, from 0 to 1, how likely your answer is"
  " to be right."
)


TEMPLATES = {
  "short": Template(lambda question: question, short_teacher),
  "upstream": Template(upstream_student, upstream_teacher),
  "paper": Template(upstream_student, paper_teacher),
  "plain": Template(lambda question: question, plain_teacher),
  "reprompt": Template(lambda question: question, reprompt_teacher),
  "reprompt_boxed": Template(upstream_student, reprompt_boxed_teacher),
  "instruct": Template(lambda question: question, instruct_teacher),
  "instruct_boxed": Template(upstream_student, instruct_boxed_teacher),
  "confidence": Template(confidence_student, confidence_teacher),
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


class Pool(tuple):
  """Examples that `other` draws from; what it takes for each is found once for all."""

  @functools.cached_property
  def others(self) -> dict[str, str | None]:
    """{id: the solution that `other` shows}; None where there is none. Of examples of
    one id the first counts."""
    traits = [traits_of(e, i) for i, e in enumerate(self)]
    after, solutions = (), [None] * len(self)
    # Backwards and twice round, so that the last examples are followed by the first.
    for i in (*reversed(range(len(self))), *reversed(range(len(self)))):
      fitting = (j for j in after if not alike(traits[i], traits[j]))
      found = next(fitting, None)
      solutions[i] = None if found is None else self[found].solution
      if traits[i][1]:  # has a solution
        after = shorten((i, *after), traits)
    ids = reversed([e.id for e in self])
    return dict(zip(ids, reversed(solutions), strict=True))


def traits_of(example: Example, i: int) -> tuple:
  """What two examples that are `alike` share one of; no answer is like none."""
  answer = (i,) if example.answer is None else example.answer
  solution = (example.solution or "").strip()
  return answer, solution, normalize_question(example.question)


def alike(one, two) -> bool:
  return one[0] == two[0] or one[1] == two[1] or one[2] == two[2]


def shorten(followers, traits) -> tuple:
  """Those of the examples in this order that may be the first unlike some example:
  at most eight (Alon 1985, the bound on set pairs, of three traits)."""
  kept = []
  witnesses = [(None,) * 3]  # traits alike to all of `kept`, as few as suffice
  for j in followers:
    others = [w for w in witnesses if not alike(w, traits[j])]
    if others:
      kept.append(j)
      witnesses = [w for w in witnesses if alike(w, traits[j])] + [
        (*w[:n], traits[j][n], *w[n + 1 :])
        for w in others
        for n in range(3)
        if w[n] is None
      ]
  return tuple(kept)


def other(example: Example, pool) -> str:
  """Another problem's solution: the next in the pool whose question, solution
  and answer all read differently. The control of the reference's form."""
  pool = pool if isinstance(pool, Pool) else Pool(pool)
  if (found := pool.others[example.id]) is None:
    raise Missing("other problem with another solution")
  return found


def instruction(example: Example, pool, *, instruction: str) -> str:
  """One text for all problems: to be concise (CRISP, arXiv:2603.05433), to be safe
  (arXiv:2605.15239)."""
  return present(instruction, "context.instruction")


BEFORE = {
  "solution": solution,
  "answer": answer,
  "none": none,
  "other": other,
  "instruction": instruction,
  "solution_alone": solution,
}
WITHOUT_QUESTION = ("solution_alone",)  # whose prompts do not show the question
NOT_SHOWN = "(not shown)"


# -------------------------------------------------------------------- checks


def names(c) -> tuple[str, ...]:
  """The contexts of views 1, 2, ...; `c` is config.context."""
  return (c.privileged, *c.also_privileged)


def taken(c) -> set[str]:
  """The fields of config.context that its contexts take."""
  functions = [{**BEFORE, **AFTER}[name] for name in names(c)]
  return set().union(*(inspect.signature(f).parameters for f in functions))


def read_memory(c) -> bool:
  """Whether a context reads what earlier steps have left."""
  return "memory" in taken(c)


def late_views(c) -> list[int]:
  """The views whose prompts are made after verdicts."""
  return [view for view, name in enumerate(names(c), 1) if name in AFTER]


def check(template: str, *kinds: str) -> None:
  """Raises ValueError for an unknown name, or a template that cannot show the
  privileged text."""
  pick(TEMPLATES, template)
  for kind in kinds:
    pick({**BEFORE, **AFTER}, kind)
    if template == "plain" and kind != "none":
      raise ValueError(
        "template plain shows no privileged text: set context.privileged=none"
      )
    if kind in AFTER and kind not in BARE and not template.startswith("reprompt"):
      raise ValueError(
        f"context {kind} heads its own paragraphs, which template {template} does"
        " not: set context.template=reprompt or reprompt_boxed"
      )


def student_messages(template: str, example: Example) -> list[dict]:
  return user(pick(TEMPLATES, template).student(example.question))


def teacher_messages(
  template: str,
  kind: str,
  example: Example,
  pool,
  fields={},  # noqa: B006
) -> list[dict]:
  """`pool` is the examples that `other` may draw from, this one among them; `fields`
  those of config.context.

  Raises Missing where the example has no such privileged text, and ValueError
  as `check`.
  """
  check(template, kind)
  function = pick(BEFORE, kind)
  privileged = function(example, pool, **accepted(function, fields))
  question = NOT_SHOWN if kind in WITHOUT_QUESTION else example.question
  return user(pick(TEMPLATES, template).teacher(question, privileged))


def messages_after(
  template: str, kinds: tuple[str, ...], view: int, group, i: int, fields
) -> list | None:
  """What a teacher reads of response i of a verified group in a view of these kinds;
  None: nothing."""
  kind = kinds[view - 1]
  function, nth = pick(AFTER, kind), kinds[: view - 1].count(kind)
  privileged = function(group, i, **accepted(function, {**fields, "nth": nth}))
  if privileged is None:
    return None
  question = group[i].prompts.example.question
  return user(pick(TEMPLATES, template).teacher(question, privileged or None))


def user(content: str) -> list[dict]:
  return [{"role": "user", "content": content}]
