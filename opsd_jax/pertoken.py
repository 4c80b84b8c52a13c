"""Hidden states -> per-token statistics and a loss; [B,T,V] never exists.

Tokens are taken in chunks; a chunk's logits are made, compared and dropped, so
memory is chunk x V however long the rows. Chunks go over tokens, not
vocabulary, which keeps a divergence a plain function of the last axis.

The gradient is made in the same sweep as the loss, while a chunk's logits are
there: nothing is computed a second time. That needs a loss that is a sum over
tokens, each a function of its own statistics.
"""

import functools
import math

import jax
import jax.numpy as jnp

from opsd_jax import sharding
from opsd_jax.structs import PerToken

sg = jax.lax.stop_gradient


@jax.named_scope("loss")
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
  """Statistics of every response token; no gradient, see `loss`.

  Args:
    divergence: as `divergence.make` returns.
    h_BxTxD, W_VxD: the student's states and unembedding.
    teachers: (weight, states, unembedding) of each; the teacher's logits are
      the weighted sum of theirs, a log-space mixture. Empty: no teacher, its
      statistics are 0 (with `nll`).
    y_BxT, mask_BxT: response tokens; outside the mask all outputs are exactly
      0 and so are gradients, whatever is there.
    temperature: divides both sides' logits.
    chunk: tokens at one time, of each device that splits the rows.
  """

  def nothing(tok, own):
    return jnp.zeros_like(tok.div_BxT)

  _, tok = loss(
    nothing,
    divergence,
    sg(h_BxTxD),
    sg(W_VxD),
    teachers,
    y_BxT,
    mask_BxT,
    (),
    temperature=temperature,
    chunk=chunk,
  )
  return tok


def loss(
  token_loss,
  divergence,
  h_BxTxD,
  W_VxD,
  teachers,
  y_BxT,
  mask_BxT,
  own,
  *,
  temperature: float,
  chunk: int,
):
  """(sum over response tokens of token_loss(tok, own), PerToken).

  The sum has a gradient to h_BxTxD and W_VxD alone, through `div` and `logp`
  of a token's statistics; PerToken has none.

  Args:
    token_loss: (PerToken, own) of some tokens -> their losses; every token by
      itself. w * tok.div is a weighted divergence.
    own: a tree of [B, T] arrays, what token_loss is told of each token beside
      its statistics, such as its weight; constants.
    The rest is as in `compare`.
  """
  in_order, back = chunks(*y_BxT.shape, chunk)

  def of_chunk(z_NxV, rest, heads):
    hts, y_N, mask_N, own = rest
    zt_NxV = (
      sum(weight * logits(h, W) for (weight, W), h in zip(heads, hts, strict=True))
      if teachers
      else None
    )
    values = of_logits(divergence, z_NxV, zt_NxV, y_N, temperature)
    tok = PerToken(*(jnp.where(mask_N > 0, v, 0.0) for v in values))
    losses_N = jnp.where(mask_N > 0, token_loss(tok, own), 0.0)
    return losses_N.sum(), sg(tok)

  def clean(h):
    return in_order(jnp.where(mask_BxT[..., None] > 0, h, 0))

  hts = tuple(clean(h) for _, h, _ in teachers)
  heads = tuple(
    (weight, ready(W, h)) for (weight, _, W), h in zip(teachers, hts, strict=True)
  )
  rest = hts, *jax.tree.map(in_order, (y_BxT, mask_BxT, own))
  total, tok = summed(of_chunk, clean(h_BxTxD), W_VxD, rest, heads)
  return total, jax.tree.map(back, tok)


