"""One mesh (data, fsdp, tensor) and one table from parameter path to layout.

Rows of a batch are split over data and fsdp together; weights are split over
fsdp (their width axis) and, once tensor parallelism lands, over tensor. The
compiler derives every collective from these layouts (GSPMD), so one program
serves a laptop, which is a mesh of one, and a pod.
"""

import re

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the axes that split a batch

# First match wins. Axes of a stacked (scanned) layer have one more in front.
RULES = (
    (r"(embed|lm_head)/embedding$", P("tensor", "fsdp")),  # V x D
    (r"(q_proj|k_proj|v_proj|gate_proj|up_proj)/kernel$", P("fsdp", "tensor")),
    (r"(o_proj|down_proj)/kernel$", P("tensor", "fsdp")),
    (r"(q_proj|k_proj|v_proj)/bias$", P("tensor")),
    (r"(norm|_norm)/scale$", P()),
)


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices=None):
  """A mesh over all devices; one axis may be -1 and takes what is left."""
  devices = jax.devices() if devices is None else devices
  sizes = [data, fsdp, tensor]
  named = dict(zip(AXES, sizes, strict=True))
  if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
    raise ValueError(
        f"mesh {named}: sizes are positive, and at most one is -1"
    )
  if -1 in sizes:
    rest = int(np.prod([s for s in sizes if s != -1]))
    if len(devices) % rest:
      raise ValueError(
          f"mesh {named}: {rest} does not divide {len(devices)} devices"
      )
    sizes[sizes.index(-1)] = len(devices) // rest
  if int(np.prod(sizes)) != len(devices):
    raise ValueError(
        f"mesh {named} needs {int(np.prod(sizes))} devices, there are"
        f" {len(devices)}; set one axis to -1 to take all of them"
    )
  return jax.make_mesh(
      tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
  )


def spec_of(path: str, shape: tuple[int, ...], mesh) -> P:
  """The table's spec for one array, stacked layers and divisibility applied.

  An axis that its mesh axis does not divide stays whole.
  """
  for pattern, spec in RULES:
    if re.search(pattern, path):
      spec = (None,) * (len(shape) - len(spec)) + tuple(spec)
      return P(*(
          a if a and size % mesh.shape[a] == 0 else None
          for a, size in zip(spec, shape, strict=True)
      ))
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


def rows(x: jax.Array) -> jax.Array:
  """Asks the compiler to keep the leading (row) axis split, inside a jit under
  `jax.set_mesh`; without a mesh, or where rows do not divide, it does nothing.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
    return x
  return jax.lax.with_sharding_constraint(x, P(ROWS))
