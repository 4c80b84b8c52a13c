"""What a program moves: by hand on a few lines, and on compiled programs."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from opsd_jax.planning import hlo
from opsd_jax.runtime.mesh import make_mesh

PROGRAM = """HloModule example

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%slice_of (p: f32[10,100], i: s32[]) -> f32[1,100] {
  %p = f32[10,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %s = f32[1,100]{1,0} dynamic-slice(%p, %i, %zero)
}

%body (c: (s32[], f32[100], f32[10,100])) -> (s32[], f32[100], f32[10,100]) {
  %c = (s32[], f32[100]{0}, f32[10,100]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%c), index=0
  %x = f32[100]{0} get-tuple-element(%c), index=1
  %w = f32[10,100]{1,0} get-tuple-element(%c), index=2
  %row = f32[1,100]{1,0} fusion(%w, %n), kind=kLoop, calls=%slice_of
  %all = f32[100]{0} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %t = (s32[], f32[100]{0}, f32[10,100]{1,0}) tuple(%n, %all, %w)
}

%condition (c: (s32[], f32[100], f32[10,100])) -> pred[] {
  %c = (s32[], f32[100]{0}, f32[10,100]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%c), index=0
  %bound = s32[] constant(10)
  ROOT %more = pred[] compare(%n, %bound), direction=LT
}

ENTRY %main (x: f32[100], w: f32[10,100]) -> f32[400] {
  %x = f32[100]{0} parameter(0)
  %w = f32[10,100]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[100]{0}, f32[10,100]{1,0}) tuple(%zero, %x, %w)
  %loop = (s32[], f32[100]{0}, f32[10,100]{1,0}) while(%start), condition=%condition, body=%body
  %y = f32[100]{0} get-tuple-element(%loop), index=1
  ROOT %whole = f32[400]{0} all-gather(%y), replica_groups=[2,4]<=[8], dimensions={0}
}
"""


def test_by_hand():
  moved = hlo.traffic(PROGRAM)
  # A turn: one row read and written (400 + 400, and the 4 of its index);
  # all-reduce reads and writes 400. At the end 400 are read, 1600 written.
  assert moved.memory == 10 * (400 + 400 + 4 + 800) + 2000
  # In a ring of 4: all-reduce sends 2 x 3/4 of 400, all-gather 3/4 of 1600.
  assert moved.collectives == {"all-reduce": 10 * 600, "all-gather": 1200}
  assert moved.counts == {"all-reduce": 10, "all-gather": 1}


@pytest.mark.parametrize(
  "words,size",
  [
    ("replica_groups={{0,1},{2,3}}", 2),
    ("replica_groups=[4,2]<=[8]", 2),
    ("replica_groups=mesh['a'=2,'b'=4] {'b'}", 4),
    ("", 0),
    ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", 8),
  ],
)
def test_group_sizes(words, size):
  assert hlo.group_size(words) == size


DETAILS = """HloModule details, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(f32[] %a, f32[] %b)
}

%much (p: f32[100]) -> f32[100] {
  %p = f32[100]{0} parameter(0)
  ROOT %y = f32[100]{0} all-reduce(%p), replica_groups={}, to_apply=%add
}

%little (p: f32[100]) -> f32[100] {
  %p = f32[100]{0} parameter(0)
  ROOT %y = f32[100]{0} bitcast(%p)
}

%half (p: f32[100]) -> f32[50] {
  %p = f32[100]{0} parameter(0)
  %zero = s32[] constant(0)
  %all = f32[100]{0} all-reduce(%p), replica_groups={{0,1}}, to_apply=%add
  ROOT %mine = f32[50]{0} dynamic-slice(%all, %zero), dynamic_slice_sizes={50}
}

ENTRY %main (x: f32[100], which: pred[]) -> f32[100] {
  %x = f32[100]{0} parameter(0)
  %which = pred[] parameter(1)
  %there = (f32[100]{0:S(1)}, f32[100]{0}, u32[]) copy-start(%x)
  %mine = f32[50]{0} fusion(%x), kind=kCustom, calls=%half
  ROOT %y = f32[100]{0} conditional(%which, %x, %x), true_computation=%much, false_computation=%little
}
"""


def test_details_by_hand():
  """A copy on to the chip is read once; of two branches the dearer counts; a
  fused all-reduce that is sliced is a reduce-scatter; {} is all devices."""
  moved = hlo.traffic(DETAILS)
  assert moved.memory == (400 + 4) + (400 + 200) + 800
  assert moved.collectives == {
    "reduce-scatter": 0.5 * 400,
    "all-reduce": 2 * 7 / 8 * 400,
  }


def test_an_unknown_type_is_refused():
  assert hlo.size("f8e4m3fn[3,5]") == 15
  with pytest.raises(ValueError, match="x77"):
    hlo.size("x77[3]")


def compiled(f, *args):
  return jax.jit(f).lower(*args).compile().as_text()


def scanned(n, x, ws):
  return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws[:n])[0]


def test_a_loop_counts_as_often_as_it_turns():
  x, ws = jnp.ones((64, 64)), jnp.ones((32, 64, 64))
  memory = {
    n: hlo.traffic(compiled(functools.partial(scanned, n), x, ws)).memory
    for n in (6, 12, 24)
  }
  assert memory[24] - memory[12] == pytest.approx(
    2 * (memory[12] - memory[6]), rel=0.02
  )
  # A turn reads a 16 kB weight and two states at least, not all 32 weights.
  assert 3 * 16_384 <= (memory[24] - memory[12]) / 12 <= 12 * 16_384


def test_collectives_of_a_sharded_matmul():
  """x is split by rows, w by its input: w is gathered, 3/4 of its bytes."""
  mesh = make_mesh(1, 4, devices=jax.devices()[:4])
  with jax.set_mesh(mesh):
    x = jax.device_put(jnp.ones((64, 64)), NamedSharding(mesh, P("fsdp")))
    w = jax.device_put(jnp.ones((64, 64)), NamedSharding(mesh, P("fsdp")))
    text = compiled(lambda x, w: x @ jax.lax.with_sharding_constraint(w, P()), x, w)
  assert hlo.traffic(text).collectives == {"all-gather": 0.75 * 64 * 64 * 4}


def test_logits_that_exist_at_once():
  text = compiled(
    lambda h, w: jax.lax.map(lambda h: (h @ w.T).max(), h),
    jnp.ones((4, 32, 8)),
    jnp.ones((1000, 8)),
  )
  assert hlo.most_tokens(text, 1000, {8}) == 32
  text = compiled(lambda h, w: h @ w.T, jnp.ones((128, 8)), jnp.ones((1000, 8)))
  assert hlo.most_tokens(text, 1000, {8}) == 128


def test_memory_is_what_xla_counts_without_loops():
  """A network of three layers and its gradient; XLA counts in its own way."""

  def loss(ws, x):
    for w in ws:
      x = jnp.tanh(x @ w)
    return (x**2).sum()

  ws = [jnp.ones((256, 256))] * 3
  done = jax.jit(jax.grad(loss)).lower(ws, jnp.ones((128, 256))).compile()
  assert hlo.traffic(done.as_text()).memory == pytest.approx(
    done.cost_analysis()["bytes accessed"], rel=0.1
  )
