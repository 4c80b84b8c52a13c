"""The mesh (data, fsdp, tensor) of all devices, and checks of what it splits."""

import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the axes that split a batch


def make_mesh(
  data: int = 1, fsdp: int = 1, tensor: int = 1, devices=None
) -> jax.sharding.Mesh:
  """A mesh over all devices (of `devices`, where given).

  One axis may be -1: it takes the devices that the other axes leave. On several
  TPU slices the data axis is the outer one: it crosses the network between them,
  fsdp and tensor stay inside.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [data, fsdp, tensor]
  named = dict(zip(AXES, sizes, strict=True))
  count = len(devices)
  if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
    raise ValueError(f"mesh {named}: sizes are positive, and at most one is -1")
  if -1 in sizes:
    rest = int(np.prod([s for s in sizes if s != -1]))
    if count % rest:
      raise ValueError(
        f"mesh {named}: {rest} does not divide {count} devices; the product"
        f" of the other axes must be one of {divisors(count)}"
      )
    sizes[sizes.index(-1)] = count // rest
  if int(np.prod(sizes)) != count:
    raise ValueError(
      f"mesh {named} needs {int(np.prod(sizes))} devices, there are {count};"
      " set one axis to -1 to take all of them, each axis is one of"
      f" {divisors(count)}"
    )
  # Devices of other platforms have no slice_index: they are one slice.
  slices = len({getattr(d, "slice_index", 0) for d in devices})
  data, fsdp, tensor = sizes
  if data % slices:
    raise ValueError(
      f"mesh.data is {data} on {slices} slices of {count // slices} devices:"
      f" the data axis crosses the slices, so it must be a multiple of {slices};"
      " fsdp x tensor must divide a slice"
    )
  if slices > 1:
    grid = mesh_utils.create_hybrid_device_mesh(
      (data // slices, fsdp, tensor),
      (slices, 1, 1),
      devices,
      allow_split_physical_axes=True,
    )
  else:
    grid = mesh_utils.create_device_mesh(
      tuple(sizes), devices, allow_split_physical_axes=True
    )
  return jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def divisors(n: int) -> list[int]:
  return [i for i in range(1, n + 1) if n % i == 0]


def check_heads(mesh, num_heads: int, num_kv_heads: int, mlp_width: int) -> None:
  """Raises ValueError where the tensor axis cannot split a model."""
  tensor = mesh.shape["tensor"]
  common = math.gcd(num_heads, num_kv_heads, mlp_width)
  if common % tensor:
    raise ValueError(
      f"mesh.tensor is {tensor} on {mesh.size} devices, mesh"
      f" {dict(mesh.shape)}: the model has {num_heads} heads, {num_kv_heads}"
      f" key/value heads and an MLP of {mlp_width}, which it must divide;"
      f" valid are {divisors(common)}"
    )


def row_shards(mesh) -> int:
  """The number of parts into which a mesh splits rows; 1 without a mesh."""
  return 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]


def check_rows(mesh, rows: int, micro_batches: int) -> None:
  """Raises ValueError where a step's rows do not split evenly."""
  split = row_shards(mesh) * micro_batches
  if rows % split:
    raise ValueError(
      f"{rows} rows a step cannot be split over {row_shards(mesh)} row shards"
      f" (mesh {dict(mesh.shape)}: data x fsdp) and {micro_batches}"
      " micro-batches: make rollout.prompts_per_step x rollout.samples_per_prompt a"
      f" multiple of {split}, or data x fsdp x micro_batches one of {divisors(rows)}"
    )
