"""Hidden states -> a loss and statistics of each token; [B,T,V] never exists.

Tokens are taken in chunks; a chunk's logits are made, compared and dropped, so
memory is chunk x V however long the rows. Chunks go over tokens, not
vocabulary, which keeps a divergence a plain function of the last axis.

The gradient is made in the same sweep as the loss, while a chunk's logits are
there: nothing is computed a second time. That needs a loss that is a sum over
tokens, each a function of its own logits.
"""

import functools
import math

import jax
import jax.numpy as jnp

from opsd_jax.runtime import sharding_rules

sg = jax.lax.stop_gradient


@jax.named_scope("loss")
def statistics(of_logits, h_BxTxD, W_VxD, teachers, tokens, *, chunk: int):
  """What `of_logits` makes of every response token; no gradient, see `loss`."""

  def without_loss(*args):
    return (), of_logits(*args)

  return loss(without_loss, sg(h_BxTxD), sg(W_VxD), teachers, tokens, chunk=chunk)[1]


def loss(of_logits, h_BxTxD, W_VxD, teachers: dict, tokens, *, chunk: int):
  """(sum over response tokens of their losses, their statistics).

  The sum has a gradient to h_BxTxD and W_VxD alone; statistics have none. Outside
  the mask all outputs are exactly 0 and so are gradients, whatever is there.

  Args:
    of_logits: (the student's logits N x V, {name: a teacher's logits}, tokens) of
      some tokens -> (a tree of their losses N, one of their statistics N); every
      token by itself.
    h_BxTxD, W_VxD: the student's states and unembedding.
    teachers: {name: (states, unembedding)}; constants.
    tokens: structs.ResponseTokens; constants.
    chunk: tokens at one time, of each device that splits the rows.
  """
  in_order, back = chunks(*tokens.y_BxT.shape, chunk)

  def of_chunk(z_NxV, rest, heads):
    hts, tokens = rest
    zts = {name: sg(logits(hts[name], W)) for name, W in heads.items()}
    losses, stats = of_logits(z_NxV, zts, tokens)

    def masked(x_N):
      return jnp.where(tokens.mask_BxT > 0, x_N, 0.0)

    # Apart, so that a term of weight 0 changes no digit of the others' sum.
    total = sum(masked(x_N).sum() for x_N in jax.tree.leaves(losses))
    return jnp.float32(total), sg(jax.tree.map(masked, stats))

  def clean(h_BxTxD):
    return in_order(jnp.where(tokens.mask_BxT[..., None] > 0, h_BxTxD, 0))

  hts = {name: clean(h) for name, (h, _) in teachers.items()}
  heads = {name: ready(W, hts[name]) for name, (_, W) in teachers.items()}
  rest = hts, jax.tree.map(in_order, tokens)
  total, stats = summed(of_chunk, clean(h_BxTxD), W_VxD, rest, heads)
  return total, jax.tree.map(back, stats)


def chunks(B: int, T: int, size: int):
  """(B x T x ... -> n x N x ..., and back): tokens in n chunks.

  Every chunk takes up to `size` tokens of each device's rows, as even as can
  be.
  """
  G = sharding_rules.groups(B)  # devices that split the rows
  n = -(-B * T // (G * size))
  N = -(-B * T // (G * n))  # tokens of a device in a chunk

  def in_order(x):
    x = x.reshape(G, B * T // G, *x.shape[2:])
    x = jnp.pad(x, [(0, 0), (0, N * n - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
    x = x.reshape(G, N, n, *x.shape[2:])
    x = jnp.moveaxis(x, 2, 0).reshape(n, G * N, *x.shape[3:])
    return sharding_rules.constrain(x, "chunks")

  def back(x):
    x = jnp.moveaxis(x.reshape(n, G, N), 0, 2).reshape(G, N * n)
    return x[:, : B * T // G].reshape(B, T)

  return in_order, back


def ready(W_VxD, h):
  """The unembedding as logits need it: in h's dtype, gathered once."""
  return sharding_rules.gather_fsdp(W_VxD.astype(h.dtype), "embed/embedding")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def summed(of_chunk, h_nxNxD, W_VxD, rest, heads):
  """(sum of of_chunk(logits, rest, heads)'s losses, its statistics)."""
  W = ready(W_VxD, h_nxNxD)

  def one(chunk):
    return of_chunk(logits(chunk[0], W), chunk[1], heads)

  losses_n, stats = jax.lax.map(one, (h_nxNxD, rest))
  return losses_n.sum(), stats


def summed_forward(of_chunk, h_nxNxD, W_VxD, rest, heads):
  """The same, and the gradient of the sum to h and W.

  Written out for W's sake: autodiff makes a chunk's whole V x D share of it
  beside the sum, in W's dtype, and adds it up over all devices, for every
  chunk. Here each device has a float32 sum of its own that grows in place; they
  are added up once, at the end.
  """
  (V, D), W = W_VxD.shape, ready(W_VxD, h_nxNxD)
  G = sharding_rules.groups(h_nxNxD.shape[1])
  S = sharding_rules.vocabulary_shards(V)
  K = math.gcd(V // S, 16)  # blocks of a shard of the vocabulary
  M = V // (S * K)

  def whole(x):
    return sharding_rules.constrain(x, "head_gradient")

  def one(dW_GxSxKxMxD, chunk):
    h_NxD, rest = chunk
    z_NxV, to_h = jax.vjp(lambda h: logits(h, W), h_NxD)
    value = jax.value_and_grad(of_chunk, has_aux=True)
    (loss, stats), dz_NxV = value(z_NxV, rest, heads)
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
            precision=sharding_rules.precision(h_NxD.dtype),
          )
        )
      )

    dW = jax.lax.fori_loop(0, K, add, dW_GxSxKxMxD)
    return dW, (loss, stats, *to_h(dz_NxV))

  zero = whole(jnp.zeros((G, S, K, M, D), jnp.float32))
  dW, (losses_n, stats, dh_nxNxD) = jax.lax.scan(one, zero, (h_nxNxD, rest))
  return (losses_n.sum(), stats), (dh_nxNxD, sharding_rules.sum_of_shards(dW), W_VxD)


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
    precision=sharding_rules.precision(h_NxD.dtype),
  )
  return sharding_rules.constrain(z_NxV, "logits")
