"""Rollouts, verdicts, contexts, routing, batch, step: the loop and its step.

`make_train_step` is the one function that learns; `train_and_evaluate` is the
loop around it: config -> train_and_evaluate -> train_step -> loss_fn.
"""

import functools
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from opsd_jax import setup, spec
from opsd_jax.data import order as data_order
from opsd_jax.evaluation import in_training
from opsd_jax.losses import chunked, controllers, schedules, scoring
from opsd_jax.losses import objective as objectives
from opsd_jax.losses.micro_batches import accumulate
from opsd_jax.models import lora, transformer, transforms
from opsd_jax.reporting import console, self_checks, step_metrics
from opsd_jax.rollouts import answering, collect
from opsd_jax.runtime import (
  allocator,
  checkpoint,
  distributed,
  metrics,
  monitoring,
  paths,
  sharding_rules,
)
from opsd_jax.runtime import workdir as workdirs
from opsd_jax.structs import Batch, Frozen, Models, State

sg = jax.lax.stop_gradient


def init_state(params, objective, tx) -> State:
  memories = {role: t.init(params) for role, t in objective.memories.items()}
  return State(jnp.zeros((), jnp.int32), params, tx.init(params), memories)


def make_train_step(models: Models, objective_at, tx, *, micro_batches: int = 1):
  """(state, batch, frozen, values) -> (state, loss, gradient norm, TokenStats).

  `values` are those of scheduled fields, traced; objective_at(values) is the
  objective. A step whose loss, gradient or update is not finite leaves the weights
  and the optimiser as they were, and says so by a gradient norm that is NaN.
  """

  def loss_fn(params, objective, frozen, memories, denominators, part):
    weights = all_weights(models, params, frozen, memories)
    h_BxTxD, teachers = states(models, objective.teachers(True), weights, part)
    of_logits = functools.partial(objectives.of_logits, objective, denominators)
    W_VxD = transformer.unembedding(weights["live"])
    with jax.named_scope("loss"):  # the only reduction: a sum over tokens
      return chunked.loss(
        of_logits, h_BxTxD, W_VxD, teachers, part.tokens, chunk=objective.chunk
      )

  def train_step(state, batch, frozen=Frozen(), values={}):  # noqa: B006, B008
    objective = objective_at(values)
    memories = kept(objective, state)
    denominators = scoring.denominators(objective, batch)  # of the whole batch
    given = objective, frozen, memories, denominators
    grad = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, stats), grads = accumulate(grad, state.params, given, batch, micro_batches)
    with jax.named_scope("optimizer"):
      grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
      grad_norm = optax.tree.norm(grads)
      updates, opt = tx.update(grads, state.opt, state.params)
      params = optax.apply_updates(state.params, updates)
      norms = jnp.stack([loss, grad_norm, optax.tree.norm(updates)])
      finite = jnp.isfinite(norms).all()
      params, opt = jax.tree.map(
        functools.partial(jnp.where, finite), (params, opt), (state.params, state.opt)
      )
      step = state.step + 1
      memories = {  # of the student as it now is, whether it moved or not
        role: t.update(state.memories[role], params, step)
        for role, t in objective.memories.items()
      }
      state = State(step, params, opt, memories)
    return state, loss, jnp.where(finite, grad_norm, jnp.nan), stats

  return train_step


def jit_step(train_step, layout: State):
  """Compiles a step whose new state takes the old one's memory and layout."""
  return jax.jit(train_step, donate_argnums=0, out_shardings=(layout, None, None, None))


