"""Accuracy with intervals, and drift: how much else changed.

Evaluation shares nothing with the loss but the sampler and the task's verify.
"""

import functools
import json
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opsd_jax.data import unrelated
from opsd_jax.evaluation.statistics import wilson
from opsd_jax.losses import chunked, divergences
from opsd_jax.models import transformer
from opsd_jax.rollouts import collate, sources
from opsd_jax.runtime import distributed
from opsd_jax.runtime.mesh import row_shards
from opsd_jax.sampling.tokens import SamplingParams


def rate(name: str, scores) -> dict[str, float]:
  """`{name, name_ci_low, name_ci_high}` of one score in [0, 1] a problem."""
  low, high = wilson(float(np.sum(scores)), len(scores))
  value = float(np.mean(scores))
  return {name: value, f"{name}_ci_low": low, f"{name}_ci_high": high}


class ScoredCompletion(NamedTuple):
  """A reply, judged."""

  text: str
  score: float  # the task's, in [0, 1]
  truncated: bool
  tokens: int
  is_verified: bool


def accuracy(params, prompts, examples, verify, complete, *, temperature, samples):
  """Greedy and sampled accuracy -> (metrics, greedy Replies).

  Each prompt is prefilled once for its greedy reply and its `samples` sampled
  ones. A reply is right when the task scores it 1. Several samples of a
  problem count as one observation, their mean. Each process answers and
  verifies its share of the problems.
  """
  mine = distributed.local_shard(examples)
  completions = complete(
    params,
    distributed.local_shard(prompts),
    [e.id for e in mine],
    sampling=SamplingParams(temperature=(0.0,) + (temperature,) * samples),
    n=1 + samples,
  )
  flat = [(e, c) for e, group in zip(mine, completions, strict=True) for c in group]
  verdicts = verify([e for e, _ in flat], [c.text for _, c in flat])
  outcomes = [
    (c.text, v.score, bool(c.truncated), len(c.ids), v.is_verified)
    for (_, c), v in zip(flat, verdicts, strict=True)
  ]
  each = 1 + samples
  graded = distributed.gather_shards(
    [outcomes[i : i + each] for i in range(0, len(outcomes), each)], len(examples)
  )
  correct = np.array([[score >= 1 for _, score, *_ in g] for g in graded])
  metrics = rate("accuracy", correct[:, 0])
  if samples:
    metrics |= rate("sampled_accuracy", correct[:, 1:].mean(1))
  greedy = [ScoredCompletion(*group[0]) for group in graded]
  metrics["truncated"] = float(np.mean([r.truncated for r in greedy]))
  metrics["tokens"] = float(np.mean([r.tokens for r in greedy]))
  metrics["unverified"] = float(np.mean([not r.is_verified for r in greedy]))
  return metrics, greedy


@functools.partial(jax.jit, static_argnames="model_config")
def _states(model_config, params, view):
  return transformer.response_states(model_config, params, view)


@functools.partial(jax.jit, static_argnames=("model_config", "chunk"))
def _kl(model_config, params, base_h_BxTxD, base_W_VxD, batch, chunk):
  def kl(z_NxV, teachers, tokens):
    logq, logp = (jax.nn.log_softmax(z) for z in (teachers["base"], z_NxV))
    return divergences.forward_kl(logp, logq).sum(-1)

  kl_BxT = chunked.statistics(
    kl,
    transformer.response_states(model_config, params, batch.views[0]),
    transformer.unembedding(params),
    {"base": (base_h_BxTxD, base_W_VxD)},
    batch.tokens,
    chunk=chunk,
  )
  return kl_BxT.sum() / batch.tokens.mask_BxT.sum()


def drift_from(model_config, params, rows, *, pad_id, bucket, chunk, parts):
  """Remembers `params` (the base) on its own replies -> params -> drift.

  Drift is the mean over reply tokens of KL(base || model), nats, over the full
  vocabulary. `rows` are collate.Rows of the base's replies to prompts that have
  nothing to do with the task. What is kept is the base's states at the reply
  tokens and a copy of its unembedding, not the base.
  """
  batch = collate.collate(
    rows, pad_id=pad_id, bucket=bucket, response_bucket=bucket, parts=parts
  )
  base_h_BxTxD = _states(model_config, params, batch.views[0])
  base_W_VxD = jnp.copy(transformer.unembedding(params))
  return lambda params: float(
    _kl(model_config, params, base_h_BxTxD, base_W_VxD, batch, chunk=chunk)
  )


