"""How a task's verifier scores a data set's own answers and solutions."""

from collections.abc import Callable, Sequence

from opsd_jax.data.columns import clip
from opsd_jax.structs import UNVERIFIED, Example

# Responses to which `count_unverifiable` turns a reference answer. The last one
# does not hold it: a verifier that fails on the reference fails on this one too.
RESPONSES = ("{}", "\\boxed{{{}}}", "The answer is 0.")
AUDITED = 5000  # solutions that `count_contradicting_solutions` verifies at most


def count_unverifiable(
  verify: Callable, examples: Sequence[Example], task: str, source: str
) -> int:
  """Counts reference answers that the verifier scores as wrong.

  Each answer is verified as a response to its own problem, bare and boxed.

  Args:
    verify: (examples, texts) -> Verdicts.
    examples: those without an answer are left out.
    task, source: names, for messages.

  Raises:
    ValueError: every answer is scored as wrong, or the verifier fails on one.
  """
  answered = [e for e in examples if e.answer is not None]
  texts = [form.format(e.answer) for form in RESPONSES for e in answered]
  repeated = answered * len(RESPONSES)
  verdicts = verify(repeated, texts)
  for e, v in zip(repeated, verdicts, strict=True):
    if v.feedback.startswith(f"{UNVERIFIED}: "):
      raise ValueError(
        f"task {task} cannot verify problem {clip(e.id)} of {source}, whose answer is"
        f" {clip(repr(e.answer))} ({clip(v.feedback)}): choose another task.name"
      )
  scores = [v.score for v in verdicts]
  bare, boxed = scores[: len(answered)], scores[len(answered) : 2 * len(answered)]
  wrong = sum(max(pair) < 1 for pair in zip(bare, boxed, strict=True))
  if answered and wrong == len(answered):
    raise ValueError(
      f"task {task} scores none of the {wrong} reference answers of {source} as"
      f" correct, {clip(repr(answered[0].answer))} the first: choose another task.name"
    )
  return wrong


def count_contradicting_solutions(verify: Callable, examples: Sequence[Example]) -> int:
  """Counts reference solutions that end in another answer than their example's.

  The first AUDITED solutions are verified as responses; a solution from which
  the verifier reads no answer does not count.
  """
  solved = [e for e in examples if e.answer is not None and e.solution][:AUDITED]
  verdicts = verify(solved, [e.solution for e in solved])
  return sum(v.answer is not None and v.score < 1 for v in verdicts)
