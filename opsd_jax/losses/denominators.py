"""What the sum of a term is divided by: `(tokens, weights, **kw) -> scalar`, of the
whole batch and before micro-batches are split. `weights` are the term's.
"""

import jax.numpy as jnp


def all_tokens(tokens, weights):
  """Response tokens of the whole batch, at least 1; those of one completion in
  two rows once."""
  return jnp.maximum(counted(tokens).sum(), 1)


def responses(tokens, weights):
  """Responses of the whole batch with a token, at least 1."""
  first_BxT = (tokens.index_BxT == 0) * counted(tokens)
  return jnp.maximum(first_BxT.sum(), 1)


def weighted_tokens(tokens, weights):
  """Tokens of the whole batch that count in this term, at least 1."""
  return jnp.maximum(((weights != 0) * counted(tokens)).sum(), 1)


def total_weight(tokens, weights):
  """The sum of the term's weights over the tokens of the whole batch: its mean weight
  is then 1; 1 where that is 0."""
  total = (weights * counted(tokens)).sum()
  return jnp.where(total > 0, total, 1.0)


def active_tokens(tokens, weights):
  """Tokens of the whole batch's responses with an advantage, at least 1: those
  that a reward moves."""
  return jnp.maximum(((tokens.advantage_BxT != 0) * counted(tokens)).sum(), 1)


def budget(tokens, weights, *, max_new_tokens: int):
  """Responses of the whole batch times the tokens that each may have: a
  constant, where lengths must not matter (Dr. GRPO, arXiv:2503.20783)."""
  return responses(tokens, weights) * max_new_tokens


def counted(tokens):
  once_BxT = 1.0 if tokens.counted_BxT is None else tokens.counted_BxT
  return tokens.mask_BxT * once_BxT


ALL = {
  "tokens": all_tokens,
  "responses": responses,
  "weighted_tokens": weighted_tokens,
  "total_weight": total_weight,
  "active_tokens": active_tokens,
  "budget": budget,
}
