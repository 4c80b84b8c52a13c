"""Keys and values of the tokens so far, in the axis order that decode reads.

(k_BxKxCxS, v_BxKxSxC) of each layer, stacked where layers are scanned, with S
positions: a token's entry stands at its position. Rows only move within their row
shard.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from opsd_jax.runtime import sharding_rules


def init(model_config, batch: int, positions: int):
  """A cache of zeros."""
  N, K, C = model_config.num_layers, model_config.num_kv_heads, model_config.head_dim
  layers = (N,) if model_config.scan_layers else ()

  def zeros(*shape):
    return jnp.zeros((*layers, batch, K, *shape), model_config.dtype)

  def kv():
    return (zeros(C, positions), zeros(positions, C))

  return constrain(kv() if model_config.scan_layers else tuple(kv() for _ in range(N)))


def layout(x) -> str:
  """The name of a cache array's layout in sharding_rules.ACTIVATIONS."""
  return "cache" if x.ndim == 4 else "stacked_cache"


def sharding_of(x, mesh):
  """The NamedSharding of a cache array on a mesh."""
  spec = sharding_rules.drop_indivisible(
    sharding_rules.ACTIVATIONS[layout(x)], x.shape, mesh
  )
  return jax.sharding.NamedSharding(mesh, spec)


def constrain(cache):
  """Constrains the cache's rows and heads to be split over the mesh in context."""
  return jax.tree.map(lambda x: sharding_rules.constrain(x, layout(x)), cache)


def write(cache, new, start_B):
  """One layer's cache with new = (k_BxLxKxC, v_BxLxKxC) at positions start..
  start + L - 1; in place under donation. Several tokens must start at 0.
  """
  (k, v), put = cache, jax.lax.dynamic_update_slice
  k_BxKxCxL = new[0].transpose(0, 2, 3, 1).astype(k.dtype)
  v_BxKxLxC = new[1].transpose(0, 2, 1, 3).astype(v.dtype)
  if k_BxKxCxL.shape[-1] > 1:
    return put(k, k_BxKxCxL, (0,) * 4), put(v, v_BxKxLxC, (0,) * 4)
  put_k = jax.vmap(lambda old, x, start: put(old, x, (0, 0, start)))
  put_v = jax.vmap(lambda old, x, start: put(old, x, (0, start, 0)))
  return put_k(k, k_BxKxCxL, start_B), put_v(v, v_BxKxLxC, start_B)


def insert(cache, fresh, from_M, to_M):
  """Copies rows from_M of `fresh` to the first positions of rows to_M of the cache.

  Indices count within a row shard; copies past its last row are dropped.
  """

  def in_shard(cache, fresh, from_M, to_M):
    def rows(old, new):
      a, b = new.shape[-2:]

      def put(old, new):
        return old.at[to_M, :, :a, :b].set(new[from_M], mode="drop")

      return (put if old.ndim == 4 else jax.vmap(put))(old, new)

    return jax.tree.map(rows, cache, fresh)

  return over_shards(in_shard, cache, fresh, from_M, to_M)


def resize(cache, from_R, positions: int):
  """The cache of rows from_R of each row shard, cut or padded to `positions`."""

  def in_shard(cache, from_R):
    def fit(x, axis):
      x = jnp.take(x, from_R, axis=x.ndim - 4, mode="clip")
      if positions <= x.shape[axis]:
        return jax.lax.slice_in_dim(x, 0, positions, axis=axis)
      padding = [(0, 0)] * x.ndim
      padding[axis] = (0, positions - x.shape[axis])
      return jnp.pad(x, padding)

    return jax.tree.map(
      lambda kv: (fit(kv[0], kv[0].ndim - 1), fit(kv[1], kv[1].ndim - 2)),
      cache,
      is_leaf=lambda x: not isinstance(x[0], tuple),
    )

  return over_shards(in_shard, cache, from_R)


def over_shards(f, cache, *others):
  """f(cache, *others) -> cache, run on every device for the rows it holds."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return f(cache, *others)

  def spec(x):
    return P(sharding_rules.ROWS) if x.ndim < 4 else sharding_of(x, mesh).spec

  specs = jax.tree.map(spec, (cache, *others))
  return jax.shard_map(f, in_specs=specs, out_specs=specs[0], check_vma=False)(
    cache, *others
  )
