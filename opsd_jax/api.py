"""Load, generate and score in a notebook; re-exported by `opsd_jax`."""

import collections
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opsd_jax.losses import chunked
from opsd_jax.models import tokenizer, transformer
from opsd_jax.models.weights import sources as weight_sources
from opsd_jax.rollouts import collate
from opsd_jax.rollouts import sources as rollout_sources
from opsd_jax.sampling.tokens import SamplingParams
from opsd_jax.structs import Completion

ROWS = 32  # decoded or scored at once
STEPS = 32  # tokens decoded between two looks for ended rows
BUCKET = 32  # tokens; lengths are padded to multiples, bounding compilations


class Model(NamedTuple):
  config: Any  # models.families.ModelConfig
  params: Any
  tokenizer: Any


def load_model(source: str, dtype: str = "float32") -> Model:
  """A model from any source that `config.model.source` accepts."""
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
  return Model(model_config, params, tokenizer.load(path))


def chat_ids(model: Model, prompt) -> tuple[int, ...]:
  """Token ids of a string (one user turn) or of a list of messages."""
  if isinstance(prompt, str):
    prompt = [{"role": "user", "content": prompt}]
  return tuple(model.tokenizer.chat_ids(prompt))


def all_chat_ids(model: Model, prompts) -> list[tuple[int, ...]]:
  """Token ids of each prompt of a list; refuses a prompt that is in none."""
  if isinstance(prompts, str) or any(isinstance(p, dict) for p in prompts):
    raise ValueError("prompts is one prompt, expected a list of them: [prompt]")
  return [chat_ids(model, p) for p in prompts]


def generate(
  model: Model,
  prompts,
  max_new_tokens: int = 256,
  n: int = 1,
  seed: int = 0,
  **sampling,
) -> list[list[Completion]]:
  """n completions of each prompt, sampled as `SamplingParams(**sampling)` says:
  temperature=1.0 (0 is greedy), top_k=0 (off), top_p=1.0 (off), min_p=0.0 (off).

  `seed`, the prompt and the sample's index decide the random draws, not the
  prompt's neighbours; a repeated prompt draws anew.
  """
  ids = all_chat_ids(model, prompts)
  if not ids:
    return []
  seen = collections.Counter()
  names = []
  for p in ids:
    names.append(f"{p} {seen[p]}")
    seen[p] += 1
  return rollout_sources.complete(
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


def score(model: Model, prompts, completions) -> list[np.ndarray]:
  """log p(token | prompt, tokens before it) of each completion, in nats.

  A completion is a string (scored with its end-of-turn), a Completion, or a
  sequence of token ids. One prompt for each completion. Raises ValueError for
  a row that is longer than the model's positions.
  """
  rows = []
  prompts = all_chat_ids(model, prompts)
  for ids, reply in zip(prompts, completions, strict=True):
    if isinstance(reply, str):
      reply = rollout_sources.reference(model.tokenizer, reply)
    reply = tuple(getattr(reply, "ids", reply))
    if any(not 0 <= i < model.config.vocab_size for i in reply):
      raise ValueError(f"row {len(rows)}: an id outside the vocabulary")
    if len(ids) + len(reply) > model.config.max_positions:
      raise ValueError(
        f"row {len(rows)}: a prompt of {len(ids)} tokens and a completion of"
        f" {len(reply)} exceed the model's {model.config.max_positions}"
        " positions"
      )
    rows.append(collate.Row((ids,), reply))
  scores = []
  for i in range(0, len(rows), ROWS):
    part = rows[i : i + ROWS]
    batch = collate.collate(
      part, pad_id=model.tokenizer.pad_id, bucket=BUCKET, response_bucket=BUCKET
    )
    logp_BxT = _logp(model.config, model.params, batch)
    scores += collate.of_responses(logp_BxT, batch.tokens, len(part))
  return scores


@functools.partial(jax.jit, static_argnums=0)
def _logp(model_config, params, batch):
  def logp(z_NxV, teachers, tokens):
    logp_NxV = jax.nn.log_softmax(z_NxV)
    return jnp.take_along_axis(logp_NxV, tokens.y_BxT[:, None], 1)[:, 0]

  return chunked.statistics(
    logp,
    transformer.response_states(model_config, params, batch.views[0]),
    transformer.unembedding(params),
    {},
    batch.tokens,
    chunk=64,
  )
