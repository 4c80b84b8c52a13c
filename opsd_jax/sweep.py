"""Many runs as one table: a grid of configs, each trained in its own directory.

  cells = grid("configs/opsd.py:tiny", {"teacher.name": ["fixed", "ema"],
                                        "seed": range(3)})
  table = run(cells, "runs/sweep")
  plot(table)

A cell is an ordinary run: its command (`Cell.command`) does the same elsewhere,
and what a command has finished `run` finds finished.
"""

import contextlib
import copy
import difflib
import fcntl
import functools
import gc
import hashlib
import itertools
import json
import pathlib
import re
import shlex
import sys
import textwrap
import traceback
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from absl import flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from opsd_jax import files, prepare, processes, train
from opsd_jax.curves import plot

__all__ = ("Cell", "grid", "plot", "run", "table")

ROOT = pathlib.Path(__file__).parents[1]
BASE = "configs/base.py"  # what the command of a ConfigDict starts from


# -------------------------------------------------------------------- cells


class Cell(NamedTuple):
  """One setting of a grid: a run, or the reason why it cannot be one."""

  source: str | None  # a config string; None: grid was given a ConfigDict
  overrides: dict[str, Any]  # by field, as "teacher.name"
  config: ConfigDict | None  # None where an override is bad
  error: str | None  # what is bad about it

  def __repr__(self):
    return f"Cell({self.name}, {self.error or 'ready'})"

  @property
  def name(self) -> str:
    return name_of(self.source, self.overrides)

  def command(self, workdir) -> str:
    """The shell command, from the repository's root, that trains this cell
    where `run(cells, workdir)` looks for it. Raises ValueError where no command
    can say it."""
    if self.error:
      raise ValueError(f"{self.name} is no run: {self.error}")
    source, changed = self.source, self.overrides
    if source is None:
      source, changed = BASE, beside_base(self.config)
    directory = files.open_workdir(workdir) / self.name
    return shlex.join([
        "python", "-m", "experiments.train", f"--config={source}",
        *(f"--config.{name}={value}" for name, value in changed.items()),
        f"--workdir={directory}",
    ])  # fmt: skip


def grid(config, axes: dict) -> list[Cell]:
  """Every combination of the axes' values; the last axis changes fastest (let
  it be the seed: seeds share their compiled programs).

  `config` is a ConfigDict, or a config string as --config takes it. `axes` maps
  a field to its values, or a tuple of fields to tuples of values that belong
  together. Grids add up: `grid(a, ...) + grid(b, ...)`.

  An override that is bad (no such field, another type) makes a cell that fails,
  with the reason in its row. Raises ValueError where the config itself cannot
  be read or an axis is no list of values.
  """
  if not isinstance(config, str | ConfigDict):
    raise ValueError(
        f"config is {config!r}, expected a ConfigDict or a config string"
    )
  source = config if isinstance(config, str) else None
  start = config if source is None else read(config)
  named = list(itertools.chain(*(fields_of(key) for key in axes)))
  if len(named) > len(set(named)):
    raise ValueError(f"the axes {named} name a field twice")
  values = [values_of(fields, axis) for fields, axis in axes.items()]
  return [
      make_cell(source, start, dict(itertools.chain(*pairs)))
      for pairs in itertools.product(*values)
  ]


def fields_of(key) -> tuple[str, ...]:
  """The fields of an axis."""
  fields = (key,) if isinstance(key, str) else key
  if isinstance(fields, tuple) and all(isinstance(f, str) for f in fields):
    return fields
  raise ValueError(f"axis {key!r}: expected a field's name, or a tuple of them")


