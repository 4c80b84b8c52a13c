"""One pre-norm decoder in Flax Linen for Llama, SmolLM2, Qwen2 and Qwen3.

Rows are right-padded, so a causal mask alone hides padding: real tokens never
attend to the right. In a cache, a token's entry stands at its position; the keys of
padding are overwritten by decoded tokens before any query may see them.
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


def rope_frequencies(model_config) -> np.ndarray:
  """float32 [C / 2]: radians a position for each pair of channels.

  Su et al. 2021, arXiv:2104.09864; `llama3` scaling as in Llama 3.1: long
  wavelengths are stretched by `factor`, short ones kept, with a ramp in between.
  """
  exponent = np.arange(0, model_config.head_dim, 2) / model_config.head_dim
  freq = 1.0 / model_config.rope_theta**exponent
  if model_config.rope_scaling is None:
    return freq.astype(np.float32)
  kind, factor, *rest = model_config.rope_scaling
  if kind == "llama3":
    low, high, original = rest
    rotations = original * freq / (2 * np.pi)
    keep = np.clip((rotations - low) / (high - low), 0, 1)
    return (freq * (keep + (1 - keep) / factor)).astype(np.float32)
  return (freq / factor).astype(np.float32)


def rope_angles(pos_BxL, model_config):
  """(cos, sin) of each position's angles, [B, L, 1, C / 2], for all layers."""
  freq = rope_frequencies(model_config)
  angle = pos_BxL[..., None, None].astype(jnp.float32) * freq
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BxLxHxC, angles):
  """Rotary position embedding by `rope_angles`; channel c pairs with c + C/2."""
  cos, sin = angles
  a, b = jnp.split(x_BxLxHxC.astype(jnp.float32), 2, -1)
  x = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
  return x.astype(x_BxLxHxC.dtype)


class Norm(nn.Module):
  """x / rms(x) * scale in float32 (Zhang & Sennrich 2019, arXiv:1910.07467)."""

  model_config: object

  @nn.compact
  def __call__(self, x):
    scale = self.param(
      "scale", nn.initializers.ones, x.shape[-1:], self.model_config.param_dtype
    )
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(
      jnp.square(y).mean(-1, keepdims=True) + self.model_config.norm_eps
    )
    return (y * scale.astype(jnp.float32)).astype(x.dtype)


class Dense(nn.Module):
  """x @ kernel + bias; where the tree holds an adapter, plus
  (x @ lora_a @ lora_b) alpha / r (Hu et al. 2021, arXiv:2106.09685)."""

  model_config: object
  features: int
  bias: bool = False
  decode: bool = False  # one token a row: activations move, not weights

  @nn.compact
  def __call__(self, x):
    model_config = self.model_config
    kernel = self.param(
      "kernel",
      nn.initializers.normal(0.02),
      (x.shape[-1], self.features),
      model_config.param_dtype,
    )
    # Naive: x @ kernel on [B, L, D], whose kernel gradient makes a transposed copy
    # of x. With tokens as rows of one matrix it needs none.
    rows = x.astype(model_config.dtype).reshape(-1, x.shape[-1])

    def times(x, name, weight):
      weight = weight.astype(model_config.dtype)
      if not self.decode:
        weight = sharding_rules.gather_fsdp(weight, f"{self.name}/{name}")
      y = jnp.matmul(x, weight, precision=sharding_rules.precision(model_config.dtype))
      if self.decode:
        y = sharding_rules.constrain_decode_output(y, f"{self.name}/{name}")
      return y

    y = times(rows, "kernel", kernel)
    if self.has_variable("params", "lora_a"):
      a, b = (self.get_variable("params", n) for n in ("lora_a", "lora_b"))
      narrow = times(rows, "lora_a", a)
      y = y + times(narrow, "lora_b", b) * (model_config.lora_alpha / a.shape[1])
    if self.bias:
      y = y + self.param(
        "bias", nn.initializers.zeros, (self.features,), model_config.param_dtype
      ).astype(model_config.dtype)
    return y.reshape(*x.shape[:-1], self.features)


