"""Sampling with continuous batching: slots decode, and are filled again.

A row is one sample of one prompt. A fixed number of slots decode together;
where rows end, waiting prompts are prefilled, each once for its n samples, and
their keys and values copied into the free slots. Between chunks of at most
`steps` tokens the host looks: takes ended rows out, lets new ones in, gives the
cache more positions where the furthest row needs them, and, when nothing
waits, moves the live rows into half the slots.

What a row draws depends on its own key and the token's index alone, not on its
neighbours, slot, chunks or cache.

Slots and positions are halved or doubled only: of `decode` one program is
compiled for each (slots, positions), at most log2(slots / 4) + 1 times
log2(positions / bucket) + 2 of them. Of `prefill` it is one for each (prompts a
shard: a power of two up to 16; prompt length: a multiple of bucket).
"""

import collections

import jax
import numpy as np

from opsd_jax.runtime import distributed
from opsd_jax.runtime.mesh import row_shards
from opsd_jax.sampling.programs import decode, init, insert, prefill
from opsd_jax.sampling.scheduler import (
  Rows,
  Samples,
  Scheduler,
  bucket_for,
  falling_size_ladder,
  prefill_batch_size,
  size_ladder,
  slots_per_shard,
  to_global_if_meshed,
)
from opsd_jax.sampling.tokens import SamplingParams, check


def prefill_into_slots(
  model_config, params, mesh, board, rows, admitted, B: int, P: int, M: int
):
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
  prompt_BxP, from_M, to_M = to_global_if_meshed(
    mesh, (prompt_GxBxP.reshape(-1, P), from_GxM.reshape(-1), to_GxM.reshape(-1))
  )
  fresh = prefill(model_config, params, prompt_BxP)
  board.cache = insert(board.cache, fresh, from_M, to_M)


def sample(
  model_config,
  params,
  prompts,
  keys_R: jax.Array,
  sampling: SamplingParams,
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
  agreed = (lambda values: values) if alone else distributed.maximum
  rows = make_rows(model_config, prompts, keys_R, sampling, n, max_new_tokens, agreed)
  total = row_shards(mesh)
  shards = total if alone else total // distributed.count()
  board, waiting = set_up(
    model_config, prompts, n, *slots_per_shard(slots, total), shards, bucket
  )
  group_size, eos_E = len(waiting[0]), np.asarray(eos_ids, np.int32)
  while True:
    admitted = board.admit(waiting)
    live_G = (board.rows_GxS >= 0).sum(1)
    B, P, live, required, has_queue = agreed(
      [
        max(map(len, admitted)),
        max((len(rows.prompts[r[0]]) for r, _ in sum(admitted, [])), default=0),
        int(live_G.max()),
        board.required_length(rows, steps),
        int(bool(waiting)),
      ]
    )
    if not live:
      return rows.outputs
    positions = bucket_for(board.sizes, required)
    if board.cache is None:
      board.cache = init(model_config, board.width * total, positions)
    if B:
      B = prefill_batch_size(B)
      board.fit(mesh, board.width, positions)
      prefill_into_slots(
        model_config,
        params,
        mesh,
        board,
        rows,
        admitted,
        B,
        min(-(-P // bucket) * bucket, positions),
        min(B * group_size, board.width),
      )
      continue
    width = board.width if has_queue else bucket_for(board.widths, live)
    board.fit(mesh, min(width, board.width), positions)
    board.cache, chunk = decode(
      model_config,
      params,
      board.cache,
      to_global_if_meshed(mesh, rows.slots(board.row_S)),
      eos_E,
      np.int32(enough(board, live, has_queue) * total),
      steps=steps,
    )
    chunk = distributed.to_local(chunk, mesh)
    rows.add(board.row_S, chunk, eos_ids, stopped)


def enough(board: Scheduler, live: int, has_queue: int) -> float:
  """How many rows a shard may end before the host looks: a quarter of the
  slots where others wait for them, else until half the slots would do."""
  if has_queue:
    return max(board.width // 4, 1)
  return live - board.narrower() if board.narrower() else live


def make_rows(
  model_config, prompts, keys_R, sampling, n, max_new_tokens, agreed
) -> Rows:
  """The rows of a call; ValueError for what cannot be, on all processes."""
  check(sampling)
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
  if longest > model_config.max_positions:
    raise ValueError(
      f"a prompt of {size_R[worst]} tokens and {budget_R[worst]} new ones"
      f" exceed the model's {model_config.max_positions} positions"
    )

  def tile(x, dtype):
    return np.tile(np.broadcast_to(np.asarray(x, dtype), n), len(prompts))

  types = np.float32, np.int32, np.float32, np.float32
  T = int(budget_R.max())
  outputs = Samples(
    np.zeros((R, T), np.int32),
    np.zeros(R, np.int32),
    np.ones(R, bool),
    np.zeros((R, T), np.float32),
    np.zeros((R, T), np.float32),
  )
  return Rows(
    each,
    budget_R,
    np.asarray(jax.random.key_data(keys_R)),
    SamplingParams(*map(tile, sampling, types)),
    outputs,
  )


def set_up(model_config, prompts, n: int, widest: int, fewest, shards, bucket):
  """(Board, waiting): a board of no more slots than the rows need, and the rows
  that wait, those together that share a prefill. Prompts of like length are
  prefilled together.

  A shard has `widest` slots at most; below `fewest` none are given up.
  """
  group_size = min(n, widest)
  longest_first = sorted(range(len(prompts)), key=lambda p: -len(prompts[p]))
  waiting = collections.deque(
    list(range(p * n + i, p * n + min(i + group_size, n)))
    for p in longest_first
    for i in range(0, n, group_size)
  )
  widths = falling_size_ladder(widest, min(fewest, widest))
  wanted = -(-len(waiting) // shards) * group_size
  width = bucket_for(widths, min(wanted, widest))
  board = Scheduler(
    np.full(shards * width, -1),
    shards,
    widths,
    size_ladder(bucket, model_config.max_positions),
  )
  return board, waiting
