"""Causal self-attention over whole rows: one function, several backends.

Rows are right-padded, so causality alone hides padding from real tokens; outputs
at padding are finite and unused. All backends compute

  softmax(q k / sqrt(C)) v over the keys j <= i of query i's segment,

softmax in float32, H/K queries to a key. They differ in the devices they run on and
in memory: `xla` keeps an L x L matrix, the others at most a few of its rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from opsd_jax.registry import pick
from opsd_jax.runtime.sharding_rules import ROWS, precision

CHUNK = 512  # queries that `chunked` attends at a time
LANES = 128  # of a TPU's vector register: splash's blocks are multiples
INTERPRET = False  # emulates splash without a TPU, very slowly; for tests


def attend(
  q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, *, backend: str, segments_BxL=None, parents_BxL=None
):
  """Causal self-attention.

  Args:
    q_BxLxHxC, k_BxLxKxC, v_BxLxKxC: queries, keys and values.
    backend: a name in `ALL`, see `resolve`.
    segments_BxL: int32, for rows packed of several sequences: a query only sees
      keys of its own segment; None: a row is one sequence.
    parents_BxL: int32, a second segment that a query sees: a prompt that several
      responses share.

  Returns:
    y_BxLxHxC

  Raises:
    ValueError: the backend does not support segments or parents.
  """
  seen = segments_BxL
  if parents_BxL is not None and not supports_shared_prefix(backend):
    raise ValueError(
      f"attention {backend!r} cannot share a prompt between responses; use 'chunked'"
    )
  if parents_BxL is not None:
    seen = Seen(segments_BxL, parents_BxL)
  return pick(ALL, backend)(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, seen)


class Seen(NamedTuple):
  """The two segments that each token sees: its own, and its parent."""

  segment_BxL: jax.Array
  parent_BxL: jax.Array


def supports_shared_prefix(backend: str) -> bool:
  """Whether several responses in a row can read the same prompt."""
  return backend in ("xla", "chunked")


def dense(q_BxLxHxC, k_BxSxKxC, v_BxSxKxC, seen_BxLxS):
  """y_BxLxHxC over the S keys for which seen_BxLxS is true."""
  # Naive: repeat each key H/K times. Instead the G = H/K queries that share a key
  # become rows of one matrix, which leaves two batched matmuls and no copies.
  B, L, H, C = q_BxLxHxC.shape
  S, K = k_BxSxKxC.shape[1:3]
  G = H // K
  q = (q_BxLxHxC * C**-0.5).reshape(B, L, K, G, C)
  q_BxKxGLxC = q.transpose(0, 2, 3, 1, 4).reshape(B, K, G * L, C)
  k_BxKxSxC, v_BxKxSxC = (x.transpose(0, 2, 1, 3) for x in (k_BxSxKxC, v_BxSxKxC))
  z = jnp.einsum(
    "bkqc,bksc->bkqs",
    q_BxKxGLxC,
    k_BxKxSxC,
    preferred_element_type=jnp.float32,
    precision=precision(q.dtype),
  ).reshape(B, K, G, L, S)
  p = jax.nn.softmax(jnp.where(seen_BxLxS[:, None, None], z, -1e30), -1)
  p_BxKxGLxS = p.astype(v_BxSxKxC.dtype).reshape(B, K, G * L, S)
  y = jnp.einsum("bkqs,bksc->bkqc", p_BxKxGLxS, v_BxKxSxC, precision=precision(q.dtype))
  y = y.reshape(B, K, G, L, C).transpose(0, 3, 1, 2, 4)
  return y.reshape(B, L, H, C)


def decode_attention(q_BxHxC, k_BxKxCxS, v_BxKxSxC, pos_B):
  """y_BxHxC of one query a row, at position pos_B, over positions 0..pos of its
  cache."""
  B, H, C = q_BxHxC.shape
  K, S = v_BxKxSxC.shape[1:3]
  q_BxKxGxC = (q_BxHxC * C**-0.5).reshape(B, K, H // K, C)
  z_BxKxGxS = jnp.einsum(
    "bkgc,bkcs->bkgs",
    q_BxKxGxC,
    k_BxKxCxS,
    preferred_element_type=jnp.float32,
    precision=precision(q_BxHxC.dtype),
  )
  seen_BxS = jnp.arange(S) <= pos_B[:, None]
  p = jax.nn.softmax(jnp.where(seen_BxS[:, None, None], z_BxKxGxS, -1e30), -1)
  y_BxKxGxC = jnp.einsum(
    "bkgs,bksc->bkgc",
    p.astype(v_BxKxSxC.dtype),
    v_BxKxSxC,
    precision=precision(q_BxHxC.dtype),
  )
  return y_BxKxGxC.reshape(B, H, C)


def causal(pos_L, S: int, queries=None, keys=None):
  """seen_BxLxS: whether the query at position pos_L sees each of S keys.

  queries, keys: the segments (or `Seen`) of the L queries and of the S keys.
  """
  seen_BxLxS = (jnp.arange(S) <= pos_L[:, None])[None]
  if queries is None:
    return seen_BxLxS

  def equal(a_BxL, b_BxS):
    return a_BxL[..., None] == b_BxS[:, None]

  if not isinstance(queries, Seen):
    return seen_BxLxS & equal(queries, keys)
  segment = keys.segment_BxL
  return seen_BxLxS & (
    equal(queries.segment_BxL, segment) | equal(queries.parent_BxL, segment)
  )


def xla(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segments_BxL=None):
  """The reference: one L x L matrix a head."""
  L = q_BxLxHxC.shape[1]
  seen_BxLxS = causal(jnp.arange(L), L, segments_BxL, segments_BxL)
  return dense(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, seen_BxLxS)


def chunked(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segments_BxL=None):
  """`xla` for at most CHUNK queries at a time: memory grows with L, not with its
  square. The backward pass computes each chunk again."""
  B, L, H, C = q_BxLxHxC.shape
  n, size = split(L, CHUNK)
  if n == 1:
    return xla(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segments_BxL)

  def chunks(x):  # [B, L, ...] -> [n, B, size, ...]
    x = pad(x, n * size)
    return x.reshape(B, n, size, *x.shape[2:]).swapaxes(0, 1)

  def attend_chunk(chunk):
    positions, q, segments = chunk
    seen = causal(positions, L, segments, segments_BxL)
    return dense(q, k_BxLxKxC, v_BxLxKxC, seen)

  y = jax.lax.map(
    jax.checkpoint(attend_chunk, prevent_cse=False),  # a loop body: no CSE
    (
      jnp.arange(n * size).reshape(n, size),
      chunks(q_BxLxHxC),
      jax.tree.map(chunks, segments_BxL),
    ),
  )
  return y.swapaxes(0, 1).reshape(B, n * size, H, C)[:, :L]


def cudnn(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segments_BxL=None):
  """cuDNN's fused kernels, on NVIDIA GPUs, in 16 bits."""
  if segments_BxL is not None:
    raise ValueError(
      "attention 'cudnn' got segments_BxL: cuDNN does not see segments and"
      " would mix packed sequences; use 'chunked'"
    )
  if q_BxLxHxC.dtype.name not in ("bfloat16", "float16"):
    raise ValueError(
      f"attention 'cudnn' got {q_BxLxHxC.dtype.name}, expected bfloat16 or"
      " float16; set the model's dtype, or use 'chunked'"
    )
  L = q_BxLxHxC.shape[1]
  # The kernels' gradient takes even lengths only.
  q, k, v = (pad(x, L + L % 2) for x in (q_BxLxHxC, k_BxLxKxC, v_BxLxKxC))
  return fused(q, k, v, "cudnn")[:, :L]


