"""Credit: a response's advantage -> its tokens', `(stats, tokens, **kw) -> BxT`.

One of ALL looks at its own token alone; one of WHOLE at others too, and is made
of the whole batch before anything is learned (objective.weigh), where the mask
holds the tokens that count in its term. tokens.weights["credit"], where routing
gives it, is how much of what the credit adds belongs to a response.
"""

import jax
import jax.numpy as jnp

from opsd_jax.losses.token_weights import over_response


def response(stats, tokens):
  """Its response's advantage."""
  return tokens.advantage_BxT


ALL = {"response": response}


def less_kl(stats, tokens, *, strength: float):
  """A - b (KL - mean of its prompt's), KL = sum over the response of log pi(y) -
  log q(y), q the teacher: the advantage of the reward R - b KL (pi-Distill,
  Penaloza et al. 2026, arXiv:2602.04942, Alg. 1). Without gradient."""
  share_BxT = tokens.weights.get("credit", 1.0) * tokens.mask_BxT
  gap_BxT = (stats.logp_BxT - stats.teacher_logp_BxT) * share_BxT
  kl_BxT = over_response(jax.ops.segment_sum, gap_BxT, tokens)
  rest_BxT = kl_BxT - group_mean(kl_BxT, share_BxT, tokens)
  return tokens.advantage_BxT - strength * rest_BxT * (share_BxT > 0)


def group_mean(x_BxT, share_BxT, tokens):
  """The mean of x over a prompt's responses, each once, whatever part of the
  batch they are in; x is the same at all tokens of a response."""
  once_BxT = (tokens.index_BxT == 0) * (share_BxT > 0)
  group_N = tokens.group_BxT.reshape(-1)  # fewer than B x T, see collate

  def total(x):
    return jax.ops.segment_sum(x.reshape(-1), group_N, group_N.size)

  mean_G = total(x_BxT * once_BxT) / jnp.maximum(total(once_BxT * 1.0), 1)
  return mean_G[group_N].reshape(x_BxT.shape)


WHOLE = {"less_kl": less_kl}