def make_score_step(models: Models, objective_at, *, micro_batches: int = 1):
  """(state, batch, frozen, values, kept_columns) -> (the batch as scoring.weigh
  weighs it, TokenStats, overflow): statistics of all tokens, without gradient,
  once a batch."""

  def scores(params, objective, frozen, memories, part):
    weights = all_weights(models, params, frozen, memories)
    h_BxTxD, teachers = states(models, objective.teachers(False), weights, part)
    W_VxD = transformer.unembedding(weights["live"])

    def of_logits(*args):
      return objectives.of_logits(objective, {}, *args)[1]

    stats = chunked.statistics(
      of_logits, h_BxTxD, W_VxD, teachers, part.tokens, chunk=objective.chunk
    )
    return (0.0, stats), ()

  def score_step(state, batch, frozen, values, kept_columns):
    objective = objective_at(values)
    given = objective, frozen, kept(objective, state)
    (_, stats), _ = accumulate(scores, state.params, given, batch, micro_batches)
    batch, overflow = scoring.weigh(objective, stats, batch, kept_columns)
    return batch, stats, overflow

  return score_step


def kept(objective, state: State) -> dict:
  """{role: the weights that this memory stands for}."""
  return {
    role: t.kept(state.memories[role], state.params)
    for role, t in objective.memories.items()
  }


def all_weights(models: Models, params, frozen: Frozen, memories: dict) -> dict:
  """Everybody's weights by name."""
  joined = {role: lora.join(frozen.base, sg(m)) for role, m in memories.items()}
  live = (models.transform or transforms.none)(lora.join(frozen.base, params))
  return {"live": live, "external": frozen.external, **joined}


def student(config, run, state: State):
  """The weights that answer, as the forward pass has them."""
  return transforms.apply(config.model.transform, lora.join(run.params, state.params))


def states(models: Models, pairs, weights: dict, part):
  """The learner's states, and {(view, weights): (states, unembedding)} of each
  teacher: the same weights or others, on what that view reads."""
  with jax.named_scope("student"):
    h_BxTxD = transformer.response_states(models.live, weights["live"], part.views[0])
  teachers, vocab_size = {}, len(transformer.unembedding(weights["live"]))
  for view, who in pairs:
    with jax.named_scope("teacher"):
      h = h_BxTxD
      if (view, who) != (0, "live"):
        h = transformer.response_states(
          models.of(who), sg(weights[who]), part.views[view]
        )
      W_VxD = transformer.unembedding(weights[who])
      is_padded = len(W_VxD) > vocab_size  # another model's vocabulary
      teachers[view, who] = sg(h), W_VxD[:vocab_size] if is_padded else W_VxD
  return h_BxTxD, teachers


def start_or_resume(run, manager) -> tuple[State, State]:
  """(state, its layout): the newest checkpoint's, or a new one."""

  def new(p):
    return init_state(run.trained(p), run.objective, run.tx)

  shapes = jax.eval_shape(new, run.params)
  layout = sharding_rules.tree_shardings(shapes, run.mesh)
  step = distributed.broadcast_from_first(manager.latest_step)
  state = checkpoint.restore(manager, step, shapes, layout)
  if state is None:
    # A copy: the step donates the state, and the base stays in use.
    def fresh(p):
      return new(jax.tree.map(jnp.copy, p))

    state = jax.jit(fresh, out_shardings=layout)(run.params)
  else:
    print(f"resumed at step {int(state.step)}", flush=True)
  return state, layout


def check_workdir(config, workdir) -> None:
  """Raises ValueError where a run cannot go on in `workdir` as this config says."""
  workdirs.check_same_config(config, workdir)
  done = checkpoint.newest(workdir / "checkpoints") or 0
  if done > config.steps:
    raise ValueError(
      f"the run has taken {done} steps, steps is {config.steps}: give more to continue"
      " it, or another --workdir"
    )


