"""Sampling with continuous batching: slots decode, and are filled again.

A row is one sample of one prompt. A fixed number of slots decode together;
where rows end, waiting prompts are prefilled, each once for its n samples, and
their keys and values copied into the free slots. Between chunks of at most
`steps` tokens the host looks: takes ended rows out, lets new ones in, gives the
cache more positions where the furthest row needs them, and, when nothing
waits, moves the live rows into half the slots.

What a row draws depends on its own key and the token's index alone, not on its
neighbours, slot, chunks or cache. The prompt's last token is decoded again: it
is a slot's first current token, so prefill makes no logits.

Slots and positions are halved or doubled only: of `decode` one program is
compiled for each (slots, positions), at most log2(slots / 8) + 1 times
log2(positions / bucket) + 2 of them. Of `prefill` it is one for each (prompts a
shard: a power of two up to 16; prompt length: a multiple of bucket). Knobs and
end-of-turn ids are traced.
"""

import collections
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opsd_jax import processes, sharding
from opsd_jax.draw import Knobs, check, draw
from opsd_jax.models import attention, kv_cache, transformer

PREFILL = 16  # prompts of a row shard that are prefilled together, at most
FEWEST = 8  # slots of all shards below which none are given up


class Samples(NamedTuple):
  """R = prompts x n rows, a prompt's n samples adjacent; 0 after each end."""

  ids_RxT: np.ndarray  # int32, end-of-turn included where reached
  len_R: np.ndarray
  truncated_R: np.ndarray  # True where the row's budget ended it
  logp_RxT: np.ndarray  # nats, the model's own distribution (temperature 1)
  sampled_logp_RxT: np.ndarray  # nats, the distribution really sampled


class Slots(NamedTuple):
  """What decode is told of each slot."""

  y_R: jax.Array  # the token that comes next into the model
  pos_R: jax.Array  # its position
  t_R: jax.Array  # index of the response token that it predicts
  budget_R: jax.Array  # response tokens at most
  live_R: jax.Array  # False: free, or ended
  key_data_Rx2: jax.Array
  knobs: Knobs


class Chunk(NamedTuple):
  """The new tokens of each slot."""

  ids_RxT: jax.Array
  logp_RxT: jax.Array
  sampled_logp_RxT: jax.Array
  count_R: jax.Array
  live_R: jax.Array


# ---------------------------------------------------------------- programs


@functools.partial(jax.jit, static_argnums=0)
@jax.named_scope("rollout")
def prefill(config, params, prompt_BxP):
  """The cache of some prompts, right-padded."""
  B, P = prompt_BxP.shape
  _, cache = transformer.apply(
      config, params, prompt_BxP, kv_cache.init(config, B, P),
      jnp.zeros(B, jnp.int32),
  )  # fmt: skip
  return kv_cache.laid_out(cache)


insert = jax.jit(kv_cache.insert, donate_argnums=0)
resize = jax.jit(kv_cache.resize, static_argnums=2)
init = jax.jit(kv_cache.init, static_argnums=(0, 1, 2))


def logits_of(config, params, h_RxD):
  """float32 logits_RxV, whole rows on each device."""
  W_VxD = transformer.unembedding(params).astype(config.dtype)
  logits_RxV = jnp.einsum(
      "rd,vd->rv", sharding.constrain(h_RxD, "tokens"), W_VxD,
      preferred_element_type=jnp.float32,
      precision=attention.precision(config.dtype),
  )  # fmt: skip
  # Summed over fsdp before it is split over rows: the weights stay put.
  for what in ("token_logits", "logits", "rows"):
    logits_RxV = sharding.constrain(logits_RxV, what)
  return logits_RxV


