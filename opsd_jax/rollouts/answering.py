"""How responses are sampled and scored, whoever asks: the model samples, a text is
taken as it is, and log-probs of given responses are read.
"""

import dataclasses
import functools
import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from opsd_jax import spec
from opsd_jax.losses import chunked
from opsd_jax.models import transformer
from opsd_jax.models.tokenizer import ControlToken
from opsd_jax.rollouts import collate, contexts
from opsd_jax.rollouts.sources import EXTERNAL
from opsd_jax.runtime import distributed
from opsd_jax.runtime.mesh import row_shards
from opsd_jax.sampling.sampler import sample
from opsd_jax.sampling.tokens import SamplingParams, row_keys
from opsd_jax.structs import Completion


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


class Answer:
  """How a source samples in one step: see rollouts/sources.py.

  Args:
    config: with the values that scheduled fields have in this step.
    run: setup.Run.
    params: {"live": the student's weights as they are now}, and the external ones.
    step: of the run.
  """

  def __init__(self, config, run, params, step: int):
    self.config, self.run, self.step = config, run, step
    self.params, self.models = {"live": params}, {"live": run.model_config}
    if config.rollout.source in EXTERNAL:
      size = run.model_config.vocab_size
      params = transformer.with_vocabulary(run.external, size)
      model = dataclasses.replace(run.external_config, vocab_size=size)
      self.params["external"], self.models["external"] = params, model
    self.temperature = config.loss.temperature
    self.max_new_tokens = config.rollout.max_new_tokens

  def __call__(self, prompts, names, n: int, role: str, weights="live", prefix_ids=()):
    """n Completions of each prompt, or of what of it `prefix_ids` says, one each; then
    a completion begins with that, and its log-probs are not known."""
    most = distributed.maximum([len(prompts)])[0]
    if not most:
      return []
    r, pad = self.config.rollout, (self.run.tokenizer.pad_id,)
    absent = most - len(prompts)  # one token answers each, and is thrown away
    prefixes = list(prefix_ids) or [()] * len(prompts)
    whole = [(*p, *prefix) for p, prefix in zip(prompts, prefixes, strict=True)]
    left = [self.max_new_tokens - len(prefix) for prefix in prefixes]
    budgets = [b for b in left for _ in range(n)] + [1] * n * absent
    groups = complete(
      self.models[weights],
      self.params[weights],
      self.run.tokenizer,
      [*whole, *[pad] * absent],
      [*names, *[f"absent {i}" for i in range(absent)]],
      seed=self.config.seed,
      step=self.step,
      role=role,
      sampling=SamplingParams(r.temperature, r.top_k, r.top_p, r.min_p),
      n=n,
      max_new_tokens=budgets,
      slots=r.slots,
      host_sync_every=r.host_sync_every,
      prompt_bucket=self.config.batch.prompt_bucket,
      stop=r.stop,
      longest_prompt=max(self.run.longest_prompt, *map(len, whole), 0),
    )
    return [
      [self.after(prefix, c) if prefix_ids else c for c in group]
      for prefix, group in zip(prefixes, groups, strict=False)
    ]

  def after(self, prefix, completion: Completion) -> Completion:
    """The completion behind what it went on from."""
    ids = (*prefix, *completion.ids)
    text = self.run.tokenizer.decode(ids)
    return Completion(text, ids, None, completion.truncated)

  def old_logp(self, completion: Completion) -> tuple[float, ...]:
    """Its tokens' log-probs under the policy that drew them, at the temperature
    of the loss; rules.check sees to it that one of the two is."""
    at_one = self.temperature == 1
    return completion.logp if at_one else completion.sampled_logp

  def given(self, text: str) -> Completion:
    return reference(self.run.tokenizer, text)

  def joined(self, first: Completion, text: str, last: Completion) -> Completion:
    """One completion of two and a text between them; the first one's end-of-turn is
    left out."""
    ends = self.run.tokenizer.eos_ids
    ids = first.ids[:-1] if first.ids and first.ids[-1] in ends else first.ids
    ids = (*ids, *self.run.tokenizer.encode(text), *last.ids)
    return Completion(f"{first.text}{text}{last.text}", ids, None, last.truncated)

  def uniform(self, name: str) -> float:
    """A number in [0, 1) for this name, by (seed, step)."""
    seeds = [self.config.seed, self.step, zlib.crc32(name.encode())]
    return float(np.random.default_rng(seeds).random())

  def prompt_after(self, group, i: int) -> tuple[int, ...]:
    """What the first teacher view reads of response i of a verified group."""
    ids, reason = prompt_after(self.config, self.run, group, i, 1)
    if reason:
      raise ValueError(
        f"rollout.source={self.config.rollout.source}: no prompt of"
        f" context.privileged={self.config.context.privileged}: {reason}"
      )
    return ids

  def sentences(self, ids) -> list[slice]:
    """Where the sentences of a response stand among its tokens."""
    ends = [
      i + 1
      for i, token in enumerate(ids)
      if any(mark in self.run.tokenizer.decode([token]) for mark in ".?!\n")
    ]
    bounds = [0, *ends, *([len(ids)] if not ends or ends[-1] < len(ids) else [])]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]

  def score(self, rollouts, view: int, weights="live") -> list[np.ndarray]:
    """log p(token) of each rollout's tokens, nats, where `weights` read that view."""
    most = distributed.maximum([len(rollouts)])[0]
    rows = [collate.Row((r.views[view],), r.completion.ids) for r in rollouts]
    absent = [collate.Row(((self.run.tokenizer.pad_id,),), ())] * (most - len(rows))
    shards = row_shards(self.run.mesh) // distributed.count()
    scores = score_rows(
      self.models[weights],
      self.params[weights],
      [*rows, *absent],
      self.run.tokenizer.pad_id,
      bucket=self.config.batch.bucket,
      parts=shards,
      mesh=self.run.mesh,
    )
    return scores[: len(rollouts)]


def prompt_after(config, run, group, i: int, view: int):
  """(what a view made after verdicts reads of response i, None), or ((), why there is
  no such view): none, control_token, too_long."""
  c = config.context
  fields = {**c, "memory": run.host_memory}
  messages = contexts.messages_after(
    c.template, contexts.names(c), view, group, i, fields
  )
  if messages is None:
    return (), "none"
  try:
    ids = run.teacher_prompt(messages)
  except ControlToken:
    return (), "control_token"
  longest = run.longest_row - len(group[i].completion.ids)
  return (ids, None) if len(ids) <= longest else ((), "too_long")


def score_rows(
  model_config, params, rows, pad_id: int, *, bucket: int, parts: int = 1, mesh=None
) -> list[np.ndarray]:
  """log p(token) of the responses of rows of one view, nats; with a mesh every process
  gives as many."""
  if not rows:
    return []
  batch = collate.collate(
    rows,
    pad_id=pad_id,
    bucket=bucket,
    response_bucket=bucket,
    parts=parts,
    all_reduce_max=distributed.maximum if mesh else list,
  )
  if mesh is None:
    logp_BxT = response_logp(model_config, params, batch)
  else:
    logp_BxT = response_logp(model_config, params, distributed.to_global(batch, mesh))
    logp_BxT = distributed.to_local(logp_BxT, mesh)
  return collate.of_responses(logp_BxT, batch.tokens, len(rows))


@functools.partial(jax.jit, static_argnums=0)
def response_logp(model_config, params, batch):
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
