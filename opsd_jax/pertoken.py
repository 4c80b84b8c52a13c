"""Hidden states -> per-token statistics, without [B,T,V] ever existing.

Tokens are taken in chunks; a chunk's logits are made, compared and dropped, in
the backward pass again (remat), so memory is chunk x V however long the rows.
Chunks go over tokens, not vocabulary, which keeps a divergence a plain function
of the last axis.
"""

import jax
import jax.numpy as jnp

from opsd_jax.structs import PerToken

sg = jax.lax.stop_gradient


def compare(
    divergence,
    h_BxTxD,
    W_VxD,
    teachers,
    y_BxT,
    mask_BxT,
    *,
    temperature: float,
    chunk: int,
) -> PerToken:
  """Statistics of every response token under student and teacher.

  Args:
    divergence: as `divergence.make` returns.
    h_BxTxD, W_VxD: the student's states and unembedding; they get gradients.
    teachers: (weight, states, unembedding) of each; the teacher's logits are
      the weighted sum of theirs, a log-space mixture. Empty: no teacher, its
      statistics are 0 (with `nll`). Nothing flows back into them.
    y_BxT, mask_BxT: response tokens; outside the mask all outputs are exactly
      0 and so are gradients, whatever is there.
    temperature: divides both sides' logits.
    chunk: tokens at one time.
  """
  B, T = y_BxT.shape
  n = -(-B * T // chunk)
  chunk = -(-B * T // n)  # the same number of chunks, as even as can be

  def strided(x):
    """B x T x ... -> n chunks of tokens, each spread over the whole batch and
    therefore over all devices."""
    x = x.reshape(B * T, *x.shape[2:])
    x = jnp.pad(x, [(0, chunk * n - B * T)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(chunk, n, *x.shape[1:]).swapaxes(0, 1)

  Wts = [sg(W) for _, _, W in teachers]

  @jax.checkpoint
  def piece(args):
    h_NxD, hts, y_N, mask_N = args
    real = mask_N > 0
    clean = lambda h: jnp.where(real[:, None], h, 0)
    z_NxV = logits(clean(h_NxD), W_VxD)
    zt_NxV = sum(
        weight * logits(clean(h), W)
        for (weight, _, _), h, W in zip(teachers, hts, Wts, strict=True)
    ) if teachers else None  # fmt: skip
    values = of_logits(divergence, z_NxV, zt_NxV, y_N, temperature)
    return PerToken(*(jnp.where(real, v, 0.0) for v in values))

  hts = tuple(strided(sg(h)) for _, h, _ in teachers)
  args = (strided(h_BxTxD), hts, strided(y_BxT), strided(mask_BxT))
  stats = jax.lax.map(piece, args)
  join = lambda x: x.swapaxes(0, 1).reshape(-1)[: B * T].reshape(B, T)
  return jax.tree.map(join, stats)


def logits(h_NxD, W_VxD):
  return jnp.einsum(
      "nd,vd->nv", h_NxD, W_VxD, preferred_element_type=jnp.float32
  )


def of_logits(divergence, z_NxV, zt_NxV, y_N, temperature) -> PerToken:
  """The dense statistics of some tokens; zt None where there is no teacher."""
  at = lambda logp: jnp.take_along_axis(logp, y_N[:, None], 1)[:, 0]
  logp = jax.nn.log_softmax(z_NxV / temperature)
  logq = logp if zt_NxV is None else jax.nn.log_softmax(sg(zt_NxV) / temperature)
  logq = sg(logq)
  div, clipped = divergence(logp, logq, y_N)
  raw = logp if temperature == 1 else jax.nn.log_softmax(z_NxV)
  told = 0.0 if zt_NxV is None else 1.0
  return PerToken(
      div, at(logp), sg(at(raw)), told * at(logq), sg(entropy(logp)),
      told * entropy(logq), sg(clipped),
  )  # fmt: skip


def entropy(logp):
  """-sum p log p, nats."""
  return -(jnp.exp(logp) * jnp.where(logp > -jnp.inf, logp, 0.0)).sum(-1)