def chunks(B: int, T: int, size: int):
  """(B x T x ... -> n x N x ..., and back): tokens in n chunks.

  Every chunk takes up to `size` tokens of each device's rows, as even as can
  be.
  """
  G = sharding.groups(B)  # devices that split the rows
  n = -(-B * T // (G * size))
  N = -(-B * T // (G * n))  # tokens of a device in a chunk

  def in_order(x):
    x = x.reshape(G, B * T // G, *x.shape[2:])
    x = jnp.pad(x, [(0, 0), (0, N * n - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
    x = x.reshape(G, N, n, *x.shape[2:])
    x = jnp.moveaxis(x, 2, 0).reshape(n, G * N, *x.shape[3:])
    return sharding.constrain(x, "chunks")

  def back(x):
    x = jnp.moveaxis(x.reshape(n, G, N), 0, 2).reshape(G, N * n)
    return x[:, : B * T // G].reshape(B, T)

  return in_order, back


def ready(W_VxD, h):
  """The unembedding as logits need it: in h's dtype, gathered once."""
  return sharding.gathered(W_VxD.astype(h.dtype), "embed/embedding")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def summed(of_chunk, h_nxNxD, W_VxD, rest, heads):
  """(sum of of_chunk(logits, rest, heads)'s losses, its statistics)."""
  W = ready(W_VxD, h_nxNxD)

  def one(chunk):
    return of_chunk(logits(chunk[0], W), chunk[1], heads)

  losses_n, tok = jax.lax.map(one, (h_nxNxD, rest))
  return losses_n.sum(), tok


def summed_forward(of_chunk, h_nxNxD, W_VxD, rest, heads):
  """The same, and the gradient of the sum to h and W.

  Written out for W's sake: autodiff makes a chunk's whole V x D share of it
  beside the sum, in W's dtype, and adds it up over all devices, for every
  chunk. Here each device has a float32 sum of its own that grows in place; they
  are added up once, at the end.
  """
  (V, D), W = W_VxD.shape, ready(W_VxD, h_nxNxD)
  G = sharding.groups(h_nxNxD.shape[1])
  S = sharding.vocabulary_shards(V)
  K = math.gcd(V // S, 16)  # blocks of a shard of the vocabulary
  M = V // (S * K)

  def whole(x):
    return sharding.constrain(x, "head_gradient")

  def one(dW_GxSxKxMxD, chunk):
    h_NxD, rest = chunk
    z_NxV, to_h = jax.vjp(lambda h: logits(h, W), h_NxD)
    value = jax.value_and_grad(of_chunk, has_aux=True)
    (loss, tok), dz_NxV = value(z_NxV, rest, heads)
    dz_GxNxSxKxM = dz_NxV.reshape(G, -1, S, K, M)
    h_GxNxD = h_NxD.reshape(G, -1, D)

    def add(k, dW):
      return whole(
        dW.at[:, :, k].add(
          jnp.einsum(
            "gnsm,gnd->gsmd",
            dz_GxNxSxKxM[..., k, :],
            h_GxNxD,
            preferred_element_type=jnp.float32,
            precision=sharding.precision(h_NxD.dtype),
          )
        )
      )

    dW = jax.lax.fori_loop(0, K, add, dW_GxSxKxMxD)
    return dW, (loss, tok, *to_h(dz_NxV))

  zero = whole(jnp.zeros((G, S, K, M, D), jnp.float32))
  dW, (losses_n, tok, dh_nxNxD) = jax.lax.scan(one, zero, (h_nxNxD, rest))
  return (losses_n.sum(), tok), (dh_nxNxD, sharding.sum_of_shards(dW), W_VxD)


def summed_backward(of_chunk, gradient, cotangents):
  (dh_nxNxD, dW_VxD, W_VxD), (scale, _) = gradient, cotangents
  dh_nxNxD = (scale * dh_nxNxD).astype(dh_nxNxD.dtype)
  return dh_nxNxD, (scale * dW_VxD).astype(W_VxD.dtype), None, None


summed.defvjp(summed_forward, summed_backward)


def logits(h_NxD, W_VxD):
  z_NxV = jnp.einsum(
    "nd,vd->nv",
    h_NxD,
    W_VxD,
    preferred_element_type=jnp.float32,
    precision=sharding.precision(h_NxD.dtype),
  )
  return sharding.constrain(z_NxV, "logits")


def of_logits(divergence, z_NxV, zt_NxV, y_N, temperature) -> PerToken:
  """The dense statistics of some tokens; zt None where there is no teacher."""

  def at(logp):
    return jnp.take_along_axis(logp, y_N[:, None], 1)[:, 0]

  logp = jax.nn.log_softmax(z_NxV / temperature)
  logq = logp if zt_NxV is None else jax.nn.log_softmax(sg(zt_NxV) / temperature)
  logq = sg(logq)
  div, clipped = divergence(logp, logq, y_N)
  raw = logp if temperature == 1 else jax.nn.log_softmax(z_NxV)
  told = 0.0 if zt_NxV is None else 1.0
  return PerToken(
    div,
    at(logp),
    sg(at(raw)),
    told * at(logq),
    sg(entropy(logp)),
    told * entropy(logq),
    sg(clipped),
  )


def entropy(logp):
  """-sum p log p, nats."""
  return -(jnp.exp(logp) * jnp.where(logp > -jnp.inf, logp, 0.0)).sum(-1)