class Evaluator:
  """Evaluates weights and writes rows of `eval/...` and the replies.

  Every evaluation draws the same random numbers, so that two differ by their
  weights alone.
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
  ):
    """`run` is a setup.Run; the keywords are config.eval's and buckets."""
    self.writer, self.samples_dir = writer, samples_dir
    self.run = run._replace(params=None)  # what is judged comes with each call
    self.samples, self.temperature = samples, temperature
    self.max_new_tokens, self.stop = max_new_tokens, stop
    self.complete = functools.partial(
      sources.complete,
      run.model_config,
      tokenizer=run.tokenizer,
      seed=seed,
      step=0,
      role="evaluate",
      slots=slots,
      host_sync_every=host_sync_every,
      prompt_bucket=prompt_bucket,
    )
    prompts = unrelated.prompts(drift_prompts)
    ids = [
      tuple(run.tokenizer.chat_ids([{"role": "user", "content": p}])) for p in prompts
    ]
    mine = self.complete(
      params=run.params,
      prompts=distributed.local_shard(ids),
      ids=distributed.local_shard(prompts),
      n=1,
      sampling=SamplingParams(temperature=0.0),
      max_new_tokens=drift_tokens,
    )
    replies = distributed.gather_shards([r[0].ids for r in mine], len(ids))
    self.drift = drift_from(
      run.model_config,
      run.params,
      [collate.Row((p,), tuple(reply)) for p, reply in zip(ids, replies, strict=True)],
      pad_id=run.tokenizer.pad_id,
      bucket=bucket,
      chunk=chunk,
      parts=row_shards(run.mesh),
    )

  def accuracy(self, params, side: str, samples: int):
    """(metrics, greedy Replies) to the student's or the teacher's prompts, of
    the problems that this side can be asked."""
    asked = [p for p in self.run.eval if getattr(p, f"{side}_ids")]
    return accuracy(
      params,
      [getattr(p, f"{side}_ids") for p in asked],
      [p.example for p in asked],
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

  def evaluate_base(self, params) -> None:
    """Step 0: the student, and the same weights told more. Skipped where a
    killed run had got past it."""

    def done():
      return any("eval/accuracy" in row for row in self.writer.rows())

    if distributed.broadcast_from_first(done):
      return
    asked = [p for p in self.run.eval if p.teacher_ids]
    teacher = None if asked else {}  # None: as the student
    if any(p.teacher_ids != p.student_ids for p in asked):
      teacher, _ = self.accuracy(params, "teacher", self.samples)
    self.evaluate(
      params,
      0,
      lambda student: {
        f"eval/teacher_{k}": v
        for k, v in (student if teacher is None else teacher).items()
      },
    )

  def evaluate(self, params, step: int, more=lambda scores: {}) -> None:
    """`more`: the student's scores -> what else the row says."""
    began = time.time()
    scores, replies = self.accuracy(params, "student", self.samples)
    row = {f"eval/{k}": v for k, v in scores.items()}
    row |= {"eval/drift": self.drift(params), **more(scores)}
    row["time/evaluate"] = time.time() - began
    # The replies before the row: the row says that the evaluation is complete.
    if distributed.is_first():
      self.keep(step, replies)
    self.writer.write(step, row)
    self.writer.flush()
    print(
      f"step {step}: accuracy {scores['accuracy']:.3f}"
      f" [{scores['accuracy_ci_low']:.3f}, {scores['accuracy_ci_high']:.3f}]"
      f" greedy, drift {row['eval/drift']:.3f} nats a token",
      flush=True,
    )

  def keep(self, step: int, replies) -> None:
    """Every greedy reply with its score, in a file of this evaluation."""
    lines = []
    for p, reply in zip(self.run.eval, replies, strict=True):
      e = p.example
      record = {
        "id": e.id,
        "question": e.question,
        "answer": e.answer,
        "reply": reply.text,
        "score": reply.score,
      }
      lines.append(json.dumps(record) + "\n")
    self.samples_dir.mkdir(parents=True, exist_ok=True)
    path = self.samples_dir / f"eval_{step:06d}.jsonl"
    path.write_text("".join(lines))
