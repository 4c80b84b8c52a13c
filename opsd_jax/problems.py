"""config -> the problems of a run: read, disjoint, worded for every view.

What they say, as the chat template renders it, is part of a run's identity.
"""

import dataclasses
from collections.abc import Callable

from ml_collections import ConfigDict

from opsd_jax import rules
from opsd_jax.data import audit, order, splits
from opsd_jax.data.columns import Columns
from opsd_jax.data.sources import TASK
from opsd_jax.losses import objective as objectives
from opsd_jax.models import tokenizer as tokenizers
from opsd_jax.rollouts import contexts, contexts_after, sources
from opsd_jax.rollouts.prompts import build_prompts, prompt_limit
from opsd_jax.runtime import checkpoint, distributed
from opsd_jax.structs import Example, Prompts
from opsd_jax.tasks import pool


def load_split(config: ConfigDict) -> splits.Split:
  """The training and evaluation examples of a run of this config."""
  data = config.data
  return splits.load(
    data.train,
    data.eval,
    Columns(data.problem, data.solution, data.answer, data.id, data.rejected),
    skip_bad=data.skip_bad,
    train_limit=data.train_limit,
    eval_limit=data.eval_limit,
    rewarded=objectives.learns_from_rewards(config),
    test_time=data.test_time,
    task=dict(config.task),
  )


def read_problems(config: ConfigDict) -> tuple[Callable, splits.Split]:
  """(verify, `load_split`), with the audit of a file's answers in its counts.

  Raises ValueError where the task cannot verify the answers that responses will
  be compared with.
  """
  task, data = config.task, config.data
  verify = pool.shared(task.name, task.privileged_field, **config.verify)
  split = load_split(config)
  counts = dict(split.counts)
  if data.eval != TASK:
    counts["evaluation answers not verified"] = audit.count_unverifiable(
      verify, split.eval, task.name, data.eval
    )
  if data.train != TASK and objectives.learns_from_rewards(config):
    counts["training answers not verified"] = audit.count_unverifiable(
      verify, split.train, task.name, data.train
    )
  # `exact` compares the whole response: it reads no answer out of a solution.
  if data.train != TASK and task.name != "exact":
    name = f"of {audit.AUDITED:,} training solutions at most, with another answer"
    counts[name] = audit.count_contradicting_solutions(verify, split.train)
  return verify, split._replace(counts=counts)


def tokenize(
  config: ConfigDict,
  tokenizer: tokenizers.Tokenizer,
  split: splits.Split,
  row_len: int,
  max_positions: int,
) -> tuple[tuple[Prompts, ...], tuple[Prompts, ...], dict[str, int]]:
  """(training prompts, evaluation prompts, dropped examples by reason).

  `row_len` bounds a training row, `max_positions` an evaluation row. Raises
  ValueError where one has no place for a prompt, or too few problems are left.
  """
  of_model = "the model's positions"
  of_row = f"batch.max_sequence_len or {of_model}"
  train_len, eval_len, _ = (
    prompt_limit(name, rules.field(config, name), limit, of)
    for name, limit, of in (
      ("rollout.max_new_tokens", row_len - revision_len(config, tokenizer), of_row),
      ("eval.max_new_tokens", max_positions, of_model),
      ("eval.drift_tokens", max_positions, of_model),
    )
  )
  dropped = dict(split.dropped)
  if config.rollout.source == "pairs" and not config.data.rejected:
    split = split._replace(train=with_others(split.train))
  train = build_prompts(
    config.context,
    tokenizer,
    split.train,
    train_len,
    dropped,
    "training",
    reference_row_len=row_len if config.rollout.source in sources.REFERENCES else 0,
    views_read=objectives.from_config(config).views,
  )
  held_out = build_prompts(
    config.context, tokenizer, split.eval, eval_len, dropped, "evaluation"
  )
  if len(train) < config.rollout.prompts_per_step or not held_out:
    raise ValueError(
      f"{len(train)} training problems are left, expected at least"
      f" rollout.prompts_per_step = {config.rollout.prompts_per_step}, and"
      f" {len(held_out)} evaluation problems, expected at least 1; removed as"
      f" overlap: {split.removed_as_overlap}; dropped: {dropped or 'none'}"
    )
  return train, held_out, dropped


def revision_len(config: ConfigDict, tokenizer: tokenizers.Tokenizer) -> int:
  """Tokens that a response may have beyond rollout.max_new_tokens: an outcome and a
  second answer, where the source revises."""
  if config.rollout.source != "revised":
    return 0
  outcomes = contexts_after.OUTCOMES.values()
  longest = max(len(tokenizer.encode(f"\n\n{text}\n\n")) for text in outcomes)
  return longest + config.rollout.max_new_tokens


def with_others(examples) -> tuple[Example, ...]:
  """The examples, each with another problem's solution as what is rejected; without
  those that have none."""
  others = contexts.Pool(examples).others
  return tuple(
    dataclasses.replace(e, rejected=others[e.id]) for e in examples if others[e.id]
  )


def identify(
  config: ConfigDict, tokenizer, train, held_out, weights: dict, mesh
) -> dict:
  """{name: digest} of what decides a run beside its config: the prompts as they are
  rendered, the tokenizer, the weights it starts from.

  `weights`: {name: params on the mesh}. Raises ValueError where processes read
  different prompts.
  """
  digest = order.digest(train, held_out)
  if len(set(distributed.gather(digest))) > 1:
    raise ValueError(
      "the processes read different prompts: give each the same content of"
      f" data.train={config.data.train} and data.eval={config.data.eval}, and the same"
      " tokenizer with its chat template"
    )
  return {
    "date": tokenizer.date.isoformat(),
    "prompts": digest,
    "tokenizer": tokenizer.digest(),
    **{name: checkpoint.fingerprint(tree, mesh) for name, tree in weights.items()},
  }
