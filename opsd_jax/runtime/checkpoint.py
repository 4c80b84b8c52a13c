"""Orbax checkpoints of State: atomic, asynchronous, restored into any sharding.

A checkpoint has two items: `state`, and, as JSON, `iterator`: the state of
data/order.py.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from opsd_jax.runtime import paths
from opsd_jax.structs import State


def open_manager(directory, *, keep: int) -> ocp.CheckpointManager:
  """A manager over `directory` that keeps the newest `keep` checkpoints.

  Half-written steps of a killed run are ignored and removed. Its `close` waits for
  pending writes.
  """
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep, cleanup_tmp_directories=True, create=True
  )
  return ocp.CheckpointManager(absolute_path(directory), options=options)


def absolute_path(directory) -> epath.Path:
  directory = epath.Path(directory)
  return directory if paths.is_remote(directory) else directory.resolve()


def save(manager, state: State, iterator_state: dict | None = None) -> None:
  """Writes in the background; the previous checkpoint stays until committed.

  Where arrays are in host memory, waits: written beside a step, the copies of the
  arrays would stand between what the step allocates, and memory would grow.

  `iterator_state`: JSON values, the same on every process.
  """
  items = {"state": ocp.args.StandardSave(state._asdict())}
  if iterator_state is not None:
    items["iterator"] = ocp.args.JsonSave(iterator_state)
  manager.save(int(state.step), args=ocp.args.Composite(**items))
  if jax.default_backend() == "cpu":
    manager.wait_until_finished()


def check_item(manager, step: int, name: str) -> None:
  """Raises ValueError where a checkpoint lacks the item `name`."""
  path = manager.directory / str(step)
  if not (path / name).exists():
    raise ValueError(
      f"{path} has no {name!r}: an earlier version saved it, whose checkpoints"
      " cannot be read. Give another --workdir"
    )


def restore_item(manager, step: int, name: str, args):
  """One item of a checkpoint; `args` are Orbax restore arguments."""
  check_item(manager, step, name)
  return manager.restore(step, args=ocp.args.Composite(**{name: args}))[name]


def restore(manager, step, shapes: State, layout: State) -> State | None:
  """The state saved at `step`.

  Args:
    manager: of the checkpoint.
    step: None returns None.
    shapes: State of ShapeDtypeStructs.
    layout: State of shardings, into which the arrays are restored.
  """
  if step is None:
    return None
  wanted = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes._asdict(),
    layout._asdict(),
  )
  return State(**restore_item(manager, step, "state", ocp.args.StandardRestore(wanted)))


def restore_iterator_state(manager, step: int) -> dict:
  """The iterator state that `save` wrote at this step."""
  return restore_item(manager, step, "iterator", ocp.args.JsonRestore())


def restore_params(directory, shardings):
  """(step, parameters) of the newest checkpoint; no other array is read.

  `shardings` maps a tree of ShapeDtypeStructs to their layouts. Raises
  ValueError where there is no checkpoint.
  """
  directory = absolute_path(directory)
  if not directory.is_dir():
    raise ValueError(f"{directory} does not exist: nothing was trained there")
  options = ocp.CheckpointManagerOptions(create=False)
  manager = ocp.CheckpointManager(
    directory,
    options=options,
    item_handlers={
      "state": ocp.PyTreeCheckpointHandler(),
      "iterator": ocp.JsonCheckpointHandler(),
    },
  )
  try:
    step = manager.latest_step()
    if step is None:
      raise ValueError(f"{directory} holds no checkpoint that is complete")
    check_item(manager, step, "state")
    saved = manager.item_metadata(step)["state"].tree["params"]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)
    wanted = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      shapes,
      shardings(shapes),
    )
    wanted = {"params": wanted}
    args = ocp.args.PyTreeRestore(
      wanted,
      partial_restore=True,
      restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
    )
    return step, restore_item(manager, step, "state", args)["params"]
  finally:
    manager.close()


def newest(directory) -> int | None:
  """The step of the newest complete checkpoint in a directory; None without one."""
  steps = ocp.utils.checkpoint_steps(directory) if directory.exists() else []
  return max(steps, default=None)


def finalised(h):
  """A bijection of 32 bits in which every bit moves half of the others."""
  h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
  h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
  return h ^ (h >> 16)


def fingerprint(params, mesh) -> str:
  """A hash of the weights that does not depend on their layout; "" without any."""
  if not jax.tree.leaves(params):
    return ""
  # Hashing the bytes would gather every array. A sum of an array's bits, as integers,
  # is the same in any order and so in any layout; each is mixed with its place first
  # (MurmurHash3's finaliser), so that exchanged entries and signs are seen.
  unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}

  def total(x):
    bits = jax.lax.bitcast_convert_type(x, unsigned[x.dtype.itemsize])
    mixed = bits.astype(jnp.uint32)
    for axis in range(x.ndim):
      place = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
      mixed = finalised(mixed ^ finalised(place + jnp.uint32(axis + 1)))
    return finalised(mixed).sum(dtype=jnp.uint32)

  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  sums = jax.jit(
    lambda p: jnp.stack([total(x) for x in jax.tree.leaves(p)]), out_shardings=whole
  )(params)
  return hashlib.sha256(np.asarray(sums).tobytes()).hexdigest()[:16]
