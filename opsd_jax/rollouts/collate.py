"""Responses -> one Batch: aligned views, packed in rows (numpy only).

A batch is made in equal parts, as devices and micro-batches take them: each has
its own responses and the rows that they stand in. A unit is what stays
together in a row: a prompt and its response, or a prompt and all responses to
it, which then read it once. Units are packed, the longest first, each into the
row that is the emptiest.
"""

from typing import NamedTuple

import numpy as np

from opsd_jax.rollouts.shapes import Shapes, pack
from opsd_jax.structs import Batch, ResponseTokens, View


class Row(NamedTuple):
  """One response, the prompt that each view reads before it, and what the loss is
  given of it. The fields after the first two are for all rows of a batch or for
  none."""

  prompts: tuple[tuple[int, ...], ...]  # of views 0, 1, ...
  response_ids: tuple[int, ...]  # end-of-turn included; may be empty
  sampler_logp: tuple[float, ...] | None = None  # None: not sampled
  sampled_logp: tuple[float, ...] | None = None  # under what was drawn from
  advantage: float | None = None
  weights: dict[str, float] = {}  # {term: how much it counts there}
  old_logp: tuple[float, ...] | None = None  # (): at the first update
  group: int | None = None  # which prompt it answers
  is_copy: bool | None = None  # True: another row holds the same completion
  gumbel: tuple[float, ...] | None = None  # noise, one a token
  exists: dict[int, bool] = {}  # {view: whether this response has it}


class PromptGroup(NamedTuple):
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
  pack_len: int = 0,
  share_prompts: bool = False,
  parts: int = 1,
  all_reduce_max=list,
  shapes: Shapes | None = None,
) -> Batch:
  """`rows` (collate.Row) as a Batch of `parts` equal parts.

  Args:
    bucket, response_bucket: rows' lengths, and a part's response tokens, are
      rounded up to a multiple.
    pack_len: about how many tokens a row of several units has; 0 gives every
      response a row of its own.
    share_prompts: responses to one prompt, next to each other in `rows`, read it once.
    parts: absent responses, all padding, make `rows` a multiple of it.
    all_reduce_max: list of sizes -> the sizes that batches of several processes use.
    shapes: those that earlier batches had, of which one is taken where it fits; a
      new one is added. None: the batch's own.

  What is padding is decided by length, never by token id. A response's last
  token is predicted and not read: it stands in no row.
  """
  count_views = check_rows(rows)
  of_parts = split(rows, parts, Row(((pad_id,),) * count_views, ()))
  units = [
    [prompt_groups(part, view, share_prompts and pack_len > 0) for part in of_parts]
    for view in range(count_views)
  ]
  sizes = [[[u.size for u in part] for part in view] for view in units]
  # At least a token a response: groups are numbered below parts x T.
  counts = (sum(len(r.response_ids) for r in part) for part in of_parts)
  shape = (shapes or Shapes()).fit(
    max(len(of_parts[0]), *counts),
    sizes,
    pack_len=pack_len,
    bucket=bucket,
    response_bucket=response_bucket,
    all_reduce_max=all_reduce_max,
  )
  T, (counts, lengths) = shape.tokens, zip(*shape.views, strict=True)
  places = [
    [pack(part, R) for part in view] for view, R in zip(sizes, counts, strict=True)
  ]
  tokens = response_tokens(of_parts, pad_id, T)
  # Where rows are packed: positions, segments and, with shared prompts, parents.
  segments = (2 + share_prompts) * (pack_len > 0)
  packed = zip(units, places, counts, lengths, strict=True)
  views = [packed_view(*view, of_parts, pad_id, T, segments) for view in packed]
  for view in views:
    check_aligned(view, tokens)
  return Batch(tuple(views), tokens)


def split(rows, parts: int, absent: Row) -> list[list[Row]]:
  """The rows in equal parts; absent responses, all padding, fill up the last."""
  rows = [*rows, *[absent] * (-len(rows) % parts)]
  each = len(rows) // parts
  return [rows[i : i + each] for i in range(0, len(rows), each)]


def packed_view(units, places, R: int, L: int, of_parts, pad_id, T, segments) -> View:
  """One view of all parts, in rows of R x L tokens a part."""
  arrays = [
    part_view(groups, part, rows_of, pad_id, (R, L, T))
    for groups, part, (rows_of, _) in zip(units, of_parts, places, strict=True)
  ]
  ids, predictor, *rest = (np.concatenate(x) for x in zip(*arrays, strict=True))
  return View(ids, predictor, *rest[:segments])


def check_rows(rows) -> int:
  """How many views the rows have; ValueError where one lacks a prompt."""
  views = max(len(r.prompts) for r in rows)
  for b, r in enumerate(rows):
    if r.response_ids and not (len(r.prompts) == views and all(r.prompts)):
      raise ValueError(f"row {b}: a response needs a prompt before it in every view")
  return views


def prompt_groups(rows, view: int, share_prompts: bool) -> list[PromptGroup]:
  """A part's units in one view; where they share, one for a run of equal
  prompts."""
  runs = []
  for i, row in enumerate(rows):
    prompt = row.prompts[view]
    if share_prompts and runs and runs[-1][0] == prompt:
      runs[-1][1].append(i)
    else:
      runs.append((prompt, [i]))

  def read(run):
    return sum(max(len(rows[i].response_ids) - 1, 0) for i in run)

  return [PromptGroup(p, tuple(run), len(p) + read(run)) for p, run in runs]


