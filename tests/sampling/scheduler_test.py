"""Which caches the sampler may have."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax.models import families
from opsd_jax.sampling import sampler, scheduler


@st.composite
def ladders(draw):
  """(widths, sizes) of a Scheduler."""
  narrow, bucket = draw(st.integers(1, 9)), draw(st.integers(1, 64))
  widths = [narrow * 2**i for i in range(draw(st.integers(1, 7)))]
  largest = draw(st.integers(bucket, 64 * bucket))
  return widths, scheduler.size_ladder(bucket, largest)


def scheduler_of(widths, sizes):
  return scheduler.Scheduler(np.full(widths[-1], -1), 1, widths, sizes, [], 1)


@given(ladders(), st.data())
def test_a_cache_of_fewer_slots_is_long_enough_and_no_larger(found, data):
  widths, sizes = found
  state = scheduler_of(widths, sizes)
  width, wanted = (
    data.draw(st.sampled_from(widths)),
    data.draw(st.integers(1, sizes[-1])),
  )
  positions = state.positions_for(width, wanted)
  assert positions in sizes and positions >= wanted
  full = scheduler.bucket_for(sizes, wanted)
  assert width * positions <= widths[-1] * full
  assert state.positions_for(widths[-1], wanted) == full


def test_few_pairs_of_slots_and_positions_exist():
  """64, 32, 16, 8, 4 slots; 64, 128, ..., 4,096 positions: 7 + 4 + 3 + 2 + 2."""
  state = scheduler_of([4, 8, 16, 32, 64], [64 * 2**i for i in range(7)])
  pairs = {(w, state.positions_for(w, n)) for w in state.widths for n in range(1, 4097)}
  assert len(pairs) == 18
  assert {p for w, p in pairs if w == 32} == {64, 256, 1024, 4096}
  assert {p for w, p in pairs if w == 4} == {128, 4096}


def test_the_ladders_of_a_call_end_at_its_longest_row():
  """300 tokens of a prompt and 256 new ones, 40 prompts on 64 slots."""
  model = families.tiny()
  state, _ = sampler.set_up(model, [()] * 40, 1, 64, 4, 1, 64, 300, 256)
  assert state.widths == [4, 8, 16, 32, 64] and state.sizes == [64, 128, 256, 512, 1024]
  state, _ = sampler.set_up(model, [()] * 10, 1, 64, 4, 1, 64, 300, 256)
  assert state.widths == [4, 8, 16]
  state, _ = sampler.set_up(model, [()] * 10, 1, 64, 4, 1, 64, 300, 10**6)
  assert state.sizes[-1] == model.max_positions
