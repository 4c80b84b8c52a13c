"""Two tables of shardings over the mesh (data, fsdp, tensor): weights, activations.

Rows of a batch are split over data and fsdp together. Weights are stored split
over fsdp and tensor; a layer gathers its weights over fsdp just before it uses
them, and computes only its part of heads, MLP channels or vocabulary over tensor.
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

# Weights, by the end of their path; the first match wins. Stacked (scanned) layers
# have one more axis in front, which stays whole.
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

# Activations, by name.
ACTIVATIONS = {
  "rows": P(ROWS),  # B x ...: ids, states of the model's width
  # B x 1 x ...: one token a row. Naive: gather the weights, as for whole rows. Here
  # activations are smaller than weights, so they move instead: every device of fsdp
  # sees all rows and multiplies them with its part of the weights.
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
  """The row shards of the mesh in context; 1 where they do not divide `rows`."""
  shards = row_shards(jax.sharding.get_abstract_mesh())
  return 1 if rows % shards else shards


def vocabulary_shards(size: int) -> int:
  """The number of parts into which the mesh in context splits the vocabulary."""
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


def weight_spec(path: str, shape: tuple[int, ...], mesh) -> P:
  """The spec of one weight by RULES; axes that do not divide stay whole."""
  for pattern, spec in RULES:
    if re.search(pattern, path):
      rank = 1 if path.endswith(("bias", "scale")) else 2  # without stacked layers
      return drop_indivisible(P(*(None,) * (len(shape) - rank), *spec), shape, mesh)
  return P()


def tree_shardings(tree, mesh):
  """A NamedSharding for every leaf of a tree of parameters, or of a tree that
  contains such trees (optimiser state, teacher memory)."""

  def leaf_sharding(path, leaf):
    name = "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path)
    return NamedSharding(mesh, weight_spec(name, leaf.shape, mesh))

  return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def rows_sharding(mesh) -> NamedSharding:
  """Leading axis split over data and fsdp, the rest whole."""
  return NamedSharding(mesh, P(ROWS))


def replicated(mesh) -> NamedSharding:
  """Whole on every device."""
  return NamedSharding(mesh, P())


def constrain(x: jax.Array, name: str) -> jax.Array:
  """Constrains x to ACTIVATIONS[name]; see `constrain_to`."""
  return constrain_to(x, ACTIVATIONS[name])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather_fsdp(weight: jax.Array, path: str) -> jax.Array:
  """A weight as a layer uses it: whole over fsdp, still split over tensor."""
  # Naive: a plain constraint, whose gradient is summed in full on every device. The
  # custom gradient is constrained to the stored layout instead, so that the
  # compiler sums and scatters it in one collective.
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return weight
  spec = weight_spec(path, weight.shape, mesh)
  return constrain_to(weight, P(*(None if a == "fsdp" else a for a in spec)))


gather_fsdp.defvjp(
  lambda weight, path: (gather_fsdp(weight, path), None),
  lambda path, _, gradient: (as_stored(gradient, path),),
)


def constrain_decode_output(y_NxO: jax.Array, path: str) -> jax.Array:
  """Decode matmul output: constrain to the weight's output sharding, then gather,
  so activations move, not weights."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return y_NxO
  out = next(spec for pattern, spec in RULES if re.search(pattern, path))[-1]
  y_NxO = constrain_to(y_NxO, P("data", out))
  return constrain_to(y_NxO, P("data", None if out == "fsdp" else out))


def as_stored(weight: jax.Array, path: str) -> jax.Array:
  """A weight, or its gradient, in the stored layout: split over fsdp and tensor."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return weight
  return constrain_to(weight, weight_spec(path, weight.shape, mesh))


def sum_of_shards(x_GxSxKxMxD: jax.Array) -> jax.Array:
  """The sum over G of the "head_gradient" parts, V x D, in the layout of the
  unembedding."""
  # Without the barrier the compiler may move the cast to the parameters' dtype
  # before the sum over devices.
  x_VxD = x_GxSxKxMxD.sum(0).reshape(-1, x_GxSxKxMxD.shape[-1])
  return jax.lax.optimization_barrier(as_stored(x_VxD, "embed/embedding"))


def constrain_to(x: jax.Array, spec: P) -> jax.Array:
  """with_sharding_constraint inside a jit under `set_mesh`; nothing without a mesh.
  Axes that do not divide stay whole."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, drop_indivisible(spec, x.shape, mesh))


def precision(dtype) -> str | None:
  """The precision of a matmul in `dtype`: a TPU multiplies float32 in bfloat16
  unless it is "highest"."""
  return "highest" if np.dtype(dtype) == np.float32 else None
