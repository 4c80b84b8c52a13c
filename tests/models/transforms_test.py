"""Transforms of the weights: what the forward pass sees, and whose gradient it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsd_jax.models import transforms

W = {"kernel": jnp.array([[1.0, -0.3, 0.004], [0.0, 0.0, 0.0]]), "scale": jnp.ones(3)}


@pytest.mark.parametrize("name", transforms.ALL)
def test_the_gradient_goes_to_the_weights_as_they_are(name):
  def loss(w):
    return sum((3 * x).sum() for x in jax.tree.leaves(transforms.ALL[name](w)))

  for g in jax.tree.leaves(jax.grad(loss)(W)):
    np.testing.assert_array_equal(g, 3)


def test_int8_rounds_each_row_to_255_steps():
  made = transforms.int8(W)
  np.testing.assert_allclose(made["kernel"][0] * 127, [127, -38, 1], atol=1e-4)
  np.testing.assert_array_equal(made["kernel"][1], 0)
  np.testing.assert_array_equal(made["scale"], W["scale"])
  twice = transforms.apply("int8", made)
  jax.tree.map(np.testing.assert_allclose, twice, made)
  assert transforms.apply("none", W) is W
