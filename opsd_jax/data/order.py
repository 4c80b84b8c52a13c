"""The order of training problems: an endless shuffled Grain iterator.

Its state is saved beside the checkpoint instead of derived from the step, because
dynamic sampling draws further problems until enough of them are informative.
"""

import copy
import hashlib
import itertools
import json

import grain


def endless(problems, seed: int):
  """A Grain iterator over `problems`, reshuffled every epoch by `seed`.

  It is the same on every process; each takes its local shard of a draw.
  """
  order = grain.MapDataset.source(problems).seed(seed).shuffle().repeat()
  return iter(order.to_iter_dataset(grain.ReadOptions(num_threads=0)))


def draw(stream, count: int) -> list:
  """The next `count` problems."""
  return list(itertools.islice(stream, count))


def save(stream, problems: str, **kept) -> dict:
  """The iterator's state, as JSON can hold it, and what else the host keeps from
  step to step.

  Args:
    stream: of `endless`.
    problems: digest of the problems that it runs over.
    kept: by name what has a `state`, JSON too; or None.
  """
  states = {name: x.state for name, x in kept.items() if x is not None}
  # A copy: it is written while later steps add to it.
  states = copy.deepcopy(states)
  return {"stream": stream.get_state(), "problems": problems, **states}


def restore(stream, problems: str, saved: dict, **kept) -> None:
  """Moves the iterator, and what `save` was given beside it, to a saved state;
  ValueError where the problems changed."""
  if saved["problems"] != problems:
    raise ValueError(
      "the prompts are not those that this run began with: the content of data.train"
      " or data.eval has changed, or the chat template, or another version of this code"
      " words them. Restore it, or give another --workdir"
    )
  stream.set_state(saved["stream"])
  for name, x in kept.items():
    if x is not None:
      x.state = saved[name]


def digest(*lists) -> str:
  """sha256 of the problems' ids, texts and prompts in every view, in their order,
  list by list."""
  found = hashlib.sha256()
  for problems in lists:
    found.update(f"{len(problems)} ".encode())
    for e, views in problems:
      text = json.dumps([e.id, e.question, e.solution, e.answer, views])
      found.update(text.encode())
  return found.hexdigest()
