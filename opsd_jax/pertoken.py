"""Hidden states -> per-token statistics, without [B,T,V] ever existing.

Tokens are taken in chunks; a chunk's logits are made, compared and dropped, in
the backward pass again, so memory is chunk x V however long the rows. Chunks go
over tokens, not vocabulary, which keeps a divergence a plain function of the
last axis.
"""

import functools
import math

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

  def stats(z_NxV, rest, heads):
    hts, y_N, mask_N = rest
    zt_NxV = sum(
        weight * logits(h, W)
        for (weight, W), h in zip(heads, hts, strict=True)
    ) if teachers else None  # fmt: skip
    values = of_logits(divergence, z_NxV, zt_NxV, y_N, temperature)
    return PerToken(*(jnp.where(mask_N > 0, v, 0.0) for v in values))

  clean = lambda h: strided(jnp.where(mask_BxT[..., None] > 0, h, 0))
  hts = tuple(clean(h) for _, h, _ in teachers)
  heads = tuple((weight, W) for weight, _, W in teachers)
  rest = (hts, strided(y_BxT), strided(mask_BxT))
  values = in_chunks(stats, clean(h_BxTxD), W_VxD, rest, heads)
  join = lambda x: x.swapaxes(0, 1).reshape(-1)[: B * T].reshape(B, T)
  return jax.tree.map(join, values)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def in_chunks(stats, h_nxNxD, W_VxD, rest, heads):
  """stats(logits of a chunk, its rest, teachers' heads), chunk after chunk.

  With a gradient to h and W alone. It is written out for W's sake: autodiff
  makes a chunk's whole V x D share of it beside the sum, in W's dtype. Here the
  sum is float32 and grows in place.
  """
  one = lambda chunk: stats(logits(chunk[0], W_VxD), chunk[1], heads)
  return jax.lax.map(one, (h_nxNxD, rest))


def in_chunks_forward(stats, *args):
  return in_chunks(stats, *args), args


def in_chunks_backward(stats, args, cotangents):
  h_nxNxD, W_VxD, rest, heads = args
  V, D = W_VxD.shape
  K = math.gcd(V, 16)  # blocks of the vocabulary

  def one(dW_KxMxD, chunk):
    h_NxD, rest, cotangent = chunk
    z_NxV, pull_h = jax.vjp(lambda h: logits(h, W_VxD), h_NxD)
    _, pull_z = jax.vjp(lambda z: stats(z, rest, heads), z_NxV)
    (dz_NxV,) = pull_z(cotangent)
    dz_NxKxM = dz_NxV.reshape(-1, K, V // K)
    add = lambda k, dW: dW.at[k].add(
        jnp.einsum("nm,nd->md", dz_NxKxM[:, k], h_NxD)
    )
    return jax.lax.fori_loop(0, K, add, dW_KxMxD), *pull_h(dz_NxV)

  zero = jnp.zeros((K, V // K, D), jnp.float32)
  dW_KxMxD, dh_nxNxD = jax.lax.scan(one, zero, (h_nxNxD, rest, cotangents))
  return dh_nxNxD, dW_KxMxD.reshape(V, D).astype(W_VxD.dtype), None, None


in_chunks.defvjp(in_chunks_forward, in_chunks_backward)


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
