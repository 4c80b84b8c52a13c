"""Token weights: `(tok, token) -> w`, how much each token counts.

`tok` are the token's statistics (structs.PerToken, no gradient), `token` what
the batch says of it (structs.Token). A weight looks at its own token alone, so
neither chunks nor micro-batches change it; the whole batch enters through
config.loss.denominator.
"""

import jax.numpy as jnp


def uniform(tok, token):
  """1."""
  return jnp.ones_like(token.mask_BxT)


def sequence_mean(tok, token):
  """1 / the tokens of its response: with the denominator `responses`, the mean
  over responses of their token means (arXiv:2601.18734, eq. 6)."""
  return 1 / jnp.maximum(token.length_BxT, 1)


ALL = {"uniform": uniform, "sequence_mean": sequence_mean}
