"""Sampling with continuous batching: a row that ends frees its slot for the next.

A row is one sample of one prompt. A fixed number of slots decode together. Where
rows end, waiting prompts are prefilled, each once for its n samples, and their
keys and values copied into the free slots. Decode returns to the host after at
most `steps` tokens; the host removes finished rows, admits waiting ones, enlarges
the cache where the longest row needs more positions, and, when no row waits,
moves the live rows into fewer slots.

The tokens of a row depend on its own key and the token's index alone, not on its
neighbours, slot, chunks or cache.

Compilations are bounded because slots and positions only take the values of two
ladders of doubling sizes: one `decode` for each pair, where a cache of half the slots
takes every second size of positions, one of a quarter every third. `prefill` takes one
number of prompts in a call, and lengths that halve from the longest.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from opsd_jax.models.families import ModelConfig
from opsd_jax.runtime import distributed
from opsd_jax.runtime.mesh import row_shards
from opsd_jax.sampling.programs import decode, init, insert, prefill
from opsd_jax.sampling.scheduler import (
  Rows,
  Samples,
  Scheduler,
  bucket_for,
  prefill_batch,
  prompt_ladder,
  size_ladder,
  slots_per_shard,
  to_global_if_meshed,
)
from opsd_jax.sampling.tokens import SamplingParams, check


def never_stopped(ids: list[int], seen: int) -> None:
  return None


def sample(
  model_config: ModelConfig,
  params: Any,
  prompts: Sequence[Sequence[int]],
  keys_R: jax.Array,
  sampling: SamplingParams,
  *,
  n: int = 1,
  max_new_tokens: int | Sequence[int],
  eos_ids: Sequence[int],
  slots: int,
  bucket: int,
  steps: int,
  stopped: Callable[[list[int], int], int | None] = never_stopped,
  longest_prompt: int = 0,
) -> Samples:
  """n responses to each prompt; R = prompts x n rows, a prompt's n adjacent.

  Under a mesh each process brings prompts of its own, as many as the others, and
  gets their responses. Raises ValueError where a prompt is empty, or prompt and
  new tokens together exceed the model's positions.

  Args:
    model_config, params: the model.
    prompts: token ids, one list a prompt.
    keys_R: one random key a row, see `tokens.row_keys`.
    sampling: scalars, or one value a sample index.
    n: samples of each prompt.
    max_new_tokens: tokens of a response at most; one number, or one a row.
    eos_ids: ids that end a response; they belong to it.
    slots: rows decoded at once by all processes, rounded up to a multiple of the
      row shards.
    bucket: positions of the smallest cache; prompts are padded to a multiple.
    steps: decode steps between host checks for finished rows.
    stopped: (ids, seen) -> how many of the ids to keep if the row ends before the
      last one, else None. The first `seen` ids were passed before.
    longest_prompt: tokens of the longest prompt of this and further calls, of all
      processes, which then take the same programs; 0: this call's.
  """
  mesh = jax.sharding.get_mesh()
  # Without a mesh other processes, if any, sample independently of this one.
  agree = list if mesh.empty else distributed.maximum
  rows = make_rows(model_config, prompts, keys_R, sampling, n, max_new_tokens, agree)
  total = row_shards(mesh)
  shards = total if mesh.empty else total // distributed.count()
  longest, new = agree([longest_prompt or max(map(len, prompts)), rows.budget_R.max()])
  widths = slots_per_shard(slots, total)
  scheduler, waiting = set_up(
    model_config, prompts, n, *widths, shards, bucket, longest, new
  )
  engine = Engine(model_config, params, mesh, eos_ids, bucket, steps, stopped, agree)
  return engine.run(rows, scheduler, waiting)


class Needs(NamedTuple):
  """Maxima over all row shards of all processes, from which every process chooses
  the same program and the same shapes."""

  prompts: int  # admitted to a shard, to prefill
  prompt_len: int  # tokens of the longest of them
  live: int  # occupied slots of a shard
  positions: int  # of the cache, for `steps` more tokens
  has_queue: int  # 1 where a row waits for a slot


@dataclasses.dataclass(frozen=True)
class Engine:
  """What stays the same during a call of `sample`, whose arguments these are."""

  model_config: ModelConfig
  params: Any
  mesh: jax.sharding.Mesh
  eos_ids: Sequence[int]
  bucket: int
  steps: int
  stopped: Callable
  agree: Callable  # integers -> their maxima over the processes

  def run(self, rows: Rows, scheduler: Scheduler, waiting) -> Samples:
    """Prefills and decodes until no row waits and no slot is occupied."""
    group_size = len(waiting[0])
    while True:
      admitted = scheduler.admit(waiting)
      needs = self.needs(rows, scheduler, admitted, bool(waiting))
      if not needs.live:
        return rows.outputs
      positions = scheduler.positions_for(scheduler.width, needs.positions)
      if scheduler.cache is None:
        total_slots = scheduler.width * row_shards(self.mesh)
        scheduler.cache = init(self.model_config, total_slots, positions)
      if needs.prompts:
        scheduler.fit(self.mesh, scheduler.width, positions)
        self.prefill_admitted(rows, scheduler, admitted, needs, group_size)
        continue
      width = scheduler.width
      if not needs.has_queue:
        width = min(width, bucket_for(scheduler.widths, needs.live))
      positions = scheduler.positions_for(width, needs.positions)
      scheduler.fit(self.mesh, width, positions)
      self.decode_chunk(rows, scheduler, needs)

  def needs(self, rows: Rows, scheduler: Scheduler, admitted, has_queue: bool) -> Needs:
    """The Needs after an admission."""
    lengths = [
      len(rows.prompts[members[0]]) for part in admitted for members, _ in part
    ]
    local = Needs(
      max(map(len, admitted)),
      max(lengths, default=0),
      int((scheduler.rows_GxS >= 0).sum(1).max()),
      scheduler.required_length(rows, self.steps),
      int(has_queue),
    )
    return Needs(*self.agree(local))

  def prefill_admitted(
    self, rows: Rows, scheduler: Scheduler, admitted, needs: Needs, group_size: int
  ) -> None:
    """Prefills admitted prompts and copies their keys and values into their slots.

    Args:
      rows: the rows' prompts.
      scheduler: its cache is written.
      admitted: for each shard [(rows of one prompt, their slots)].
      needs: bounds the shapes.
      group_size: rows of one prompt at most.
    """
    # Shapes come from Needs, so that processes agree and few programs are compiled:
    # B prompts of P tokens and M slots a shard, padded with empty prompts, zeros,
    # and copies to a slot beyond the last, which `insert` drops.
    B = scheduler.prefill_batch
    P = bucket_for(scheduler.prompt_sizes, needs.prompt_len)
    P = min(P, scheduler.cache_positions())
    M = min(B * group_size, scheduler.width)
    prompt_GxBxP = np.zeros((scheduler.shards, B, P), np.int32)
    from_GxM = np.zeros((scheduler.shards, M), np.int32)
    to_GxM = np.full((scheduler.shards, M), scheduler.width, np.int32)
    for g, part in enumerate(admitted):
      m = 0
      for b, (members, slots) in enumerate(part):
        ids = rows.prompts[members[0]]
        prompt_GxBxP[g, b, : len(ids)] = ids
        from_GxM[g, m : m + len(slots)] = b
        to_GxM[g, m : m + len(slots)] = slots
        m += len(slots)
    prompt_BxP, from_M, to_M = to_global_if_meshed(
      self.mesh, (prompt_GxBxP.reshape(-1, P), from_GxM.reshape(-1), to_GxM.reshape(-1))
    )
    fresh = prefill(self.model_config, self.params, prompt_BxP)
    scheduler.cache = insert(scheduler.cache, fresh, from_M, to_M)

  def decode_chunk(self, rows: Rows, scheduler: Scheduler, needs: Needs) -> None:
    """Decodes until the host has something to do; adds the tokens to the rows."""
    max_ended = max_ended_per_shard(scheduler, needs) * row_shards(self.mesh)
    scheduler.cache, chunk = decode(
      self.model_config,
      self.params,
      scheduler.cache,
      to_global_if_meshed(self.mesh, rows.slots(scheduler.row_S)),
      np.asarray(self.eos_ids, np.int32),
      np.int32(max_ended),
      steps=self.steps,
    )
    chunk = distributed.to_local(chunk, self.mesh)
    rows.add(scheduler.row_S, chunk, self.eos_ids, self.stopped)


def max_ended_per_shard(scheduler: Scheduler, needs: Needs) -> int:
  """Rows of a shard that may end before decode returns to the host: a quarter of
  the slots while rows wait for them, else as many as let the live rows move into
  the next smaller width."""
  if needs.has_queue:
    return max(scheduler.width // 4, 1)
  return needs.live - scheduler.narrower_width()


def make_rows(
  model_config: ModelConfig,
  prompts: Sequence[Sequence[int]],
  keys_R: jax.Array,
  sampling: SamplingParams,
  n: int,
  max_new_tokens: int | Sequence[int],
  agree: Callable,
) -> Rows:
  """The rows of a call of `sample`, whose arguments these are, nothing sampled.

  `agree` takes maxima over the processes: rows that are too long raise the
  ValueError on all of them.
  """
  check(sampling)
  if n < 1 or not len(prompts) or min(map(len, prompts)) == 0:
    raise ValueError("there is no prompt, a prompt is empty, or n is below 1")
  R = len(prompts) * n
  budget_R = np.asarray(max_new_tokens, np.int32)
  if budget_R.shape not in ((), (R,)) or budget_R.min() < 1:
    raise ValueError(
      f"max_new_tokens is {max_new_tokens}, expected a number above 0 or one for"
      f" each of {R} rows"
    )
  budget_R = np.broadcast_to(budget_R, R)
  prompt_of_row = [p for p in prompts for _ in range(n)]
  prompt_len_R = np.array([len(p) for p in prompt_of_row])
  worst = int((prompt_len_R + budget_R).argmax())
  (longest,) = agree([int((prompt_len_R + budget_R).max())])
  if longest > model_config.max_positions:
    raise ValueError(
      f"a prompt of {prompt_len_R[worst]} tokens and {budget_R[worst]} new ones"
      f" exceed the model's {model_config.max_positions} positions"
    )

  def tile(x, dtype):
    return np.tile(np.broadcast_to(np.asarray(x, dtype), n), len(prompts))

  dtypes = np.float32, np.int32, np.float32, np.float32
  T = int(budget_R.max())
  outputs = Samples(
    np.zeros((R, T), np.int32),
    np.zeros(R, np.int32),
    np.ones(R, bool),
    np.zeros((R, T), np.float32),
    np.zeros((R, T), np.float32),
  )
  return Rows(
    prompt_of_row,
    budget_R,
    np.asarray(jax.random.key_data(keys_R)),
    SamplingParams(*map(tile, sampling, dtypes)),
    outputs,
  )


def set_up(
  model_config: ModelConfig,
  prompts: Sequence[Sequence[int]],
  n: int,
  widest: int,
  narrowest: int,
  shards: int,
  bucket: int,
  longest: int,
  new: int,
) -> tuple[Scheduler, collections.deque]:
  """(scheduler, queue) with no more slots than the rows need.

  Args:
    model_config: bounds the positions.
    prompts: token ids, or only their lengths' worth of anything.
    n: samples of each prompt.
    widest, narrowest: slots of a shard at most, and those that it always keeps.
    shards: row shards of this process.
    bucket: positions of the smallest cache.
    longest, new: tokens of a prompt and of a response at most.

  Returns:
    The scheduler, all slots free, and the queue: lists of the rows that share one
    prefill, the longest prompts first, so that prompts of similar length are
    prefilled together.
  """
  group_size = min(n, widest)
  longest_first = sorted(range(len(prompts)), key=lambda p: -len(prompts[p]))
  waiting = collections.deque(
    list(range(p * n + i, p * n + min(i + group_size, n)))
    for p in longest_first
    for i in range(0, n, group_size)
  )
  widths = size_ladder(narrowest, widest)
  groups = -(-len(waiting) // shards)
  width = bucket_for(widths, min(groups * group_size, widest))
  sizes = size_ladder(bucket, model_config.max_positions)
  largest = bucket_for(sizes, min(longest + new, model_config.max_positions))
  scheduler = Scheduler(
    np.full(shards * width, -1),
    shards,
    [w for w in widths if w <= width],
    [s for s in sizes if s <= largest],
    prompt_ladder(longest, bucket),
    prefill_batch(groups, group_size, width),
  )
  return scheduler, waiting
