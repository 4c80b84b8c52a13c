"""One mesh (data, fsdp, tensor) and two tables: weights and activations.

Rows of a batch are split over data and fsdp together. Weights are kept split
over fsdp and tensor; a layer gathers its own over fsdp just before it uses
them, and works on its share of heads, MLP channels or vocabulary over tensor.
The compiler derives every collective from these layouts (GSPMD), so one program
serves a laptop, which is a mesh of one, and a pod.
"""

import functools
import math
import re

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from opsd_jax.runtime.mesh import ROWS, row_shards

# Weights, by the end of their path. First match wins; axes of a stacked
# (scanned) layer have one more in front, which stays whole.
RULES = (
  (r"(embed|lm_head)/embedding$", P("tensor", "fsdp")),  # V x D
  (r"(q_proj|k_proj|v_proj|gate_proj|up_proj)/kernel$", P("fsdp", "tensor")),
  (r"(q_proj|k_proj|v_proj|gate_proj|up_proj)/lora_a$", P("fsdp", None)),
  (r"(q_proj|k_proj|v_proj|gate_proj|up_proj)/lora_b$", P(None, "tensor")),
  (r"(o_proj|down_proj)/kernel$", P("tensor", "fsdp")),
  (r"(o_proj|down_proj)/lora_a$", P("tensor", None)),
  (r"(o_proj|down_proj)/lora_b$", P(None, "fsdp")),
  (r"(q_proj|k_proj|v_proj)/bias$", P("tensor")),
  (r"(norm|_norm)/scale$", P()),
)

# Activations, by what they are.
ACTIVATIONS = {
  "rows": P(ROWS),  # B x ...: ids, states of the model's width
  # B x 1 x ...: a token a row. It is less than the weights, so it travels:
  # every device of fsdp sees all rows and multiplies with its part of them.
  "tokens": P("data"),
  "token_logits": P("data", "tensor"),  # B x V
  "heads": P(ROWS, None, "tensor"),  # B x L x H x C
  "cache": P(ROWS, "tensor"),  # B x K x ...
  "stacked_cache": P(None, ROWS, "tensor"),  # N x B x K x ...
  "mlp": P(ROWS, None, "tensor"),  # B x L x F
  "chunks": P(None, ROWS),  # n x N x ...: tokens of the loss, in chunks
  "logits": P(ROWS, "tensor"),  # N x V
  "looked_up": P("data", None, "fsdp"),  # B x L x D, as the table is split
  # The sum of the unembedding's gradient: one partial sum a row shard.
  "head_gradient": P(ROWS, "tensor"),  # G x tensor x ...
}


def groups(rows: int) -> int:
  """The row shards of the mesh in context, 1 where they do not split `rows`."""
  shards = row_shards(jax.sharding.get_abstract_mesh())
  return 1 if rows % shards else shards


def vocabulary_shards(size: int) -> int:
  """Into how many parts the mesh in context splits the vocabulary."""
  mesh = jax.sharding.get_abstract_mesh()
  tensor = 1 if mesh.empty else mesh.shape["tensor"]
  return 1 if size % tensor else tensor


def drop_indivisible(spec: P, shape: tuple[int, ...], mesh) -> P:
  """The spec without the axes that do not divide their dimension."""

  def size(axes):
    return math.prod(
      mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes)
    )

  return P(
    *(
      axes if axes and n % size(axes) == 0 else None
      for axes, n in zip(spec, shape, strict=False)
    )
  )


def spec_of(path: str, shape: tuple[int, ...], mesh) -> P:
  """The table's spec for one weight, stacked layers and divisibility applied.

  An axis that its mesh axis does not divide stays whole.
  """
  for pattern, spec in RULES:
    if re.search(pattern, path):
      two = 1 if path.endswith(("bias", "scale")) else 2
      return drop_indivisible(P(*(None,) * (len(shape) - two), *spec), shape, mesh)
  return P()


def tree_shardings(tree, mesh):
  """A NamedSharding for every leaf of a tree of parameters or a tree that
  contains such trees (optimiser state, teacher memory)."""

  def of(path, leaf):
    name = "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path)
    return NamedSharding(mesh, spec_of(name, leaf.shape, mesh))

  return jax.tree_util.tree_map_with_path(of, tree)


def rows_sharding(mesh) -> NamedSharding:
  """Leading axis split over data and fsdp, the rest whole."""
  return NamedSharding(mesh, P(ROWS))


def replicated(mesh) -> NamedSharding:
  """Whole on every device."""
  return NamedSharding(mesh, P())


def constrain(x: jax.Array, what: str) -> jax.Array:
  """Asks the compiler for ACTIVATIONS[what], inside a jit under `set_mesh`.

  Without a mesh it does nothing; an axis that does not divide stays whole.
  """
  return as_laid_out(x, ACTIVATIONS[what])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather_fsdp(weight: jax.Array, path: str) -> jax.Array:
  """A weight as a layer uses it: whole over fsdp, still split over tensor.

  Its gradient comes back split as the weight is stored: scattered while it is
  summed, where a plain constraint would sum all of it on every device.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return weight
  spec = spec_of(path, weight.shape, mesh)
  return as_laid_out(weight, P(*(None if a == "fsdp" else a for a in spec)))


gather_fsdp.defvjp(
  lambda weight, path: (gather_fsdp(weight, path), None),
  lambda path, _, gradient: (as_stored(gradient, path),),
)


def constrain_decode_output(y_NxO: jax.Array, path: str) -> jax.Array:
  """What a weight makes of tokens that came to it: channels as it splits them,
  and only then whole over fsdp."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return y_NxO
  out = next(spec for pattern, spec in RULES if re.search(pattern, path))[-1]
  y_NxO = as_laid_out(y_NxO, P("data", out))
  return as_laid_out(y_NxO, P("data", None if out == "fsdp" else out))


def as_stored(weight: jax.Array, path: str) -> jax.Array:
  """A weight, or its gradient, as it is stored: split over fsdp and tensor."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return weight
  return as_laid_out(weight, spec_of(path, weight.shape, mesh))


def sum_of_shards(x_GxSxKxMxD: jax.Array) -> jax.Array:
  """The sum over G of "head_gradient"s, V x D, split as the unembedding is.

  The barrier keeps it float32 until it is summed.
  """
  x_VxD = x_GxSxKxMxD.sum(0).reshape(-1, x_GxSxKxMxD.shape[-1])
  return jax.lax.optimization_barrier(as_stored(x_VxD, "embed/embedding"))


def as_laid_out(x: jax.Array, spec: P) -> jax.Array:
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, drop_indivisible(spec, x.shape, mesh))


def precision(dtype) -> str | None:
  """Of a matmul: float32 means float32, also on a TPU."""
  return "highest" if np.dtype(dtype) == np.float32 else None