def fused(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, implementation: str):
  """jax.nn's attention, which scales by C**-0.5 and broadcasts K < H keys."""
  return jax.nn.dot_product_attention(
    q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, is_causal=True, implementation=implementation
  )


def splash(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segments_BxL=None):
  """JAX's splash attention, Pallas kernels for TPUs, under the mesh in context."""
  # The compiler cannot partition a kernel, so `shard_map` does: rows over data and
  # fsdp, heads over tensor. An axis that does not divide stays whole.
  mesh = jax.sharding.get_abstract_mesh()
  arguments = q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segments_BxL
  if mesh.empty:
    return splash_on_device(*arguments)
  B, _, K, _ = k_BxLxKxC.shape
  rows = None if B % (mesh.shape["data"] * mesh.shape["fsdp"]) else ROWS
  heads = None if K % mesh.shape["tensor"] else "tensor"
  spec = P(rows, None, heads)
  return jax.shard_map(
    splash_on_device,
    in_specs=(spec, spec, spec, P(rows)),
    out_specs=spec,
    check_vma=False,
  )(*arguments)


def splash_on_device(q_BxLxHxC, k_BxLxKxC, v_BxLxKxC, segments_BxL):
  """Splash attention of one device's rows and heads; L is padded to whole blocks on
  the right, which causality hides."""
  # Deferred: no other backend needs Pallas.
  from jax.experimental.pallas.ops.tpu import splash_attention as pallas

  _, L, H, C = q_BxLxHxC.shape
  n, block = splash_blocks(L)
  kernel = pallas.make_splash_mha_single_device(
    pallas.MultiHeadMask([pallas.CausalMask((n * block,) * 2)] * H),
    block_sizes=pallas.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
    interpret=INTERPRET,
  )
  q, k, v = (
    pad(x, n * block).swapaxes(1, 2)
    for x in (q_BxLxHxC * C**-0.5, k_BxLxKxC, v_BxLxKxC)
  )
  ids = None
  if segments_BxL is not None:
    ids = pallas.SegmentIds(*[pad(segments_BxL, n * block)] * 2)
  return jax.vmap(kernel)(q, k, v, ids).swapaxes(1, 2)[:, :L]


