"""Functions chosen by name from a family's table, with config fields as keywords."""

import functools
import inspect


def pick(table: dict, name: str, **kw):
  """`table[name]`, with keywords bound if any.

  Raises ValueError naming the known names, or the accepted keywords.
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
  """The fields that a function takes. A config node has the fields of every member
  of a family: `beta` is there even if the divergence is forward_kl."""
  names = inspect.signature(function).parameters
  return {name: fields[name] for name in names if name in fields}


def bind(table: dict, node, **more):
  """The function that a config node names, with the fields of the node and of `more`
  that it takes as keywords; ValueError for an unknown name."""
  function = pick(table, node.name)
  fields = {**node, **more}
  return functools.partial(function, **accepted(function, fields))


def check_share(name: str, value) -> None:
  """Raises ValueError for a number outside [0, 1]; traced values pass."""
  if isinstance(value, (int, float)) and not 0 <= value <= 1:
    raise ValueError(f"{name} is {value}, expected 0 to 1")
