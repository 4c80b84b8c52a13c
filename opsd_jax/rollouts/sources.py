"""Where responses come from: the model samples, or the dataset has them.

`complete` samples for everybody; a source says who answers what in a step.
"""

import functools

from opsd_jax import spec
from opsd_jax.runtime import distributed
from opsd_jax.sampling.sampler import sample
from opsd_jax.sampling.tokens import SamplingParams, row_keys
from opsd_jax.structs import Completion, Prompts, Rollout


def complete(
  model_config,
  params,
  tokenizer,
  prompts,
  ids,
  *,
  seed: int,
  step: int,
  role: str,
  sampling: SamplingParams,
  n: int,
  max_new_tokens,
  slots: int,
  host_sync_every: int,
  prompt_bucket: int,
  stop=(),
  longest_prompt: int = 0,
) -> list[list[Completion]]:
  """n completions of each prompt (token ids); `ids` name the prompts' draws.

  max_new_tokens: one number, or one a completion. A completion ends with the
  first token whose text completes one of the `stop` strings: it was sampled, so
  it is kept, and with it the string. A string may be a special token.
  longest_prompt: see `sampler.sample`.
  """
  ends, texts = split_stop("stop", stop, tokenizer)
  samples = sample(
    model_config,
    params,
    prompts,
    row_keys(seed, step, role, ids, n),
    sampling,
    n=n,
    max_new_tokens=max_new_tokens,
    eos_ids=(*tokenizer.eos_ids, *ends),
    slots=slots,
    bucket=prompt_bucket,
    steps=host_sync_every,
    stopped=stopper(tokenizer, texts),
    longest_prompt=longest_prompt,
  )
  rows = []
  for r, size in enumerate(samples.len_R):
    ids = tuple(samples.ids_RxT[r, :size].tolist())
    rows.append(
      Completion(
        tokenizer.decode(ids),
        ids,
        tuple(samples.logp_RxT[r, :size].tolist()),
        bool(samples.truncated_R[r]),
        tuple(samples.sampled_logp_RxT[r, :size].tolist()),
      )
    )
  return [rows[i : i + n] for i in range(0, len(rows), n)]


def check_stop(name: str, strings) -> None:
  """Raises ValueError unless these are texts to stop at."""

  def is_text(x):
    return isinstance(x, str) and x

  if isinstance(strings, str) or not all(map(is_text, strings)):
    raise ValueError(
      f"{name} is {strings!r}, expected a tuple of texts, none of them empty,"
      ' such as ("</answer>",)'
    )


def split_stop(name: str, strings, tokenizer) -> tuple[list[int], tuple[str, ...]]:
  """(ids of the special tokens among the strings, the other strings).

  Raises ValueError as `check_stop`, and where a string holds a special token and
  more: special tokens have no text in a completion.
  """
  check_stop(name, strings)
  if not strings:
    return [], ()
  special = {s for s in strings if s in tokenizer.control}
  texts = tuple(s for s in strings if s not in special)
  for text in texts:
    if held := [token for token in tokenizer.control if token in text]:
      raise ValueError(
        f"{name} has {text!r}, which holds the special token {held[0]!r} and more: give"
        " the token alone"
      )
  return tokenizer.inner.convert_tokens_to_ids(sorted(special)), texts


def check_chats(config, tokenizer) -> None:
  """Raises ValueError where the tokenizer knows no such stop, or its chat template
  reads no such argument."""
  for name, strings in (
    ("rollout.stop", config.rollout.stop),
    ("eval.stop", config.eval.stop),
  ):
    split_stop(name, strings, tokenizer)
  for name in ("student_args", "teacher_args"):
    try:
      tokenizer.check_arguments(spec.arguments(config.context[name]))
    except ValueError as e:
      raise ValueError(f"context.{name}: {e}") from e