def train_and_evaluate(config, workdir) -> dict:
  """Runs the experiment, or resumes it, and returns its summary.

  workdir receives config.json, identity.json, metrics.jsonl, summary.json, summary.png,
  checkpoints/, samples/ and tb/. Rerun with the same arguments to resume: the
  result is identical to an uninterrupted run. Raises ValueError for a bad
  config, before a model is loaded where that is possible, and
  FloatingPointError after several non-finite steps in a row.
  """
  began = time.time()
  allocator.keep_freed()
  monitoring.compiles()  # from here on
  setup.validate(config)
  workdir = paths.open_workdir(workdir)
  distributed.broadcast_from_first(lambda: check_workdir(config, workdir))
  monitoring.keep_compiled(config.compile_cache)
  run = setup.prepare(config, workdirs.date_of(workdir))
  print(console.describe(config, run), flush=True)
  with jax.set_mesh(run.mesh), workdirs.exclusive(workdir):
    distributed.broadcast_from_first(
      lambda: workdirs.write_config(config, workdir, run.identity)
    )
    writer = metrics.Writer(
      workdir, tensorboard=config.log.tensorboard, writes=distributed.is_first()
    )
    evaluator = in_training.Evaluator(
      run,
      writer,
      workdir / "samples",
      seed=config.seed,
      prompt_bucket=config.batch.prompt_bucket,
      bucket=config.batch.bucket,
      chunk=config.loss.chunk,
      template_args=spec.arguments(config.context.student_args),
      **config.eval,
    )
    manager = checkpoint.open_manager(
      workdir / "checkpoints", keep=config.checkpoint.keep
    )
    try:
      profiler = monitoring.Profiler(workdir / "profile", **config.profile)
      with distributed.ending_with_others(), profiler:
        state, layout = start_or_resume(run, manager)
        order = data_order.endless(run.train, config.seed)
        if step := int(state.step):
          iterator_state = checkpoint.restore_iterator_state(manager, step)
          data_order.restore(order, run.digest, iterator_state, **run.kept)
        writer.rewind(int(state.step))
        # What earlier sessions of this run took.
        began -= distributed.broadcast_from_first(lambda: writer.seconds())
        if not config.lora.rank:
          run = run._replace(params={})  # from here on the state holds them
        evaluator.evaluate_base(student(config, run, state))
        learn(config, run, state, layout, order, writer, evaluator, manager, profiler)
    finally:
      manager.close()  # what is being saved is saved
      writer.flush()
  return distributed.broadcast_from_first(
    lambda: console.finish(config, run, writer, workdir, time.time() - began)
  )


class Programs(NamedTuple):
  train: Any
  score: Any  # None where no weight looks at other tokens


def compile_steps(config, run, layout) -> Programs:
  transform = transforms.ALL[config.model.transform]
  models = Models(run.model_config, run.external_config, transform)
  objective_at = functools.partial(objectives.from_config, config)
  micro_batches = config.batch.micro_batches
  step = make_train_step(models, objective_at, run.tx, micro_batches=micro_batches)
  train = jit_step(step, layout)
  if not run.objective.is_scored:
    return Programs(train, None)
  score = make_score_step(models, objective_at, micro_batches=micro_batches)
  rows = sharding_rules.rows_sharding(run.mesh)
  batch = Batch(rows, rows, sharding_rules.replicated(run.mesh))
  score = jax.jit(
    score, static_argnames="kept_columns", out_shardings=(batch, rows, None)
  )
  return Programs(train, score)