@functools.partial(
    jax.jit, static_argnames=("config", "steps"), donate_argnames="cache"
)
@jax.named_scope("rollout")
def decode(config, params, cache, slots: Slots, eos_E, enough, *, steps: int):
  """(cache, Chunk): up to `steps` tokens of every live slot.

  Ends early when no row is left, or when `enough` rows have ended.
  """
  R = len(slots.y_R)
  keys_R = jax.random.wrap_key_data(slots.key_data_Rx2)
  lowest = slots.live_R.sum() - enough

  def more(carry):
    i, now, _, _ = carry
    live = now.live_R.sum()
    return (i < steps) & (live > 0) & (live > lowest)

  def step(carry):
    i, now, out, cache = carry
    h_Rx1xD, cache = transformer.apply(
        config, params, now.y_R[:, None], cache, now.pos_R
    )
    # A slot without a row is greedy: it asks for nothing.
    knobs = Knobs(*(
        jnp.where(now.live_R, x_R, off)
        for x_R, off in zip(now.knobs, Knobs(0.0), strict=True)
    ))
    logits_RxV = logits_of(config, params, h_Rx1xD[:, 0])
    token = draw(logits_RxV, keys_R, now.t_R, knobs)
    out = tuple(
        jax.lax.dynamic_update_slice(
            o_RxT, jnp.where(now.live_R, x_R, 0)[:, None], (0, i)
        )
        for o_RxT, x_R in zip(out, token, strict=True)
    )
    t_R = now.t_R + now.live_R
    ended_R = (token[0][:, None] == eos_E).any(1) | (t_R >= now.budget_R)
    live_R = now.live_R & ~ended_R
    now = now._replace(
        y_R=token[0], pos_R=now.pos_R + live_R, t_R=t_R, live_R=live_R
    )
    return i + 1, now, out, cache

  empty = tuple(
      jnp.zeros((R, steps), d) for d in (jnp.int32, jnp.float32, jnp.float32)
  )
  _, now, out, cache = jax.lax.while_loop(more, step, (0, slots, empty, cache))
  chunk = Chunk(*out, now.t_R - slots.t_R, now.live_R)
  return kv_cache.laid_out(cache), chunk


# -------------------------------------------------------------------- host


@dataclasses.dataclass(frozen=True)
class Rows:
  """All rows of this process: what they ask for, and what they have got."""

  prompts: list  # token ids, one list a row
  budget_R: np.ndarray
  key_data_Rx2: np.ndarray
  knobs: Knobs
  got: Samples  # filled in as chunks come

  def slots(self, row_S) -> Slots:
    """What decode is told of rows row_S; -1 is a free slot."""
    live_S, r_S = row_S >= 0, np.maximum(row_S, 0)
    t_S = np.where(live_S, self.got.len_R[r_S], 0)
    last = lambda r, t: self.got.ids_RxT[r, t - 1] if t else self.prompts[r][-1]
    y_S = [last(r, t) for r, t in zip(r_S, t_S, strict=True)]
    size_S = np.array([len(self.prompts[r]) for r in r_S])
    pos_S = np.where(live_S, size_S - 1 + t_S, 0)
    ints = (np.asarray(x, np.int32) for x in (y_S, pos_S, t_S))
    return Slots(
        *ints, self.budget_R[r_S], live_S, self.key_data_Rx2[r_S],
        Knobs(*(x[r_S] for x in self.knobs)),
    )  # fmt: skip

  def add(self, row_S, chunk: Chunk, eos_ids, stopped) -> None:
    """Takes a chunk; rows that ended leave their slots."""
    got = self.got
    for s, r in enumerate(row_S):
      if r < 0:
        continue
      size, count = got.len_R[r], chunk.count_R[s]
      end, ended = size + count, not chunk.live_R[s]
      got.ids_RxT[r, size:end] = chunk.ids_RxT[s, :count]
      keep = stopped(got.ids_RxT[r, :end].tolist(), int(size))
      if keep is not None:
        got.ids_RxT[r, keep:end] = 0
        end, count, ended = keep, keep - size, True
      got.logp_RxT[r, size:end] = chunk.logp_RxT[s, :count]
      got.sampled_logp_RxT[r, size:end] = chunk.sampled_logp_RxT[s, :count]
      got.len_R[r] = end
      if ended:
        by_id = got.ids_RxT[r, end - 1] in eos_ids
        got.truncated_R[r] = keep is None and not by_id
        row_S[s] = -1


