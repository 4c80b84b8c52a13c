"""Controllers: values of fields from what a run has shown, `(history, **kw) -> {field:
value}`, before the rollouts of a step.

`history` holds the mean score of every step's responses so far, of all processes; it
is saved beside the data iterator's state, so that a resumed run decides alike. The
fields are those of a schedule, and the same ones whatever the history. Keywords are
fields of config.controller.
"""

import itertools

import numpy as np

from opsd_jax.losses import schedules
from opsd_jax.registry import bind


class History:
  """The scores of the steps so far, as JSON can hold them."""

  def __init__(self, state: list | None = None):
    self.state = [] if state is None else state

  def add(self, score: float) -> None:
    self.state.append(float(score))


def window_means(history, window: int) -> list[float]:
  """The mean of each `window` steps that are complete."""
  whole = len(history) // window * window
  return np.reshape(history[:whole], (-1, window)).mean(1).tolist()


def none(history) -> dict:
  """Nothing changes but by the schedule."""
  return {}


def reference_part(history, *, window: int, change: float) -> dict:
  """context.part, how much of the reference the teacher reads: all at first; after each
  window less by `change` where the score rose, and more where it did not (the idea of
  ATESD, arXiv:2605.11458, without its Beta distribution)."""
  part = 1.0
  for before, now in itertools.pairwise(window_means(history, window)):
    part = min(max(part + (-change if now > before else change), 0.0), 1.0)
  return {"context.part": part}


def retire_teacher(history, *, window: int, change: float) -> dict:
  """loss.distill.scale: 1 until a window's score is not above the one before it by more
  than `change`, and 0 from then on (the idea of RetireOPD, arXiv:2609.20784)."""
  means = window_means(history, window)
  stalled = any(now <= before + change for before, now in itertools.pairwise(means))
  return {"loss.distill.scale": float(not stalled)}


ALL = {"none": none, "reference_part": reference_part, "retire_teacher": retire_teacher}


def values(config, history) -> dict[str, float]:
  """What the controller of a config sets."""
  return bind(ALL, config.controller)(history)


def values_at(config, step: int, history) -> dict[str, float]:
  """{field: its value at this step}, by the schedule and by the controller."""
  return schedules.values_at(config.schedule, step) | values(config, history)


def changing(config) -> set[str]:
  """The fields that change with the step: by the schedule, or by the controller."""
  return {field for field, *_ in config.schedule} | set(values(config, []))
