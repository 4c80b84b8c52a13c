"""Records of a run: metrics.jsonl, TensorBoard, lines of progress."""

import math
import time

from tqdm import tqdm

from opsd_jax.runtime import paths

EVERY = 20  # seconds between lines of progress without a terminal
LINE = (
  "{desc} {n_fmt}/{total_fmt}{postfix}, {elapsed} so far, {remaining} left, {rate_fmt}"
)


class Writer:
  """metrics.jsonl (one object a line, with its step) and TensorBoard.

  A number that is not finite is null in the file, and `nulls` counts them.

  On a disk a row is appended at once. An object in a store cannot be appended
  to: rows are kept in memory and the object is written anew, at most every `every`
  seconds, and at every `flush`. Only the process with `writes` touches files.
  """

  def __init__(
    self, workdir, tensorboard: bool, *, writes: bool = True, every: float = 60
  ):
    self.path = workdir / "metrics.jsonl"
    self.writes, self.every, self.flushed = writes, every, time.time()
    if not writes:
      return
    # Lines kept in memory for an object store; None on a disk.
    self.kept = [] if paths.is_remote(workdir) else None
    if self.kept is None:
      self.path.touch()
    elif self.path.exists():
      self.kept = self.path.read_text().splitlines()
    self.board_dir = workdir / "tb"
    self.board = open_board(self.board_dir) if tensorboard else None

  def write(self, step: int, row: dict) -> None:
    if not self.writes:
      return
    if nulls := sum(not math.isfinite(value) for value in row.values()):
      row = row | {"nulls": nulls}
    line = paths.to_json({"step": step, **row})
    if self.kept is None:
      with self.path.open("a") as f:
        f.write(line + "\n")
    else:
      self.kept.append(line)
      if time.time() - self.flushed >= self.every:
        self.flush()
    if self.board:
      for name, value in row.items():
        self.board.add_scalar(name, value, step)

  def flush(self) -> None:
    """After it all rows written so far survive a kill."""
    if self.writes and self.kept is not None:
      self._replace(self.kept)
      self.flushed = time.time()

  def _replace(self, lines) -> None:
    paths.write_whole(self.path, "".join(line + "\n" for line in lines))

  def rows(self) -> list[dict]:
    """All rows; a line that a kill cut short is left out."""
    lines = self.path.read_text().splitlines() if self.kept is None else self.kept
    return paths.whole_rows(lines)

  def seconds(self) -> float:
    """Seconds summed over the logged `time/*` fields."""
    return sum(v for r in self.rows() for k, v in r.items() if "time/" in k)

  def rewind(self, step: int) -> None:
    """Removes the rows after `step`, which a resumed run writes again."""
    if not self.writes:
      return
    if self.board:  # a resumed run's events replace those after `step`
      self.board.close()
      self.board = open_board(self.board_dir, purge_step=step + 1)
    lines = [paths.to_json(r) for r in self.rows() if r["step"] <= step]
    if self.kept is not None:
      self.kept = lines
    self._replace(lines)

  def close(self) -> None:
    self.flush()
    if self.writes and self.board:
      self.board.close()


def open_board(directory, purge_step: int | None = None):
  """A TensorBoard writer, which hides earlier events from `purge_step` on; where it
  cannot be made, one warning and None."""
  try:
    if paths.is_remote(directory):
      paths.need("google.cloud.storage", "google-cloud-storage")
    from tensorboardX import SummaryWriter  # deferred: slow, and may be missing

    return SummaryWriter(str(directory), purge_step=purge_step)
  except (OSError, ImportError) as e:
    print(f"warning: no TensorBoard in {directory}: {e}", flush=True)
  return None


def progress(total: int, done: int, title: str, *, shown: bool, file) -> tqdm:
  """A progress bar.

  Args:
    total, done: steps in all, and those before this process started.
    title: text in front of the bar.
    shown: False prints nothing.
    file: a terminal gets a bar, any other file a line every EVERY seconds.
  """
  is_terminal = file.isatty()
  return tqdm(
    total=total,
    initial=done,
    desc=title,
    disable=not shown,
    file=file,
    dynamic_ncols=True,
    miniters=1,
    mininterval=0.1 if is_terminal else EVERY,
    bar_format=None if is_terminal else LINE,
  )
