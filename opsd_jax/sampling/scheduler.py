"""Sampling's books on the host: which row is in which slot, what it has got."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from opsd_jax.runtime import distributed
from opsd_jax.sampling.programs import Chunk, Slots, resize
from opsd_jax.sampling.tokens import SamplingParams

PREFILL = 16  # prompts of a row shard that are prefilled together, at most
FEWEST = 4  # slots of all shards below which none are given up


class Samples(NamedTuple):
  """R = prompts x n rows, a prompt's n samples adjacent; 0 after each end."""

  ids_RxT: np.ndarray  # int32, end-of-turn included where reached
  len_R: np.ndarray
  truncated_R: np.ndarray  # True where the row's budget ended it
  logp_RxT: np.ndarray  # nats, the model's own distribution (temperature 1)
  sampled_logp_RxT: np.ndarray  # nats, the distribution really sampled


@dataclasses.dataclass(frozen=True)
class Rows:
  """All rows of this process: what they ask for, and what they have got."""

  prompts: list  # token ids, one list a row
  budget_R: np.ndarray
  key_data_Rx2: np.ndarray
  sampling: SamplingParams
  outputs: Samples  # filled in as chunks come

  def slots(self, row_S) -> Slots:
    """What decode is told of rows row_S; -1 is a free slot."""
    live_S, r_S = row_S >= 0, np.maximum(row_S, 0)
    t_S = np.where(live_S, self.outputs.len_R[r_S], 0)

    def last(r, t):
      return self.outputs.ids_RxT[r, t - 1] if t else self.prompts[r][-1]

    y_S = [last(r, t) for r, t in zip(r_S, t_S, strict=True)]
    size_S = np.array([len(self.prompts[r]) for r in r_S])
    pos_S = np.where(live_S, size_S - 1 + t_S, 0)
    ints = (np.asarray(x, np.int32) for x in (y_S, pos_S, t_S))
    return Slots(
      *ints,
      self.budget_R[r_S],
      live_S,
      self.key_data_Rx2[r_S],
      SamplingParams(*(x[r_S] for x in self.sampling)),
    )

  def add(self, row_S, chunk: Chunk, eos_ids, stopped) -> None:
    """Takes a chunk; rows that ended leave their slots."""
    outputs = self.outputs
    for s, r in enumerate(row_S):
      if r < 0:
        continue
      size, count = outputs.len_R[r], chunk.count_R[s]
      end, ended = size + count, not chunk.live_R[s]
      outputs.ids_RxT[r, size:end] = chunk.ids_RxT[s, :count]
      keep = stopped(outputs.ids_RxT[r, :end].tolist(), int(size))
      if keep is not None:
        outputs.ids_RxT[r, keep:end] = 0
        end, count, ended = keep, keep - size, True
      outputs.logp_RxT[r, size:end] = chunk.logp_RxT[s, :count]
      outputs.sampled_logp_RxT[r, size:end] = chunk.sampled_logp_RxT[s, :count]
      outputs.len_R[r] = end
      if ended:
        by_id = outputs.ids_RxT[r, end - 1] in eos_ids
        outputs.truncated_R[r] = keep is None and not by_id
        row_S[s] = -1


@dataclasses.dataclass
class Scheduler:
  """The slots of this process, equal parts of them on each of its row shards,
  and the cache of all processes."""

  row_S: np.ndarray  # which row is in it, -1: free
  shards: int  # of this process
  widths: list  # slots a shard may have, falling
  sizes: list  # positions a slot may have, rising
  cache: object = None

  @property
  def rows_GxS(self):
    return self.row_S.reshape(self.shards, -1)

  @property
  def width(self) -> int:
    return len(self.row_S) // self.shards

  def narrower(self) -> int:
    """The next smaller width, 0 where there is none."""
    return max((w for w in self.widths if w < self.width), default=0)

  def admit(self, waiting) -> list:
    """Free slots to the first of the waiting: (rows, slots) a prompt, for each
    shard, as many as one prefill takes. The shard with most free slots is
    next."""
    free = [list(np.flatnonzero(part < 0)) for part in self.rows_GxS]
    admitted = [[] for _ in free]

    def capacity(g):
      return len(free[g]) * (len(admitted[g]) < PREFILL)

    while waiting and capacity(g := max(range(len(free)), key=capacity)):
      rows = waiting[0]
      if len(rows) > capacity(g):
        break
      slots, free[g] = free[g][: len(rows)], free[g][len(rows) :]
      self.rows_GxS[g, slots] = waiting.popleft()
      admitted[g].append((rows, slots))
    most = prompts_to_prefill(max(map(len, admitted)))
    for g, part in enumerate(admitted):
      for rows, slots in reversed(part[most:]):
        self.rows_GxS[g, slots] = -1
        waiting.appendleft(rows)
      del part[most:]
    return admitted

  def required_length(self, rows: Rows, steps: int) -> int:
    """Positions that the live rows need for `steps` more tokens."""
    live = self.row_S[self.row_S >= 0]

    def size(r):
      return len(rows.prompts[r]) + min(rows.budget_R[r], rows.outputs.len_R[r] + steps)

    return int(max((size(r) for r in live), default=0))

  def fit(self, mesh, width: int, slots: int) -> None:
    """Moves the live rows to the front of `width` slots a shard, each with at
    least so many positions; they are cut only when rows move."""
    have = self.cache_positions()
    if width == self.width and slots <= have:
      return
    from_GxS = np.tile(np.arange(width, dtype=np.int32), (self.shards, 1))
    if width < self.width:
      order = np.argsort(self.rows_GxS < 0, axis=1, kind="stable")
      from_GxS = order[:, :width].astype(np.int32)
      self.row_S = np.take_along_axis(self.rows_GxS, from_GxS, 1).reshape(-1)
    self.cache = resize(
      self.cache, to_global_if_meshed(mesh, from_GxS.reshape(-1)), slots
    )

  def cache_positions(self) -> int:
    return jax.tree.leaves(self.cache)[0].shape[-1]


def slots_per_shard(slots: int, shards: int) -> tuple[int, int]:
  """(slots a row shard has at most, at least) if all have so many."""
  return -(-slots // shards), max(-(-FEWEST // shards), 1)


def prefill_batch_size(prompts: int) -> int:
  """How many places a prefill of so many of a shard's prompts has: a power of
  two."""
  return min(1 << (prompts - 1).bit_length(), PREFILL)


def prompts_to_prefill(prompts: int) -> int:
  """How many of a shard's prompts come into the next prefill: all, if at most a
  quarter of its places stay empty, else as many as fill a smaller one."""
  places = prefill_batch_size(prompts)
  return prompts if 4 * prompts >= 3 * places else places // 2


def to_global_if_meshed(mesh, tree):
  """A process's rows -> those of all, on the devices of a mesh if any."""
  return tree if mesh.empty else distributed.to_global(tree, mesh)


def bucket_for(sizes, wanted: int) -> int:
  """The smallest of some sizes that will do."""
  return min(s for s in sizes if s >= wanted)


def falling_size_ladder(most: int, fewest: int) -> list[int]:
  """most, half of it, ... while above `fewest`, and that."""
  sizes = [most]
  while sizes[-1] > fewest:
    sizes.append(max(-(-sizes[-1] // 2), fewest))
  return sizes


def size_ladder(first: int, most: int) -> list[int]:
  """first, twice it, ... while below `most`, and that."""
  sizes = [min(first, most)]
  while sizes[-1] < most:
    sizes.append(min(2 * sizes[-1], most))
  return sizes