def values_of(fields, values) -> list[tuple]:
  """An axis -> its values, each as ((field, value), ...)."""
  if isinstance(values, str | dict) or not np.iterable(values):
    raise ValueError(
        f"axis {fields!r} is {values!r}, expected a list of values"
    )
  values = list(values)
  if not values:
    raise ValueError(f"axis {fields!r} has no values: leave it out")
  if isinstance(fields, str):
    return [((fields, value),) for value in values]
  for together in values:
    if not isinstance(together, list | tuple) or len(together) != len(fields):
      raise ValueError(
          f"axis {fields!r} holds {together!r}, expected tuples of"
          f" {len(fields)} values"
      )
  return [tuple(zip(fields, together, strict=True)) for together in values]


def read(source: str, *overrides: str) -> ConfigDict:
  """A config as the command line reads it: `configs/opsd.py:tiny`."""
  path = source.partition(":")[0]
  if not pathlib.Path(path).is_file():
    raise ValueError(f"config {source!r}: there is no file {path!r}")
  given = flags.FlagValues()
  argv = ["sweep", f"--config={source}", *overrides]
  config_flags.DEFINE_config_file(
      "config", flag_values=given, lock_config=True, sys_argv=argv
  )
  try:
    given(argv)
  except (flags.Error, ValueError, TypeError, AttributeError, SyntaxError) as e:
    # ml_collections puts a whole traceback into some of its messages
    reason = str(e).strip().splitlines()[-1]
    raise ValueError(f"config {source!r} cannot be read: {reason}") from e
  return given.config


def make_cell(source, start, overrides) -> Cell:
  """`start` with the overrides; `overrides` as the config then holds them."""
  config, held = copy.deepcopy(start).lock(), {}
  try:
    for name, value in overrides.items():
      held[name] = override(config, name, value)
  except ValueError as e:
    return Cell(source, overrides, None, str(e))
  return Cell(source, held, config, None)


def override(config, name: str, value):
  """Sets one field of a config and returns what it then holds.

  Raises ValueError where there is no such field or its type is another one.
  """
  fields = leaves(config)
  if name not in fields:
    near = difflib.get_close_matches(str(name), fields, 1, cutoff=0)
    raise ValueError(
        f"unknown config field {name!r}; did you mean {near[0]!r}?"
    )
  value = value.item() if isinstance(value, np.generic) else value
  *path, last = name.split(".")
  expected = functools.reduce(getattr, path, config).get_type(last)
  wrong = ValueError(
      f"{name} is {value!r}, expected {expected.__name__} as in"
      f" {fields[name]!r}"
  )
  if value is None or (isinstance(value, bool) and expected is not bool):
    raise wrong
  try:
    config.update_from_flattened_dict({name: value})
  except TypeError as e:
    raise wrong from e
  return leaves(config)[name]


def leaves(config) -> dict[str, Any]:
  """Every field by its whole name."""
  return prepare.flat(config.to_dict())


def beside_base(config) -> dict[str, Any]:
  """The fields that differ from configs/base.py. Raises ValueError where flags
  cannot say them."""
  there, now = leaves(read(str(ROOT / BASE))), leaves(config)
  changed = {k: v for k, v in now.items() if k not in there or v != there[k]}
  unsaid = [k for k, v in changed.items() if k not in there or v is None]
  if unsaid or there.keys() - now.keys():
    raise ValueError(
        f"{BASE} does not take {unsaid or sorted(there.keys() - now.keys())} as"
        " this config holds them: give grid a config string instead"
    )
  return changed


# -------------------------------------------------------------------- names

LONGEST = 120  # characters of a name before its digest
EXACT = re.compile(r"[a-z_][a-z0-9_.-]*")  # strings that stand for themselves
SOURCE = re.compile(r"configs/([a-z0-9_]+)\.py(?::([a-z0-9_]+))?")


