"""The interface of a task."""

from collections.abc import Callable
from typing import NamedTuple


class Task(NamedTuple):
  examples: Callable  # (seed: str) -> iterator of Examples
  verify: Callable  # (example, text) -> Verdict