class Positions(NamedTuple):
  """Each token's position in its sequence, and its segments."""

  pos_BxL: jax.Array
  segment_BxL: jax.Array | None = None  # None: a row is one sequence
  parent_BxL: jax.Array | None = None  # a second segment that a token sees
  angles: tuple | None = None  # of `rope_angles`; set inside the model


def is_decode(x_BxLxD, cache) -> bool:
  """Whether this is a decode step: one token a row, the others in the cache."""
  return cache is not None and x_BxLxD.shape[1] == 1


class Attention(nn.Module):
  """Multi-head attention with grouped keys and rotary positions."""

  model_config: object

  @nn.compact
  def __call__(self, x_BxLxD, positions, cache):
    model_config, pos_BxL = self.model_config, positions.pos_BxL
    decode = is_decode(x_BxLxD, cache)

    def heads(n, name):
      return sharding_rules.constrain(
        Dense(
          model_config,
          n * model_config.head_dim,
          model_config.qkv_bias,
          decode,
          name=name,
        )(x_BxLxD).reshape(*x_BxLxD.shape[:2], n, model_config.head_dim),
        "heads",
      )

    q = heads(model_config.num_heads, "q_proj")
    k = heads(model_config.num_kv_heads, "k_proj")
    v = heads(model_config.num_kv_heads, "v_proj")
    if model_config.qk_norm:
      q, k = Norm(model_config, name="q_norm")(q), Norm(model_config, name="k_norm")(k)
    q, k = rotate(q, positions.angles), rotate(k, positions.angles)
    if cache is not None:
      cache = kv_cache.write(cache, (k, v), pos_BxL[:, 0])
    if decode:  # attends to the cache
      y = attention.decode_attention(q[:, 0], *cache, pos_BxL[:, 0])[:, None]
    else:  # a whole row from its first token attends to itself
      y = attention.attend(
        q,
        k,
        v,
        backend=model_config.attention,
        segments_BxL=positions.segment_BxL,
        parents_BxL=positions.parent_BxL,
      )
    y_BxLxHC = sharding_rules.constrain(y, "heads").reshape(*x_BxLxD.shape[:2], -1)
    if decode:
      y_BxLxHC = sharding_rules.constrain(y_BxLxHC, "tokens")
    return Dense(model_config, model_config.width, decode=decode, name="o_proj")(
      y_BxLxHC
    ), cache


class MLP(nn.Module):
  """SwiGLU: down(silu(gate x) * up x) (Shazeer 2020, arXiv:2002.05202)."""

  model_config: object
  decode: bool = False

  @nn.compact
  def __call__(self, x_BxLxD):
    model_config = self.model_config

    def dense(features, name):
      return Dense(model_config, features, decode=self.decode, name=name)

    gate = dense(model_config.mlp_width, "gate_proj")(x_BxLxD)
    up = dense(model_config.mlp_width, "up_proj")(x_BxLxD)
    h_BxLxF = nn.silu(gate) * up
    if not self.decode:
      h_BxLxF = sharding_rules.constrain(h_BxLxF, "mlp")
    return dense(model_config.width, "down_proj")(h_BxLxF)


class Embed(nn.Module):
  """Row `id` of the embedding V x D."""

  model_config: object

  @nn.compact
  def __call__(self, ids_BxL):
    model_config = self.model_config
    W_VxD = self.param(
      "embedding",
      nn.initializers.normal(0.02),
      (model_config.vocab_size, model_config.width),
      model_config.param_dtype,
    )
    # Naive: gather the table over fsdp. Instead every device looks up its channels
    # of all rows, and the looked-up activations move.
    x_BxLxD = jnp.take(W_VxD.astype(model_config.dtype), ids_BxL, axis=0)
    return sharding_rules.constrain(x_BxLxD, "looked_up")


class Block(nn.Module):
  """One pre-norm layer: attention and MLP, each with a residual connection."""

  model_config: object

  @nn.compact
  def __call__(self, x_BxLxD, positions, cache):
    model_config = self.model_config
    decode = is_decode(x_BxLxD, cache)
    layout = "tokens" if decode else "rows"
    with jax.named_scope("attention"):
      y, cache = Attention(model_config, name="attn")(
        Norm(model_config, name="input_norm")(x_BxLxD), positions, cache
      )
    x_BxLxD = x_BxLxD + y
    with jax.named_scope("mlp"):
      y = MLP(model_config, decode, name="mlp")(
        Norm(model_config, name="post_norm")(x_BxLxD)
      )
    return sharding_rules.constrain(x_BxLxD + y, layout), cache


