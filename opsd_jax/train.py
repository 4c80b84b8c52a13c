"""Sample with the student, tell the teacher, collate two views, step.

`make_train_step` is the one function that learns; `train_and_evaluate` is the
loop around it: config -> train_and_evaluate -> train_step -> loss_fn.
"""

import sys
import time

import jax
import jax.numpy as jnp
import optax

from opsd_jax import (
  checkpoint,
  claims,
  collate,
  evaluate,
  experience,
  files,
  memory,
  metrics,
  pertoken,
  prepare,
  processes,
  report,
  rollout,
  sharding,
  stream,
  watch,
)
from opsd_jax.models import lora, transformer
from opsd_jax.pick import pick
from opsd_jax.structs import State

sg = jax.lax.stop_gradient


def init_state(params, objective, tx) -> State:
  teacher = objective.teacher.init(params)
  return State(jnp.zeros((), jnp.int32), params, tx.init(params), teacher)


def make_train_step(model_config, objective, tx, *, micro_batches=1):
  """(state, batch, base) -> (state, loss, gradient norm, PerToken).

  `base` holds the weights that do not train, beside the state's adapter; where
  all train there is none. A step whose loss, gradient or update is not finite
  changes nothing but the count, and says so by a gradient norm that is NaN.
  """

  def loss_fn(params, base, members, batch, denominator):
    student = lora.join(base, params)
    with jax.named_scope("student"):
      h_BxTxD = transformer.states(model_config, student, batch.student)
    with jax.named_scope("teacher"):
      teachers = tuple(  # the same weights, told more
        (
          weight,
          sg(transformer.states(model_config, sg(told), batch.teacher)),
          transformer.unembedding(told),
        )
        for weight, told in members
      )

    def token_loss(tok, token):
      w = objective.token_weight(sg(tok), token)
      return w * objective.token_loss(tok, token) / denominator

    with jax.named_scope("loss"):
      return pertoken.loss(  # the only reduction: a sum over tokens
        token_loss,
        objective.divergence,
        h_BxTxD,
        transformer.unembedding(student),
        teachers,
        batch.token.y_BxT,
        batch.token.mask_BxT,
        batch.token,
        temperature=objective.temperature,
        chunk=objective.chunk,
      )

  def train_step(state, batch, base=None):
    base = base or {}
    denominator = objective.denominator(batch.token)  # before micro-batches are split
    members = tuple(
      (weight, lora.join(base, told))
      for weight, told in objective.teacher.members(state.teacher, state.params)
    )
    (loss, tok), grads = accumulate(
      lambda part: jax.value_and_grad(loss_fn, has_aux=True)(
        state.params, base, members, part, denominator
      ),
      batch,
      micro_batches,
    )
    with jax.named_scope("optimizer"):
      grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
      grad_norm = optax.tree.norm(grads)
      updates, opt = tx.update(grads, state.opt, state.params)
      params = optax.apply_updates(state.params, updates)
      step = state.step + 1
      teacher = objective.teacher.update(state.teacher, params, step)
      norms = jnp.stack([loss, grad_norm, optax.tree.norm(updates)])
      finite = jnp.isfinite(norms).all()
      state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        State(step, params, opt, teacher),
        state._replace(step=step),
      )
    return state, loss, jnp.where(finite, grad_norm, jnp.nan), tok

  return train_step


def jit_step(train_step, layout: State):
  """Compiles a step whose new state takes the old one's memory and layout."""
  return jax.jit(train_step, donate_argnums=0, out_shardings=(layout, None, None, None))


def accumulate(grad_fn, batch, micro_batches: int):
  """Sums ((loss, tok), grads) over slices of the batch's parts, one at a time.

  The loss is a sum over a denominator of the whole batch, so slices add up;
  they are summed in float32.
  """
  if micro_batches == 1:
    return grad_fn(batch)
  shards = len(batch.token.y_BxT) // micro_batches

  def split(x):  # its parts are those of every device's first slice, ...
    x = x.reshape(shards, micro_batches, -1, *x.shape[1:]).swapaxes(0, 1)
    return x.reshape(micro_batches, -1, *x.shape[3:])

  def join(x):
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

  def body(sums, micro):
    (loss, tok), grads = grad_fn(micro)
    return jax.tree.map(jnp.add, sums, (loss, grads)), tok

  slices = jax.tree.map(split, batch)
  first = jax.tree.map(lambda x: x[0], slices)
  (loss, _), grads = jax.eval_shape(grad_fn, first)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (loss, grads))
  (loss, grads), tok = jax.lax.scan(body, zeros, slices)
  return (loss, jax.tree.map(join, tok)), grads


