"""Tasks that only verify: their problems come from a file."""

import functools

from opsd_jax.structs import Example, Verdict
from opsd_jax.tasks.grading import extract
from opsd_jax.tasks.task import Task


class NoReference(ValueError):
  """An example has no answer to compare a completion with."""


def task(name: str, verify):
  """An entry of tasks.ALL, `(options, privileged_field) -> tasks.Task`, made from
  `verify(reference, text) -> Verdict`."""

  def examples(seed: str):
    raise ValueError(
      f"task.name={name} only verifies and generates no problems: set data.train and"
      " data.eval to files"
    )

  def open_task(options: str, privileged_field: str):
    if options:
      raise ValueError(f"{name} takes no options, got {options!r}")
    return Task(examples, functools.partial(checked, verify))

  return open_task


def checked(verify, example: Example, text: str) -> Verdict:
  """Raises NoReference where, without an answer, every completion would be wrong."""
  if not (example.answer or "").strip():
    raise NoReference(f"example {example.id} has no answer to compare with")
  return verify(example.answer, extract.reply(text))
