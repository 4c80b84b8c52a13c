"""One way to choose a function by name from a family's table, with the fields of
its config node as keywords."""

import functools
import inspect


def pick(table: dict, name: str, **kw):
  """`table[name]` with keywords bound, or `table[name]` itself without any.

  Raises ValueError with the known names, or the accepted keywords.
  """
  if name not in table:
    raise ValueError(f"unknown name {name!r}, known: {', '.join(table)}")
  function = table[name]
  if not kw:
    return function
  accepted = inspect.signature(function).parameters
  open_ended = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
  unknown = [] if open_ended else [k for k in kw if k not in accepted]
  if unknown:
    raise ValueError(
      f"{name} does not take {', '.join(unknown)}; it takes {', '.join(accepted)}"
    )
  return functools.partial(function, **kw)


def accepted(function, fields: dict) -> dict:
  """Those fields that a function takes. A config node holds every member's
  fields (`beta` stands there also when the divergence is forward_kl)."""
  names = inspect.signature(function).parameters
  return {name: fields[name] for name in names if name in fields}


def bind(table: dict, node, **more):
  """The function that a config node names, with those of its fields and of
  `more` that it takes; ValueError for an unknown name."""
  function = pick(table, node.name)
  fields = {**node, **more}
  return functools.partial(function, **accepted(function, fields))


def check_share(name: str, value) -> None:
  """Raises ValueError for a number outside [0, 1]; what is traced passes."""
  if isinstance(value, (int, float)) and not 0 <= value <= 1:
    raise ValueError(f"{name} is {value}, expected 0 to 1")
