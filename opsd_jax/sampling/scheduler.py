"""Host-side state of sampling: which row occupies which slot, its tokens so far."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from opsd_jax.runtime import distributed
from opsd_jax.sampling.programs import Chunk, Slots, resize
from opsd_jax.sampling.tokens import SamplingParams

MAX_PREFILL = 16  # prompts that a row shard prefills together at most
MIN_SLOTS = 4  # slots of all shards that are always kept


class Samples(NamedTuple):
  """Responses of R rows, 0 after each response's end."""

  ids_RxT: np.ndarray  # int32, the end-of-turn token included where sampled
  len_R: np.ndarray
  truncated_R: np.ndarray  # True where the row's budget ended it
  logp_RxT: np.ndarray  # nats, under the model at temperature 1
  sampled_logp_RxT: np.ndarray  # nats, under the tempered and filtered distribution


@dataclasses.dataclass(frozen=True)
class Rows:
  """All rows of this process: their inputs and their outputs so far."""

  prompts: list  # token ids, one list a row
  budget_R: np.ndarray
  key_data_Rx2: np.ndarray
  sampling: SamplingParams
  outputs: Samples  # written in place by `add`

  def slots(self, row_S) -> Slots:
    """Inputs of decode for slots that hold rows row_S; -1 is a free slot."""
    live_S, r_S = row_S >= 0, np.maximum(row_S, 0)
    t_S = np.where(live_S, self.outputs.len_R[r_S], 0)

    def last_token(r, t):
      return self.outputs.ids_RxT[r, t - 1] if t else self.prompts[r][-1]

    y_S = [last_token(r, t) for r, t in zip(r_S, t_S, strict=True)]
    prompt_len_S = np.array([len(self.prompts[r]) for r in r_S])
    pos_S = np.where(live_S, prompt_len_S - 1 + t_S, 0)
    ints = (np.asarray(x, np.int32) for x in (y_S, pos_S, t_S))
    return Slots(
      *ints,
      self.budget_R[r_S],
      live_S,
      self.key_data_Rx2[r_S],
      SamplingParams(*(x[r_S] for x in self.sampling)),
    )

  def add(self, row_S, chunk: Chunk, eos_ids, stopped) -> None:
    """Appends a decoded chunk to the outputs and frees the slots of ended rows.

    Args:
      row_S: the row in each slot, -1 where free; written.
      chunk: what decode returned for these slots.
      eos_ids, stopped: as `sampler.sample` takes them.
    """
    outputs = self.outputs
    for s, r in enumerate(row_S):
      if r < 0:
        continue
      begin, count = outputs.len_R[r], chunk.count_R[s]
      end, ended = begin + count, not chunk.live_R[s]
      outputs.ids_RxT[r, begin:end] = chunk.ids_RxT[s, :count]
      keep = stopped(outputs.ids_RxT[r, :end].tolist(), int(begin))
      if keep is not None:
        outputs.ids_RxT[r, keep:end] = 0
        end, count, ended = keep, keep - begin, True
      outputs.logp_RxT[r, begin:end] = chunk.logp_RxT[s, :count]
      outputs.sampled_logp_RxT[r, begin:end] = chunk.sampled_logp_RxT[s, :count]
      outputs.len_R[r] = end
      if ended:
        by_id = outputs.ids_RxT[r, end - 1] in eos_ids
        outputs.truncated_R[r] = keep is None and not by_id
        row_S[s] = -1


