"""Parser of `head,key=value,key=value`, the form of every name with options.

A config's argument (`tiny,control=other`), a task
(`reasoning_gym:chain_sum,max_terms=3`), a source of problems
(`hf:org/name,split=test`) and a set to evaluate on (`a.jsonl,task=maths`).
"""


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
