"""What a teacher reads once the responses are verified: `(group, i, **kw) -> text or
None`, for response i of a verified group; None: this response has no such view.

The text heads its own paragraphs, but for those of BARE, which a template heads; an
empty text is nothing to read. Keywords are fields of config.context; `memory` is what
earlier steps have left (host_memory.py), `nth` how many earlier views have the same
context.
"""


def heading(what: str, text: str) -> str:
  return f"{what}:\n{text}"


def sibling(group, i, *, include_self: bool) -> str | None:
  """The first right response to the problem, this one left out unless
  `include_self` (SDPO)."""
  for j, rollout in enumerate(group):
    if rollout.verdict.is_correct and (include_self or j != i):
      return heading("A correct solution", rollout.completion.text)
  return None


def feedback(group, i) -> str | None:
  """What the task says of this response (SDPO)."""
  text = group[i].verdict.feedback
  return heading("Feedback on an earlier attempt", text) if text else None


def sibling_or_feedback(group, i, *, include_self: bool) -> str | None:
  """A right response, else the feedback."""
  return sibling(group, i, include_self=include_self) or feedback(group, i)


def sibling_and_feedback(group, i, *, include_self: bool) -> str | None:
  """Both, or the one that there is."""
  parts = sibling(group, i, include_self=include_self), feedback(group, i)
  return "\n\n".join(part for part in parts if part) or None


def remembered(group, i, *, include_self: bool, memory) -> str | None:
  """A right response of this step, else the last right one of an earlier step."""
  now = sibling(group, i, include_self=include_self)
  past = memory.best(group[i].prompts.example.id)
  return now or (past and heading("A correct solution", past))


# -------------------------------------------------------- of right and wrong ones


def hints(group, i, is_correct: bool) -> list[str]:
  """The other responses that are right, or wrong; none where the group has not both
  kinds beside this one, since their contrast is what they are for (RLCSD)."""
  others = [r for j, r in enumerate(group) if j != i]
  kinds = {r.verdict.is_correct for r in others}
  texts = [r.completion.text for r in others if r.verdict.is_correct == is_correct]
  return texts if kinds == {True, False} else []


def correct_hint(group, i, *, nth: int) -> str | None:
  """The nth right response of the others, worded as a wrong one is."""
  texts = hints(group, i, True)
  return heading("A solution to consider", texts[nth]) if nth < len(texts) else None


def wrong_hint(group, i, *, nth: int) -> str | None:
  """The nth wrong response of the others (RLCSD, arXiv:2606.11709)."""
  texts = hints(group, i, False)
  return heading("A solution to consider", texts[nth]) if nth < len(texts) else None


def own_attempt(group, i) -> str:
  """This response and whether it is right (SD-Zero, arXiv:2604.12002, in our words)."""
  verdict = OUTCOMES[group[i].verdict.is_correct]
  return f"{heading('Your attempt', group[i].completion.text)}\n\n{verdict}"


OUTCOMES = {
  True: "This attempt is correct. Say it once more, in better words.",
  False: "This attempt is not correct. Start again, and do it otherwise.",
}


def majority(group, i, *, agreement: float, most: int) -> str | None:
  """The longest response with the answer that most have, for the `most` longest of
  those that disagree; None where fewer than the share `agreement` agree (u-OPSD,
  arXiv:2608.06296). No reference is read."""
  answers = [r.verdict.answer for r in group]
  known = [a for a in answers if a is not None]
  if not known:
    return None
  chosen = max(known, key=known.count)  # the first of those that are as many
  agree = [r for r, a in zip(group, answers, strict=True) if a == chosen]
  disagree = [j for j, a in enumerate(answers) if a != chosen]
  disagree.sort(key=lambda j: -len(group[j].completion.ids))
  if len(agree) < agreement * len(group) or i not in disagree[:most]:
    return None
  longest = max(agree, key=lambda r: len(r.completion.ids))
  return heading("A solution", longest.completion.text)


# ------------------------------------------------------------ of the reference


def part_of_solution(group, i, *, part: float) -> str:
  """The beginning of the reference solution, `part` of its words: 1 is `solution`, 0
  nothing. A schedule or a controller may change it (ATESD, arXiv:2605.11458)."""
  text = group[i].prompts.example.solution or ""
  words = text.split(" ")
  return " ".join(words[: round(part * len(words))])


def solution_and_confidence(group, i) -> str | None:
  """The reference solution, and as its confidence the share of the prompt's responses
  that are right (CaOPD, arXiv:2604.16830)."""
  text = group[i].prompts.example.solution
  rate = sum(r.verdict.is_correct for r in group) / len(group)
  return f"{text}\n{confidence(rate)}" if text else None


def confidence(rate: float) -> str:
  """How a confidence is said, by the student too."""
  return f"Confidence: {rate:.2f}"


def without_confidence(text: str) -> str:
  """The text before the confidence that it states."""
  before, marker, _ = text.rpartition("Confidence:")
  return before if marker else text


def with_confidence(text: str, rate: float) -> str:
  """The text with this confidence for the one that it states, or at its end."""
  before, marker, _ = text.rpartition("Confidence:")
  before = before if marker else f"{text.rstrip()}\n"
  return f"{before}{confidence(rate)}"


AFTER = {
  "sibling": sibling,
  "feedback": feedback,
  "sibling_or_feedback": sibling_or_feedback,
  "sibling_and_feedback": sibling_and_feedback,
  "remembered": remembered,
  "correct_hint": correct_hint,
  "wrong_hint": wrong_hint,
  "own_attempt": own_attempt,
  "majority": majority,
  "part_of_solution": part_of_solution,
  "solution_and_confidence": solution_and_confidence,
}
BARE = ("part_of_solution", "solution_and_confidence")
