"""Batches take few shapes, and compute little more than their own would."""

import json
import types

import numpy as np
import pytest

from opsd_jax.rollouts import collate, shapes
from opsd_jax.rollouts.shapes import Shape, Shapes


def test_rows_of_a_part_by_hand():
  def of(sizes, pack_len):
    return shapes.rows_for(sizes, pack_len, 1)

  assert of([75] * 16, 0) == 16  # a row each
  assert of([75] * 16, 150) == 8  # two a row
  assert of([75] * 16, 256) == 4  # 16 are 4 x 4: 3 a row would leave two empty
  assert of([500, 10, 10, 10], 64) == 1  # one is longer than a row
  assert shapes.pack([5, 9, 3, 3], 2) == ([1, 0, 1, 1], [9, 11])
  assert shapes.pack([5, 9], 3) == ([1, 0], [9, 5, 0])


@pytest.mark.parametrize(
  "length,multiple,digits,expected",
  [
    (0, 8, 4, 8),
    (1, 8, 4, 8),
    (9, 8, 4, 16),
    (120, 8, 4, 120),
    (129, 8, 4, 144),
    (257, 8, 4, 288),
    (257, 8, 3, 320),
    (7, 1, 4, 7),
    (100, 48, 4, 144),
    (1000, 48, 4, 1056),
  ],
)
def test_lengths_are_rounded_up(length, multiple, digits, expected):
  assert shapes.round_up(length, multiple, digits) == expected


def test_few_shapes_are_compiled():
  rounded = {shapes.round_up(n, 32) for n in range(1, 4097)}
  assert len(rounded) == 16 + 3 * 8  # by 32 up to 512, then 8 an octave
  assert max(shapes.round_up(n, 32) / n for n in range(257, 4097)) < 1.125


def fit(table, tokens, *views, agree=list, pack_len=64):
  return table.fit(
    tokens,
    [[list(view)] for view in views],
    pack_len=pack_len,
    bucket=8,
    response_bucket=8,
    all_reduce_max=agree,
  )


def test_a_batch_takes_an_older_shape_where_that_costs_little_more():
  table = Shapes()
  assert fit(table, 16, [30, 34]) == Shape(16, ((1, 64),))
  assert fit(table, 12, [30, 28]) == Shape(16, ((1, 64),))  # 80 against 72
  assert fit(table, 8, [20, 12]) == Shape(8, ((1, 32),))  # 80 against 40
  # It did not fit: one with room beyond it.
  assert fit(table, 16, [40, 40]) == Shape(24, ((1, 96),))
  assert fit(table, 17, [40, 48]) == Shape(24, ((1, 96),))
  assert len(table.of(1)) == 3


def test_what_was_saved_rounds_alike():
  rng = np.random.default_rng(0)
  batches = [rng.integers(5, 60, 12).tolist() for _ in range(20)]
  table = Shapes()
  first = [fit(table, 16, b) for b in batches[:10]]
  other = Shapes(json.loads(json.dumps(table.state)))
  rest = [fit(table, 16, b) for b in batches[10:]]
  assert [fit(other, 16, b) for b in batches[10:]] == rest
  assert len({*first, *rest}) < 6


def test_processes_agree_on_the_larger_of_their_batches():
  larger = types.SimpleNamespace(table=Shapes(), calls=[])
  fit(larger.table, 16, [30, 34], agree=lambda x: larger.calls.append(x) or x)
  asked = iter(larger.calls)

  def with_other(sizes):
    return [max(pair) for pair in zip(sizes, next(asked), strict=True)]

  assert fit(Shapes(), 8, [3, 4], agree=with_other) == larger.table.of(1)[0]


def test_unpacked_rows_hold_one_unit():
  table = Shapes()
  fit(table, 8, [40], pack_len=0)
  assert fit(table, 8, [4, 4, 4], pack_len=0).views[0][0] == 3


def test_prompts_and_responses_of_many_lengths_take_few_shapes():
  """As school problems in a byte's tokens, 8 seeds: in steps 10 to 40 at most 1 new
  shape in the mean, at most 30% padding in each."""
  late = []
  for seed in range(8):
    rng = np.random.default_rng(seed)
    table, used, padding = Shapes(), [], []
    for _ in range(40):
      rows = []
      for _ in range(16):
        asked, solved = rng.lognormal(5.4, 0.35), rng.lognormal(5.5, 0.45)
        prompts = (1,) * int(asked + 60), (1,) * int(asked + solved + 120)
        rows.append(collate.Row(prompts, (2,) * min(256, rng.geometric(1 / 512))))
      batch = collate.collate(
        rows, pad_id=0, bucket=32, response_bucket=128, pack_len=256, shapes=table
      )
      shapes_of = [x.ids_RxL.shape for x in batch.views] + [batch.tokens.y_BxT.shape]
      used.append(tuple(shapes_of))
      padding.append(collate.padding_share(batch))
    late.append(len(set(used) - set(used[:10])))
    assert len(set(used)) <= 6 and np.mean(padding) < 0.3
  assert np.mean(late) <= 1, late
