"""Drift: how far training has moved the model on prompts unlike the task's."""

import functools

import jax
import jax.numpy as jnp

from opsd_jax.data import unrelated
from opsd_jax.losses import chunked, divergences
from opsd_jax.models import transformer
from opsd_jax.rollouts import collate
from opsd_jax.runtime import distributed
from opsd_jax.runtime.mesh import row_shards
from opsd_jax.sampling.tokens import SamplingParams


@functools.partial(jax.jit, static_argnames="model_config")
def _states(model_config, params, view):
  return transformer.response_states(model_config, params, view)


@functools.partial(jax.jit, static_argnames=("model_config", "chunk"))
def _kl(model_config, params, base_h_BxTxD, base_W_VxD, batch, chunk):
  def kl(z_NxV, teachers, tokens):
    logq, logp = (jax.nn.log_softmax(z) for z in (teachers["base"], z_NxV))
    return divergences.forward_kl(logp, logq).sum(-1)

  kl_BxT = chunked.statistics(
    kl,
    transformer.response_states(model_config, params, batch.views[0]),
    transformer.unembedding(params),
    {"base": (base_h_BxTxD, base_W_VxD)},
    batch.tokens,
    chunk=chunk,
  )
  return kl_BxT.sum() / batch.tokens.mask_BxT.sum()


def drift_from(model_config, params, rows, *, pad_id, bucket, chunk, parts):
  """Returns `drift(params)`: the mean KL(base || params) over the base's completions.

  Drift is in nats a token, over the full vocabulary. The base's hidden states at
  the completions' tokens and a copy of its unembedding are kept, not the base.

  Args:
    params: the base.
    rows: collate.Rows, prompts unrelated to the task and the base's completions.
    bucket: row lengths and response tokens are rounded up to a multiple of it.
    chunk: tokens whose logits exist at once.
    parts: the number of rows is padded to a multiple of it.
  """
  batch = collate.collate(
    rows, pad_id=pad_id, bucket=bucket, response_bucket=bucket, parts=parts
  )
  base_h_BxTxD = _states(model_config, params, batch.views[0])
  base_W_VxD = jnp.copy(transformer.unembedding(params))
  return lambda params: float(
    _kl(model_config, params, base_h_BxTxD, base_W_VxD, batch, chunk=chunk)
  )


def from_base(
  run,
  complete,
  *,
  count: int,
  max_new_tokens: int,
  bucket: int,
  chunk: int,
  template_args: dict,
):
  """`drift_from` the base of `run`, on its greedy completions of `count` unrelated
  prompts; `complete` is rollouts.answering.complete, bound to the run, and
  `template_args` are the student's arguments of the chat template."""
  prompts = unrelated.prompts(count)
  ids = [
    tuple(run.tokenizer.chat_ids([{"role": "user", "content": p}], **template_args))
    for p in prompts
  ]
  local = complete(
    params=run.params,
    prompts=distributed.local_shard(ids),
    ids=distributed.local_shard(prompts),
    n=1,
    sampling=SamplingParams(temperature=0.0),
    max_new_tokens=max_new_tokens,
  )
  completions = distributed.gather_shards([c[0].ids for c in local], len(ids))
  return drift_from(
    run.model_config,
    run.params,
    [collate.Row((p,), tuple(c)) for p, c in zip(ids, completions, strict=True)],
    pad_id=run.tokenizer.pad_id,
    bucket=bucket,
    chunk=chunk,
    parts=row_shards(run.mesh),
  )
