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


def save(stream, problems: str, host_memory=None) -> dict:
  """The iterator's state, as JSON can hold it, and the content of host memory.

  `problems`: digest of the problems that the iterator runs over.
  """
  iterator_state = {"stream": stream.get_state(), "problems": problems}
  if host_memory is not None:  # a copy: it is written while later steps add to it
    iterator_state["memory"] = copy.deepcopy(host_memory.state)
  return iterator_state


def restore(stream, problems: str, saved: dict) -> None:
  """Moves the iterator to a saved state; ValueError where the problems changed."""
  if saved["problems"] != problems:
    raise ValueError(
      "the problems are not those that this run began with: the content of"
      " data.train or data.eval has changed. Restore it, or give another"
      " --workdir"
    )
  stream.set_state(saved["stream"])


def digest(*lists) -> str:
  """sha256 of the problems' ids and texts, in their order, list by list."""
  found = hashlib.sha256()
  for problems in lists:
    found.update(f"{len(problems)} ".encode())
    for e in (p.example for p in problems):
      text = json.dumps([e.id, e.question, e.solution, e.answer])
      found.update(text.encode())
  return found.hexdigest()
