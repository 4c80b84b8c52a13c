"""What a run records: metrics.jsonl, TensorBoard, samples, the picture."""

import io
import json
import os
import sys
import time

import numpy as np
from tqdm import tqdm

from opsd_jax import files


class Writer:
  """metrics.jsonl (one object a line, with its step) and TensorBoard.

  On a disk a row is appended at once. An object in a store cannot be appended
  to: there rows are kept and the object is written anew every `every`
  seconds at most, and at every `flush`.
  """

  def __init__(self, workdir, tensorboard: bool, every: float = 60):
    self.path = workdir / "metrics.jsonl"
    self.every, self.flushed = every, time.time()
    self.kept = [] if files.is_remote(workdir) else None  # lines, or on disk
    if self.kept is None:
      self.path.touch()
    elif self.path.exists():
      self.kept = self.path.read_text().splitlines()
    self.board = open_board(workdir / "tb") if tensorboard else None

  def write(self, step: int, row: dict) -> None:
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
    if self.kept is not None:
      self._replace(self.kept)
      self.flushed = time.time()

  def _replace(self, lines) -> None:
    files.write_whole(self.path, "".join(line + "\n" for line in lines))

  def rows(self) -> list[dict]:
    """All rows; a line torn by a kill is left out."""
    rows, lines = [], self.kept
    if lines is None:
      lines = self.path.read_text().splitlines()
    for line in lines:
      try:
        rows.append(json.loads(line))
      except json.JSONDecodeError:
        continue
    return rows

  def seconds(self) -> float:
    """What the rows say of their time, in all."""
    return sum(v for r in self.rows() for k, v in r.items() if "time/" in k)

  def rewind(self, step: int) -> None:
    """Forgets what was written after `step`; resuming writes it again."""
    lines = [json.dumps(r) for r in self.rows() if r["step"] <= step]
    if self.kept is not None:
      self.kept = lines
    self._replace(lines)

  def close(self) -> None:
    self.flush()
    if self.board:
      self.board.close()


class Silent:
  """The writer of every process but the first."""

  path = "metrics.jsonl"

  def write(self, step: int, row: dict) -> None:
    pass

  def flush(self) -> None:
    pass

  def rewind(self, step: int) -> None:
    pass

  def close(self) -> None:
    pass


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


class Bar:
  """Progress with time left: a bar on a terminal, else a line now and then."""

  def __init__(self, total: int, initial: int, what: str, seconds: float = 20):
    self.total, self.done, self.what, self.every = total, initial, what, seconds
    self.began = self.spoken = time.time()
    self.initial = initial
    self.bar = (
      tqdm(total=total, initial=initial, desc=what, dynamic_ncols=True)
      if sys.stdout.isatty()
      else None
    )

  def update(self, row: dict) -> None:
    self.done += 1
    note = f"loss {row['loss']:.3f}"
    if self.bar is not None:
      self.bar.set_postfix_str(note, refresh=False)
      self.bar.update()
    elif time.time() - self.spoken > self.every or self.done == self.total:
      self.spoken = time.time()
      each = (self.spoken - self.began) / (self.done - self.initial)
      left = each * (self.total - self.done)
      print(
        f"{self.what} {self.done}/{self.total}  {note}"
        f"  {each:.1f} s a step, {left:.0f} s left",
        flush=True,
      )

  def close(self) -> None:
    if self.bar is not None:
      self.bar.close()


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


BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"  # colour-blind safe


def plot(rows, summary: dict, path):
  """Accuracy, loss and drift over steps, as a PNG; returns the figure."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  evals = [r for r in rows if "eval/accuracy" in r]
  steps = [r["step"] for r in rows if "loss" in r]
  figure, axes = plt.subplots(1, 3, figsize=(13, 4.4), layout="constrained")
  for key, label, colour in (
    ("eval/accuracy", "student, greedy", BLUE),
    ("eval/sampled_accuracy", "student, sampled", ORANGE),
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
  for name, label, style in (
    ("accuracy_teacher", "privileged teacher", "--"),
    ("accuracy_base", "base", ":"),
  ):
    if name in summary:
      axes[0].axhline(summary[name], color=GREY, ls=style, label=label)
  axes[0].set(
    title="Accuracy on unseen problems (95% intervals)",
    ylim=(0, 1.02),
    xlabel="step",
    ylabel="share right",
  )
  axes[0].legend(
    loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False
  )
  axes[1].plot(steps, [r["loss"] for r in rows if "loss" in r], color=BLUE)
  axes[1].set(title="Training loss", xlabel="step", ylabel="nats a token")
  axes[2].plot(
    [r["step"] for r in evals], [r["eval/drift"] for r in evals], "o-", color=BLUE
  )
  axes[2].set(
    title="Drift: KL(base || model), unrelated prompts",
    xlabel="step",
    ylabel="nats a token",
  )
  for axis in axes:
    axis.set_xlim(left=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.2)
  axes[2].set_ylim(bottom=0)
  image = io.BytesIO()  # a store takes whole objects
  figure.savefig(image, dpi=120, format="png")
  path.write_bytes(image.getvalue())
  plt.close(figure)
  return figure
