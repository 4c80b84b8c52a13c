"""Token weights: `(tok, batch) -> w_BxT`, how much each token counts.

A weight looks at its own row alone, so micro-batches do not change it; the
whole batch enters through config.loss.denominator.
"""

import jax.numpy as jnp


def uniform(tok, batch):
  """1."""
  return jnp.ones_like(batch.mask_BxT)


def sequence_mean(tok, batch):
  """1 / the row's response tokens: with the denominator `rows`, the mean over
  rows of their token means (arXiv:2601.18734, eq. 6)."""
  len_B = batch.mask_BxT.sum(1, keepdims=True)
  return jnp.broadcast_to(1 / jnp.maximum(len_B, 1), batch.mask_BxT.shape)


ALL = {"uniform": uniform, "sequence_mean": sequence_mean}
