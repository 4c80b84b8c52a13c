"""Evaluation during training: accuracy with intervals, and drift from the base.

Evaluation shares only the sampler and the task's verifier with training.
"""

import functools
import time
from typing import NamedTuple

import numpy as np

from opsd_jax.evaluation import calibration, drift
from opsd_jax.evaluation.statistics import wilson
from opsd_jax.reporting import self_checks
from opsd_jax.rollouts import answering
from opsd_jax.runtime import distributed, paths
from opsd_jax.sampling.tokens import SamplingParams


def rate(name: str, scores) -> dict[str, float]:
  """`{name, name_ci_low, name_ci_high}` of one score in [0, 1] a problem."""
  low, high = wilson(float(np.sum(scores)), len(scores))
  value = float(np.mean(scores))
  return {name: value, f"{name}_ci_low": low, f"{name}_ci_high": high}


class ScoredCompletion(NamedTuple):
  """A completion that the task has verified."""

  text: str
  score: float  # the task's, in [0, 1]
  truncated: bool
  tokens: int
  is_verified: bool  # False: the verifier itself failed


def accuracy(params, prompts, examples, verify, complete, *, temperature, samples):
  """(metrics, greedy ScoredCompletions): greedy and sampled accuracy.

  Each prompt is prefilled once for its greedy completion and its sampled ones. A
  completion is correct where the task scores it 1. A problem is one observation,
  whose sampled accuracy is the mean over its samples. Each process answers and
  verifies its shard of the problems.

  Args:
    prompts: token ids, one prompt for each of the examples.
    verify: (examples, texts) -> Verdicts.
    complete: (params, prompts, ids, *, sampling, n) -> n completions of each prompt.
    temperature: of the sampled completions.
    samples: sampled completions of a problem, beside the greedy one.
  """
  local = distributed.local_shard(examples)
  completions = complete(
    params,
    distributed.local_shard(prompts),
    [e.id for e in local],
    sampling=SamplingParams(temperature=(0.0,) + (temperature,) * samples),
    n=1 + samples,
  )
  flat = [(e, c) for e, group in zip(local, completions, strict=True) for c in group]
  verdicts = verify([e for e, _ in flat], [answer_text(c.text) for _, c in flat])
  scored = [
    (c.text, v.score, bool(c.truncated), len(c.ids), v.is_verified)
    for (_, c), v in zip(flat, verdicts, strict=True)
  ]
  groups = distributed.gather_shards(
    [scored[i : i + 1 + samples] for i in range(0, len(scored), 1 + samples)],
    len(examples),
  )
  correct_NxK = np.array([[score >= 1 for _, score, *_ in g] for g in groups])
  metrics = rate("accuracy", correct_NxK[:, 0])
  if samples:
    metrics |= rate("sampled_accuracy", correct_NxK[:, 1:].mean(1))
  greedy = [ScoredCompletion(*group[0]) for group in groups]
  metrics["truncated"] = float(np.mean([c.truncated for c in greedy]))
  metrics["tokens"] = float(np.mean([c.tokens for c in greedy]))
  metrics["unverified"] = float(np.mean([not c.is_verified for c in greedy]))
  return metrics | of_stated_confidence(greedy), greedy


def answer_text(text: str) -> str:
  """What is verified of a reply: a confidence that it states is no part of its answer."""
  reply, confidence = calibration.stated(text)
  return text if confidence is None else reply


def of_stated_confidence(completions) -> dict[str, float]:
  """How well the confidence that completions state fits: the share that state one,
  their expected calibration error, mean confidence less accuracy, and how often a
  right one states more than a wrong one; {} where none does."""
  pairs = [(calibration.stated(c.text)[1], c.score >= 1) for c in completions]
  known = [(p, is_correct) for p, is_correct in pairs if p is not None]
  if not known:
    return {}
  confidence, correct = map(np.array, zip(*known, strict=True))
  separation = calibration.separation(confidence, correct)
  return {
    "stated/share": len(known) / len(pairs),
    "stated/ece": calibration.ece(confidence, correct),
    "stated/overconfidence": float(confidence.mean() - correct.mean()),
    **({} if separation is None else {"stated/separation": separation}),
  }


