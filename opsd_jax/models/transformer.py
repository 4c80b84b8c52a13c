"""One pre-norm decoder in Flax Linen for Llama, SmolLM2, Qwen2 and Qwen3.

Rows are right-padded, so a causal mask alone hides padding: real tokens never
look to the right. In a cache, a token's slot is its position; padding's keys
are overwritten by decoded tokens before any query may see them.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from opsd_jax import sharding

REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def rope_frequencies(config) -> np.ndarray:
  """Radians a position, one for each pair of channels; float32.

  Su et al. 2021, arXiv:2104.09864; `llama3` scaling as in Llama 3.1: long
  wavelengths are stretched by `factor`, short ones kept, a ramp between.
  """
  exponent = np.arange(0, config.head_dim, 2) / config.head_dim
  freq = 1.0 / config.rope_theta**exponent
  if config.rope_scaling is None:
    return freq.astype(np.float32)
  kind, factor, *rest = config.rope_scaling
  if kind == "llama3":
    low, high, original = rest
    turns = original * freq / (2 * np.pi)
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return (freq * (keep + (1 - keep) / factor)).astype(np.float32)
  return (freq / factor).astype(np.float32)


def rotate(x_BxLxHxC, pos_BxL, config):
  """Rotary position embedding; channel c pairs with c + C/2 (half-split)."""
  freq = rope_frequencies(config)
  angle = pos_BxL[..., None, None].astype(jnp.float32) * freq
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  a, b = jnp.split(x_BxLxHxC.astype(jnp.float32), 2, -1)
  x = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
  return x.astype(x_BxLxHxC.dtype)


def attend(q_BxLxHxC, k_BxSxKxC, v_BxSxKxC, seen_BxLxS):
  """softmax(q k / sqrt(C)) v over the keys that are seen, in float32.

  The H/K queries that share a key are rows of one matrix: two plain batched
  matmuls, nothing repeated.
  """
  B, L, H, C = q_BxLxHxC.shape
  S, K = k_BxSxKxC.shape[1:3]
  G = H // K
  q = (q_BxLxHxC * C**-0.5).reshape(B, L, K, G, C)
  q_BxKxGLxC = q.transpose(0, 2, 3, 1, 4).reshape(B, K, G * L, C)
  k_BxKxSxC, v_BxKxSxC = (
      x.transpose(0, 2, 1, 3) for x in (k_BxSxKxC, v_BxSxKxC)
  )
  z = jnp.einsum(
      "bkqc,bksc->bkqs", q_BxKxGLxC, k_BxKxSxC,
      preferred_element_type=jnp.float32,
  ).reshape(B, K, G, L, S)  # fmt: skip
  p = jax.nn.softmax(jnp.where(seen_BxLxS[:, None, None], z, -1e30), -1)
  p_BxKxGLxS = p.astype(v_BxSxKxC.dtype).reshape(B, K, G * L, S)
  y = jnp.einsum("bkqs,bksc->bkqc", p_BxKxGLxS, v_BxKxSxC)
  y = y.reshape(B, K, G, L, C).transpose(0, 3, 1, 2, 4)
  return y.reshape(B, L, H * C)


def write(cache_BxSxKxC, x_BxLxKxC, start_B):
  """x into slots start..start+L-1 of each row, in place under donation."""
  put = lambda cache, x, start: jax.lax.dynamic_update_slice(
      cache, x.astype(cache.dtype), (start, 0, 0)
  )
  return jax.vmap(put)(cache_BxSxKxC, x_BxLxKxC, start_B)


class Norm(nn.Module):
  """x / rms(x) * scale in float32 (Zhang & Sennrich 2019, arXiv:1910.07467)."""

  config: object

  @nn.compact
  def __call__(self, x):
    scale = self.param(
        "scale", nn.initializers.ones, x.shape[-1:], self.config.param_dtype
    )
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(
        jnp.square(y).mean(-1, keepdims=True) + self.config.norm_eps
    )
    return (y * scale.astype(jnp.float32)).astype(x.dtype)


def dense(config, features, name, bias=False):
  return nn.Dense(
      features, use_bias=bias, name=name, dtype=config.dtype,
      param_dtype=config.param_dtype, kernel_init=nn.initializers.normal(0.02),
  )  # fmt: skip


class Attention(nn.Module):
  config: object

  @nn.compact
  def __call__(self, x_BxLxD, pos_BxL, cache):
    c = self.config
    heads = lambda n, name: dense(c, n * c.head_dim, name, c.qkv_bias)(
        x_BxLxD
    ).reshape(*x_BxLxD.shape[:2], n, c.head_dim)
    q = heads(c.num_heads, "q_proj")
    k = heads(c.num_kv_heads, "k_proj")
    v = heads(c.num_kv_heads, "v_proj")
    if c.qk_norm:
      q, k = Norm(c, name="q_norm")(q), Norm(c, name="k_norm")(k)
    q, k = rotate(q, pos_BxL, c), rotate(k, pos_BxL, c)
    if cache is not None:
      cache = tuple(
          write(old, new, pos_BxL[:, 0])
          for old, new in zip(cache, (k, v), strict=True)
      )
    if x_BxLxD.shape[1] == 1 and cache is not None:  # decode: look at the cache
      k, v = cache
      slot_S = jnp.arange(k.shape[1])
    else:  # a whole row, from its first token: it sees itself
      slot_S = jnp.arange(x_BxLxD.shape[1])
    y = attend(q, k, v, slot_S <= pos_BxL[..., None])
    return dense(c, c.width, "o_proj")(y), cache


class MLP(nn.Module):
  """SwiGLU: down(silu(gate x) * up x) (Shazeer 2020, arXiv:2002.05202)."""

  config: object

  @nn.compact
  def __call__(self, x_BxLxD):
    c = self.config
    gate = dense(c, c.mlp_width, "gate_proj")(x_BxLxD)
    up = dense(c, c.mlp_width, "up_proj")(x_BxLxD)
    return dense(c, c.width, "down_proj")(nn.silu(gate) * up)


class Block(nn.Module):
  config: object

  @nn.compact
  def __call__(self, x_BxLxD, pos_BxL, cache):
    c = self.config
    with jax.named_scope("attention"):
      y, cache = Attention(c, name="attn")(
          Norm(c, name="input_norm")(x_BxLxD), pos_BxL, cache
      )
    x_BxLxD = x_BxLxD + y
    with jax.named_scope("mlp"):
      y = MLP(c, name="mlp")(Norm(c, name="post_norm")(x_BxLxD))
    return sharding.rows(x_BxLxD + y), cache


class Transformer(nn.Module):
  """ids_BxL -> (h_BxLxD after the final norm, cache)."""

  config: object

  @nn.compact
  def __call__(self, ids_BxL, cache=None, start_B=None):
    c = self.config
    embed = lambda name: nn.Embed(
        c.vocab_size, c.width, name=name, dtype=c.dtype,
        param_dtype=c.param_dtype,
        embedding_init=nn.initializers.normal(0.02),
    )  # fmt: skip
    if not c.tied:
      embed("lm_head")(ids_BxL[:, :0])  # declared here, used by `unembedding`
    if start_B is None:
      start_B = jnp.zeros(len(ids_BxL), jnp.int32)
    pos_BxL = start_B[:, None] + jnp.arange(ids_BxL.shape[1])
    x_BxLxD = sharding.rows(embed("embed")(ids_BxL))
    block = Block
    if REMAT[c.remat] is not None:
      block = nn.remat(
          Block, policy=REMAT[c.remat], prevent_cse=not c.scan_layers
      )
    if c.scan_layers:
      stack = nn.scan(
          block, variable_axes={"params": 0}, split_rngs={"params": True},
          in_axes=(nn.broadcast, 0), length=c.num_layers,
      )  # fmt: skip
      x_BxLxD, cache = stack(c, name="layers")(x_BxLxD, pos_BxL, cache)
    else:
      caches = cache or (None,) * c.num_layers
      new = []
      for i, layer_cache in enumerate(caches):
        x_BxLxD, layer_cache = block(c, name=f"layers_{i}")(
            x_BxLxD, pos_BxL, layer_cache
        )
        new.append(layer_cache)
      cache = None if cache is None else tuple(new)
    return Norm(c, name="final_norm")(x_BxLxD), cache


@functools.partial(jax.jit, static_argnums=0)
def init_params(config, key: jax.Array):
  """Random weights: normal, 0.02; norms 1."""
  ids_BxL = jnp.zeros((1, 2), jnp.int32)
  return Transformer(config).init(key, ids_BxL)["params"]


def init_cache(config, batch: int, slots: int):
  """Zeros: (k_BxSxKxC, v_BxSxKxC) of each layer, stacked where scanned."""
  shape = (batch, slots, config.num_kv_heads, config.head_dim)
  if config.scan_layers:
    shape = (config.num_layers, *shape)
  kv = lambda: (jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))
  return kv() if config.scan_layers else tuple(
      kv() for _ in range(config.num_layers)
  )  # fmt: skip


def apply(config, params, ids_BxL, cache=None, start_B=None):
  """(h_BxLxD, cache). With a cache, row b's tokens stand at start_B[b] + 0..L-1
  and are kept there; several at once must start at 0 (prefill)."""
  return Transformer(config).apply({"params": params}, ids_BxL, cache, start_B)


def states(config, params, view) -> jax.Array:
  """h_BxTxD: the states that predict each response token of a structs.View."""
  h_BxLxD, _ = apply(config, params, view.ids_BxL)
  return jnp.take_along_axis(h_BxLxD, view.at_BxT[..., None], 1)


def unembedding(params) -> jax.Array:
  """W_VxD; logits are h @ W.T."""
  return params.get("lm_head", params["embed"])["embedding"]


def count(params) -> int:
  """How many parameters a tree holds."""
  return sum(x.size for x in jax.tree.leaves(params))
