"""Where responses come from: who answers what in a step.

A source is `(problems, before, answer, verify, n, **kw) -> groups of Rollouts`, one
group a problem:

  problems  structs.Prompts of this process
  before    how often each was asked in this step already
  answer    answering.Answer; every process calls it, and its methods `score` and
            `prompt_after`, equally often, with lists that may differ or be empty
  verify    groups -> the same groups with verdicts

Keywords are fields of config.rollout and config.routing.
"""

import numpy as np

from opsd_jax.rollouts import contexts_after
from opsd_jax.structs import Completion, Prompts, Rollout


def names_of(problems, before) -> list[str]:
  """What the draws of each problem are called: one that is asked again in a step
  is answered with others."""
  return [
    f"{p.example.id}/{times}" if times else p.example.id
    for p, times in zip(problems, before, strict=True)
  ]


# ------------------------------------------------------------------- of one kind


def student(problems, before, answer, verify, n):
  """The student answers from the question alone."""
  prompts = [p.student_ids for p in problems]
  groups = answer(prompts, names_of(problems, before), n, "rollout")
  return [
    [Rollout(p, completion, p.views) for completion in group]
    for p, group in zip(problems, groups, strict=True)
  ]


def dataset(problems, before, answer, verify, n):
  """The reference solutions, each ended by end-of-turn."""
  return [[given(answer, p, p.example.solution, "dataset")] for p in problems]


def given(answer, prompts: Prompts, text: str, role: str) -> Rollout:
  """A text as a response to the question."""
  return Rollout(prompts, answer.given(text), prompts.views, role)


def pairs(problems, before, answer, verify, n):
  """The reference solution of each problem, and the response that was rejected (REDI,
  arXiv:2505.24850)."""
  return [
    [
      given(answer, p, p.example.solution, "dataset"),
      given(answer, p, p.example.rejected, "rejected"),
    ]
    for p in problems
  ]


def external(problems, before, answer, verify, n):
  """The external model answers from the question alone: its responses are imitated
  (DED, arXiv:2508.09883)."""
  prompts = [p.student_ids for p in problems]
  groups = answer(
    prompts, names_of(problems, before), n, "external", weights="external"
  )
  return [
    [Rollout(p, not_sampled(completion), p.views, "external") for completion in group]
    for p, group in zip(problems, groups, strict=True)
  ]


def not_sampled(completion: Completion) -> Completion:
  """A completion that another than the learner has sampled."""
  return completion._replace(logp=None, sampled_logp=None)


def teacher_view(problems, before, answer, verify, n, *, alpha: float):
  """The student that reads the privileged prompt answers. Each response is
  learned twice: under that prompt (role teacher; its teacher reads the question)
  and from the question alone (role guided; its teacher reads the privileged
  prompt), unless alpha, the share of the first, leaves one of them no weight
  (pi-Distill, arXiv:2602.04942)."""
  prompts = [p.teacher_ids for p in problems]
  groups = answer(prompts, names_of(problems, before), n, "guided")

  def rows(p, completion):
    swapped = (p.teacher_ids, p.student_ids, *p.views[2:])
    if alpha > 0:
      yield Rollout(p, completion, swapped, "teacher")
    if alpha < 1:
      yield guided(answer, p, completion)._replace(is_copy=alpha > 0)

  return [
    [row for completion in group for row in rows(p, completion)]
    for p, group in zip(problems, groups, strict=True)
  ]


def guided(answer, prompts: Prompts, completion: Completion) -> Rollout:
  """A response of the privileged prompt, to be learned from the question alone;
  its ratio is to the policy that drew it."""
  old_logp = answer.old_logp(completion)
  return Rollout(prompts, completion, prompts.views, "guided", old_logp=old_logp)


# ------------------------------------------------------- of several, or edited


def rescue(problems, before, answer, verify, n):
  """The student answers; where none of its responses is right, the student that
  reads the privileged prompt answers too (HDPO, arXiv:2603.23871)."""
  groups = verify(student(problems, before, answer, verify, n))
  failed = [i for i, g in enumerate(groups) if all(not r.verdict.is_correct for r in g)]
  names = names_of([problems[i] for i in failed], [before[i] for i in failed])
  more = answer([problems[i].teacher_ids for i in failed], names, n, "guided")
  for i, completions in zip(failed, more, strict=True):
    groups[i] = groups[i] + [guided(answer, problems[i], c) for c in completions]
  return verify(groups)


def mixed(problems, before, answer, verify, n, *, student_share: float):
  """Of a problem either the student's responses, with probability `student_share`, or
  the reference solution (GKD, arXiv:2306.13649): 0 is `dataset`, 1 `student`."""
  names = names_of(problems, before)
  asked = [answer.uniform(name) < student_share for name in names]

  def chosen(items):
    return [x for x, is_asked in zip(items, asked, strict=True) if is_asked]

  groups = iter(student(chosen(problems), chosen(before), answer, verify, n))
  references = dataset(problems, before, answer, verify, n)
  return [
    next(groups) if is_asked else reference
    for reference, is_asked in zip(references, asked, strict=True)
  ]