@dataclasses.dataclass
class Board:
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
    shard. The shard with most free slots is next."""
    free = [list(np.flatnonzero(part < 0)) for part in self.rows_GxS]
    admitted = [[] for _ in free]
    room = lambda g: len(free[g]) * (len(admitted[g]) < PREFILL)
    while waiting and room(g := max(range(len(free)), key=room)):
      rows = waiting[0]
      if len(rows) > room(g):
        break
      slots, free[g] = free[g][: len(rows)], free[g][len(rows) :]
      self.rows_GxS[g, slots] = waiting.popleft()
      admitted[g].append((rows, slots))
    return admitted

  def reach(self, rows: Rows, steps: int) -> int:
    """Positions that the live rows need for `steps` more tokens."""
    live = self.row_S[self.row_S >= 0]
    size = lambda r: len(rows.prompts[r]) + min(
        rows.budget_R[r], rows.got.len_R[r] + steps
    )  # fmt: skip
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
    self.cache = resize(self.cache, put(mesh, from_GxS.reshape(-1)), slots)

  def cache_positions(self) -> int:
    return jax.tree.leaves(self.cache)[0].shape[-1]


def shares(slots: int, shards: int) -> tuple[int, int]:
  """(slots a row shard has at most, at least) if all have so many."""
  return -(-slots // shards), max(-(-FEWEST // shards), 1)


def together(prompts: int) -> int:
  """How many of a shard's prompts one prefill takes: a power of two."""
  return min(1 << (prompts - 1).bit_length(), PREFILL)


def put(mesh, tree):
  """A process's rows -> those of all, on the devices of a mesh if any."""
  return tree if mesh.empty else processes.put_rows(tree, mesh)


def least(sizes, wanted: int) -> int:
  """The smallest of some sizes that will do."""
  return min(s for s in sizes if s >= wanted)