@dataclasses.dataclass
class Scheduler:
  """The slots of this process, equally many on each of its row shards, and the
  cache of all processes."""

  row_S: np.ndarray  # the row in each slot, -1: free
  shards: int  # row shards of this process
  widths: list[int]  # slots that a shard may have, rising
  sizes: list[int]  # positions that a slot may have, rising
  prompt_sizes: list[int]  # tokens that prompts may be padded to
  prefill_batch: int  # prompts of a shard that are prefilled together
  cache: object = None  # see kv_cache.init

  @property
  def rows_GxS(self) -> np.ndarray:
    """The row in each slot of each shard; a view of row_S."""
    return self.row_S.reshape(self.shards, -1)

  @property
  def width(self) -> int:
    """Slots of a shard."""
    return len(self.row_S) // self.shards

  def narrower_width(self) -> int:
    """The next smaller width, 0 where there is none."""
    return max((w for w in self.widths if w < self.width), default=0)

  def positions_for(self, width: int, wanted: int) -> int:
    """Positions of a cache of `width` slots a shard, at least `wanted`.

    With 1 / 2^k of the slots, of every (k + 1)th size only, from the largest down:
    fewer programs, and no cache is larger than with all slots and every size.
    """
    halvings = self.widths[::-1].index(width)
    return bucket_for(self.sizes[:: -1 - halvings], wanted)

  def admit(self, waiting) -> list:
    """Moves rows from the queue into free slots, as many as one prefill takes; none
    where that would be mostly empty and others are still decoded.

    The next prompt goes to the shard with the most free slots. Returns, for each
    shard, [(rows of one prompt, their slots)].
    """
    is_decoding = (self.row_S >= 0).any()
    free = [list(np.flatnonzero(part < 0)) for part in self.rows_GxS]
    admitted = [[] for _ in free]

    def capacity(g):
      return len(free[g]) * (len(admitted[g]) < self.prefill_batch)

    while waiting and capacity(g := max(range(len(free)), key=capacity)):
      rows = waiting[0]
      if len(rows) > capacity(g):
        break
      slots, free[g] = free[g][: len(rows)], free[g][len(rows) :]
      self.rows_GxS[g, slots] = waiting.popleft()
      admitted[g].append((rows, slots))
    fills = 4 * max(map(len, admitted)) >= 3 * self.prefill_batch
    if is_decoding and waiting and not fills:
      for g, part in enumerate(admitted):
        for rows, slots in reversed(part):
          self.rows_GxS[g, slots] = -1
          waiting.appendleft(rows)
        part.clear()
    return admitted

  def required_length(self, rows: Rows, steps: int) -> int:
    """Positions that the live rows need for `steps` more tokens."""
    live = self.row_S[self.row_S >= 0]

    def length(r):
      return len(rows.prompts[r]) + min(rows.budget_R[r], rows.outputs.len_R[r] + steps)

    return int(max((length(r) for r in live), default=0))

  def fit(self, mesh, width: int, positions: int) -> None:
    """Resizes the cache to `width` slots a shard and at least `positions` each.

    A smaller width moves the live rows to the front. Surplus positions stay until
    rows move: only that copies the cache anyway.
    """
    if width == self.width and positions <= self.cache_positions():
      return
    from_GxS = np.tile(np.arange(width, dtype=np.int32), (self.shards, 1))
    if width < self.width:
      order = np.argsort(self.rows_GxS < 0, axis=1, kind="stable")
      from_GxS = order[:, :width].astype(np.int32)
      self.row_S = np.take_along_axis(self.rows_GxS, from_GxS, 1).reshape(-1)
    self.cache = resize(
      self.cache, to_global_if_meshed(mesh, from_GxS.reshape(-1)), positions
    )

  def cache_positions(self) -> int:
    return jax.tree.leaves(self.cache)[0].shape[-1]


def slots_per_shard(slots: int, shards: int) -> tuple[int, int]:
  """(most, fewest) slots of a row shard where all shards together have `slots`."""
  return -(-slots // shards), max(-(-MIN_SLOTS // shards), 1)


def prefill_batch(groups: int, group_size: int, width: int) -> int:
  """Prompts of a shard that each prefill of a call takes, a power of two: all, where
  their rows find a slot at once, else at most as many as a quarter of the slots has
  rows."""
  at_once = groups * group_size <= width
  if at_once:
    return min(1 << (groups - 1).bit_length(), MAX_PREFILL)
  wanted = max(width // 4 // group_size, 1)
  return min(1 << (wanted.bit_length() - 1), MAX_PREFILL)


def prompt_ladder(longest: int, bucket: int) -> list[int]:
  """`longest`, its half, its quarter, ..., in multiples of `bucket`: what prompts are
  padded to. Anchored at the longest, so that prompts of one kind take one size."""
  sizes = []
  while not sizes or sizes[-1] > bucket:
    sizes.append(-(-longest // 2 ** len(sizes) // bucket) * bucket)
  return sizes


def to_global_if_meshed(mesh, tree):
  """This process's rows -> the rows of all processes; unchanged without a mesh."""
  return tree if mesh.empty else distributed.to_global(tree, mesh)


def bucket_for(sizes, wanted: int) -> int:
  """The smallest of the sizes that is at least `wanted`."""
  return min(s for s in sizes if s >= wanted)


def size_ladder(smallest: int, largest: int) -> list[int]:
  """smallest, 2 x smallest, 4 x smallest, ... below `largest`, and `largest`."""
  sizes = [min(smallest, largest)]
  while sizes[-1] < largest:
    sizes.append(min(2 * sizes[-1], largest))
  return sizes
