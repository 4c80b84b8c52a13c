"""Shapes of the benchmarks: numbers and lengths of prompts and responses."""

import dataclasses
import json
import pathlib
from typing import NamedTuple

WARM_UP = 1  # steps before the timed ones


class Shape(NamedTuple):
  """Numbers and lengths of prompts and responses."""

  prompts: int
  samples: int = 1  # responses to each prompt
  lengths: tuple[int, ...] | None = None  # of responses; None: until end of turn
  student: int | None = None  # tokens of each student prompt; None: not padded
  teacher: int | None = None  # tokens of each teacher prompt; None: not padded
  steps: int = 8  # timed steps
  micro_batches: int = 1  # of the training step, on both sides


def response_lengths() -> tuple[int, ...]:
  """64 lengths, as uneven as those of models that reason: most are short.

  They were drawn once: numpy's default_rng(0).geometric(1 / 33), at most 128.
  """
  path = pathlib.Path(__file__).with_name("lengths.json")
  return tuple(json.loads(path.read_text()))


STEP = {
  "default": Shape(8),  # until the end of turn, at most 64 tokens
  "fixed": Shape(8, lengths=(64,) * 8),
  "ragged": Shape(64, lengths=response_lengths(), steps=2, micro_batches=4),
  "samples": Shape(2, 8, lengths=(64,) * 16, student=128, teacher=384, steps=3),
}

SAMPLE = {
  "ragged": Shape(64, lengths=response_lengths()),
  "samples": Shape(  # twice as many responses, half as long
    16, 8, lengths=tuple(-(-n // 2) for n in response_lengths()) * 2
  ),
}


def experiment(source: str, shape: str, steps: int, **_):
  """The training config of both sides."""
  from configs import base

  config, of = base.get_config(), STEP[shape]
  config.model.source = source
  config.steps = WARM_UP + steps
  config.task.name = "reasoning_gym:chain_sum"
  config.rollout.prompts_per_step, config.rollout.samples_per_prompt = (
    of.prompts,
    of.samples,
  )
  config.rollout.max_new_tokens = max(of.lengths or [64])
  config.batch.micro_batches = of.micro_batches
  config.task.train_count = config.rollout.prompts_per_step * config.steps
  config.task.eval_count = 1
  term = config.loss.distill
  term.scale, term.denominator = 1.0, "responses"  # like TRL
  term.token_weight.name = "sequence_mean"
  config.optimizer.learning_rate = 1e-9
  config.optimizer.warmup_steps, config.optimizer.decay = 0, "constant"
  return config


def examples(config, shape: Shape, tokenizer):
  """The problems of a benchmark, sums, padded to the shape's prompt lengths."""
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


def lengthened(context, example, shape: Shape, tokenizer, word: str = " so"):
  """The example with words appended to question and solution, so that the prompts
  of both sides have the shape's lengths. `context` is config.context."""
  from opsd_jax.rollouts import contexts

  def sizes(e):
    messages = contexts.teacher_messages(context.template, context.privileged, e, [e])
    question = contexts.student_messages(context.template, e)
    return len(tokenizer.chat_ids(question)), len(tokenizer.chat_ids(messages))

  def more(e, field: str, count: int):
    text = getattr(e, field) + word * count
    return dataclasses.replace(e, **{field: text})

  e = more(example, "question", shape.student - sizes(example)[0])
  e = more(e, "solution", shape.teacher - sizes(e)[1])
  if sizes(e) != (shape.student, shape.teacher):
    raise ValueError(
      f"prompts have {sizes(e)} tokens, expected {shape.student} of the student"
      f" and {shape.teacher} of the teacher: choose a word that is one token, not"
      f" {word!r}"
    )
  return e
