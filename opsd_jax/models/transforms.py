"""Functions of the weights between the optimiser and the forward pass: `params ->
params`, with the gradient that the trained weights are to have."""

import jax
import jax.numpy as jnp

sg = jax.lax.stop_gradient


def none(params):
  """The weights themselves."""
  return params


def int8(params):
  """Every matrix's row rounded to 255 steps between -max |w| and max |w|; the gradient
  goes to the full weights as if nothing were rounded (straight-through; Polino et al.
  2018, arXiv:1802.05668)."""

  def rounded(w):
    if w.ndim < 2:
      return w
    scale = jnp.maximum(jnp.abs(w).max(-1, keepdims=True) / 127, 1e-30)
    return w + sg((jnp.round(w / scale) * scale).astype(w.dtype) - w)

  return jax.tree.map(rounded, params)


ALL = {"none": none, "int8": int8}


def apply(name: str, params):
  """The transformed weights as arrays, each in its layout."""
  if name == "none":
    return params
  layout = jax.tree.map(lambda x: x.sharding, params)
  return jax.jit(ALL[name], out_shardings=layout)(params)