def revised(problems, before, answer, verify, n):
  """The student answers, and answers again having read its attempt and its outcome
  (context own_attempt). Two rows of each: the revision from that prompt, and attempt,
  outcome and revision together from the question alone; the verdict of both is the
  revision's (SD-Zero's first phase, arXiv:2604.12002)."""
  attempts = verify(student(problems, before, answer, verify, n))
  prompts = [
    answer.prompt_after(group, i) for group in attempts for i in range(len(group))
  ]
  names = [
    f"{name} {i}"
    for name, group in zip(names_of(problems, before), attempts, strict=True)
    for i in range(len(group))
  ]
  revisions = iter(answer(prompts, names, 1, "revision"))

  def rows(attempt, prompt_ids):
    (revision,) = next(revisions)
    yield Rollout(
      attempt.prompts, not_sampled(revision), (prompt_ids, prompt_ids), "revision"
    )
    outcome = contexts_after.OUTCOMES[attempt.verdict.is_correct]
    whole = answer.joined(attempt.completion, f"\n\n{outcome}\n\n", revision)
    yield Rollout(attempt.prompts, whole, attempt.views, "generation", is_copy=True)

  prompt_ids = iter(prompts)
  made = [[list(rows(r, next(prompt_ids))) for r in group] for group in attempts]
  revised_groups = verify([[first for first, _ in group] for group in made])
  return [
    [
      row
      for first, (_, whole) in zip(group, pair, strict=True)
      for row in (first, whole._replace(verdict=first.verdict))
    ]
    for group, pair in zip(revised_groups, made, strict=True)
  ]


def calibrated(problems, before, answer, verify, n):
  """The student answers, and the confidence it states is overwritten with the share of
  its prompt's responses that are right; the text is tokenised anew, and its verdict is
  that of the sampled text without it (CaOPD, arXiv:2604.16830)."""
  groups = student(problems, before, answer, verify, n)

  def answered(r):
    text = contexts_after.without_confidence(r.completion.text)
    return r._replace(completion=r.completion._replace(text=text))

  verified = verify([[answered(r) for r in g] for g in groups])
  groups = [
    [r._replace(verdict=v.verdict) for r, v in zip(*pair, strict=True)]
    for pair in zip(groups, verified, strict=True)
  ]

  def edited(r, rate: float):
    if r.completion.truncated:
      return r  # it has not come to its confidence
    text = contexts_after.with_confidence(r.completion.text, rate)
    is_new = text != r.completion.text
    return r._replace(completion=answer.given(text)) if is_new else r

  rates = [sum(r.verdict.is_correct for r in g) / len(g) for g in groups]
  return [[edited(r, p) for r in g] for g, p in zip(groups, rates, strict=True)]


def continued(problems, before, answer, verify, n):
  """The student answers; where it was cut off, its text is cut at a random token and
  the external model goes on from there. All of it is imitated (DASD's mixed policy,
  arXiv:2601.09088)."""
  groups = student(problems, before, answer, verify, n)
  names = names_of(problems, before)
  cut = [
    (p, i, j)
    for p, group in enumerate(groups)
    for i, r in enumerate(group)
    if r.completion.truncated
    for j in [int(answer.uniform(f"{names[p]} {i}") * len(r.completion.ids))]
  ]
  more = answer(
    [problems[p].student_ids for p, _, _ in cut],
    [f"{names[p]} {i}" for p, i, _ in cut],
    1,
    "continuation",
    weights="external",
    prefix_ids=[groups[p][i].completion.ids[:j] for p, i, j in cut],
  )
  for (p, i, _), (completion,) in zip(cut, more, strict=True):
    groups[p][i] = groups[p][i]._replace(completion=completion, role="external")
  return [
    [r._replace(completion=not_sampled(r.completion)) for r in group]
    for group in groups
  ]


def most_taught(problems, before, answer, verify, n, *, threshold: float):
  """The external model answers n times; of these the one is imitated in which the most
  tokens stand in sentences that it finds likely and the student does not: their
  geometric means of the tokens' probabilities differ by more than `threshold` (DASD's
  divergence-aware sampling, arXiv:2601.09088)."""
  groups = external(problems, before, answer, verify, n)
  flat = [r for group in groups for r in group]
  students = answer.score(flat, 0, "live")
  teachers = answer.score(flat, 0, "external")
  scores = iter(
    [
      informative_share(answer.sentences(r.completion.ids), s, t, threshold)
      for r, s, t in zip(flat, students, teachers, strict=True)
    ]
  )
  return [[max(group, key=lambda r: next(scores))] for group in groups]


def informative_share(sentences, student_logp, teacher_logp, threshold: float) -> float:
  """The share of tokens in sentences (slices) that teach."""
  total, informative = 0, 0
  for part in sentences:
    s, t = student_logp[part].mean(), teacher_logp[part].mean()
    total += part.stop - part.start
    informative += (part.stop - part.start) * bool(np.exp(t) - np.exp(s) > threshold)
  return informative / max(total, 1)


ALL = {
  "student": student,
  "teacher_view": teacher_view,
  "rescue": rescue,
  "mixed": mixed,
  "revised": revised,
  "calibrated": calibrated,
  "external": external,
  "continued": continued,
  "most_taught": most_taught,
  "dataset": dataset,
  "pairs": pairs,
}
VERIFY = ("rescue", "revised", "calibrated")  # they read verdicts
PRIVILEGED = ("teacher_view", "rescue")  # they sample with privileged prompts
GIVEN = ("dataset", "pairs")  # nobody samples
REFERENCES = ("dataset", "mixed", "pairs")  # they give texts of the data
READ_CONTEXT = ("revised",)  # they show the first context to the student
EXTERNAL = ("external", "continued", "most_taught")  # they sample of config.external
ON_POLICY = ("student", "rescue", "teacher_view")  # whose draws are the student's
TWO_ROWS = ("rescue", "revised", "pairs")  # twice as many rows as responses, at most
