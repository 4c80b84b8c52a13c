"""Orbax checkpoints of State: atomic, asynchronous, restored by sharding."""

import jax
import orbax.checkpoint as ocp
from etils import epath

from opsd_jax import files
from opsd_jax.structs import State


def open_manager(directory, *, keep: int) -> ocp.CheckpointManager:
  """A manager over `directory`; half-written steps of a killed run are
  ignored and removed. `close` waits for what is still being written."""
  options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, cleanup_tmp_directories=True, create=True
  )
  return ocp.CheckpointManager(whole_path(directory), options=options)


def whole_path(directory) -> epath.Path:
  directory = epath.Path(directory)
  return directory if files.is_remote(directory) else directory.resolve()


def save(manager, state: State) -> None:
  """Writes in the background; the previous checkpoint stays until committed."""
  manager.save(int(state.step), args=ocp.args.StandardSave(state._asdict()))


def restore(manager, step, shapes: State, layout: State) -> State | None:
  """The state saved at `step`, laid out as told; None where step is None.

  `shapes` holds ShapeDtypeStructs, `layout` their shardings.
  """
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
  directory = whole_path(directory)
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
