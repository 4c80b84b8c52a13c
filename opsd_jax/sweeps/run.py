"""Sweeps: a grid of configs, each trained in a directory, as one table.

  cells = grid("configs/opsd.py:tiny", {"teacher.name": ["fixed", "ema"],
                                        "seed": range(3)})
  table = run(cells, "runs/sweep")
  plot(table)

A cell is an ordinary run: its command (`Cell.command`) trains it elsewhere, and
`run` skips cells that a command has finished.
"""

import contextlib
import gc
import sys
import textwrap
import traceback

import jax
import pandas as pd
from tqdm import tqdm

from opsd_jax import train
from opsd_jax.reporting.plots import plot
from opsd_jax.runtime import distributed, paths, workdir
from opsd_jax.sweeps.grid import Cell, grid

__all__ = ("Cell", "grid", "plot", "run", "table")


def run(cells, workdir) -> pd.DataFrame:
  """Trains every unfinished cell, one after the other; returns `table`.

  A finished cell (with a summary.json of the same config) is skipped and an
  interrupted one resumes. A cell that fails has its error in its row, and the next
  `run` tries it again. The output of a cell goes to its log.txt. After Ctrl-C the
  same call resumes.

  Several processes may run one sweep on one disk: each takes cells that no other
  process is training, waits for the rest, and returns the whole table. The lock of a
  killed process is released; a cell that its own command is training fails with that
  reason. An object store (gs://) has no locks: let only one process run a sweep
  there.

  Raises ValueError where two cells have one name, or in a run of several processes.
  """
  cells = list(cells)
  check_names(cells)
  if jax.distributed.is_initialized() or distributed.is_cluster():
    raise ValueError(
      "run works in one process; on several, start every cell by its command"
    )
  workdir, errors = paths.open_workdir(workdir), {}
  waiting, setting = cells, None
  with tqdm(total=len(cells), desc="cells") as bar:
    for wait in (False, True):
      busy = []
      for cell in waiting:
        bar.set_postfix_str(cell.name)
        setting = keep_programs_of(cell, setting)
        with paths.locked(workdir / ".locks" / cell.name, wait) as is_locked:
          if is_locked:
            errors[cell.name] = attempt(cell, workdir)
            bar.update()
          else:
            busy.append(cell)
      waiting = busy
  return table(cells, workdir, errors)


def keep_programs_of(cell: Cell, before):
  """Clears compiled programs where the cell's setting is not `before`; returns its
  setting.

  Seeds share their programs; those of many settings would accumulate in memory.
  """
  if cell.error:
    return before
  now = cell.source, {k: v for k, v in cell.overrides.items() if k != "seed"}
  if before not in (None, now):
    jax.clear_caches()
  return now


def check_names(cells) -> None:
  """Raises ValueError where two cells have one name."""
  names = [cell.name for cell in cells]
  for name in names:
    if names.count(name) > 1:
      raise ValueError(
        f"two cells are named {name!r}: drop one, or run grids of different"
        " ConfigDicts in different workdirs"
      )


def attempt(cell: Cell, workdir) -> str | None:
  """Trains a cell unless it is finished; returns why it failed, or None."""
  directory = workdir / cell.name
  try:
    if cell.error or summary_of(cell, directory):
      return cell.error
    with printing_to(directory):
      try:
        train.train_and_evaluate(cell.config, directory)
      except Exception:
        traceback.print_exc(file=sys.stdout)
        raise
  except Exception as e:  # the other cells are still trained
    return summary_line(e)
  finally:
    gc.collect()  # frees arrays in reference cycles
  return None


def summary_line(e: Exception) -> str:
  """An error in one line."""
  text = f"{type(e).__name__}: {e}"
  return textwrap.shorten(text, 600, placeholder=" ... (see log.txt)")


@contextlib.contextmanager
def printing_to(directory):
  """Redirects standard output to log.txt, except in an object store, where nothing
  can be appended."""
  if paths.is_remote(directory):
    yield
    return
  directory.mkdir(parents=True, exist_ok=True)
  with open(directory / "log.txt", "a") as f, contextlib.redirect_stdout(f):
    yield


# -------------------------------------------------------------------- table


def table(cells, workdir, errors=None) -> pd.DataFrame:
  """The state of the cells in a workdir, one row each; trains nothing.

  Columns are the config string, overrides, status (finished, failed, started,
  missing), error, the cell's workdir, and the fields of its summary; the index is
  the cell's name. `errors` are {name: error} of cells that this process has tried.
  """
  workdir = paths.open_workdir(workdir)
  rows = [row_of(c, workdir, (errors or {}).get(c.name)) for c in cells]
  names = pd.Index([c.name for c in cells], name="cell")
  return pd.DataFrame(rows, index=names)


def row_of(cell: Cell, workdir, error: str | None) -> dict:
  """A cell's row of `table`."""
  directory, summary = workdir / cell.name, None
  error = error or cell.error
  if not error:
    try:
      summary = summary_of(cell, directory)
    except ValueError as e:
      error = summary_line(e)
  if error or summary:
    status = "failed" if error else "finished"
  else:
    status = "started" if (directory / "config.json").exists() else "missing"
  row = {
    "config": cell.source,
    **cell.overrides,
    "status": status,
    "error": error,
    "workdir": str(directory),
  }
  return row | {k: v for k, v in (summary or {}).items() if k not in row}


def summary_of(cell: Cell, directory) -> dict | None:
  """The summary of a finished cell, else None. Raises ValueError where the directory
  holds another experiment."""
  path = directory / "summary.json"
  workdir.check_same_config(cell.config, directory)
  if not (path.exists() and (directory / "config.json").exists()):
    return None
  try:
    return paths.flat(paths.read_json(path))
  except ValueError:  # a kill interrupted its writing
    return None
