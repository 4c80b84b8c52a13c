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
  directory = epath.Path(directory)
  if not files.is_remote(directory):
    directory = directory.resolve()
  return ocp.CheckpointManager(directory, options=options)


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
