"""What a run records: metrics.jsonl, TensorBoard, samples, the picture."""

import json
import os
import sys
import time

import numpy as np
from tqdm import tqdm

from opsd_jax import files, style

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
    self.kept = [] if files.is_remote(workdir) else None  # lines, or on disk
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
    files.write_whole(self.path, "".join(line + "\n" for line in lines))

  def rows(self) -> list[dict]:
    """All rows; a line torn by a kill is left out."""
    lines = self.path.read_text().splitlines() if self.kept is None else self.kept
    return files.whole_rows(lines)

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
    if files.is_remote(directory):
      files.need("google.cloud.storage", "google-cloud-storage")
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


RAMP = (255, 229, 222, 215, 208, 202, 196)  # ANSI: white over yellow to red


def coloured(tokens, kl, scale: float = 2.0) -> str:
  """A response, each token on a ground from white (0) to red (`scale` nats);
  without colours, `token(kl)`."""
  if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
    return " ".join(f"{t!r}({k:.2f})" for t, k in zip(tokens, kl, strict=True))

  def level(k):
    return np.clip(np.nan_to_num(k, nan=scale) / scale, 0, 0.999)

  def shade(k):
    return RAMP[int(level(k) * len(RAMP))]

  return "".join(
    f"\x1b[30;48;5;{shade(k)}m{t}\x1b[0m" for t, k in zip(tokens, kl, strict=True)
  )


def plot(rows, summary: dict, path):
  """Accuracy, loss and drift over steps, as a PNG; returns the figure."""
  evals = [r for r in rows if "eval/accuracy" in r]
  steps = [r["step"] for r in rows if "loss" in r]
  figure = style.figure(13, 4.4)
  axes = figure.subplots(1, 3)
  for key, label, colour in (
    ("eval/accuracy", "student, greedy", style.BLUE),
    ("eval/sampled_accuracy", "student, sampled", style.ORANGE),
  ):
    x = [r["step"] for r in evals if key in r]
    if not x:
      continue

    def column(end, key=key):
      return [r[key + end] for r in evals if key in r]

    axes[0].plot(x, column(""), "o-", color=colour, label=label)
    axes[0].fill_between(
      x, column("_ci_low"), column("_ci_high"), color=colour, alpha=0.15, lw=0
    )
  for name, label, dashes in (
    ("accuracy_teacher", "privileged teacher", "--"),
    ("accuracy_base", "base", ":"),
  ):
    if name in summary:
      axes[0].axhline(summary[name], color=style.GREY, ls=dashes, label=label)
  axes[0].set(
    title="Accuracy on unseen problems (95% intervals)",
    ylim=(0, 1.02),
    xlabel="step",
    ylabel="share right",
  )
  axes[0].legend(
    loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False
  )
  axes[1].plot(steps, [r["loss"] for r in rows if "loss" in r], color=style.BLUE)
  axes[1].set(title="Training loss", xlabel="step", ylabel="nats a token")
  axes[2].plot(
    [r["step"] for r in evals], [r["eval/drift"] for r in evals], "o-", color=style.BLUE
  )
  axes[2].set(
    title="Drift: KL(base || model), unrelated prompts",
    xlabel="step",
    ylabel="nats a token",
  )
  for axis in axes:
    axis.set_xlim(left=0)
  axes[2].set_ylim(bottom=0)
  style.frame(*axes)
  style.save(figure, path)
  return figure