def halves(most: int, fewest: int) -> list[int]:
  """most, half of it, ... while above `fewest`, and that."""
  sizes = [most]
  while sizes[-1] > fewest:
    sizes.append(max(-(-sizes[-1] // 2), fewest))
  return sizes


def doubles(first: int, most: int) -> list[int]:
  """first, twice it, ... while below `most`, and that."""
  sizes = [min(first, most)]
  while sizes[-1] < most:
    sizes.append(min(2 * sizes[-1], most))
  return sizes


def let_in(config, params, mesh, board, rows, admitted, B: int, P: int, M: int):
  """Prefills admitted prompts, B a shard, and copies them into M slots of it.

  The rest of B and M is empty.
  """
  prompt_GxBxP = np.zeros((board.shards, B, P), np.int32)
  from_GxM = np.zeros((board.shards, M), np.int32)
  to_GxM = np.full((board.shards, M), board.width, np.int32)  # left out
  for g, part in enumerate(admitted):
    m = 0
    for b, (members, slots) in enumerate(part):
      ids = rows.prompts[members[0]]
      prompt_GxBxP[g, b, : len(ids)] = ids
      from_GxM[g, m : m + len(slots)] = b
      to_GxM[g, m : m + len(slots)] = slots
      m += len(slots)
  prompt_BxP, from_M, to_M = put(
      mesh,
      (prompt_GxBxP.reshape(-1, P), from_GxM.reshape(-1), to_GxM.reshape(-1)),
  )
  fresh = prefill(config, params, prompt_BxP)
  board.cache = insert(board.cache, fresh, from_M, to_M)


def sample(
    config,
    params,
    prompts,
    keys_R: jax.Array,
    knobs: Knobs,
    *,
    n: int = 1,
    max_new_tokens,
    eos_ids,
    slots: int,
    bucket: int,
    steps: int,
    stopped=lambda ids, seen: None,
) -> Samples:
  """n responses to each prompt (a list of token ids), `slots` rows at once.

  max_new_tokens: one number, or one a row. `bucket`: positions of the smallest
  cache; prompts are padded to a multiple of it. `steps`: tokens between two
  looks of the host. stopped(ids, seen) is how many ids of a row to keep if it
  ends before the last, else None; the first `seen` it has been asked about
  before.

  Under a mesh each process brings prompts of its own, as many as the others,
  and is given their responses; `slots` are those of all, rounded up to as many
  on every row shard. A prompt is prefilled once, or for every so many samples
  as a shard has slots. Raises ValueError where a prompt is empty or leaves no
  room for its new tokens within the model's positions.
  """
  mesh = jax.sharding.get_mesh()
  alone = mesh.empty  # other processes, if any, have nothing to do with it
  agreed = (lambda values: values) if alone else processes.maximum
  rows = ask(config, prompts, keys_R, knobs, n, max_new_tokens, agreed)
  total = sharding.row_shards(mesh)
  shards = total if alone else total // processes.count()
  board, waiting = set_up(
      config, len(prompts), n, *shares(slots, total), shards, bucket
  )
  share, eos_E = len(waiting[0]), np.asarray(eos_ids, np.int32)
  while True:
    admitted = board.admit(waiting)
    live_G = (board.rows_GxS >= 0).sum(1)
    B, P, live, reach, waits = agreed([
        max(map(len, admitted)),
        max((len(rows.prompts[r[0]]) for r, _ in sum(admitted, [])), default=0),
        int(live_G.max()), board.reach(rows, steps), int(bool(waiting)),
    ])  # fmt: skip
    if not live:
      return rows.got
    positions = least(board.sizes, reach)
    if board.cache is None:
      board.cache = init(config, board.width * total, positions)
    if B:
      B = together(B)
      board.fit(mesh, board.width, positions)
      let_in(
          config, params, mesh, board, rows, admitted, B,
          min(-(-P // bucket) * bucket, positions), min(B * share, board.width),
      )  # fmt: skip
      continue
    width = board.width if waits else least(board.widths, live)
    board.fit(mesh, min(width, board.width), positions)
    board.cache, chunk = decode(
        config, params, board.cache, put(mesh, rows.slots(board.row_S)), eos_E,
        np.int32(enough(board, live, waits) * total), steps=steps,
    )  # fmt: skip
    chunk = processes.own_rows(chunk, mesh)
    rows.add(board.row_S, chunk, eos_ids, stopped)


def enough(board: Board, live: int, waits: int) -> float:
  """How many rows a shard may end before the host looks: a quarter of the
  slots where others wait for them, else until half the slots would do."""
  if waits:
    return max(board.width // 4, 1)
  return live - board.narrower() if board.narrower() else live


def ask(config, prompts, keys_R, knobs, n, max_new_tokens, agreed) -> Rows:
  """The rows of a call; ValueError for what cannot be, on all processes."""
  check(knobs)
  if n < 1 or not len(prompts) or min(map(len, prompts)) == 0:
    raise ValueError("there is no prompt, one is empty, or n is below 1")
  R = len(prompts) * n
  budget_R = np.asarray(max_new_tokens, np.int32)
  if budget_R.shape not in ((), (R,)) or budget_R.min() < 1:
    raise ValueError(
        f"max_new_tokens is {max_new_tokens}, expected a number above 0 or one"
        f" for each of {R} rows"
    )
  budget_R = np.broadcast_to(budget_R, R)
  each = [p for p in prompts for _ in range(n)]
  size_R = np.array([len(p) for p in each])
  worst = int((size_R + budget_R).argmax())
  (longest,) = agreed([int((size_R + budget_R).max())])
  if longest > config.max_positions:
    raise ValueError(
        f"a prompt of {size_R[worst]} tokens and {budget_R[worst]} new ones"
        f" exceed the model's {config.max_positions} positions"
    )
  tile = lambda x, dtype: np.tile(
      np.broadcast_to(np.asarray(x, dtype), n), len(prompts)
  )
  types = np.float32, np.int32, np.float32, np.float32
  T = int(budget_R.max())
  got = Samples(
      np.zeros((R, T), np.int32), np.zeros(R, np.int32), np.ones(R, bool),
      np.zeros((R, T), np.float32), np.zeros((R, T), np.float32),
  )  # fmt: skip
  return Rows(
      each, budget_R, np.asarray(jax.random.key_data(keys_R)),
      Knobs(*map(tile, knobs, types)), got,
  )  # fmt: skip


def set_up(config, prompts: int, n: int, widest: int, fewest, shards, bucket):
  """(Board, waiting): a board of no more slots than the rows need, and the rows
  that wait, those together that share a prefill.

  A shard has `widest` slots at most; below `fewest` none are given up.
  """
  share = min(n, widest)
  waiting = collections.deque(
      list(range(p * n + i, p * n + min(i + share, n)))
      for p in range(prompts) for i in range(0, n, share)
  )  # fmt: skip
  widths = halves(widest, min(fewest, widest))
  wanted = -(-len(waiting) // shards) * share
  width = least(widths, min(wanted, widest))
  board = Board(
      np.full(shards * width, -1), shards, widths,
      doubles(bucket, config.max_positions),
  )  # fmt: skip
  return board, waiting
