"""Two views of one response: aligned, padded by length, hand-checkable."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax.rollouts import collate
from opsd_jax.rollouts.collate import Row
from opsd_jax.rollouts.shapes import Shapes, round_up

PAD = 9


def batch_of(rows, bucket=8, response_bucket=4, **kw):
  return collate.collate(
    rows, pad_id=PAD, bucket=bucket, response_bucket=response_bucket, **kw
  )


def ids(low, high):
  return st.lists(st.integers(0, 10), min_size=low, max_size=high).map(tuple)


rows = st.lists(
  st.tuples(st.tuples(ids(1, 9), ids(1, 20)), ids(0, 7)).map(lambda x: Row(*x)),
  min_size=1,
  max_size=8,
)


def seen(side, part, parts, at):
  """What the state at flat index `at` of a part has read, in order."""

  def own(x):
    return np.split(x, parts)[part]

  L = side.ids_RxL.shape[1]
  r, i = divmod(at, L)
  row = own(side.ids_RxL)[r, : i + 1]
  if side.segment_RxL is None:
    return row, np.arange(i + 1)
  segment = own(side.segment_RxL)[r, : i + 1]
  visible = segment == segment[-1]
  if side.parent_RxL is not None:
    visible |= segment == own(side.parent_RxL)[r, i]
  return row[visible], own(side.pos_RxL)[r, : i + 1][visible]


@given(
  rows=rows,
  repeat=st.integers(1, 3),
  pack_len=st.sampled_from([0, 20, 99]),
  share=st.booleans(),
  parts=st.integers(1, 3),
  bucket=st.sampled_from([1, 8]),
)
def test_a_token_is_predicted_from_its_prompt_and_what_came_before_it(
  rows, repeat, pack_len, share, parts, bucket
):
  """Whatever is packed with it, and whoever shares its prompt."""
  rows = [row for row in rows for _ in range(repeat)]
  batch = batch_of(rows, bucket, pack_len=pack_len, share_prompts=share, parts=parts)
  found = {i: 0 for i, row in enumerate(rows) if row.response_ids}
  for part, t in zip(*np.nonzero(batch.tokens.mask_BxT), strict=True):
    i = batch.tokens.response_BxT[part, t]
    index = batch.tokens.index_BxT[part, t]
    assert index == found[i]
    found[i] += 1
    assert batch.tokens.y_BxT[part, t] == rows[i].response_ids[index]
    assert batch.tokens.length_BxT[part, t] == len(rows[i].response_ids)
    for side, prompt in (
      (batch.views[0], rows[i].prompts[0]),
      (batch.views[1], rows[i].prompts[1]),
    ):
      read, pos = seen(side, part, parts, side.predictor_BxT[part, t])
      assert tuple(read) == (*prompt, *rows[i].response_ids[:index])
      assert pos.tolist() == list(range(len(read)))
  assert found == {
    i: len(row.response_ids) for i, row in enumerate(rows) if row.response_ids
  }


def test_responses_to_one_prompt_read_it_once():
  made = [Row(((1, 2), (3, 4, 5)), (6, 7, 8))] * 4

  def sizes(**kw):
    return [
      (side.segment_RxL > 0).sum() for side in batch_of(made, pack_len=64, **kw).views
    ]

  assert sizes(share_prompts=False) == [4 * (2 + 2), 4 * (3 + 2)]
  assert sizes(share_prompts=True) == [2 + 4 * 2, 3 + 4 * 2]  # the last is not read


@given(rows=rows)
def test_the_mask_is_the_length_whatever_the_tokens(rows):
  # Tokens of 0 to 10 hold PAD as an end-of-turn and inside responses.
  token = batch_of(rows).tokens
  total = sum(len(r.response_ids) for r in rows)
  expected = np.arange(token.y_BxT.shape[1]) < total
  np.testing.assert_array_equal(token.mask_BxT[0], expected)
  assert (token.y_BxT[0, ~expected] == PAD).all()


def test_processes_agree_on_their_shapes():
  """The larger of two processes' sizes, in each of two rounds."""
  short = [Row(((1,), (1, 2)), (4, 5))] * 4
  long = [Row(((1,) * 9, (1,) * 30), (4,) * 9)] * 4
  asked = {"short": [], "long": []}

  def noting(name):
    return lambda sizes: asked[name].append(list(sizes)) or sizes

  for name, made in (("short", short), ("long", long)):
    batch_of(made, pack_len=20, parts=2, all_reduce_max=noting(name))
  rounds = iter(zip(*asked.values(), strict=True))

  def both(sizes):
    return [max(x) for x in zip(*next(rounds), strict=True)]

  batch = batch_of(short, pack_len=20, parts=2, all_reduce_max=both)
  assert batch.views[0].ids_RxL.shape[0] == 2 * asked["long"][0][1]
  assert batch.tokens.y_BxT.shape == (2, round_up(asked["long"][0][0], 4, 3))
  assert batch.views[1].ids_RxL.shape[1] == round_up(asked["long"][1][1], 8)