class Transformer(nn.Module):
  """ids_BxL -> (h_BxLxD after the final norm, cache)."""

  model_config: object

  @nn.compact
  def __call__(self, ids_BxL, positions, cache=None):
    model_config = self.model_config
    if not model_config.tied:
      # Creates the parameter that `unembedding` reads.
      Embed(model_config, name="lm_head")(ids_BxL[:, :0])
    positions = positions._replace(angles=rope_angles(positions.pos_BxL, model_config))
    x_BxLxD = Embed(model_config, name="embed")(ids_BxL)
    layout = "tokens" if is_decode(x_BxLxD, cache) else "rows"
    x_BxLxD = sharding_rules.constrain(x_BxLxD, layout)
    block = Block
    if REMAT[model_config.remat] is not None:
      block = nn.remat(
        Block,
        policy=REMAT[model_config.remat],
        prevent_cse=not model_config.scan_layers,
      )
    if model_config.scan_layers:
      stack = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, 0),
        length=model_config.num_layers,
      )
      x_BxLxD, cache = stack(model_config, name="layers")(x_BxLxD, positions, cache)
    else:
      caches = cache or (None,) * model_config.num_layers
      new = []
      for i, layer_cache in enumerate(caches):
        x_BxLxD, layer_cache = block(model_config, name=f"layers_{i}")(
          x_BxLxD, positions, layer_cache
        )
        new.append(layer_cache)
      cache = None if cache is None else tuple(new)
    return Norm(model_config, name="final_norm")(x_BxLxD), cache


@functools.partial(jax.jit, static_argnums=0)
def init_params(model_config, key: jax.Array):
  """Random weights: normal with deviation 0.02; norms 1."""
  ids_BxL = jnp.zeros((1, 2), jnp.int32)
  return Transformer(model_config).init(key, ids_BxL, Positions(ids_BxL))["params"]


def apply(model_config, params, ids_BxL, cache=None, start_B=None):
  """Runs the decoder on rows that are one sequence each.

  Args:
    model_config, params: the model.
    ids_BxL: token ids.
    cache: of kv_cache.init; the tokens' keys and values are written to it.
    start_B: positions of the rows' first tokens, with a cache; several tokens at
      once (prefill) must start at 0.

  Returns:
    (h_BxLxD after the final norm, cache)
  """
  pos_BxL = jnp.broadcast_to(jnp.arange(ids_BxL.shape[1]), ids_BxL.shape)
  if start_B is not None:
    pos_BxL = pos_BxL + start_B[:, None]
  return Transformer(model_config).apply(
    {"params": params}, ids_BxL, Positions(pos_BxL), cache
  )


def response_states(model_config, params, view) -> jax.Array:
  """h_BxTxD: the states that predict each response token of a structs.View."""
  positions = Positions(view.pos_RxL, view.segment_RxL, view.parent_RxL)
  if view.pos_RxL is None:
    positions = Positions(
      jnp.broadcast_to(jnp.arange(view.ids_RxL.shape[1]), view.ids_RxL.shape)
    )
  h_RxLxD, _ = Transformer(model_config).apply(
    {"params": params}, view.ids_RxL, positions
  )
  h_BxRLxD = h_RxLxD.reshape(len(view.predictor_BxT), -1, h_RxLxD.shape[-1])
  return jnp.take_along_axis(h_BxRLxD, view.predictor_BxT[..., None], 1)


def unembedding(params) -> jax.Array:
  """W_VxD; logits are h @ W.T."""
  return params.get("lm_head", params["embed"])["embedding"]


def with_vocabulary(params, size: int):
  """The weights with the first `size` entries of their vocabulary alone."""
  tables = {name: params[name] for name in ("embed", "lm_head") if name in params}
  return params | jax.tree.map(lambda W_VxD: W_VxD[:size], tables)


def count(params) -> int:
  """The number of parameters in a tree."""
  return sum(x.size for x in jax.tree.leaves(params))
