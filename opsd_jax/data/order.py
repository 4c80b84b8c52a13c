"""The order in which training meets its problems: Grain over their list.

The place in it is saved beside the state and not a function of the step: a
method may draw until enough problems have something to teach.
"""

import hashlib
import itertools
import json

import grain


def endless(problems, seed: int):
  """A Grain iterator over `problems`, reshuffled every epoch by `seed`.

  The same on every process, which takes its share of what is drawn.
  """
  order = grain.MapDataset.source(problems).seed(seed).shuffle().repeat()
  return iter(order.to_iter_dataset(grain.ReadOptions(num_threads=0)))


def draw(stream, count: int) -> list:
  return list(itertools.islice(stream, count))


def save(stream, problems: str, host_memory=None) -> dict:
  """The stream's place as JSON; `problems` is the digest of what it is in. Beside
  it stands what contexts remember."""
  place = {"stream": stream.get_state(), "problems": problems}
  return place | ({} if host_memory is None else {"memory": host_memory.state})


def restore(stream, problems: str, saved: dict) -> None:
  """Goes to a saved place; ValueError where it is one in other problems."""
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
