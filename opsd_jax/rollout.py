"""Where responses come from: a host loop around sample.py, or the dataset."""

from opsd_jax.sample import Knobs, row_keys, sample
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
    knobs: Knobs,
    n: int,
    max_new_tokens: int,
    batch_prompts: int,
    prompt_bucket: int,
) -> list[list[Completion]]:
  """n completions of each prompt (token ids); `ids` name the prompts' draws."""
  samples = sample(
      model_config, params, prompts, row_keys(seed, step, role, ids, n), knobs,
      n=n, max_new_tokens=max_new_tokens, eos_ids=tokenizer.eos_ids,
      batch_prompts=batch_prompts, bucket=prompt_bucket,
  )  # fmt: skip
  rows = []
  for r, size in enumerate(samples.len_R):
    ids = tuple(samples.ids_RxT[r, :size].tolist())
    rows.append(
        Completion(
            tokenizer.decode(ids), ids,
            tuple(samples.logp_RxT[r, :size].tolist()),
            bool(samples.truncated_R[r]),
            tuple(samples.sampled_logp_RxT[r, :size].tolist()),
        )
    )  # fmt: skip
  return [rows[i : i + n] for i in range(0, len(rows), n)]


def on_policy(model_config, tokenizer, **how):
  """The student answers: (params, problems, step) -> rollouts, `n` a problem.

  `how` is what `complete` takes: seed, knobs, n, max_new_tokens, ...
  """

  def source(params, problems, step):
    completions = complete(
        model_config, params, tokenizer,
        [p.student_ids for p in problems], [p.example.id for p in problems],
        step=step, role="rollout", **how,
    )  # fmt: skip
    return [
        Rollout(problem, completion)
        for problem, group in zip(problems, completions, strict=True)
        for completion in group
    ]

  return source


def dataset(model_config, tokenizer, **how):
  """The reference solutions, each ended by end-of-turn; parameters unused."""

  def source(params, problems, step):
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