def test_an_end_of_turn_that_is_also_the_pad_is_learned():
  batch = batch_of([Row(((1,), (1,)), (5, PAD))])
  assert batch.tokens.mask_BxT.tolist() == [[1, 1, 0, 0]]
  assert batch.tokens.y_BxT[0].tolist() == [5, PAD, PAD, PAD]


def test_dtypes_and_the_samplers_logp():
  batch = batch_of([Row(((1,), (2,)), (3, 4), (-0.5, -1.5)), Row(((1,), (2,)), (3,))])
  np.testing.assert_array_equal(batch.tokens.sampler_logp_BxT, [[-0.5, -1.5, 0, 0]])
  floats = (batch.tokens.mask_BxT, batch.tokens.sampler_logp_BxT)
  assert {x.dtype for x in floats} == {np.dtype("float32")}
  tokens = batch.tokens._replace(mask_BxT=None, sampler_logp_BxT=None)
  whole = jax.tree.leaves((batch.views, tokens))
  assert {x.dtype for x in whole} == {np.dtype("int32")}


def test_an_advantage_is_every_tokens_of_its_response():
  made = [
    Row(((1,),), (3, 4), (-1.0, -2.0), (-0.5, -1.5), 0.75),
    Row(((1,),), (5,), (-3.0,), (-2.5,), -0.25),
  ]
  token = batch_of(made, parts=4, pack_len=9).tokens
  real = token.mask_BxT > 0
  assert token.advantage_BxT[real].tolist() == [0.75, 0.75, -0.25]
  assert token.sampled_logp_BxT[real].tolist() == [-0.5, -1.5, -2.5]
  assert not token.advantage_BxT[~real].any() and token.old_logp_BxT is None
  assert batch_of([made[0]._replace(advantage=None)]).tokens.advantage_BxT is None


def test_absent_responses_fill_the_batch_and_count_nothing():
  row = Row(((1, 2), (3,)), (4, 5))
  batch = batch_of([row] * 3, parts=4)
  assert batch.tokens.mask_BxT.sum(1).tolist() == [2, 2, 2, 0]
  assert (batch.views[0].ids_RxL[3] == PAD).all()
  assert (batch.views[0].predictor_BxT[3] == 0).all()
  assert len(batch_of([row] * 4, parts=4).tokens.y_BxT) == 4


def test_a_batch_has_as_many_views_as_its_rows():
  row = Row(((1, 2), (3,), (4, 5, 6)), (4, 5))
  assert [v.ids_RxL[0, 0] for v in batch_of([row] * 2).views] == [1, 3, 4]
  assert len(batch_of([row._replace(prompts=((1,),))]).views) == 1


def test_weights_and_what_else_a_row_brings_are_all_its_tokens():
  row = Row(((1,),), (3, 4))
  made = [
    row._replace(weights={"distill": 0.5}, group=3, is_copy=False, old_logp=()),
    row._replace(
      weights={"distill": 0.0}, group=7, is_copy=True, old_logp=(-1.0, -2.0)
    ),
  ]
  tokens = batch_of(made).tokens
  assert tokens.weights["distill"].tolist() == [[0.5, 0.5, 0, 0]]
  assert tokens.group_BxT.tolist() == [[3, 3, 7, 7]]
  assert tokens.counted_BxT.tolist() == [[1, 1, 0, 0]]
  assert np.isnan(tokens.old_logp_BxT[0, :2]).all()
  assert tokens.old_logp_BxT[0, 2:].tolist() == [-1, -2]
  assert (
    batch_of([row]).tokens.weights == {} and batch_of([row]).tokens.group_BxT is None
  )


