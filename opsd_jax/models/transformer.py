"""One pre-norm decoder in Flax Linen for Llama, SmolLM2, Qwen2 and Qwen3.

Rows are right-padded, so a causal mask alone hides padding: real tokens never
look to the right. In a cache, a token's slot is its position; padding's keys
are overwritten by decoded tokens before any query may see them.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from opsd_jax.models import attention, kv_cache
from opsd_jax.runtime import sharding_rules

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


def turns(pos_BxL, config):
  """(cos, sin) of each position's angles, [B, L, 1, C / 2]; once for all
  layers."""
  freq = rope_frequencies(config)
  angle = pos_BxL[..., None, None].astype(jnp.float32) * freq
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BxLxHxC, turn):
  """Rotary position embedding; channel c pairs with c + C/2 (half-split)."""
  cos, sin = turn
  a, b = jnp.split(x_BxLxHxC.astype(jnp.float32), 2, -1)
  x = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
  return x.astype(x_BxLxHxC.dtype)


class Norm(nn.Module):
  """x / rms(x) * scale in float32 (Zhang & Sennrich 2019, arXiv:1910.07467)."""

  config: object

  @nn.compact
  def __call__(self, x):
    scale = self.param(
      "scale", nn.initializers.ones, x.shape[-1:], self.config.param_dtype
    )
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.config.norm_eps)
    return (y * scale.astype(jnp.float32)).astype(x.dtype)


class Dense(nn.Module):
  """x @ kernel + bias; where the tree holds an adapter, plus
  (x @ lora_a @ lora_b) alpha / r (Hu et al. 2021, arXiv:2106.09685)."""

  config: object
  features: int
  bias: bool = False
  decode: bool = False  # one token a row: the weights stay where they are

  @nn.compact
  def __call__(self, x):
    c = self.config
    kernel = self.param(
      "kernel",
      nn.initializers.normal(0.02),
      (x.shape[-1], self.features),
      c.param_dtype,
    )
    # Tokens as rows of one matrix: a transposed copy of x for the kernel's
    # gradient is not needed then.
    rows = x.astype(c.dtype).reshape(-1, x.shape[-1])

    def times(x, name, weight):
      weight = weight.astype(c.dtype)
      if not self.decode:
        weight = sharding_rules.gathered(weight, f"{self.name}/{name}")
      y = jnp.matmul(x, weight, precision=sharding_rules.precision(c.dtype))
      if self.decode:
        y = sharding_rules.product(y, f"{self.name}/{name}")
      return y

    y = times(rows, "kernel", kernel)
    if self.has_variable("params", "lora_a"):
      a, b = (self.get_variable("params", n) for n in ("lora_a", "lora_b"))
      narrow = times(rows, "lora_a", a)
      y = y + times(narrow, "lora_b", b) * (c.lora_alpha / a.shape[1])
    if self.bias:
      y = y + self.param(
        "bias", nn.initializers.zeros, (self.features,), c.param_dtype
      ).astype(c.dtype)
    return y.reshape(*x.shape[:-1], self.features)


class Where(NamedTuple):
  """Where tokens stand: in their sequence, and of which segment they are."""

  pos_BxL: jax.Array
  segment_BxL: jax.Array | None = None  # None: a row is one sequence
  parent_BxL: jax.Array | None = None  # the other segment that a token sees
  turn: tuple | None = None  # as `turns` makes it; the layers' own


def is_decode(x_BxLxD, cache) -> bool:
  """One token a row, after others that the cache holds."""
  return cache is not None and x_BxLxD.shape[1] == 1


class Attention(nn.Module):
  config: object

  @nn.compact
  def __call__(self, x_BxLxD, where, cache):
    c, pos_BxL = self.config, where.pos_BxL
    decode = is_decode(x_BxLxD, cache)

    def heads(n, name):
      return sharding_rules.constrain(
        Dense(c, n * c.head_dim, c.qkv_bias, decode, name=name)(x_BxLxD).reshape(
          *x_BxLxD.shape[:2], n, c.head_dim
        ),
        "heads",
      )

    q = heads(c.num_heads, "q_proj")
    k = heads(c.num_kv_heads, "k_proj")
    v = heads(c.num_kv_heads, "v_proj")
    if c.qk_norm:
      q, k = Norm(c, name="q_norm")(q), Norm(c, name="k_norm")(k)
    q, k = rotate(q, where.turn), rotate(k, where.turn)
    if cache is not None:
      cache = kv_cache.write(cache, (k, v), pos_BxL[:, 0])
    if decode:  # look at the cache
      y = attention.over_cache(q[:, 0], *cache, pos_BxL[:, 0])[:, None]
    else:  # a whole row, from its first token: it sees itself
      y = attention.attend(
        q,
        k,
        v,
        backend=c.attention,
        segments_BxL=where.segment_BxL,
        parents_BxL=where.parent_BxL,
      )
    y_BxLxHC = sharding_rules.constrain(y, "heads").reshape(*x_BxLxD.shape[:2], -1)
    if decode:
      y_BxLxHC = sharding_rules.constrain(y_BxLxHC, "tokens")
    return Dense(c, c.width, decode=decode, name="o_proj")(y_BxLxHC), cache


class MLP(nn.Module):
  """SwiGLU: down(silu(gate x) * up x) (Shazeer 2020, arXiv:2002.05202)."""

  config: object
  decode: bool = False

  @nn.compact
  def __call__(self, x_BxLxD):
    c = self.config

    def of(features, name):
      return Dense(c, features, decode=self.decode, name=name)

    gate = of(c.mlp_width, "gate_proj")(x_BxLxD)
    up = of(c.mlp_width, "up_proj")(x_BxLxD)
    h_BxLxF = nn.silu(gate) * up
    if not self.decode:
      h_BxLxF = sharding_rules.constrain(h_BxLxF, "mlp")
    return of(c.width, "down_proj")(h_BxLxF)


class Embed(nn.Module):
  """Row `id` of the embedding V x D."""

  config: object

  @nn.compact
  def __call__(self, ids_BxL):
    c = self.config
    W_VxD = self.param(
      "embedding", nn.initializers.normal(0.02), (c.vocab_size, c.width), c.param_dtype
    )
    # Every device looks up its channels of all rows: the table stays put.
    x_BxLxD = jnp.take(W_VxD.astype(c.dtype), ids_BxL, axis=0)
    return sharding_rules.constrain(x_BxLxD, "looked_up")


class Block(nn.Module):
  config: object

  @nn.compact
  def __call__(self, x_BxLxD, where, cache):
    c = self.config
    decode = is_decode(x_BxLxD, cache)
    what = "tokens" if decode else "rows"
    with jax.named_scope("attention"):
      y, cache = Attention(c, name="attn")(
        Norm(c, name="input_norm")(x_BxLxD), where, cache
      )
    x_BxLxD = x_BxLxD + y
    with jax.named_scope("mlp"):
      y = MLP(c, decode, name="mlp")(Norm(c, name="post_norm")(x_BxLxD))
    return sharding_rules.constrain(x_BxLxD + y, what), cache


class Transformer(nn.Module):
  """ids_BxL -> (h_BxLxD after the final norm, cache)."""

  config: object

  @nn.compact
  def __call__(self, ids_BxL, where, cache=None):
    c = self.config
    if not c.tied:
      Embed(c, name="lm_head")(ids_BxL[:, :0])  # for `unembedding`
    where = where._replace(turn=turns(where.pos_BxL, c))
    x_BxLxD = Embed(c, name="embed")(ids_BxL)
    what = "tokens" if is_decode(x_BxLxD, cache) else "rows"
    x_BxLxD = sharding_rules.constrain(x_BxLxD, what)
    block = Block
    if REMAT[c.remat] is not None:
      block = nn.remat(Block, policy=REMAT[c.remat], prevent_cse=not c.scan_layers)
    if c.scan_layers:
      stack = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, 0),
        length=c.num_layers,
      )
      x_BxLxD, cache = stack(c, name="layers")(x_BxLxD, where, cache)
    else:
      caches = cache or (None,) * c.num_layers
      new = []
      for i, layer_cache in enumerate(caches):
        x_BxLxD, layer_cache = block(c, name=f"layers_{i}")(x_BxLxD, where, layer_cache)
        new.append(layer_cache)
      cache = None if cache is None else tuple(new)
    return Norm(c, name="final_norm")(x_BxLxD), cache


@functools.partial(jax.jit, static_argnums=0)
def init_params(config, key: jax.Array):
  """Random weights: normal, 0.02; norms 1."""
  ids_BxL = jnp.zeros((1, 2), jnp.int32)
  return Transformer(config).init(key, ids_BxL, Where(ids_BxL))["params"]


def apply(config, params, ids_BxL, cache=None, start_B=None):
  """(h_BxLxD, cache). With a cache, row b's tokens stand at start_B[b] + 0..L-1
  and are kept there; several at once must start at 0 (prefill)."""
  pos_BxL = jnp.broadcast_to(jnp.arange(ids_BxL.shape[1]), ids_BxL.shape)
  if start_B is not None:
    pos_BxL = pos_BxL + start_B[:, None]
  return Transformer(config).apply({"params": params}, ids_BxL, Where(pos_BxL), cache)


def states(config, params, view) -> jax.Array:
  """h_BxTxD: the states that predict each response token of a structs.View."""
  where = Where(view.pos_RxL, view.segment_RxL, view.parent_RxL)
  if view.pos_RxL is None:
    where = Where(
      jnp.broadcast_to(jnp.arange(view.ids_RxL.shape[1]), view.ids_RxL.shape)
    )
  h_RxLxD, _ = Transformer(config).apply({"params": params}, view.ids_RxL, where)
  h_BxRLxD = h_RxLxD.reshape(len(view.predictor_BxT), -1, h_RxLxD.shape[-1])
  return jnp.take_along_axis(h_BxRLxD, view.predictor_BxT[..., None], 1)


def unembedding(params) -> jax.Array:
  """W_VxD; logits are h @ W.T."""
  return params.get("lm_head", params["embed"])["embedding"]


def count(params) -> int:
  """How many parameters a tree holds."""
  return sum(x.size for x in jax.tree.leaves(params))
