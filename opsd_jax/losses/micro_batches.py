"""Gradient accumulation: a batch learned a slice at a time."""

import jax
import jax.numpy as jnp


def accumulate(grad_fn, params, given, batch, micro_batches: int):
  """Sums ((loss, stats), grads) over slices of the batch's parts, one at a time.

  The loss is a sum over a denominator of the whole batch, so slices add up;
  they are summed in float32.
  """
  batch = batch._replace(denominators={})
  if micro_batches == 1:
    return grad_fn(params, *given, batch)
  shards = len(batch.tokens.y_BxT) // micro_batches

  def split(x):  # its parts are those of every device's first slice, ...
    x = x.reshape(shards, micro_batches, -1, *x.shape[1:]).swapaxes(0, 1)
    return x.reshape(micro_batches, -1, *x.shape[3:])

  def join(x):
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

  def body(sums, micro):
    (loss, stats), grads = grad_fn(params, *given, micro)
    return jax.tree.map(jnp.add, sums, (loss, grads)), stats

  slices = jax.tree.map(split, batch)
  first = jax.tree.map(lambda x: x[0], slices)
  (loss, _), grads = jax.eval_shape(lambda part: grad_fn(params, *given, part), first)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (loss, grads))
  (loss, grads), stats = jax.lax.scan(body, zeros, slices)
  return (loss, jax.tree.map(join, stats)), grads