def test_there_are_at_least_as_many_tokens_as_groups():
  """Groups are numbered below parts x T, also where responses are empty."""
  rows = [Row(((1,),), ())] * 64
  assert batch_of(rows).tokens.y_BxT.size >= 64


def test_values_come_back_to_their_responses():
  made = [Row(((1,), (1,)), (5,) * n) for n in (3, 0, 2, 1)]
  token = batch_of(made, parts=2, pack_len=9).tokens
  of = collate.of_responses(token.index_BxT, token, 4)
  assert [x.tolist() for x in of] == [[0, 1, 2], [], [0, 1], [0]]


@pytest.mark.parametrize(
  "rows",
  [[Row(((), (1,)), (4,))], [Row(((1,), (1,)), (4,)), Row(((1,), ()), (4,))]],
  ids=["student", "one teacher of two"],
)
def test_a_response_without_a_prompt_is_refused(rows):
  with pytest.raises(ValueError, match=f"row {len(rows) - 1}: .*prompt"):
    batch_of(rows)


@pytest.mark.parametrize("side", [0, 1])
def test_a_shifted_view_is_refused(side):
  batch = batch_of([Row(((1, 2), (1, 2, 3)), (4, 5, 6))])
  view = batch.views[side]
  collate.check_aligned(view, batch.tokens)
  for shift in (-1, 1):
    shifted = view._replace(predictor_BxT=view.predictor_BxT + shift)
    with pytest.raises(RuntimeError, match="misaligned"):
      collate.check_aligned(shifted, batch.tokens)


@pytest.mark.parametrize("bad", [0, 1], ids=["student", "teacher"])
def test_collate_checks_both_views(bad, monkeypatch):
  made, views = collate.part_view, []

  def view(*args):
    views.append(made(*args))
    shift = len(views) - 1 == bad
    return views[-1]._replace(predictor_BxT=views[-1].predictor_BxT + shift)

  monkeypatch.setattr(collate, "part_view", view)
  with pytest.raises(RuntimeError, match="misaligned"):
    batch_of([Row(((1, 2), (1, 2, 3)), (4, 5, 6))])


def test_padding_share_by_hand():
  # The last token of a row predicts nothing: 2 + 3 - 1 of 8, 5 + 3 - 1 of 8;
  # an empty response needs 0 of 8 and 0 of 8 in a row of its own.
  full = Row(((1, 2), (1, 2, 3, 4, 5)), (6, 7, 8))
  empty = Row(((1, 2), (1, 2, 3, 4, 5)), ())
  assert collate.padding_share(batch_of([full])) == 1 - 11 / 16
  assert collate.padding_share(batch_of([full, empty])) == 1 - 11 / 32
  alone = full._replace(prompts=full.prompts[:1])
  assert collate.padding_share(batch_of([alone])) == 1 - 4 / 8
  packed = batch_of([full, full], pack_len=16)
  assert packed.views[0].ids_RxL.shape == (1, 8)
  assert packed.views[1].ids_RxL.shape == (1, 16)
  assert collate.padding_share(packed) == 1 - 22 / 24


@pytest.mark.parametrize(
  "pack_len,rows,mean,longest,bound",
  [
    (256, 16, 10, 16, 0.15),  # the default task's lengths
    (768, 16, 120, 256, 0.15),  # those of grade-school maths
    (512, 64, 32, 128, 0.15),
  ],
)
def test_little_is_padding(pack_len, rows, mean, longest, bound):
  rng, shares, of_table = np.random.default_rng(0), [], []
  shapes, table = set(), Shapes()
  for _ in range(20):
    made = []
    for _ in range(rows):
      student = (len(made), 1) * int(30 + rng.integers(10) * mean / 20)
      size = int(min(longest, rng.geometric(1 / mean)))
      made.append(Row((student, student + (2,) * mean), (3,) * size))
    packed = {"pack_len": pack_len, "share_prompts": True}
    shares.append(collate.padding_share(batch_of(made, 32, 32, **packed)))
    batch = batch_of(made, 32, 32, shapes=table, **packed)
    of_table.append(collate.padding_share(batch))
    shapes.add(tuple(x.shape for x in (batch.views[0].ids_RxL, batch.views[1].ids_RxL)))
  assert np.mean(shares) < bound and np.mean(of_table) < bound + 0.1
  assert len(shapes) <= 4