def learn(
  config, run, state, layout, order, writer, evaluator, manager, profiler
) -> None:
  """The loop: a step, then what is looked at and saved.

  `state` is donated: the caller must not keep it. `order` is a stream of the
  training problems.
  """
  programs = compile_steps(config, run, layout)
  updates, pieces = config.optimizer.updates_per_batch, allocator.Pieces()
  start, bad_steps, warn = int(state.step), 0, self_checks.Warner(config)
  bar = metrics.progress(
    config.steps, start, "train", shown=distributed.is_first(), file=sys.stdout
  )

  def draw():
    return data_order.draw(order, config.rollout.prompts_per_step)

  for step in range(start, config.steps, updates):
    profiler.begin_step(step, updates)
    clock, compiled = [time.time()], monitoring.compiles().count
    values = controllers.values_at(config, step, run.history.state)
    now = schedules.with_values(config, values)
    answer = answering.Answer(now, run, student(config, run, state), step)
    groups, row = collect.collect(now, run, answer, draw)
    clock.append(time.time())
    batch = collect.make_batch(now, run, groups, step)
    state, learned = update(run, programs, state, batch, values, updates)
    run.history.add(row.get("score", 0.0))
    row |= step_metrics.update_metrics(config, run, learned, groups) | {
      **{f"schedule/{name}": value for name, value in values.items()},
      **allocator.usage(),
      "compiles": monitoring.compiles().count - compiled,
      "time/rollout": clock[1] - clock[0],
      "time/step": time.time() - clock[1],
    }
    step += updates
    writer.write(step, row)
    warn(step, row)
    bar.set_postfix_str(f"loss {row['loss']:.3f}", refresh=False)
    bar.update(updates)
    bad_steps = bad_steps + 1 if row["non_finite"] else 0
    if bad_steps >= config.optimizer.max_bad_steps:
      raise not_finite(bad_steps, step, writer.path)
    if step % config.log.samples_every == 0:
      console.show_samples(
        config, run, evaluator.samples_dir, step, groups, batch, learned
      )
    is_last = step == config.steps
    if is_evaluated := step % config.eval.every == 0 or is_last:
      evaluator.evaluate(student(config, run, state), step)
    if is_saved := step % config.checkpoint.every == 0 or is_last:
      allocator.give_back()  # or what the step freed stands beside the copies
      writer.flush()  # a checkpoint is not ahead of its rows
      checkpoint.save(manager, state, data_order.save(order, run.digest, **run.kept))
    pieces.after_step(row, is_evaluated or is_saved)
  if start == config.steps:  # fewer steps than before: evaluated here, or never
    evaluator.evaluate_once(student(config, run, state), start)
  bar.close()
  warn.close()


def not_finite(bad_steps: int, step: int, path) -> FloatingPointError:
  return FloatingPointError(
    f"{bad_steps} steps in a row were not finite, the last is {step}; no such update"
    f" changed the weights. Lower the learning rate, or look at {path}"
  )


class Learned(NamedTuple):
  """What a batch has taught, for the log."""

  loss: Any  # of the first update
  grad_norm: Any  # the largest
  stats: Any  # TokenStats of all response tokens, before the first update
  # log-prob at the last update less that at the first, of the tokens that the
  # mask holds; None where there was one update
  log_ratio_BxT: Any
  mask_BxT: Any
  overflow: Any  # tokens that scoring dropped and a term counts: must be 0
  batch: Batch  # on the devices, as it was before scoring


def update(run, programs: Programs, state, local_batch, values: dict, updates: int):
  """`updates` optimiser steps on one batch -> (state, Learned).

  Where a weight looks at other tokens, the batch is scored once, before. From the
  second step on a ratio is to the first, unless the row says who drew it.
  """
  frozen, stats, overflow = Frozen(run.params, run.external), None, 0
  whole = batch = distributed.to_global(local_batch, run.mesh)
  values = {name: jnp.float32(value) for name, value in values.items()}
  if programs.score:
    columns = collect.kept_columns(run.objective, local_batch.tokens)
    batch, stats, overflow = programs.score(
      state, batch, frozen, values, kept_columns=columns
    )
  state, loss, grad_norm, first = programs.train(state, batch, frozen, values)
  log_ratio_BxT = None
  if updates > 1:
    layout = sharding_rules.rows_sharding(run.mesh)
    old_logp_BxT = note(layout)(batch.tokens.old_logp_BxT, first.logp_BxT)
    batch = batch._replace(tokens=batch.tokens._replace(old_logp_BxT=old_logp_BxT))
  for _ in range(updates - 1):
    state, _, norm, last = programs.train(state, batch, frozen, values)
    grad_norm = jnp.maximum(grad_norm, norm)
    log_ratio_BxT = last.logp_BxT - first.logp_BxT
  stats = first if stats is None else stats
  mask_BxT = batch.tokens.mask_BxT
  return state, Learned(
    loss, grad_norm, stats, log_ratio_BxT, mask_BxT, overflow, whole
  )


@functools.cache
def note(layout):
  """(old log-probs, those of the first update) -> what is old from now on."""
  return jax.jit(
    lambda old, now: jnp.where(jnp.isnan(old), now, old), out_shardings=layout
  )
