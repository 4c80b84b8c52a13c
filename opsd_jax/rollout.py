"""Where responses come from: a host loop around sample.py, or the dataset."""

from opsd_jax.draw import SamplingParams, row_keys
from opsd_jax.sample import sample
from opsd_jax.structs import Completion, Rollout


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
  decode_steps: int,
  prompt_bucket: int,
  stop=(),
) -> list[list[Completion]]:
  """n completions of each prompt (token ids); `ids` name the prompts' draws.

  max_new_tokens: one number, or one a completion. A completion ends with the
  first token whose text completes one of the `stop` strings: it was sampled, so
  it is kept, and with it the string.
  """
  samples = sample(
    model_config,
    params,
    prompts,
    row_keys(seed, step, role, ids, n),
    sampling,
    n=n,
    max_new_tokens=max_new_tokens,
    eos_ids=tokenizer.eos_ids,
    slots=slots,
    bucket=prompt_bucket,
    steps=decode_steps,
    stopped=stopper(tokenizer, stop),
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

    # A character that lost some of its tokens reads as U+FFFD.
    def whole():
      return tokenizer.decode(ids[start:seen]).replace("\ufffd", "")

    while start and len(whole()) <= longest:
      start, more = max(seen - more, 0), 2 * more
    if not has(ids[start:]):
      return None
    ends = range(seen + 1, len(ids) + 1)
    return next((k for k in ends if has(ids[start:k]) and has(ids[:k])), None)

  return stopped


def on_policy(model_config, tokenizer, **how):
  """The student answers: (params, problems, step, before) -> rollouts, `n` a
  problem; `before`: how often each was asked in this step already.

  `how` is what `complete` takes: seed, sampling, n, max_new_tokens, ...
  """

  def source(params, problems, step, before):
    names = [
      f"{p.example.id}/{times}" if times else p.example.id
      for p, times in zip(problems, before, strict=True)
    ]
    completions = complete(
      model_config,
      params,
      tokenizer,
      [p.student_ids for p in problems],
      names,
      step=step,
      role="rollout",
      **how,
    )
    return [
      Rollout(problem, completion)
      for problem, group in zip(problems, completions, strict=True)
      for completion in group
    ]

  return source


def dataset(model_config, tokenizer, **how):
  """The reference solutions, each ended by end-of-turn; parameters unused."""

  def source(params, problems, step, before):
    return [
      Rollout(problem, reference(tokenizer, problem.example.solution))
      for problem in problems
    ]

  return source


def reference(tokenizer, text: str) -> Completion:
  """A given text as a response; ValueError where it holds a control token."""
  tokenizer.refuse_control(text)
  ids = (*tokenizer.encode(text), tokenizer.end_of_turn_id)
  return Completion(text, ids, None, False)


ALL = {"on_policy": on_policy, "dataset": dataset}
