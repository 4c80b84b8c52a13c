"""Parser of `head,key=value,key=value`, the form of every name with options.

A config's argument (`tiny,control=other`), a task
(`reasoning_gym:chain_sum,max_terms=3`), a source of problems
(`hf:org/name,split=test`), a set to evaluate on (`a.jsonl,task=maths`), and arguments
of a chat template (`enable_thinking=false,date_string=26 Jul 2024`).
"""

import json


def parse(text: str, keys=None) -> tuple[str, dict[str, str]]:
  """(head, {key: value}) of a text.

  `keys`: the known keys. A part with another key belongs to the head, wherever it
  stands, because a path may contain commas and "=". None: all keys are known, and
  the first part is the head.
  """
  head, options = [], {}
  for part in text.split(","):
    key, is_pair, value = part.partition("=")
    if is_pair and (head if keys is None else key in keys):
      options[key] = value
    else:
      head.append(part)
  return ",".join(head), options


def arguments(text: str) -> dict:
  """{"key": value} of `key=value,key=value`: true, false, null and numbers as JSON
  has them, everything else text, which holds no comma. Raises ValueError for a part without `=`."""
  found = {}
  for part in filter(None, text.split(",")):
    key, is_pair, value = part.partition("=")
    if not (is_pair and key.strip().isidentifier()):
      raise ValueError(f"{part!r} in {text!r}, expected key=value,key=value")
    word = {"True": "true", "False": "false", "None": "null"}.get(value, value)
    try:
      found[key.strip()] = json.loads(word)
    except json.JSONDecodeError:
      found[key.strip()] = value
  return found
