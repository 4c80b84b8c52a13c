"""Orbax checkpoints of State: atomic, asynchronous, restored by sharding."""

import pathlib

import jax
import orbax.checkpoint as ocp

from opsd_jax.structs import State


def open_manager(directory, *, keep: int) -> ocp.CheckpointManager:
  """A manager over `directory`; half-written steps of a killed run are
  ignored and removed. `close` waits for what is still being written."""
  options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, cleanup_tmp_directories=True, create=True
  )
  return ocp.CheckpointManager(
      pathlib.Path(directory).absolute(), options=options
  )


def save(manager, state: State) -> None:
  """Writes in the background; the previous checkpoint stays until committed."""
  manager.save(int(state.step), args=ocp.args.StandardSave(state._asdict()))


def restore_latest(manager, shapes: State, layout: State) -> State | None:
  """The newest committed state, laid out as told, or None where there is none.

  `shapes` holds ShapeDtypeStructs, `layout` their shardings.
  """
  step = manager.latest_step()
  if step is None:
    return None
  wanted = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      shapes._asdict(), layout._asdict(),
  )  # fmt: skip
  tree = manager.restore(step, args=ocp.args.StandardRestore(wanted))
  return State(**tree)


def restore_params(directory, shardings):
  """(step, parameters) of the newest checkpoint; nothing else of it is read.

  `shardings` maps a tree of ShapeDtypeStructs to their layouts. Raises
  ValueError where there is no checkpoint.
  """
  directory = pathlib.Path(directory).absolute()
  if not directory.is_dir():
    raise ValueError(f"{directory} does not exist: nothing was trained there")
  options = ocp.CheckpointManagerOptions(create=False)
  manager = ocp.CheckpointManager(
      directory, options=options, item_handlers=ocp.PyTreeCheckpointHandler()
  )
  try:
    step = manager.latest_step()
    if step is None:
      raise ValueError(f"{directory} holds no checkpoint that was completed")
    known = manager.item_metadata(step).tree["params"]
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), known
    )
    wanted = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes, shardings(shapes),
    )  # fmt: skip
    wanted = {"params": wanted}
    args = ocp.args.PyTreeRestore(
        wanted, partial_restore=True,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
    )  # fmt: skip
    return step, manager.restore(step, args=args)["params"]
  finally:
    manager.close()