def stopper(tokenizer, strings):
  """(ids, seen) -> how many ids make the first of the strings appear, or None.

  The first `seen` ids are known to make none. Only the end of what was seen is
  read again: as many tokens as hold more whole characters than the strings.
  """
  check_stop("stop", strings)
  longest = max(map(len, strings), default=0)

  def has(ids):
    return any(s in tokenizer.decode(ids) for s in strings)

  def stopped(ids, seen):
    if not strings:
      return None
    start, more = seen, longest

    # A character that lacks some of its tokens reads as U+FFFD.
    def whole():
      return tokenizer.decode(ids[start:seen]).replace("\ufffd", "")

    while start and len(whole()) <= longest:
      start, more = max(seen - more, 0), 2 * more
    if not has(ids[start:]):
      return None
    ends = range(seen + 1, len(ids) + 1)
    return next((k for k in ends if has(ids[start:k]) and has(ids[:k])), None)

  return stopped


def reference(tokenizer, text: str) -> Completion:
  """A given text as a response; ValueError where it holds a control token."""
  tokenizer.refuse_control(text)
  ids = (*tokenizer.encode(text), tokenizer.end_of_turn_id)
  return Completion(text, ids, None, False)


# ------------------------------------------------------------------- sources
# (problems, before, answer, verify, n) -> groups of Rollouts, one a problem.
#
#   problems  structs.Prompts of this process
#   before    how often each was asked in this step already
#   answer    (prompts, names, n, role) -> n Completions of each prompt; every
#             process calls it equally often, with lists that may differ or be empty
#   verify    groups -> the same groups with verdicts
#
# Further keywords are fields of config.rollout and config.routing. A source that
# reads verdicts is named in VERIFY, one that samples with privileged prompts in
# PRIVILEGED.


def names_of(problems, before) -> list[str]:
  """What the draws of each problem are called: one that is asked again in a step
  is answered with others."""
  return [
    f"{p.example.id}/{times}" if times else p.example.id
    for p, times in zip(problems, before, strict=True)
  ]


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
  return [
    [Rollout(p, answer.given(p.example.solution), p.views, "dataset")] for p in problems
  ]


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


ALL = {
  "student": student,
  "teacher_view": teacher_view,
  "rescue": rescue,
  "dataset": dataset,
}
VERIFY = ("rescue",)
PRIVILEGED = ("teacher_view", "rescue")


class Answer:
  """How a source samples in one step; see above."""

  def __init__(self, config, run, params, step: int):
    self.run, self.temperature = run, config.loss.temperature
    r = config.rollout
    self.max_new_tokens = r.max_new_tokens
    self.complete = functools.partial(
      complete,
      run.model_config,
      params,
      run.tokenizer,
      seed=config.seed,
      step=step,
      sampling=SamplingParams(r.temperature, r.top_k, r.top_p, r.min_p),
      slots=r.slots,
      host_sync_every=r.host_sync_every,
      prompt_bucket=config.batch.prompt_bucket,
      stop=r.stop,
      longest_prompt=run.longest_prompt,
    )

  def __call__(self, prompts, names, n: int, role: str):
    most = distributed.maximum([len(prompts)])[0]
    if not most:
      return []
    absent = most - len(prompts)  # one token answers each, and is thrown away
    prompts = [*prompts, *[(self.run.tokenizer.pad_id,)] * absent]
    names = [*names, *[f"absent {i}" for i in range(absent)]]
    budgets = [self.max_new_tokens] * n * (most - absent) + [1] * n * absent
    groups = self.complete(
      prompts=prompts, ids=names, role=role, n=n, max_new_tokens=budgets
    )
    return groups[: most - absent]

  def old_logp(self, completion: Completion) -> tuple[float, ...]:
    """Its tokens' log-probs under the policy that drew them, at the temperature
    of the loss; rules.check sees to it that one of the two is."""
    at_one = self.temperature == 1
    return completion.logp if at_one else completion.sampled_logp

  def given(self, text: str) -> Completion:
    return reference(self.run.tokenizer, text)
