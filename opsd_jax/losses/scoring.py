"""What needs the statistics of all tokens: weights and credits that look at others,
the denominators, and the tokens that some term counts.
"""

import jax
import jax.numpy as jnp


def denominators(o, batch) -> dict:
  """{term: what its sum is divided by}, of the whole batch: before micro-batches
  are split, and as scoring has left it where there was one."""
  if batch.denominators:
    return batch.denominators
  tokens = batch.tokens

  def count(name, term):
    advantage_BxT = tokens.credits.get(name, tokens.advantage_BxT)
    weights = tokens.weights.get(name, 1.0)
    return term.denominator(tokens._replace(advantage_BxT=advantage_BxT), weights)

  return {name: count(name, term) for name, term in o.terms.items()}


def weigh(o, stats, batch, kept: int | None):
  """(the batch with the weights and credits that the statistics of all its tokens
  give, its denominators, and `kept` columns of each part: those that some term
  counts first; how many of these there was no room for). None: all columns."""
  tokens, weights, credits = batch.tokens, dict(batch.tokens.weights), {}
  for name, term in o.terms.items():
    term_stats = stats.of(name, term.target, term.against)
    counts = weights.get(name, 1.0) != 0
    seen = tokens._replace(mask_BxT=tokens.mask_BxT * counts)
    if term.whole_weight:
      weights[name] = weights.get(name, 1.0) * term.whole_weight(term_stats, seen)
    if term.whole_credit:
      credits[name] = term.whole_credit(term_stats, seen)
  old_logp_BxT = tokens.old_logp_BxT
  if old_logp_BxT is not None:
    unknown = jnp.isnan(old_logp_BxT)
    old_logp_BxT = jnp.where(unknown, stats.logp_BxT, old_logp_BxT)
  tokens = tokens._replace(weights=weights, credits=credits, old_logp_BxT=old_logp_BxT)
  batch = batch._replace(tokens=tokens)
  batch = batch._replace(denominators=denominators(o, batch))
  counted_BxT = sum((weights.get(name, 1.0) != 0) * tokens.mask_BxT for name in o.terms)
  tokens = tokens._replace(mask_BxT=(counted_BxT > 0) * tokens.mask_BxT)
  size = tokens.mask_BxT.shape[1] if kept is None else kept
  overflow = jnp.maximum(tokens.mask_BxT.sum(1) - size, 0).sum()
  return with_columns(batch._replace(tokens=tokens), kept), overflow


def with_columns(batch, kept: int | None):
  """The batch with the first `kept` tokens of each part that the mask holds."""
  if kept is None or kept >= batch.tokens.mask_BxT.shape[1]:
    return batch
  order_BxT = jnp.argsort(batch.tokens.mask_BxT == 0, axis=1, stable=True)
  columns_BxK = order_BxT[:, :kept]

  def take(x_BxT):
    return jnp.take_along_axis(x_BxT, columns_BxK, 1)

  return batch._replace(
    tokens=jax.tree.map(take, batch.tokens),
    views=tuple(v._replace(predictor_BxT=take(v.predictor_BxT)) for v in batch.views),
  )