def splash_blocks(L: int):
  """(blocks of a row, their size)."""
  # A causal kernel computes n (n + 1) / 2 of n x n blocks, 1 / n more than needed,
  # and each block has a fixed cost: 1,024 wide where that leaves at least four
  # blocks, else 512.
  n, size = split(L, 1024 if L >= 4096 else 512)
  return n, -(-size // LANES) * LANES


def split(L: int, most: int):
  """(n, size): the fewest parts of L that are at most `most` long."""
  n = -(-L // most)
  return n, -(-L // n)


def pad(x_BxL, length: int):
  """x with zeros on the right of the second axis, up to `length`."""
  widths = [(0, 0)] * x_BxL.ndim
  widths[1] = (0, length - x_BxL.shape[1])
  return jnp.pad(x_BxL, widths)


ALL = {"xla": xla, "chunked": chunked, "cudnn": cudnn, "splash": splash}


def resolve(
  name: str,
  *,
  platform: str,
  dtype: str,
  head_dim: int,
  packed: bool = False,
  capability: str = "8.0",
) -> str:
  """The backend that `name` stands for; "auto" is the fastest that can run.

  Args:
    name: "auto", or a name in `ALL`.
    platform: tpu, cpu, cuda, rocm, or gpu, as jax calls both, which is read as cuda.
    dtype: of activations.
    head_dim: channels of a head.
    packed: rows hold several sequences.
    capability: a CUDA device's `compute_capability`.

  Raises:
    ValueError: the name is unknown, or the backend cannot run.
  """
  if name not in ALL and name != "auto":
    raise ValueError(f"unknown attention {name!r}, known: auto, {', '.join(ALL)}")
  runtime = platform, dtype, head_dim, packed, capability
  able = [
    n
    for n in ("splash", "cudnn", "chunked", "xla")
    if not unsupported_reason(n, *runtime)
  ]
  if name != "auto" and name not in able:
    raise ValueError(
      f"attention {name!r} cannot run: {unsupported_reason(name, *runtime)}; on"
      f" {platform} in {dtype} model.attention is one of auto, {', '.join(able)}"
    )
  return able[0] if name == "auto" else name


def unsupported_reason(
  name, platform, dtype, head_dim, packed, capability
) -> str | None:
  """Why a backend cannot run, None where it can; arguments as `resolve`."""
  if name == "splash":
    if platform != "tpu":
      return f"its kernels are for TPUs, this is {platform}"
    if dtype == "float16":  # Mosaic: invalid vector type
      return "its kernels take bfloat16 or float32, not float16"
  if name == "cudnn":
    version = float(capability)
    widest = 256 if version >= 9 else 128  # as JAX checks when it compiles
    if platform not in ("gpu", "cuda"):
      return f"cuDNN is for NVIDIA GPUs, this is {platform}"
    if version < 8:
      return f"it needs compute capability 8.0, this is {capability}"
    if dtype not in ("bfloat16", "float16"):
      return f"it takes bfloat16 or float16, not {dtype}"
    if head_dim % 8 or head_dim > widest:
      return f"it takes head_dim 8, 16, ... {widest}, not {head_dim}"
    if packed:
      return "it does not see the segments of packed rows"
  return None