def start_or_resume(run, manager) -> tuple[State, State]:
  """(state, its layout): the newest checkpoint's, or a new one."""

  def new(p):
    return init_state(run.trained(p), run.objective, run.tx)

  shapes = jax.eval_shape(new, run.params)
  layout = sharding.tree_shardings(shapes, run.mesh)
  step = processes.from_first(manager.latest_step)
  state = checkpoint.restore(manager, step, shapes, layout)
  if state is None:
    # A copy: the step donates the state, and the base stays in use.
    def fresh(p):
      return new(jax.tree.map(jnp.copy, p))

    state = jax.jit(fresh, out_shardings=layout)(run.params)
  else:
    print(f"resumed at step {int(state.step)}", flush=True)
  return state, layout


def train_and_evaluate(config, workdir) -> dict:
  """Runs the experiment, or resumes it, and returns its summary.

  workdir receives config.json, metrics.jsonl, summary.json, summary.png,
  checkpoints/, samples/ and tb/. Rerun with the same arguments to resume: the
  result is identical to an uninterrupted run. Raises ValueError for a bad
  config, before a model is loaded where that is possible, and
  FloatingPointError after several non-finite steps in a row.
  """
  began = time.time()
  memory.keep_freed()
  watch.compiles()  # from here on
  prepare.validate(config)
  workdir = files.open_workdir(workdir)
  processes.from_first(lambda: claims.refuse_other(config, workdir))
  watch.keep_compiled(config.compile_cache)
  run = prepare.prepare(config)
  print(report.describe(config, run), flush=True)
  with jax.set_mesh(run.mesh), claims.alone(workdir):
    processes.from_first(lambda: claims.claim(config, workdir))
    writer = metrics.Writer(
      workdir, tensorboard=config.log.tensorboard, writes=processes.is_first()
    )
    judge = evaluate.Judge(
      run,
      writer,
      workdir / "samples",
      seed=config.seed,
      prompt_bucket=config.batch.prompt_bucket,
      bucket=config.batch.bucket,
      chunk=config.loss.chunk,
      **config.eval,
    )
    manager = checkpoint.open_manager(
      workdir / "checkpoints", keep=config.checkpoint.keep
    )
    try:
      profiler = watch.Profiler(workdir / "profile", **config.profile)
      with processes.ending_with_others(), profiler:
        state, layout = start_or_resume(run, manager)
        order = stream.endless(run.train, config.seed)
        if step := int(state.step):
          place = checkpoint.restore_place(manager, step)
          stream.restore(order, run.digest, place)
        writer.rewind(int(state.step))
        # What earlier sessions of this run took.
        began -= processes.from_first(lambda: writer.seconds())
        if not config.lora.rank:
          run = run._replace(params={})  # from here on the state holds them
        judge.judge_base(lora.join(run.params, state.params))
        learn(config, run, state, layout, order, writer, judge, manager, profiler)
    finally:
      manager.close()  # what is being saved is saved
      writer.flush()
  seconds = time.time() - began
  return processes.from_first(
    lambda: report.finish(config, run, writer, workdir, seconds)
  )


