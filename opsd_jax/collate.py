"""Rows of token ids -> one padded Batch of two aligned views (numpy only)."""

from typing import NamedTuple

import numpy as np

from opsd_jax.structs import Batch, View


class Row(NamedTuple):
  """One response and the prompts that each side read before it."""

  student_ids: tuple[int, ...]
  teacher_ids: tuple[int, ...]  # () where there is no teacher
  response_ids: tuple[int, ...]  # end-of-turn included; may be empty
  sampler_logp: tuple[float, ...] | None  # None: not sampled


def collate(
    rows, *, pad_id: int, bucket: int, window_bucket: int, batch_multiple=1,
    widths=None,
) -> Batch:  # fmt: skip
  """Right-padded rows, prompt then response.

  Lengths are rounded up to multiples of `bucket` (rows) and `window_bucket`
  (response windows), which bounds the number of compiled shapes; rows up to a
  multiple of `batch_multiple` with rows that are all padding. `widths`, unless
  None, are the `lengths` that batches of several processes agreed on. What is
  padding is decided by length, never by token id. Without a teacher its view is
  one column of padding.
  """
  absent = -len(rows) % batch_multiple
  rows = [*rows, *[Row((pad_id,), (), (), None)] * absent]
  T, *L = widths or lengths(rows, bucket=bucket, window_bucket=window_bucket)
  y, mask = np.full((len(rows), T), pad_id, np.int32), np.zeros((len(rows), T))
  logp = np.zeros((len(rows), T), np.float32)
  for b, r in enumerate(rows):
    size = len(r.response_ids)
    y[b, :size], mask[b, :size] = r.response_ids, 1
    if r.sampler_logp is not None:
      logp[b, :size] = r.sampler_logp
  responses = [r.response_ids for r in rows]
  student = view([r.student_ids for r in rows], responses, pad_id, L[0], T)
  told = any(r.teacher_ids for r in rows)
  if told:
    teacher = view([r.teacher_ids for r in rows], responses, pad_id, L[1], T)
  else:
    teacher = View(
        np.full((len(rows), 1), pad_id, np.int32),
        np.zeros((len(rows), T), np.int32),
    )
  batch = Batch(student, teacher, y, mask.astype(np.float32), logp)
  for side in (student, teacher) if told else (student,):
    check_aligned(side, batch)
  return batch


def up(length: int, multiple: int) -> int:
  """`length` rounded up to a multiple, at least one."""
  return max(1, -(-length // multiple)) * multiple


def lengths(rows, *, bucket: int, window_bucket: int) -> tuple[int, int, int]:
  """Padded lengths: of response windows, student rows and teacher rows."""
  whole = lambda side: max(
      len(getattr(r, side)) + len(r.response_ids) for r in rows
  )
  return (
      up(max(len(r.response_ids) for r in rows), window_bucket),
      up(whole("student_ids"), bucket), up(whole("teacher_ids"), bucket),
  )  # fmt: skip


def view(prompts, responses, pad_id: int, L: int, T: int) -> View:
  """One side's rows, and where in them each response token is predicted."""
  for b, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
    if response and not prompt:
      raise ValueError(f"row {b}: a response needs a prompt before it")
  ids = np.full((len(prompts), L), pad_id, np.int32)
  at = np.zeros((len(prompts), T), np.int32)
  for b, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
    ids[b, : len(prompt)] = prompt
    ids[b, len(prompt) : len(prompt) + len(response)] = response
    at[b, : len(response)] = len(prompt) - 1 + np.arange(len(response))
  return View(ids, at)


def check_aligned(side: View, batch: Batch) -> None:
  """The token after each predicting state is the response token."""
  after = np.take_along_axis(
      side.ids_BxL, np.minimum(side.at_BxT + 1, side.ids_BxL.shape[1] - 1), 1
  )
  assert ((after == batch.y_BxT) | (batch.mask_BxT == 0)).all(), "misaligned"


def padding_share(batch: Batch) -> float:
  """The share of computed row tokens, both views, that are padding."""
  used = computed = 0
  for side in (batch.student, batch.teacher):
    if side.ids_BxL.shape[1] > 1:  # else there is no teacher
      # A row's last needed token is the state that predicts its last token.
      used += ((side.at_BxT.max(1) + 1) * batch.mask_BxT.any(1)).sum()
      computed += side.ids_BxL.size
  return 1 - float(used) / computed
