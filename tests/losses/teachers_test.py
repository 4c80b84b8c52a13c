"""Whose weights judge: what each teacher remembers, and for how long."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsd_jax.losses import teachers
from opsd_jax.runtime import checkpoint, sharding_rules
from opsd_jax.runtime.mesh import make_mesh
from opsd_jax.structs import State
from tests.families import teacher_keywords

MAKERS = {
  name: functools.partial(f, **teacher_keywords(f)) for name, f in teachers.ALL.items()
}


def tree(value, dtype=jnp.float32):
  def full(shape):
    return jnp.full(shape, value, dtype)

  return {"a": full((2, 3)), "b": {"c": full(4)}}


def after(made, values, dtype=jnp.float32, start=1.0):
  """The teacher's weights after steps that put the student at each value."""
  memory = made.init(tree(start, dtype))
  for step, value in enumerate(values, 1):
    memory = made.update(memory, tree(value, dtype), step)
  last = values[-1] if values else start
  return made.kept(memory, tree(last, dtype))


def assert_are(params, value, dtype=jnp.float32, atol=1e-6):
  assert jax.tree.structure(params) == jax.tree.structure(tree(0.0))
  for leaf in jax.tree.leaves(params):
    assert leaf.dtype == dtype
    np.testing.assert_allclose(np.float32(leaf), value, atol=atol)


@pytest.mark.parametrize("name,expected", [("live", 4.0), ("fixed", 1.0)])
def test_who_judges_after_three_steps(name, expected):
  assert_are(after(MAKERS[name](), [2.0, 3.0, 4.0]), expected)


@pytest.mark.parametrize("name", MAKERS)
def test_at_the_start_every_teacher_is_the_student(name):
  assert_are(after(MAKERS[name](), []), 1.0)


def test_ema_three_steps_towards_a_constant():
  assert_are(after(teachers.ema(0.05), [2.0] * 3), 1.142625)


@pytest.mark.parametrize("rate,expected", [(0.0, 1.0), (1.0, 4.0)])
def test_ema_at_its_ends_is_fixed_and_live(rate, expected):
  assert_are(after(teachers.ema(rate), [2.0, 4.0]), expected)


def test_ema_of_bfloat16_weights_moves():
  # A step of 0.001 is below bfloat16's resolution at 1, which is 0.0078.
  told = teachers.ema(0.001)
  memory = told.init(tree(1.0, jnp.bfloat16))
  assert {x.dtype for x in jax.tree.leaves(memory)} == {np.dtype("float32")}
  update = jax.jit(told.update)
  for step in range(200):
    memory = update(memory, tree(1.5, jnp.bfloat16), step)
  expected = 1.5 - 0.5 * 0.999**200
  np.testing.assert_allclose(memory["a"], expected, rtol=1e-4)
  params = told.kept(memory, tree(1.5, jnp.bfloat16))
  assert_are(params, expected, jnp.bfloat16, atol=2**-8)


def test_synced_takes_the_student_every_third_step():
  told = teachers.synced(3)
  values = [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
  seen = [float(after(told, values[:n])["a"][0, 0]) for n in range(len(values) + 1)]
  assert seen == [1, 1, 1, 4, 4, 4, 7, 7]
  assert_are(after(teachers.synced(1), [2.0, 3.0]), 3.0)


@pytest.mark.parametrize(
  "make,value",
  [
    (teachers.ema, -0.1),
    (teachers.ema, 1.1),
    (teachers.ema, float("nan")),
    (teachers.synced, 0),
  ],
)
def test_senseless_numbers_are_refused(make, value):
  with pytest.raises(ValueError, match="expected"):
    make(value)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", MAKERS)
def test_memory_is_a_copy_so_that_a_step_may_donate_the_state(name, dtype):
  told, params = MAKERS[name](), tree(1.0, dtype)
  state = State(jnp.zeros((), jnp.int32), params, (), told.init(params))

  @jax.jit
  def copy(state):
    return jax.tree.map(lambda x: x + 0, state)

  def step(state):
    params = jax.tree.map(lambda x: x + 1, state.params)
    return State(
      state.step + 1, params, (), told.update(state.memories, params, state.step + 1)
    )

  expected = step(copy(state))
  got = jax.jit(step, donate_argnums=0)(state)
  jax.tree.map(np.testing.assert_array_equal, got, expected)
  assert params["a"].is_deleted()  # it really was donated


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", MAKERS)
def test_memory_survives_a_checkpoint(name, dtype, tmp_path):
  told = MAKERS[name]()
  memory = told.init(tree(1.0, dtype))
  for step in (1, 2):
    memory = told.update(memory, tree(2.3, dtype), step)
  state = State(jnp.int32(2), tree(2.3, dtype), {"mu": tree(0.5)}, memory)
  shapes = jax.eval_shape(lambda: state)
  mesh = make_mesh(1, 1, devices=jax.devices()[:1])
  layout = sharding_rules.tree_shardings(shapes, mesh)
  manager = checkpoint.open_manager(tmp_path, keep=1)
  assert checkpoint.restore(manager, None, shapes, layout) is None
  checkpoint.save(manager, state)
  manager.wait_until_finished()
  restored = checkpoint.restore(manager, manager.latest_step(), shapes, layout)
  manager.close()
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  for got, expected in zip(
    jax.tree.leaves(restored), jax.tree.leaves(state), strict=True
  ):
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)