def learn(config, run, state, layout, order, writer, judge, manager, profiler) -> None:
  """The loop: a step, then what is looked at and saved.

  `state` is donated: the caller must not keep it. `order` is a stream of the
  training problems.
  """
  respond = pick(
    rollout.ALL,
    config.rollout.source,
    model_config=run.model_config,
    tokenizer=run.tokenizer,
    seed=config.seed,
    sampling=prepare.sampling(config.rollout),
    n=config.rollout.samples,
    max_new_tokens=config.rollout.max_new_tokens,
    slots=config.rollout.slots,
    decode_steps=config.rollout.decode_steps,
    stop=config.rollout.stop,
    prompt_bucket=config.batch.prompt_bucket,
  )()
  train_step = jit_step(
    make_train_step(
      run.model_config, run.objective, run.tx, micro_batches=config.batch.micro_batches
    ),
    layout,
  )
  start, bad_steps, updates = int(state.step), 0, config.reinforce.updates
  bar = metrics.progress(
    config.steps, start, "train", shown=processes.is_first(), file=sys.stdout
  )
  for step in range(start, config.steps, updates):
    profiler.at(step)

    def draw():
      return stream.draw(order, config.rollout.prompts)

    state, row, seen = step_of(config, run, state, step, draw, respond, train_step)
    step += updates
    writer.write(step, row)
    bar.set_postfix_str(f"loss {row['loss']:.3f}", refresh=False)
    bar.update(updates)
    bad_steps = bad_steps + 1 if row["non_finite"] else 0
    if bad_steps >= config.optimizer.max_bad_steps:
      raise FloatingPointError(
        f"{bad_steps} steps in a row were not finite, the last is {step};"
        " no such update changed the weights. Lower the learning rate, or"
        f" look at {writer.path}"
      )
    if step % config.log.samples_every == 0:
      rollouts, token, div_BxT = seen
      own_div_BxT = processes.own_rows(div_BxT, run.mesh)
      if processes.is_first():
        report.show_samples(
          run,
          judge.samples_dir,
          step,
          rollouts[: config.log.samples],
          token,
          own_div_BxT,
        )
    if step % config.eval.every == 0 or step == config.steps:
      judge.judge(lora.join(run.params, state.params), step)
    if step % config.checkpoint.every == 0 or step == config.steps:
      writer.flush()  # a checkpoint is not ahead of its rows
      checkpoint.save(manager, state, stream.save(order, run.digest))
  bar.close()


def step_of(config, run, state, step: int, draw, respond, train_step):
  """Sample with the student, collate two views, learn -> (state, metrics, what
  there is to see: rollouts, their tokens, divergences)."""
  clock, compiled = [time.time()], watch.compiles().count

  def answer(problems, before):
    return respond(lora.join(run.params, state.params), problems, step, before)

  found = experience.collect(config, run, answer, draw)
  rollouts, advantages, of_rewards = found
  clock.append(time.time())
  own_batch = experience.collated(config, run, rollouts, advantages)
  on_device = processes.put_rows(own_batch, run.mesh)
  state, loss, grad_norm, tok, last = learn_from(
    on_device, train_step, state, run, config.reinforce.updates
  )
  # A process has sampled and collated its own rows; here it sees all of them.
  all_tok, batch = processes.all_rows((tok, on_device), run.mesh)
  row = metrics.of_step(loss, grad_norm, all_tok, batch, rollouts)
  if config.reinforce.updates > 1:
    logp_BxT = processes.all_rows(last.logp_BxT, run.mesh)
    of_rewards |= metrics.of_ratio(
      logp_BxT - all_tok.logp_BxT,
      batch.token,
      config.reinforce.clip_low,
      config.reinforce.clip_high,
    )
  row |= of_rewards | {
    "truncated": processes.mean(row["truncated"]),
    "padding": collate.padding_share(batch),
    "compiles": watch.compiles().count - compiled,
    "time/rollout": clock[1] - clock[0],
    "time/step": time.time() - clock[1],
  }
  return state, row, (rollouts, own_batch.token, tok.div_BxT)


def learn_from(batch, train_step, state, run, updates: int):
  """`updates` optimiser steps on one batch -> (state, the first one's loss, the
  largest gradient norm, statistics at the first and at the last).

  From the second on, a token's ratio is to its log-prob at the first.
  """
  state, loss, grad_norm, first = train_step(state, batch, run.params)
  last = first
  for _ in range(updates - 1):
    layout = sharding.rows_sharding(run.mesh)
    old_logp_BxT = processes.relaid(layout)(first.logp_BxT)
    token = batch.token._replace(old_logp_BxT=old_logp_BxT)
    state, _, norm, last = train_step(state, batch._replace(token=token), run.params)
    grad_norm = jnp.maximum(grad_norm, norm)
  return state, loss, grad_norm, first, last
