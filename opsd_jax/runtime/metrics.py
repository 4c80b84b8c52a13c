"""What a run records: metrics.jsonl, TensorBoard, samples, the picture."""

import json
import time

from tqdm import tqdm

from opsd_jax.runtime import paths

EVERY = 20  # seconds between two lines of progress where there is no terminal
LINE = (
  "{desc} {n_fmt}/{total_fmt}{postfix}, {elapsed} so far, {remaining} left, {rate_fmt}"
)


class Writer:
  """metrics.jsonl (one object a line, with its step) and TensorBoard.

  On a disk a row is appended at once. An object in a store cannot be appended
  to: there rows are kept and the object is written anew every `every`
  seconds at most, and at every `flush`. Of several processes one `writes`;
  that of the others touches nothing.
  """

  def __init__(
    self, workdir, tensorboard: bool, *, writes: bool = True, every: float = 60
  ):
    self.path = workdir / "metrics.jsonl"
    self.writes, self.every, self.flushed = writes, every, time.time()
    if not writes:
      return
    self.kept = [] if paths.is_remote(workdir) else None  # lines, or on disk
    if self.kept is None:
      self.path.touch()
    elif self.path.exists():
      self.kept = self.path.read_text().splitlines()
    self.board = open_board(workdir / "tb") if tensorboard else None

  def write(self, step: int, row: dict) -> None:
    if not self.writes:
      return
    line = json.dumps({"step": step, **row})
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
    """From here on what was written survives a kill."""
    if self.writes and self.kept is not None:
      self._replace(self.kept)
      self.flushed = time.time()

  def _replace(self, lines) -> None:
    paths.write_whole(self.path, "".join(line + "\n" for line in lines))

  def rows(self) -> list[dict]:
    """All rows; a line torn by a kill is left out."""
    lines = self.path.read_text().splitlines() if self.kept is None else self.kept
    return paths.whole_rows(lines)

  def seconds(self) -> float:
    """What the rows say of their time, in all."""
    return sum(v for r in self.rows() for k, v in r.items() if "time/" in k)

  def rewind(self, step: int) -> None:
    """Forgets what was written after `step`; resuming writes it again."""
    if not self.writes:
      return
    lines = [json.dumps(r) for r in self.rows() if r["step"] <= step]
    if self.kept is not None:
      self.kept = lines
    self._replace(lines)

  def close(self) -> None:
    self.flush()
    if self.writes and self.board:
      self.board.close()


def open_board(directory):
  """A TensorBoard writer, or None and one warning where there cannot be one."""
  try:
    if paths.is_remote(directory):
      paths.need("google.cloud.storage", "google-cloud-storage")
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(directory))
  except (OSError, ImportError) as e:
    print(f"warning: no TensorBoard in {directory}: {e}", flush=True)
  return None


def progress(total: int, done: int, what: str, *, shown: bool, file) -> tqdm:
  """A bar on a terminal, else a line now and then; nothing unless `shown`."""
  is_terminal = file.isatty()
  return tqdm(
    total=total,
    initial=done,
    desc=what,
    disable=not shown,
    file=file,
    dynamic_ncols=True,
    miniters=1,
    mininterval=0.1 if is_terminal else EVERY,
    bar_format=None if is_terminal else LINE,
  )
