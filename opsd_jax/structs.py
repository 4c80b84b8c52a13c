"""The nouns of this codebase, and the letters of its axes.

  R  rows of tokens                           V  vocabulary
  L  tokens of a padded row                   D  model width
  B  parts of a batch: what a device takes    F  MLP width
     at a time; in a model, rows              H  query heads
  T  response tokens of a part                K  key/value heads
  N  layers                                   C  channels of a head
  S  slots of the KV cache

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


UNJUDGED = "not judged"  # how feedback begins that says why


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a task says of one reply: a score in [0, 1] and the answer it read.

  Where the judge failed, or ran out of time or memory, the score is 0 and the
  feedback begins with UNJUDGED.
  """

  score: float
  answer: str | None = None  # None: no answer was found in the text
  feedback: str = ""

  @property
  def is_judged(self) -> bool:
    return not self.feedback.startswith(UNJUDGED)


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
  """The responses of a batch as one side reads them, in rows of token ids.

  A row holds one or more sequences, a prompt and what answers it. A token sees
  the tokens before it in its row that are of its own segment or of the segment
  its own grew from, `parent` (a prompt that several responses share). Without
  segments a row is one sequence.

  `at_BxT` is where the state that predicts each response token stands among the
  tokens of its part's rows, so two views of one response are aligned whatever
  their prompts and wherever they stand.
  """

  ids_RxL: Any  # int32
  at_BxT: Any  # int32, 0 where there is no token
  pos_RxL: Any = None  # int32, place in the sequence; None: place in the row
  segment_RxL: Any = None  # int32, from 1; 0 is padding
  parent_RxL: Any = None  # int32; its own where nothing is shared


class Token(NamedTuple):
  """The response tokens of each part, one response after the other."""

  y_BxT: Any  # int32, end-of-turn included
  mask_BxT: Any  # float32, 1 on tokens, 0 on padding
  index_BxT: Any  # int32, place in its response, from 0
  length_BxT: Any  # int32, tokens of its response; 0 on padding
  response_BxT: Any  # int32, which of the process's responses
  sampler_logp_BxT: Any  # float32, nats at temperature 1; 0 where unknown
  # where rewards are learned from, else None:
  advantage_BxT: Any = None  # float32, its response's
  sampled_logp_BxT: Any = None  # float32, nats under what it was drawn from
  # float32, logp_BxT at the first update on this batch; NaN: this is the first
  old_logp_BxT: Any = None


class Batch(NamedTuple):
  """What one training step learns from."""

  student: View
  teacher: View
  token: Token


class PerToken(NamedTuple):
  """Statistics of each response token; float32, nats, 0 where masked."""

  div_BxT: Any  # the configured divergence
  logp_BxT: Any  # student log-prob of y at the loss temperature
  raw_logp_BxT: Any  # the same at temperature 1
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
