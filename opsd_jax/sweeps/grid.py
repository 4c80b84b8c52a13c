"""Grids of configs: every combination of some overrides, each with a name."""

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
BASE = "configs/base.py"  # the config that a ConfigDict's command overrides


class Cell(NamedTuple):
  """One setting of a grid: a run, or the reason why it is invalid."""

  source: str | None  # a config string; None where grid was given a ConfigDict
  overrides: dict[str, Any]  # {field: value}, fields as "teacher.name"
  config: ConfigDict | None  # None where an override is bad
  error: str | None  # why the override is bad

  def __repr__(self):
    return f"Cell({self.name}, {self.error or 'ready'})"

  @property
  def name(self) -> str:
    return name_of(self.source, self.overrides)

  def command(self, workdir) -> str:
    """The shell command, from the repository's root, that trains this cell in the
    directory of `run(cells, workdir)`. Raises ValueError where flags cannot express
    the config."""
    if self.error:
      raise ValueError(f"{self.name} cannot run: {self.error}")
    source, changed = self.source, self.overrides
    if source is None:
      source, changed = BASE, changes_from_base(self.config)
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
  """Every combination of the axes' values; the last axis changes fastest. Make the
  seed the last axis: seeds share their compiled programs.

  Grids are lists and can be added: `grid(a, ...) + grid(b, ...)`. A bad override (an
  unknown field, another type) makes a cell that fails, with the reason in its row.
  Raises ValueError where the config cannot be read or an axis is no list of values.

  Args:
    config: a ConfigDict, or a config string as --config takes it.
    axes: {field: values}, or {tuple of fields: tuples of values that vary together}.
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
  """The values of an axis, each as ((field, value), ...)."""
  if isinstance(values, str | dict) or not np.iterable(values):
    raise ValueError(f"axis {fields!r} is {values!r}, expected a list of values")
  values = list(values)
  if not values:
    raise ValueError(f"axis {fields!r} has no values: omit it")
  if isinstance(fields, str):
    return [((fields, value),) for value in values]
  for together in values:
    if not isinstance(together, list | tuple) or len(together) != len(fields):
      raise ValueError(
        f"axis {fields!r} holds {together!r}, expected tuples of {len(fields)} values"
      )
  return [tuple(zip(fields, together, strict=True)) for together in values]


def read(source: str, *overrides: str) -> ConfigDict:
  """Reads a config string such as `configs/opsd.py:tiny` like the command line."""
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
    # Some messages of ml_collections hold a whole traceback.
    reason = str(e).strip().splitlines()[-1]
    raise ValueError(f"config {source!r} cannot be read: {reason}") from e
  return given.config


def make_cell(source, start, overrides) -> Cell:
  """The cell of a config with overrides, whose values are those that the config then
  holds."""
  config, held = copy.deepcopy(start).lock(), {}
  try:
    for name, value in overrides.items():
      held[name] = override(config, name, value)
  except ValueError as e:
    return Cell(source, overrides, None, str(e))
  return Cell(source, held, config, None)


def override(config, name: str, value):
  """Sets one field of a config and returns the value that it then holds.

  Raises ValueError where there is no such field or it has another type.
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
  """{full name: value} of every field."""
  return paths.flat(config.to_dict())


def changes_from_base(config) -> dict[str, Any]:
  """The fields that differ from configs/base.py. Raises ValueError where flags
  cannot set them."""
  base, now = leaves(read(str(ROOT / BASE))), leaves(config)
  changed = {k: v for k, v in now.items() if k not in base or v != base[k]}
  cannot_set = [k for k, v in changed.items() if k not in base or v is None]
  if cannot_set or base.keys() - now.keys():
    raise ValueError(
      f"flags over {BASE} cannot express"
      f" {cannot_set or sorted(base.keys() - now.keys())} of this config: give grid a"
      " config string instead"
    )
  return changed


# -------------------------------------------------------------------- names

LONGEST = 120  # characters of a name, without its digest
EXACT = re.compile(r"[a-z_][a-z0-9_.-]*")  # strings that a name holds unchanged
SOURCE = re.compile(r"configs/([a-z0-9_]+)\.py(?::([a-z0-9_]+))?")


def name_of(source: str | None, overrides: dict) -> str:
  """The directory name of a setting, `opsd.tiny,seed=0,teacher.name=ema`, with sorted
  fields.

  Two settings never share a name, even on a disk that ignores case: where a name
  does not hold the whole setting it ends in a digest of it.
  """
  parts, exact = [], True
  if source is not None:
    known = SOURCE.fullmatch(source)
    exact = known is not None
    parts = [".".join(filter(None, known.groups())) if known else source]
  for field, value in sorted(overrides.items()):
    text, is_exact = text_of(value)
    exact = exact and is_exact and EXACT.fullmatch(field) is not None
    parts.append(f"{field}={text}")
  name = ",".join(parts or ["no-override"])
  safe = re.sub(r"[^A-Za-z0-9_.,=+-]+", "-", name).strip("-.")[:LONGEST]
  if exact and safe == name == name.lower():
    return name
  whole = json.dumps([source, sorted(overrides.items())], default=repr)
  return f"{safe}~{hashlib.sha256(whole.encode()).hexdigest()[:12]}"


def text_of(value) -> tuple[str, bool]:
  """(a value's text in a name, whether no other value has that text)."""
  if isinstance(value, str):
    return value, bool(EXACT.fullmatch(value)) and value not in (
      "true",
      "false",
      "null",
    )
  return json.dumps(value, default=repr), isinstance(value, int | float)