def part_view(units, rows, where, pad_id: int, shape) -> View:
  """One part of one side, (R, L, T) its shape; `where[u]` is the row of unit
  u."""
  R, L, T = shape
  ids, pos, segment, parent = np.zeros((4, R, L), np.int32)
  ids[:] = pad_id
  predictors, filled, segments = [()] * len(rows), [0] * R, [0] * R

  def put(r, new_ids, first_pos, own_segment, grew_from):
    span = slice(filled[r], filled[r] + len(new_ids))
    ids[r, span], pos[r, span] = new_ids, first_pos + np.arange(len(new_ids))
    segment[r, span], parent[r, span] = own_segment, grew_from
    filled[r] = span.stop
    return np.arange(span.start, span.stop) + r * L

  for unit, r in zip(units, where, strict=True):
    segments[r] += 1
    root = segments[r]
    prompt = put(r, unit.prompt, 0, root, root)
    for i in unit.members:
      response = rows[i].response_ids
      if len(unit.members) > 1:
        segments[r] += 1
      read = put(r, response[:-1], len(unit.prompt), segments[r], root)
      predictors[i] = np.append(prompt[-1:], read)[: len(response)]
  flat = np.concatenate([np.zeros(0, np.int32), *predictors])
  predictor_1xT = np.pad(flat, (0, T - len(flat))).astype(np.int32)[None]
  return View(ids, predictor_1xT, pos, segment, parent)


def response_tokens(parts, pad_id: int, T: int) -> ResponseTokens:
  """The response tokens of each part, one response after the other."""
  B, each = len(parts), len(parts[0])
  y, index, length, response = np.zeros((4, B, T), np.int32)
  mask, logp = np.zeros((2, B, T), np.float32)
  optional = Optional([row for part in parts for row in part], (B, T))
  y[:] = pad_id
  for b, part in enumerate(parts):
    start = 0
    for i, row in enumerate(part):
      size = len(row.response_ids)
      span = slice(start, start + size)
      y[b, span], mask[b, span] = row.response_ids, 1
      index[b, span], length[b, span] = np.arange(size), size
      response[b, span] = b * each + i
      if row.sampler_logp is not None:
        logp[b, span] = row.sampler_logp
      optional.put((b, span), row)
      start += size
  return ResponseTokens(y, mask, index, length, response, logp, **optional.arrays)


class Optional:
  """The arrays of ResponseTokens that some batches have and others do not."""

  def __init__(self, rows, shape):
    self.arrays = {"weights": {}, "exists": {}}
    for kind, arrays in self.arrays.items():
      for name in sorted({name for row in rows for name in getattr(row, kind)}):
        arrays[name] = np.zeros(shape, np.float32)
    for field, name, dtype in (
      ("advantage", "advantage_BxT", np.float32),
      ("sampled_logp", "sampled_logp_BxT", np.float32),
      ("old_logp", "old_logp_BxT", np.float32),
      ("group", "group_BxT", np.int32),
      ("is_copy", "counted_BxT", np.float32),
      ("gumbel", "gumbel_BxT", np.float32),
    ):
      if any(getattr(row, field) is not None for row in rows):
        self.arrays[name] = np.zeros(shape, dtype)

  def put(self, place, row) -> None:
    """Writes one row's values; what it lacks stays 0."""
    for name, array in self.arrays["weights"].items():
      array[place] = row.weights.get(name, 1.0)
    for view, array in self.arrays["exists"].items():
      array[place] = row.exists.get(view, True)
    for name, value in (
      ("advantage_BxT", row.advantage),
      ("sampled_logp_BxT", row.sampled_logp),
      ("old_logp_BxT", np.nan if row.old_logp == () else row.old_logp),
      ("group_BxT", row.group),
      ("counted_BxT", None if row.is_copy is None else not row.is_copy),
      ("gumbel_BxT", row.gumbel),
    ):
      if name in self.arrays and value is not None:
        self.arrays[name][place] = value


def check_aligned(view: View, tokens: ResponseTokens) -> None:
  """Raises RuntimeError unless what a state that predicts a later token of a
  response has just read is the token before it."""
  B, T = tokens.y_BxT.shape
  read = np.take_along_axis(view.ids_RxL.reshape(B, -1), view.predictor_BxT, 1)
  later = (tokens.mask_BxT > 0) & (tokens.index_BxT > 0)
  if (read != np.roll(tokens.y_BxT, 1, 1))[later].any():
    raise RuntimeError("a view is misaligned with its responses: a bug of collate")


def of_responses(x_BxT, tokens: ResponseTokens, count: int) -> list[np.ndarray]:
  """The values of each of `count` responses' tokens, in order."""
  real = np.asarray(tokens.mask_BxT) > 0
  x, response = np.asarray(x_BxT)[real], np.asarray(tokens.response_BxT)[real]
  return [x[response == i] for i in range(count)]


def padding_share(batch: Batch) -> float:
  """The share of computed row tokens, all views, that are padding."""
  used = computed = 0
  mask = batch.tokens.mask_BxT > 0
  for side in batch.views:
    computed += side.ids_RxL.size
    if side.segment_RxL is not None:
      used += (side.segment_RxL > 0).sum()
      continue
    L, last = side.ids_RxL.shape[1], np.zeros(len(side.ids_RxL), int)
    flat = side.predictor_BxT + np.arange(len(mask))[:, None] * (
      side.ids_RxL.size // len(mask)
    )
    np.maximum.at(last, flat[mask] // L, flat[mask] % L + 1)
    used += last.sum()
  return 1 - float(used) / computed
