"""What contexts remember from one step to the next: JSON, on the host.

It is updated from the gathered responses of all processes, so that it is the
same on each, and saved beside the data iterator's state.
"""

from opsd_jax.runtime import distributed


class HostMemory:
  """The last right response to each problem."""

  def __init__(self, state: dict | None = None):
    self.state = {"right": {}} if state is None else state  # id -> text

  def best(self, example_id: str) -> str | None:
    return self.state["right"].get(example_id)

  def update(self, groups) -> None:
    """Takes in a step's verified groups; every process calls it."""
    local = [
      (r.prompts.example.id, r.completion.text)
      for group in groups
      for r in group
      if r.verdict.is_correct and not r.is_copy
    ]
    for part in distributed.gather(local):
      self.state["right"].update(map(tuple, part))
