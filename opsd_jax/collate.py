"""Responses -> one Batch: two aligned views, packed in rows (numpy only).

A batch is made in equal parts, as devices and micro-batches take them: each has
its own responses and the rows that they stand in. A unit is what stays
together in a row: a prompt and its response, or a prompt and all responses to
it, which then read it once. Units are packed, the longest first, each into the
row that is the emptiest.
"""

from typing import NamedTuple

import numpy as np

from opsd_jax.structs import Batch, Token, View


class Row(NamedTuple):
  """One response and the prompts that each side read before it."""

  student_ids: tuple[int, ...]
  teacher_ids: tuple[int, ...]  # () where there is no teacher
  response_ids: tuple[int, ...]  # end-of-turn included; may be empty
  sampler_logp: tuple[float, ...] | None  # None: not sampled
  sampled_logp: tuple[float, ...] | None = None  # under what was drawn from
  advantage: float | None = None  # None: no rewards are learned from


class Unit(NamedTuple):
  """A prompt and responses to it, by their place in the part."""

  prompt: tuple[int, ...]
  members: tuple[int, ...]
  size: int  # tokens of a row that it takes


def collate(
  rows,
  *,
  pad_id: int,
  bucket: int,
  response_bucket: int,
  row_tokens: int = 0,
  share: bool = False,
  parts: int = 1,
  agree=list,
) -> Batch:
  """`rows` (collate.Row) as a Batch of `parts` equal parts.

  Args:
    bucket, response_bucket: rows' lengths, and a part's response tokens, are
      rounded up to a multiple, which bounds the number of compiled shapes.
    row_tokens: about how many tokens a row of several units has; 0 gives every
      response a row of its own.
    share: responses to one prompt, next to each other in `rows`, read it once.
    parts: absent responses, all padding, make `rows` a multiple of it.
    agree: list of sizes -> the sizes that batches of several processes use.

  What is padding is decided by length, never by token id. A response's last
  token is predicted and not read: it stands in no row. Without a teacher its
  view is one column of padding.
  """
  told = any(r.teacher_ids for r in rows)
  for b, r in enumerate(rows):
    if r.response_ids and not (r.student_ids and (r.teacher_ids or not told)):
      raise ValueError(f"row {b}: a response needs a prompt before it")
  rows = [*rows, *[Row((pad_id,), (), (), None)] * (-len(rows) % parts)]
  each = len(rows) // parts
  of_parts = [rows[i : i + each] for i in range(0, len(rows), each)]
  longest = max(sum(len(r.response_ids) for r in part) for part in of_parts)
  sides = [
    [units(part, side, share and row_tokens > 0) for part in of_parts]
    for side in ("student_ids", "teacher_ids")[: 1 + told]
  ]
  T, *counts = agree(
    [
      up(longest, response_bucket, digits=3),
      *(max(rows_for(part, row_tokens) for part in side) for side in sides),
    ]
  )
  places = [
    [pack([u.size for u in part], R) for part in side]
    for side, R in zip(sides, counts, strict=True)
  ]
  lengths = agree([up(max(max(loads) for _, loads in side), bucket) for side in places])
  token, views = tokens(of_parts, pad_id, T), []
  for side, where, R, L in zip(sides, places, counts, lengths, strict=True):
    made = [
      view(part_units, part, rows_of, pad_id, (R, L, T))
      for part_units, part, (rows_of, _) in zip(side, of_parts, where, strict=True)
    ]
    ids, at, *where = (np.concatenate(x) for x in zip(*made, strict=True))
    if not row_tokens:
      where = ()
    elif not share:
      where = where[:2]
    views.append(View(ids, at, *where))
    check_aligned(views[-1], token)
  if not told:
    views.append(
      View(np.full((parts, 1), pad_id, np.int32), np.zeros((parts, T), np.int32))
    )
  return Batch(*views, token)


