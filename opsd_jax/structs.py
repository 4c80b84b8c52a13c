"""The nouns of this codebase, and the letters of its axes.

  B  rows of a batch (one response each)      V  vocabulary
  L  tokens of a padded row                   D  model width
  T  response tokens (the window compared)    F  MLP width
  N  layers                                   H  query heads
  S  slots of the KV cache                    K  key/value heads
                                              C  channels of a head

An array is named with its axes, `logp_BxTxV`; scalars and trees carry no
suffix. What crosses into a compiled function is a NamedTuple and therefore a
pytree; what stays on the host is a frozen dataclass. Nothing here imports jax,
so that tasks and verifiers can run in light worker processes.
"""

import dataclasses
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True)
class Example:
  """One problem. `solution` and `answer` are privileged: no student sees them."""

  id: str  # unique in its dataset; seeds the row's randomness
  question: str
  solution: str | None  # worked reference, as the teacher is shown it
  answer: str | None  # short final answer, as the verifier compares it
  metadata: Any = None  # whatever the task's own verifier needs


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a task says of one reply: a score in [0, 1] and the answer it read."""

  score: float
  answer: str | None = None  # None: no answer was found in the text
  feedback: str = ""


class Completion(NamedTuple):
  """One response. `ids` ends with end-of-turn unless truncated."""

  text: str
  ids: tuple[int, ...]
  logp: tuple[float, ...] | None  # nats, the model's own; None: not sampled
  truncated: bool
  sampled_logp: tuple[float, ...] | None = None  # nats, what was sampled from


class Problem(NamedTuple):
  """An example as both sides are asked it, in token ids."""

  example: Example
  student_ids: tuple[int, ...]
  teacher_ids: tuple[int, ...]


class Rollout(NamedTuple):
  """One response to one problem."""

  problem: Problem
  completion: Completion


class View(NamedTuple):
  """A response as one side reads it: right-padded rows, prompt then response.

  `at_BxT[b, t]` is the index in row b of the state that predicts response token
  t, so two views of one response are aligned whatever their prompts.
  """

  ids_BxL: Any  # int32
  at_BxT: Any  # int32, 0 where there is no token


class Batch(NamedTuple):
  """What one training step learns from."""

  student: View
  teacher: View
  y_BxT: Any  # int32 response tokens, the same for both views
  mask_BxT: Any  # float32, 1 on response tokens, end-of-turn included
  sampler_logp_BxT: Any  # float32, nats at temperature 1; 0 where unknown


class PerToken(NamedTuple):
  """Statistics of each response token; float32, nats, 0 where masked."""

  div_BxT: Any  # the configured divergence; carries the student's gradient
  logp_BxT: Any  # student log-prob of y at the loss temperature; with gradient
  raw_logp_BxT: Any  # the same at temperature 1; no gradient
  teacher_logp_BxT: Any  # teacher log-prob of y at the loss temperature
  entropy_BxT: Any  # student
  teacher_entropy_BxT: Any
  clipped_BxT: Any  # fraction of the token's vocabulary entries a clip changed


class State(NamedTuple):
  """All that training remembers. Randomness is not in it: keys derive from
  (seed, step, role, example, sample), so a resumed run repeats exactly."""

  step: Any  # int32 scalar, optimiser steps taken
  params: Any
  opt: Any
  teacher: Any  # the teacher's own memory, () for a live one