class Evaluator:
  """Evaluates weights; writes rows of `eval/...` and the completions.

  Every evaluation uses the same random numbers, so that two evaluations differ by
  their weights alone.
  """

  def __init__(
    self,
    run,
    writer,
    samples_dir,
    *,
    seed,
    prompt_bucket,
    bucket,
    chunk,
    every,
    temperature,
    samples,
    max_new_tokens,
    slots,
    host_sync_every,
    stop,
    drift_prompts,
    drift_tokens,
    template_args,
  ):
    """`run` is a setup.Run; the keywords are config.eval's, the seed, buckets, the
    chunk of the loss and the student's arguments of the chat template."""
    self.writer, self.samples_dir = writer, samples_dir
    self.run = run._replace(params=None)  # each call is given the weights
    self.samples, self.temperature = samples, temperature
    self.max_new_tokens, self.stop = max_new_tokens, stop
    self.complete = functools.partial(
      answering.complete,
      run.model_config,
      tokenizer=run.tokenizer,
      seed=seed,
      step=0,
      role="evaluate",
      slots=slots,
      host_sync_every=host_sync_every,
      prompt_bucket=prompt_bucket,
    )
    self.drift = drift.from_base(
      run,
      self.complete,
      count=drift_prompts,
      max_new_tokens=drift_tokens,
      bucket=bucket,
      chunk=chunk,
      template_args=template_args,
    )

  def accuracy(self, params, side: str, samples: int):
    """(metrics, greedy ScoredCompletions) on the prompts of a side, "student" or
    "teacher", for the problems that have such a prompt."""
    answerable = [p for p in self.run.eval if getattr(p, f"{side}_ids")]
    return accuracy(
      params,
      [getattr(p, f"{side}_ids") for p in answerable],
      [p.example for p in answerable],
      self.run.verify,
      lambda params, prompts, ids, **keywords: self.complete(
        params=params,
        prompts=prompts,
        ids=ids,
        max_new_tokens=self.max_new_tokens,
        stop=self.stop,
        **keywords,
      ),
      temperature=self.temperature,
      samples=samples,
    )

  def is_evaluated(self, step: int) -> bool:
    """Whether the evaluation of a step is in the log."""

    def found():
      rows = self.writer.rows()
      return any("eval/accuracy" in row and row["step"] == step for row in rows)

    return distributed.broadcast_from_first(found)

  def evaluate_once(self, params, step: int) -> None:
    if not self.is_evaluated(step):
      self.evaluate(params, step)

  def evaluate_base(self, params) -> None:
    """Step 0: the student, and the same weights on the teacher's prompts. Skipped
    where a run that was killed later has evaluated already."""

    if self.is_evaluated(0):
      return
    with_teacher = [p for p in self.run.eval if p.teacher_ids]
    teacher = None if with_teacher else {}  # None: the same as the student's
    if any(p.teacher_ids != p.student_ids for p in with_teacher):
      teacher, _ = self.accuracy(params, "teacher", self.samples)
    self.evaluate(
      params,
      0,
      lambda student: {
        f"eval/teacher_{k}": v
        for k, v in (student if teacher is None else teacher).items()
      },
    )

  def evaluate(self, params, step: int, more=lambda metrics: {}) -> None:
    """Evaluates the student; `more`: its metrics -> further fields of the row."""
    began = time.time()
    metrics, completions = self.accuracy(params, "student", self.samples)
    row = {f"eval/{k}": v for k, v in metrics.items()}
    row |= {"eval/drift": self.drift(params), **more(metrics)}
    row["time/evaluate"] = time.time() - began
    # The completions before the row: a row says that its evaluation is complete.
    if distributed.is_first():
      self.write_samples(step, completions)
    self.writer.write(step, row)
    self.writer.flush()
    print(
      f"step {step}: accuracy {metrics['accuracy']:.3f}"
      f" [{metrics['accuracy_ci_low']:.3f}, {metrics['accuracy_ci_high']:.3f}]"
      f" greedy, drift {row['eval/drift']:.3f} nats a token,"
      f" truncated {metrics['truncated']:.0%}",
      flush=True,
    )
    if warning := self_checks.truncated(metrics["truncated"], "eval.max_new_tokens"):
      print(f"warning: {warning}", flush=True)

  def write_samples(self, step: int, completions) -> None:
    """Writes every greedy completion and its score to this evaluation's file."""
    lines = []
    for p, completion in zip(self.run.eval, completions, strict=True):
      record = {
        "id": p.example.id,
        "question": p.example.question,
        "answer": p.example.answer,
        "completion": completion.text,
        "score": completion.score,
      }
      lines.append(paths.to_json(record) + "\n")
    self.samples_dir.mkdir(parents=True, exist_ok=True)
    path = self.samples_dir / f"eval_{step:06d}.jsonl"
    path.write_text("".join(lines))
