"""Tasks that only judge: their problems come from a file."""

import functools

from opsd_jax.structs import Example, Verdict
from opsd_jax.tasks.task import Task


class NoReference(ValueError):
  """An example has no answer to compare a reply with."""


def task(name: str, verify):
  """A family of tasks.ALL, `(options, privileged_field) -> tasks.Task`, from
  `verify(reference, text) -> Verdict`."""

  def examples(seed: str):
    raise ValueError(
      f"{name} judges replies and has no problems of its own: set"
      " config.data.train and config.data.eval"
    )

  def opened(options: str, privileged_field: str):
    if options:
      raise ValueError(f"{name} takes no options, got {options!r}")
    return Task(examples, functools.partial(checked, verify))

  return opened


def checked(verify, example: Example, text: str) -> Verdict:
  """Raises NoReference rather than call every reply wrong."""
  if not (example.answer or "").strip():
    raise NoReference(f"example {example.id} has no answer to compare with")
  return verify(example.answer, text)
