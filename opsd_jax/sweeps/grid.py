"""A grid of configs: every combination of some overrides, each with a name."""

import copy
import difflib
import functools
import hashlib
import itertools
import json
import pathlib
import re
import shlex
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from opsd_jax.runtime import paths

ROOT = pathlib.Path(__file__).parents[2]
BASE = "configs/base.py"  # what the command of a ConfigDict starts from


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
    directory = paths.open_workdir(workdir) / self.name
    return shlex.join(
      [
        "python",
        "-m",
        "experiments.train",
        f"--config={source}",
        *(f"--config.{name}={value}" for name, value in changed.items()),
        f"--workdir={directory}",
      ]
    )


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
    raise ValueError(f"config is {config!r}, expected a ConfigDict or a config string")
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
    raise ValueError(f"axis {fields!r} is {values!r}, expected a list of values")
  values = list(values)
  if not values:
    raise ValueError(f"axis {fields!r} has no values: leave it out")
  if isinstance(fields, str):
    return [((fields, value),) for value in values]
  for together in values:
    if not isinstance(together, list | tuple) or len(together) != len(fields):
      raise ValueError(
        f"axis {fields!r} holds {together!r}, expected tuples of {len(fields)} values"
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
    raise ValueError(f"unknown config field {name!r}; did you mean {near[0]!r}?")
  value = value.item() if isinstance(value, np.generic) else value
  *path, last = name.split(".")
  expected = functools.reduce(getattr, path, config).get_type(last)
  wrong = ValueError(
    f"{name} is {value!r}, expected {expected.__name__} as in {fields[name]!r}"
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
  return paths.flat(config.to_dict())


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
      "true",
      "false",
      "null",
    )
  return json.dumps(value, default=repr), isinstance(value, int | float)
