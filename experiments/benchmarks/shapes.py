"""How many prompts and samples a benchmark takes, and how long they are."""

import dataclasses
import json
import pathlib
from typing import NamedTuple

WARM_UP = 1  # steps before the timed ones


class Shape(NamedTuple):
  prompts: int
  samples: int = 1  # of each prompt
  lengths: tuple[int, ...] | None = None  # of the responses; None: they end
  student: int | None = None  # tokens of each prompt; None: as they are
  teacher: int | None = None
  steps: int = 8  # that are timed
  micro_batches: int = 1  # of the training part, on both sides


def response_lengths() -> tuple[int, ...]:
  """64 of them, as uneven as those of models that reason: most are short.

  Drawn once: numpy's default_rng(0).geometric(1 / 33), at most 128.
  """
  path = pathlib.Path(__file__).with_name("lengths.json")
  return tuple(json.loads(path.read_text()))


STEP = {
  "default": Shape(8),  # up to 64 tokens, until the end of turn
  "fixed": Shape(8, lengths=(64,) * 8),
  "ragged": Shape(64, lengths=response_lengths(), steps=2, micro_batches=4),
  "samples": Shape(2, 8, lengths=(64,) * 16, student=128, teacher=384, steps=3),
}

SAMPLE = {
  "ragged": Shape(64, lengths=response_lengths()),
  "samples": Shape(  # twice the rows, half as long
    16, 8, lengths=tuple(-(-n // 2) for n in response_lengths()) * 2
  ),
}


def experiment(source: str, shape: str, steps: int, **_):
  """The config of both sides of a step."""
  from configs import base

  c, of = base.get_config(), STEP[shape]
  c.model.source = source
  c.steps = WARM_UP + steps
  c.task.name = "reasoning_gym:chain_sum"
  c.rollout.prompts_per_step, c.rollout.samples_per_prompt = of.prompts, of.samples
  c.rollout.max_new_tokens = max(of.lengths or [64])
  c.batch.micro_batches = of.micro_batches
  c.task.train_count = c.rollout.prompts_per_step * c.steps
  c.task.eval_count = 1
  c.token_weight.name = "sequence_mean"  # as TRL
  c.loss.denominator = "responses"
  c.optimizer.learning_rate = 1e-9
  c.optimizer.warmup_steps, c.optimizer.decay = 0, "constant"
  return c


def examples(config, shape: Shape, tokenizer):
  """The problems of a benchmark: sums, made longer where the shape says so."""
  from opsd_jax import tasks

  found = tasks.load(
    config.task.name,
    train_count=config.task.train_count,
    eval_count=config.task.eval_count,
    seed=config.task.seed,
    privileged_field=config.task.privileged_field,
  ).train
  if shape.student is None:
    return found
  return tuple(lengthened(config.context, e, shape, tokenizer) for e in found)


def lengthened(c, example, shape: Shape, tokenizer, word: str = " so"):
  """The example with words after question and solution, until both sides'
  prompts have their tokens."""
  from opsd_jax.rollouts import contexts

  def sizes(e):
    messages = contexts.teacher_messages(c.template, c.privileged, e, [e])
    asked = contexts.student_messages(c.template, e)
    return len(tokenizer.chat_ids(asked)), len(tokenizer.chat_ids(messages))

  def more(e, field: str, count: int):
    text = getattr(e, field) + word * count
    return dataclasses.replace(e, **{field: text})

  e = more(example, "question", shape.student - sizes(example)[0])
  e = more(e, "solution", shape.teacher - sizes(e)[1])
  if sizes(e) != (shape.student, shape.teacher):
    raise ValueError(
      f"prompts of {sizes(e)} tokens, expected {shape.student} of the student"
      f" and {shape.teacher} of the teacher: is {word!r} one token?"
    )
  return e
