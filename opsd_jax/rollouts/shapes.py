"""Which shape a batch takes: one of few, because each is compiled.

A batch takes a shape that was used before where that computes little more than its
own would; else its own, rounded up, joins the table. The table is saved beside the
data iterator's state, so that a resumed run rounds as it did.
"""

import heapq
from typing import NamedTuple

SLACK = 0.35  # how much more than its own a batch may compute in an older shape
ROOM = 1.125  # what a shape that had to be larger than all before leaves beyond it


class Shape(NamedTuple):
  """Response tokens of a part, and (rows, tokens of a row) of each view of it."""

  tokens: int
  views: tuple[tuple[int, int], ...]

  @property
  def cost(self) -> int:
    """Tokens that it computes, about."""
    return self.tokens + sum(rows * length for rows, length in self.views)


class Shapes:
  """The shapes that a run has used, of batches in so many parts."""

  def __init__(self, state: dict | None = None):
    self.state = {} if state is None else state  # parts -> shapes, as JSON

  def of(self, parts: int) -> list[Shape]:
    known = self.state.setdefault(str(parts), [])
    return [Shape(tokens, tuple(map(tuple, views))) for tokens, views in known]

  def fit(
    self, tokens: int, sizes, *, pack_len, bucket, response_bucket, all_reduce_max
  ) -> Shape:
    """The shape of a batch; the same on all processes.

    Args:
      tokens: response tokens that every part must hold.
      sizes: of each view the units' sizes, one list a part.
      pack_len, bucket, response_bucket, all_reduce_max: see `collate.collate`.
    """
    known = self.of(len(sizes[0]))
    counts = [max(rows_for(part, pack_len, bucket) for part in view) for view in sizes]

    def loads(rows_of_views):
      """Tokens of the longest row of each view; unpacked, a row holds one unit."""
      return [
        longest(view, R if pack_len else len(view[0]))
        for view, R in zip(sizes, rows_of_views, strict=True)
      ]

    rows_of = [[R for R, _ in shape.views] for shape in known]
    needed = [x for rows in rows_of for x in loads(rows)]
    tokens, *rest = all_reduce_max([tokens, *counts, *needed])
    V = len(sizes)
    counts, needed = rest[:V], rest[V:]
    lengths = [round_up(L, bucket) for L in all_reduce_max(loads(counts))]
    exact = Shape(
      round_up(tokens, response_bucket, digits=3),
      tuple(zip(counts, lengths, strict=True)),
    )

    def grown(shape, lengths):
      """The shape, or where it is too small one with some room beyond the batch."""
      counted = list(zip(shape.views, lengths, counts, strict=True))
      if tokens <= shape.tokens and all(
        wanted <= L and (pack_len or R >= least) for (R, L), wanted, least in counted
      ):
        return shape
      T = round_up(int(ROOM * tokens), response_bucket, digits=3)
      views = (
        (R if pack_len else max(R, least), max(L, round_up(int(ROOM * wanted), bucket)))
        for (R, L), wanted, least in counted
      )
      return Shape(max(shape.tokens, T), tuple(views))

    holding = [
      grown(shape, needed[i * V : (i + 1) * V]) for i, shape in enumerate(known)
    ]
    cheap = [shape for shape in holding if shape.cost <= (1 + SLACK) * exact.cost]
    best = min(cheap, key=lambda s: (s not in known, s.cost), default=exact)
    if best not in known:
      self.state[str(len(sizes[0]))].append([best.tokens, list(map(list, best.views))])
    return best


def round_up(length: int, multiple: int, digits: int = 4) -> int:
  """`length` rounded up to a multiple, at least one, and to `digits` binary
  digits: the longer, the coarser, so that few shapes are compiled."""
  coarse = 2 ** max(0, int(length).bit_length() - digits)
  step = -(-coarse // multiple) * multiple
  return max(1, -(-length // step)) * step


def pack(sizes, count: int) -> tuple[list[int], list[int]]:
  """(the row of each unit, tokens of each of `count` rows); greedy, at most
  4/3 of the best longest row (Graham 1969)."""
  if count == len(sizes):
    return list(range(count)), list(sizes)
  where, loads = [0] * len(sizes), [(0, r) for r in range(count)]
  for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
    load, row = heapq.heappop(loads)
    where[i] = row
    heapq.heappush(loads, (load + sizes[i], row))
  return where, [load for load, _ in sorted(loads, key=lambda x: x[1])]


def longest(parts, rows: int) -> int:
  """Tokens of the longest row where each part's units are packed into `rows`."""
  return max(max(pack(sizes, rows)[1]) for sizes in parts)


def rows_for(sizes, pack_len: int, bucket: int) -> int:
  """Into how many rows units of these sizes are packed: those of the fewest tokens
  in all, among numbers that make rows about as long as `pack_len` or the longest
  unit."""
  if not pack_len:
    return len(sizes)
  target, total = max(pack_len, *sizes), sum(sizes)
  most = min(len(sizes), max(1, round(1.5 * total / target)))
  least = max(1, min(most, round(total / target / 1.5)))
  tried = range(least, most + 1, max(1, (most - least) // 16))

  def computed(rows):
    return rows * (-(-longest([sizes], rows) // bucket) * bucket)

  return min(tried, key=lambda rows: (computed(rows), rows))
