"""A state saved on one mesh is the same on another, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import opsd
from opsd_jax import train
from opsd_jax.losses import objective
from opsd_jax.models import families, transformer
from opsd_jax.runtime import checkpoint, sharding_rules
from opsd_jax.runtime.mesh import make_mesh


def mesh_of(data, fsdp, tensor):
  return make_mesh(data, fsdp, tensor, devices=jax.devices()[: data * fsdp * tensor])


def state():
  """Parameters, both moments and a float32 average, all of them random."""
  config = opsd.get_config("tiny")
  config.teacher.name = "ema"
  params = transformer.init_params(families.tiny(), jax.random.key(0))
  new = train.init_state(params, objective.from_config(config), optax.adam(1.0))

  def draw(x):
    return (
      jax.random.normal(jax.random.key(x.size), x.shape).astype(x.dtype)
      if jnp.issubdtype(x.dtype, jnp.floating)
      else x
    )

  return jax.tree.map(draw, new)._replace(step=jnp.int32(7))


@pytest.mark.parametrize(
  "saved,restored",
  [
    ((1, 8, 1), (1, 1, 1)),
    ((1, 1, 1), (1, 4, 1)),
    ((1, 8, 1), (1, 1, 4)),
    ((2, 2, 2), (8, 1, 1)),
  ],
  ids=str,
)
def test_another_mesh_restores_the_same_bits(saved, restored, tmp_path):
  whole = state()
  manager = checkpoint.open_manager(tmp_path, keep=1)
  layout = sharding_rules.tree_shardings(whole, mesh_of(*saved))
  checkpoint.save(manager, jax.device_put(whole, layout))
  manager.wait_until_finished()
  layout = sharding_rules.tree_shardings(whole, mesh_of(*restored))
  got = checkpoint.restore(manager, 7, jax.eval_shape(lambda: whole), layout)
  manager.close()
  assert jax.tree.structure(got) == jax.tree.structure(whole)
  for a, b, place in zip(
    jax.tree.leaves(got), jax.tree.leaves(whole), jax.tree.leaves(layout), strict=True
  ):
    assert a.sharding == place and a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)