def name_of(source: str | None, overrides: dict) -> str:
  """A directory name: `opsd.tiny,seed=0,teacher.name=ema`, fields sorted.

  Two settings never share one, also where upper and lower case are the same to
  a disk: a name that does not hold all of its setting ends in a digest of it.
  """
  parts, exact = [], True
  if source is not None:
    known = SOURCE.fullmatch(source)
    exact = known is not None
    parts = [".".join(filter(None, known.groups())) if known else source]
  for field, value in sorted(overrides.items()):
    said, is_exact = text_of(value)
    exact = exact and is_exact and EXACT.fullmatch(field) is not None
    parts.append(f"{field}={said}")
  name = ",".join(parts or ["no-override"])
  safe = re.sub(r"[^A-Za-z0-9_.,=+-]+", "-", name).strip("-.")[:LONGEST]
  if exact and safe == name == name.lower():
    return name
  whole = json.dumps([source, sorted(overrides.items())], default=repr)
  return f"{safe}~{hashlib.sha256(whole.encode()).hexdigest()[:12]}"


def text_of(value) -> tuple[str, bool]:
  """A value in a name, and whether no other value has the same text."""
  if isinstance(value, str):
    return value, bool(EXACT.fullmatch(value)) and value not in (
        "true", "false", "null"
    )  # fmt: skip
  return json.dumps(value, default=repr), isinstance(value, int | float)


# ---------------------------------------------------------------------- run


def run(cells, workdir) -> pd.DataFrame:
  """Trains every cell that is not finished, one after the other -> `table`.

  A finished cell (its summary.json is there, of the same config) is skipped, a
  half-finished one resumes, one that fails leaves its error in its row and is
  tried again by the next `run`. What a cell prints goes to its log.txt.
  Ctrl-C stops: the same call goes on.

  Several processes may run the same sweep on one disk: each takes cells that no
  other is at, waits for the rest, and returns the whole table. A killed one
  lets go of its cell. An object store (gs://) has no such locks, and a cell
  started by its command takes none: keep these apart.

  Raises ValueError where two cells share a name, or in a run of several
  processes.
  """
  cells = list(cells)
  check_names(cells)
  if jax.distributed.is_initialized() or processes.is_cluster():
    raise ValueError(
        "run is for one process: on several, start every cell by its command"
    )
  workdir, errors = files.open_workdir(workdir), {}
  waiting, at = cells, None
  with tqdm(total=len(cells), desc="cells") as bar:
    for wait in (False, True):
      busy = []
      for cell in waiting:
        bar.set_postfix_str(cell.name)
        at = keep_programs_of(cell, at)
        with locked(workdir, cell.name, wait) as is_ours:
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
  if files.is_remote(directory):
    yield
    return
  directory.mkdir(parents=True, exist_ok=True)
  with open(directory / "log.txt", "a") as f, contextlib.redirect_stdout(f):
    yield


@contextlib.contextmanager
def locked(workdir, name: str, wait: bool):
  """Whether this process has the cell to itself; waits until it has, or not.

  The lock is the kernel's: it ends with the process, however that ends.
  """
  if files.is_remote(workdir):
    yield True
    return
  (workdir / ".locks").mkdir(parents=True, exist_ok=True)
  with open(workdir / ".locks" / name, "w") as f:
    try:
      fcntl.lockf(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
      yield False
    else:
      yield True


# -------------------------------------------------------------------- table


def table(cells, workdir, errors=None) -> pd.DataFrame:
  """What the workdir says of the cells, one row each; trains nothing.

  Indexed by cell name: config string, overrides, status (finished, failed,
  started, missing), error, the cell's own workdir, and the fields of its
  summary. `errors` are those of cells that this process has tried, by name.
  """
  workdir = files.open_workdir(workdir)
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
      "config": cell.source, **cell.overrides, "status": status,
      "error": error, "workdir": str(directory),
  }  # fmt: skip
  return row | {k: v for k, v in (summary or {}).items() if k not in row}


def summary_of(cell: Cell, directory) -> dict | None:
  """The summary of a finished cell. Raises ValueError where the directory
  holds another experiment."""
  path = directory / "summary.json"
  prepare.refuse_other(cell.config, directory)
  if not (path.exists() and (directory / "config.json").exists()):
    return None
  try:
    return prepare.flat(json.loads(path.read_text()))
  except ValueError:  # torn by a kill
    return None
