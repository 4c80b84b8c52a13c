"""Many runs as one table: a grid of configs, each trained in its own directory.

  cells = grid("configs/opsd.py:tiny", {"teacher.name": ["fixed", "ema"],
                                        "seed": range(3)})
  table = run(cells, "runs/sweep")
  plot(table)

A cell is an ordinary run: its command (`Cell.command`) does the same elsewhere,
and what a command has finished `run` finds finished.
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
  """Trains every cell that is not finished, one after the other -> `table`.

  A finished cell (its summary.json is there, of the same config) is skipped, a
  half-finished one resumes, one that fails leaves its error in its row and is
  tried again by the next `run`. What a cell prints goes to its log.txt.
  Ctrl-C stops: the same call goes on.

  Several processes may run the same sweep on one disk: each takes cells that no
  other is at, waits for the rest, and returns the whole table. A killed one
  lets go of its cell; a cell that its command is running fails with that
  reason. An object store (gs://) has no locks: keep its cells apart.

  Raises ValueError where two cells share a name, or in a run of several
  processes.
  """
  cells = list(cells)
  check_names(cells)
  if jax.distributed.is_initialized() or distributed.is_cluster():
    raise ValueError(
      "run is for one process: on several, start every cell by its command"
    )
  workdir, errors = paths.open_workdir(workdir), {}
  waiting, programs = cells, None
  with tqdm(total=len(cells), desc="cells") as bar:
    for wait in (False, True):
      busy = []
      for cell in waiting:
        bar.set_postfix_str(cell.name)
        programs = keep_programs_of(cell, programs)
        with paths.locked(workdir / ".locks" / cell.name, wait) as is_ours:
          if is_ours:
            errors[cell.name] = attempt(cell, workdir)
            bar.update()
          else:
            busy.append(cell)
      waiting = busy
  return table(cells, workdir, errors)


def keep_programs_of(cell: Cell, before):
  """Forgets the compiled programs of another setting; returns the cell's.

  Seeds share their programs, so they come cheapest one after the other; those
  of many settings would pile up in memory.
  """
  if cell.error:
    return before
  now = cell.source, {k: v for k, v in cell.overrides.items() if k != "seed"}
  if before not in (None, now):
    jax.clear_caches()
  return now


def check_names(cells) -> None:
  names = [cell.name for cell in cells]
  for name in names:
    if names.count(name) > 1:
      raise ValueError(
        f"two cells are named {name!r}: drop one, or run grids of different"
        " ConfigDicts in workdirs of their own"
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
  except Exception as e:  # whatever it is, the other cells go on
    return words(e)
  finally:
    gc.collect()  # arrays in cycles would outlive their cell
  return None


def words(e: Exception) -> str:
  text = f"{type(e).__name__}: {e}"
  return textwrap.shorten(text, 600, placeholder=" ... (see log.txt)")


@contextlib.contextmanager
def printing_to(directory):
  """Standard output goes to log.txt; a store cannot append: there it stays."""
  if paths.is_remote(directory):
    yield
    return
  directory.mkdir(parents=True, exist_ok=True)
  with open(directory / "log.txt", "a") as f, contextlib.redirect_stdout(f):
    yield


# -------------------------------------------------------------------- table


def table(cells, workdir, errors=None) -> pd.DataFrame:
  """What the workdir says of the cells, one row each; trains nothing.

  Indexed by cell name: config string, overrides, status (finished, failed,
  started, missing), error, the cell's own workdir, and the fields of its
  summary. `errors` are those of cells that this process has tried, by name.
  """
  workdir = paths.open_workdir(workdir)
  rows = [row_of(c, workdir, (errors or {}).get(c.name)) for c in cells]
  names = pd.Index([c.name for c in cells], name="cell")
  return pd.DataFrame(rows, index=names)


def row_of(cell: Cell, workdir, error: str | None) -> dict:
  directory, summary = workdir / cell.name, None
  error = error or cell.error
  if not error:
    try:
      summary = summary_of(cell, directory)
    except ValueError as e:
      error = words(e)
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
  """The summary of a finished cell. Raises ValueError where the directory
  holds another experiment."""
  path = directory / "summary.json"
  workdir.check_same_config(cell.config, directory)
  if not (path.exists() and (directory / "config.json").exists()):
    return None
  try:
    return paths.flat(paths.read_json(path))
  except ValueError:  # torn by a kill
    return None
