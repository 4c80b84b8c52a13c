"""The nouns of this codebase, and the letters of its axes.

  R  rows of tokens                           V  vocabulary
  L  tokens of a padded row                   D  model width
  B  parts of a batch: what a device takes    F  MLP width
     at a time; in a model, rows              H  query heads
  T  response tokens of a part                K  key/value heads
  N  layers                                   C  channels of a head
  S  slots of the KV cache                    W  teacher views

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
  rejected: str | None = None  # a response that is not wanted, of preference pairs


UNVERIFIED = "not verified"  # prefix of `feedback` when the verifier itself failed


@dataclasses.dataclass(frozen=True)
class Verdict:
  """A task's score of one completion, in [0, 1], and the answer that it read.

  Where the verifier failed, or ran out of time or memory, the score is 0 and the
  feedback begins with UNVERIFIED.
  """

  score: float
  answer: str | None = None  # None: no answer was found in the text
  feedback: str = ""

  @property
  def is_correct(self) -> bool:
    return self.score >= 1

  @property
  def is_verified(self) -> bool:
    return not self.feedback.startswith(UNVERIFIED)


class Completion(NamedTuple):
  """One response. `ids` ends with end-of-turn unless truncated."""

  text: str
  ids: tuple[int, ...]
  logp: tuple[float, ...] | None  # nats, the model's own; None: not sampled
  truncated: bool
  sampled_logp: tuple[float, ...] | None = None  # nats, what was sampled from


class Prompts(NamedTuple):
  """One example as each view reads it, in token ids."""

  example: Example
  # The student's prompt first, then a prompt for each teacher view; () where
  # the view has none, or has one only once the responses are verified.
  views: tuple[tuple[int, ...], ...]

  @property
  def student_ids(self) -> tuple[int, ...]:
    return self.views[0]

  @property
  def teacher_ids(self) -> tuple[int, ...]:
    """The first teacher view's; () where there is none."""
    return self.views[1] if len(self.views) > 1 else ()


class Rollout(NamedTuple):
  """One response, and what each stage of a step adds to it."""

  prompts: Prompts
  completion: Completion
  # What the learner and the teachers read before it; (): no such view.
  views: tuple[tuple[int, ...], ...]
  role: str = "student"  # student, teacher, guided, dataset: see rollouts/sources
  verdict: Verdict | None = None
  advantage: float = float("nan")  # NaN: not compared with others
  weights: dict[str, float] = {}  # term: how much it counts there; else 1
  # nats a token under the policy that drew it, at the loss's temperature; None:
  # that is the learner itself, as it is at the first update
  old_logp: tuple[float, ...] | None = None
  # A second row of one completion: denominators count the first alone.
  is_copy: bool = False


class View(NamedTuple):
  """The responses of a batch after one view's prompts, in rows of token ids.

  A row holds one or more sequences, a prompt and what answers it. A token sees
  the tokens before it in its row that are of its own segment or of the segment
  its own grew from, `parent` (a prompt that several responses share). Without
  segments a row is one sequence.

  `predictor_BxT` is where the state that predicts each response token stands
  among the tokens of its part's rows, so all views of one response are aligned
  whatever their prompts and wherever they stand.
  """

  ids_RxL: Any  # int32
  predictor_BxT: Any  # int32, 0 where there is no token
  pos_RxL: Any = None  # int32, place in the sequence; None: place in the row
  segment_RxL: Any = None  # int32, from 1; 0 is padding
  parent_RxL: Any = None  # int32; its own where nothing is shared


class ResponseTokens(NamedTuple):
  """The response tokens of each part, one response after the other."""

  y_BxT: Any  # int32, end-of-turn included
  mask_BxT: Any  # float32, 1 on tokens, 0 on padding
  index_BxT: Any  # int32, place in its response, from 0
  length_BxT: Any  # int32, tokens of its response; 0 on padding
  response_BxT: Any  # int32, which of the process's responses
  sampler_logp_BxT: Any  # float32, nats at temperature 1; 0 where unknown
  # {term: float32}, how much a token counts there; absent: 1
  weights: dict = {}
  # {term: float32}, the token's advantage where scoring has made it
  credits: dict = {}
  # The rest is None where no term reads it:
  advantage_BxT: Any = None  # float32, its response's
  sampled_logp_BxT: Any = None  # float32, nats under what it was drawn from
  # float32, logp_BxT at the first update on this batch; NaN: this is the first
  old_logp_BxT: Any = None
  group_BxT: Any = None  # int32, which prompt it answers, of all processes
  counted_BxT: Any = None  # float32, 0 on the second row of one completion
  gumbel_BxT: Any = None  # float32, standard Gumbel noise, by (seed, step, row)
  # {view: float32}, 1 where its response has that view; absent: every one has
  exists: dict = {}


class Batch(NamedTuple):
  """What one training step learns from: view 0 is read by the learner, views 1,
  2, ... by teachers."""

  views: tuple[View, ...]
  tokens: ResponseTokens
  # {term: what its sum is divided by}, where scoring has counted it
  denominators: dict = {}


class TokenStats(NamedTuple):
  """What a step knows of each response token; float32, nats, 0 where masked."""

  logp_BxT: Any  # student log-prob of y at the loss temperature
  raw_logp_BxT: Any  # the same at temperature 1
  entropy_BxT: Any  # student
  values: dict  # {term: its number, such as the divergence}
  teacher_logp: dict  # {target: its log-prob of y at the loss temperature}
  teacher_entropy: dict  # {target: its entropy}
  clipped: dict  # {term: fraction of the vocabulary that its clip changed}
  # {target: {name: what its mixing has found, such as a gate}}
  numbers: dict = {}
  # {target: 1 where the response has the views that it reads}; absent: every one
  exists: dict = {}

  def of(self, term: str, target: str | None, against: str | None) -> "TermStats":
    """The statistics that one term's functions read."""
    return TermStats(
      self.values.get(term),
      self.logp_BxT,
      self.entropy_BxT,
      self.teacher_logp.get(target),
      self.teacher_entropy.get(target),
      self.teacher_logp.get(against),
      self.exists.get(target, 1.0) * self.exists.get(against, 1.0),
      self.numbers.get(target, {}),
    )


class TermStats(NamedTuple):
  """TokenStats as one term's token weight, credit and surrogate read them."""

  value_BxT: Any  # the term's own number; None before it is made
  logp_BxT: Any
  entropy_BxT: Any
  teacher_logp_BxT: Any  # of the term's target; None without one
  teacher_entropy_BxT: Any
  against_logp_BxT: Any = None  # of the second target that the term names
  has_teacher_BxT: Any = 1.0  # 1 where the response has the views of both
  numbers: dict = {}  # what the mixing of the term's target has found


class State(NamedTuple):
  """All that training remembers. Randomness is not in it: keys derive from
  (seed, step, role, example, sample), so a resumed run repeats exactly."""

  step: Any  # int32 scalar, optimiser steps taken
  params: Any
  opt: Any
  memories: dict  # {role: what that teacher keeps}


class Frozen(NamedTuple):
  """Weights that do not train."""

  base: dict = {}  # beside an adapter
  external: dict = {}  # another model's


class Models(NamedTuple):
  """The sizes of those whose forward passes a step runs."""

  live: Any
  external: Any = None
  transform: Any = None  # of the learner's weights, see models/transforms.py

  def of(self, weights: str):
    return self.external if weights == "external" else self.live
