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

from opsd_jax import sharding
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
    chunk: tokens at one time, of each device that splits the rows.
  """
  B, T = y_BxT.shape
  G = sharding.groups(B)  # devices that split the rows
  n = -(-B * T // (G * chunk))
  N = -(-B * T // (G * n))  # n chunks a device, as even as can be

  def in_order(x):
    """B x T x ... -> n x GN x ...: every chunk takes N tokens of each device's
    rows."""
    x = x.reshape(G, B * T // G, *x.shape[2:])
    x = jnp.pad(x, [(0, 0), (0, N * n - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
    x = x.reshape(G, N, n, *x.shape[2:])
    x = jnp.moveaxis(x, 2, 0).reshape(n, G * N, *x.shape[3:])
    return sharding.constrain(x, "chunks")

  def stats(z_NxV, rest, heads):
    hts, y_N, mask_N = rest
    zt_NxV = sum(
        weight * logits(h, W)
        for (weight, W), h in zip(heads, hts, strict=True)
    ) if teachers else None  # fmt: skip
    values = of_logits(divergence, z_NxV, zt_NxV, y_N, temperature)
    return PerToken(*(jnp.where(mask_N > 0, v, 0.0) for v in values))

  clean = lambda h: in_order(jnp.where(mask_BxT[..., None] > 0, h, 0))
  hts = tuple(clean(h) for _, h, _ in teachers)
  heads = tuple(
      (weight, ready(W, h))
      for (weight, _, W), h in zip(teachers, hts, strict=True)
  )
  rest = (hts, in_order(y_BxT), in_order(mask_BxT))
  values = in_chunks(stats, clean(h_BxTxD), W_VxD, rest, heads)

  def back(x):
    x = jnp.moveaxis(x.reshape(n, G, N), 0, 2).reshape(G, N * n)
    return x[:, : B * T // G].reshape(B, T)

  return jax.tree.map(back, values)


def ready(W_VxD, h):
  """The unembedding as logits need it: in h's dtype, gathered once."""
  return sharding.gathered(W_VxD.astype(h.dtype), "embed/embedding")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def in_chunks(stats, h_nxNxD, W_VxD, rest, heads):
  """stats(logits of a chunk, its rest, teachers' heads), chunk after chunk.

  With a gradient to h and W alone. It is written out for W's sake: autodiff
  makes a chunk's whole V x D share of it beside the sum, in W's dtype, and adds
  it up over all devices, for every chunk. Here each device has a float32 sum
  of its own that grows in place; they are added up once, at the end.
  """
  W = ready(W_VxD, h_nxNxD)
  one = lambda chunk: stats(logits(chunk[0], W), chunk[1], heads)
  return jax.lax.map(one, (h_nxNxD, rest))


def in_chunks_forward(stats, *args):
  return in_chunks(stats, *args), args


def in_chunks_backward(stats, args, cotangents):
  h_nxNxD, W_VxD, rest, heads = args
  (V, D), W = W_VxD.shape, ready(W_VxD, h_nxNxD)
  G = sharding.groups(h_nxNxD.shape[1])
  S = sharding.vocabulary_shards(V)
  K = math.gcd(V // S, 16)  # blocks of a shard of the vocabulary
  M = V // (S * K)
  whole = lambda x: sharding.constrain(x, "head_gradient")

  def one(dW_GxSxKxMxD, chunk):
    h_NxD, rest, cotangent = chunk
    z_NxV, pull_h = jax.vjp(lambda h: logits(h, W), h_NxD)
    _, pull_z = jax.vjp(lambda z: stats(z, rest, heads), z_NxV)
    (dz_NxV,) = pull_z(cotangent)
    dz_GxNxSxKxM = dz_NxV.reshape(G, -1, S, K, M)
    h_GxNxD = h_NxD.reshape(G, -1, D)
    add = lambda k, dW: whole(dW.at[:, :, k].add(jnp.einsum(
        "gnsm,gnd->gsmd", dz_GxNxSxKxM[..., k, :], h_GxNxD,
        preferred_element_type=jnp.float32, precision=precision(h_NxD),
    )))  # fmt: skip
    return jax.lax.fori_loop(0, K, add, dW_GxSxKxMxD), *pull_h(dz_NxV)

  zero = whole(jnp.zeros((G, S, K, M, D), jnp.float32))
  dW, dh_nxNxD = jax.lax.scan(one, zero, (h_nxNxD, rest, cotangents))
  dW_VxD = sharding.sum_of_shards(dW).astype(W_VxD.dtype)
  return dh_nxNxD, dW_VxD, None, None


in_chunks.defvjp(in_chunks_forward, in_chunks_backward)


def precision(x):
  """Float32 means float32, also on a TPU."""
  return "highest" if x.dtype == jnp.float32 else None


def logits(h_NxD, W_VxD):
  z_NxV = jnp.einsum(
      "nd,vd->nv", h_NxD, W_VxD, preferred_element_type=jnp.float32,
      precision=precision(h_NxD),
  )  # fmt: skip
  return sharding.constrain(z_NxV, "logits")


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
