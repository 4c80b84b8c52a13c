"""JSON encoding of the examples that are sent to a worker."""

import fractions

from opsd_jax.structs import Example

TAG = "\u0000type"  # key that marks a type that JSON lacks


def pack(example: Example) -> list:
  """The fields of an Example, its metadata encoded."""
  return [
    example.id,
    example.question,
    example.solution,
    example.answer,
    encode(example.metadata),
  ]


def encode(value):
  """JSON from which `decode` restores the value: tuples, sets, fractions and dicts
  with keys that are not strings are tagged. Raises TypeError for other types."""
  if value is None or isinstance(value, (str, bool, int, float)):
    return value
  if isinstance(value, list):
    return [encode(v) for v in value]
  if isinstance(value, dict):
    if all(isinstance(k, str) for k in value) and TAG not in value:
      return {k: encode(v) for k, v in value.items()}
    pairs = [[encode(k), encode(v)] for k, v in value.items()]
    return {TAG: "dict", "of": pairs}
  if isinstance(value, fractions.Fraction):
    return {TAG: "Fraction", "of": [str(value)]}
  for kind in (tuple, set, frozenset):
    if type(value) is kind:
      return {TAG: kind.__name__, "of": [encode(v) for v in value]}
  raise TypeError(
    f"metadata holds a {type(value).__name__}, expected JSON types,"
    " fractions, tuples and sets"
  )


MAKE = {
  "tuple": tuple,
  "set": set,
  "frozenset": frozenset,
  "dict": dict,
  "Fraction": lambda text: fractions.Fraction(*text),
}


def decode(value):
  if isinstance(value, list):
    return [decode(v) for v in value]
  if not isinstance(value, dict):
    return value
  if TAG in value:
    return MAKE[value[TAG]](decode(v) for v in value["of"])
  return {k: decode(v) for k, v in value.items()}
