"""Two views of one response: aligned, padded by length, hand-checkable."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax import collate
from opsd_jax.collate import Row

PAD = 9


def batch_of(rows, bucket=8, window_bucket=4, **kw):
  return collate.collate(
      rows, pad_id=PAD, bucket=bucket, window_bucket=window_bucket, **kw
  )


ids = lambda low, high: st.lists(
    st.integers(0, 10), min_size=low, max_size=high
).map(tuple)
rows = st.lists(
    st.builds(Row, ids(1, 9), ids(1, 20), ids(0, 7), st.none()), min_size=1,
    max_size=4,
)  # fmt: skip


@given(rows=rows)
def test_a_predicting_state_is_followed_by_its_response_token(rows):
  batch = batch_of(rows)
  for b, row in enumerate(rows):
    for side, prompt in (
        (batch.student, row.student_ids), (batch.teacher, row.teacher_ids)
    ):  # fmt: skip
      for t, token in enumerate(row.response_ids):
        at = side.at_BxT[b, t]
        assert at == len(prompt) - 1 + t
        assert side.ids_BxL[b, at + 1] == token == batch.y_BxT[b, t]
      whole = (*prompt, *row.response_ids)
      assert tuple(side.ids_BxL[b, : len(whole)]) == whole
      assert (side.ids_BxL[b, len(whole) :] == PAD).all()


@given(rows=rows)
def test_the_mask_is_the_length_whatever_the_tokens(rows):
  # Tokens of 0 to 10 hold PAD as an end-of-turn and inside responses.
  batch = batch_of(rows)
  lengths = [len(r.response_ids) for r in rows]
  expected = np.arange(batch.y_BxT.shape[1]) < np.array(lengths)[:, None]
  np.testing.assert_array_equal(batch.mask_BxT, expected)
  assert (batch.y_BxT[~expected] == PAD).all()


@pytest.mark.parametrize("bucket,window_bucket,L,T", [
    (1, 1, 8, 3), (8, 4, 8, 4), (6, 3, 12, 3), (64, 16, 64, 16),
])  # fmt: skip
def test_lengths_are_rounded_up_to_their_multiples(bucket, window_bucket, L, T):
  row = Row((1, 2), (1, 2, 3, 4, 5), (6, 7, 8), None)
  batch = batch_of([row], bucket, window_bucket)
  assert batch.teacher.ids_BxL.shape == (1, L)
  assert batch.student.ids_BxL.shape == (1, -(-5 // bucket) * bucket)
  for x in (
      batch.y_BxT, batch.mask_BxT, batch.sampler_logp_BxT,
      batch.student.at_BxT, batch.teacher.at_BxT,
  ):  # fmt: skip
    assert x.shape == (1, T)


def test_an_end_of_turn_that_is_also_the_pad_is_learned():
  batch = batch_of([Row((1,), (1,), (5, PAD), None)])
  assert batch.mask_BxT.tolist() == [[1, 1, 0, 0]]
  assert batch.y_BxT[0].tolist() == [5, PAD, PAD, PAD]


def test_dtypes_and_the_samplers_logp():
  batch = batch_of([
      Row((1,), (2,), (3, 4), (-0.5, -1.5)), Row((1,), (2,), (3,), None)
  ])  # fmt: skip
  np.testing.assert_array_equal(
      batch.sampler_logp_BxT, [[-0.5, -1.5, 0, 0], [0, 0, 0, 0]]
  )
  floats = (batch.mask_BxT, batch.sampler_logp_BxT)
  assert {x.dtype for x in floats} == {np.dtype("float32")}
  whole = (*batch.student, *batch.teacher, batch.y_BxT)
  assert {x.dtype for x in whole} == {np.dtype("int32")}


def test_absent_rows_fill_the_batch_and_count_nothing():
  row = Row((1, 2), (3,), (4, 5), None)
  batch = batch_of([row] * 3, batch_multiple=4)
  assert batch.mask_BxT.sum(1).tolist() == [2, 2, 2, 0]
  assert (batch.student.ids_BxL[3] == PAD).all()
  assert (batch.student.at_BxT[3] == 0).all()
  assert len(batch_of([row] * 4, batch_multiple=4).y_BxT) == 4


def test_without_a_teacher_its_view_is_a_column_of_padding():
  batch = batch_of([Row((1, 2), (), (4, 5), None)] * 2)
  assert batch.teacher.ids_BxL.tolist() == [[PAD], [PAD]]
  assert (batch.teacher.at_BxT == 0).all()
  assert batch.teacher.at_BxT.shape == batch.student.at_BxT.shape


@pytest.mark.parametrize("rows", [
    [Row((), (1,), (4,), None)],
    [Row((1,), (1,), (4,), None), Row((1,), (), (4,), None)],
], ids=["student", "one teacher of two"])  # fmt: skip
def test_a_response_without_a_prompt_is_refused(rows):
  with pytest.raises(ValueError, match=f"row {len(rows) - 1}: .*prompt"):
    batch_of(rows)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_shifted_view_is_refused(side):
  batch = batch_of([Row((1, 2), (1, 2, 3), (4, 5, 6), None)])
  view = getattr(batch, side)
  collate.check_aligned(view, batch)
  for shift in (-1, 1):
    shifted = view._replace(at_BxT=view.at_BxT + shift)
    with pytest.raises(AssertionError, match="misaligned"):
      collate.check_aligned(shifted, batch)


@pytest.mark.parametrize("bad", [0, 1], ids=["student", "teacher"])
def test_collate_checks_both_views(bad, monkeypatch):
  made, views = collate.view, []

  def view(*args):
    views.append(made(*args))
    shift = len(views) - 1 == bad
    return views[-1]._replace(at_BxT=views[-1].at_BxT + shift)

  monkeypatch.setattr(collate, "view", view)
  with pytest.raises(AssertionError, match="misaligned"):
    batch_of([Row((1, 2), (1, 2, 3), (4, 5, 6), None)])


def test_padding_share_by_hand():
  # The last token of a row predicts nothing: 2 + 3 - 1 of 8, 5 + 3 - 1 of 8;
  # an empty response needs 0 of 8 and 0 of 8.
  full = Row((1, 2), (1, 2, 3, 4, 5), (6, 7, 8), None)
  empty = Row((1, 2), (1, 2, 3, 4, 5), (), None)
  assert collate.padding_share(batch_of([full])) == 1 - 11 / 16
  assert collate.padding_share(batch_of([full, empty])) == 1 - 11 / 32
  alone = full._replace(teacher_ids=())
  assert collate.padding_share(batch_of([alone])) == 1 - 4 / 8
