"""One line that names a thing and its settings: `head,key=value,key=value`.

So are written a config's argument (`tiny,control=other`), a task
(`reasoning_gym:chain_sum,max_terms=3`), a source of problems
(`hf:org/name,split=test`) and a set to evaluate on (`a.jsonl,task=maths`).
"""


def parse(text: str, keys=None) -> tuple[str, dict[str, str]]:
  """(head, {key: value}) of a line; `keys` are the known ones, None: any.

  Where keys are known, a part that is none of them belongs to the head, wherever
  it stands: a path may hold commas and "=". Else the first part is the head.
  """
  head, options = [], {}
  for part in text.split(","):
    key, is_pair, value = part.partition("=")
    if is_pair and (head if keys is None else key in keys):
      options[key] = value
    else:
      head.append(part)
  return ",".join(head), options