def up(length: int, multiple: int, digits: int = 4) -> int:
  """`length` rounded up to a multiple, at least one, and to `digits` binary
  digits: the longer, the coarser, so that few shapes are compiled."""
  coarse = 2 ** max(0, int(length).bit_length() - digits)
  step = -(-coarse // multiple) * multiple
  return max(1, -(-length // step)) * step


def units(rows, side: str, share: bool) -> list[Unit]:
  """A part's units on one side; where they share, one for a run of equal
  prompts."""
  runs = []
  for i, row in enumerate(rows):
    prompt = getattr(row, side)
    if share and runs and runs[-1][0] == prompt:
      runs[-1][1].append(i)
    else:
      runs.append((prompt, [i]))

  def read(run):
    return sum(max(len(rows[i].response_ids) - 1, 0) for i in run)

  return [Unit(p, tuple(run), len(p) + read(run)) for p, run in runs]


def rows_for(units, row_tokens: int) -> int:
  """Into how many rows a part's units are packed: about `row_tokens` long, and
  as many units in one as in another. It follows the units' mean size, so
  batches of one kind have one number of rows."""
  if not row_tokens:
    return len(units)
  mean = max(1, sum(u.size for u in units)) / len(units)
  target = row_tokens / mean  # units a row
  fits = range(max(1, round(target / 1.5)), max(1, round(target * 1.5)) + 1)

  def rows(n):
    return -(-len(units) // n)

  def empty(n):
    return rows(n) * n - len(units)

  return rows(min(fits, key=lambda n: (empty(n), abs(n - target))))


def pack(sizes, count: int) -> tuple[list[int], list[int]]:
  """(the row of each unit, tokens of each of `count` rows); greedy, at most
  4/3 of the best longest row (Graham 1969)."""
  if count == len(sizes):
    return list(range(count)), list(sizes)
  where, loads = [0] * len(sizes), [0] * count
  for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
    where[i] = min(range(count), key=loads.__getitem__)
    loads[where[i]] += sizes[i]
  return where, loads


def view(units, rows, where, pad_id: int, shape) -> View:
  """One part of one side, (R, L, T) its shape; `where[u]` is the row of unit
  u."""
  R, L, T = shape
  ids, pos, segment, parent = np.zeros((4, R, L), np.int32)
  ids[:] = pad_id
  at, filled, segments = [()] * len(rows), [0] * R, [0] * R

  def put(r, new_ids, first_pos, own, grew_from):
    here = slice(filled[r], filled[r] + len(new_ids))
    ids[r, here], pos[r, here] = new_ids, first_pos + np.arange(len(new_ids))
    segment[r, here], parent[r, here] = own, grew_from
    filled[r] = here.stop
    return np.arange(here.start, here.stop) + r * L

  for unit, r in zip(units, where, strict=True):
    segments[r] += 1
    root = segments[r]
    prompt = put(r, unit.prompt, 0, root, root)
    for i in unit.members:
      response = rows[i].response_ids
      if len(unit.members) > 1:
        segments[r] += 1
      read = put(r, response[:-1], len(unit.prompt), segments[r], root)
      at[i] = np.append(prompt[-1:], read)[: len(response)]
  flat = np.concatenate([np.zeros(0, np.int32), *at])
  at_1xT = np.pad(flat, (0, T - len(flat))).astype(np.int32)[None]
  return View(ids, at_1xT, pos, segment, parent)


def tokens(parts, pad_id: int, T: int) -> Token:
  """The response tokens of each part, one response after the other."""
  B, each = len(parts), len(parts[0])
  y, index, length, response = np.zeros((4, B, T), np.int32)
  mask, logp, sampled, advantage = np.zeros((4, B, T), np.float32)
  y[:] = pad_id
  for b, part in enumerate(parts):
    start = 0
    for i, row in enumerate(part):
      size = len(row.response_ids)
      here = slice(start, start + size)
      y[b, here], mask[b, here] = row.response_ids, 1
      index[b, here], length[b, here] = np.arange(size), size
      response[b, here] = b * each + i
      if row.sampler_logp is not None:
        logp[b, here] = row.sampler_logp
      if row.advantage is not None:
        sampled[b, here], advantage[b, here] = row.sampled_logp, row.advantage
      start += size
  token = Token(y, mask, index, length, response, logp)
  if all(row.advantage is None for part in parts for row in part):
    return token
  return token._replace(advantage_BxT=advantage, sampled_logp_BxT=sampled)


def check_aligned(side: View, token: Token) -> None:
  """What a state that predicts a later token of a response has just read is the
  token before it."""
  B, T = token.y_BxT.shape
  read = np.take_along_axis(side.ids_RxL.reshape(B, -1), side.at_BxT, 1)
  later = (token.mask_BxT > 0) & (token.index_BxT > 0)
  assert (read == np.roll(token.y_BxT, 1, 1))[later].all(), "misaligned"


def of_responses(x_BxT, token: Token, count: int) -> list[np.ndarray]:
  """The values of each of `count` responses' tokens, in order."""
  real = np.asarray(token.mask_BxT) > 0
  x, owner = np.asarray(x_BxT)[real], np.asarray(token.response_BxT)[real]
  return [x[owner == i] for i in range(count)]


def padding_share(batch: Batch) -> float:
  """The share of computed row tokens, both views, that are padding."""
  used = computed = 0
  mask = batch.token.mask_BxT > 0
  for side in (batch.student, batch.teacher):
    if side.ids_RxL.shape[1] == 1:
      continue  # there is no teacher
    computed += side.ids_RxL.size
    if side.segment_RxL is not None:
      used += (side.segment_RxL > 0).sum()
      continue
    L, last = side.ids_RxL.shape[1], np.zeros(len(side.ids_RxL), int)
    flat = side.at_BxT + np.arange(len(mask))[:, None] * (
      side.ids_RxL.size // len(mask)
    )
    np.maximum.at(last, flat[mask] // L, flat[mask] % L + 1)
    used += last.sum()
  return 1 - float(used) / computed
