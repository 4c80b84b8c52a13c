"""One way to choose a function by name from a family's table."""

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
