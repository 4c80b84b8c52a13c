"""Our side of `bench step`: training steps, and the parts of one."""

import dataclasses
import statistics
import time
import types
from typing import Any

from experiments.benchmarks import shapes
from experiments.benchmarks.workers import Channel, fingerprint


@dataclasses.dataclass
class Trainer:
  """A training loop without its files, advanced one step at a time."""

  config: Any
  run: Any  # setup.Run
  respond: Any  # (params, prompts, step) -> groups of Rollouts
  prompts: Any  # of all steps, in order
  train_step: Any
  state: Any
  groups: Any = None  # of the newest step
  batch: Any = None

  def step(self, i: int) -> dict:
    """Takes step i and returns its line."""
    import jax
    import numpy as np

    from opsd_jax import train
    from opsd_jax.reporting import step_metrics
    from opsd_jax.rollouts import collect
    from opsd_jax.runtime import distributed

    count = self.config.rollout.prompts_per_step
    clock = [time.perf_counter()]
    prompts = self.prompts[i * count : (i + 1) * count]
    self.groups = self.respond(self.state.params, prompts, i)
    clock.append(time.perf_counter())
    self.batch = collect.make_batch(self.config, self.run, self.groups)
    on_device = distributed.to_global(self.batch, self.run.mesh)
    self.state, loss, grad_norm, stats = self.train_step(
      self.state, on_device, train.Frozen(), {}
    )
    stats = jax.tree.map(np.asarray, stats)
    rollouts = [r for group in self.groups for r in group]
    row = step_metrics.batch_metrics(loss, grad_norm, stats, self.batch, rollouts)
    clock.append(time.perf_counter())
    return {
      "seconds": clock[2] - clock[0],
      "rollout_seconds": clock[1] - clock[0],
      "divergence": row["distill/value"],  # nats a response token
      "response_tokens": row["response_tokens"],
      "longest": max(len(r.completion.ids) for r in rollouts),
      "prompts": fingerprint(
        [r.prompts.student_ids for r in rollouts]
        + [r.prompts.teacher_ids for r in rollouts]
      ),
    }

  def split(self) -> dict:
    """The line of `step_parts` on the newest batch; uses up the state."""
    from opsd_jax.rollouts import collect

    alone = self.config.copy_and_resolve_references()
    alone.batch.pack_len = 0
    alone = collect.make_batch(alone, self.run, self.groups)
    parts = step_parts(
      self.run,
      self.state,
      self.batch,
      alone,
      micro_batches=self.config.batch.micro_batches,
    )
    flops = useful_flops(self.run.model_config, self.batch)
    return {
      **parts,
      **sizes(self.batch),
      "useful_gflops": flops / 1e9,
      "learn_gflops_per_second": flops / parts["learn"] / 1e9,
    }


def make_trainer(settings: dict) -> Trainer:
  """The Trainer of a shape; must be used under jax.set_mesh(run.mesh)."""
  import jax
  import jax.numpy as jnp

  from opsd_jax import setup, train
  from opsd_jax.rollouts.prompts import build_prompts
  from opsd_jax.runtime import sharding_rules

  config, shape = shapes.experiment(**settings), shapes.STEP[settings["shape"]]
  setup.validate(config)
  run = setup.prepare(config)
  examples = shapes.examples(config, shape, run.tokenizer)
  max_prompt_len = run.model_config.max_positions - config.rollout.max_new_tokens
  prompts = build_prompts(
    config.context, run.tokenizer, examples, max_prompt_len, {}, "training"
  )

  def new(params):
    return train.init_state(jax.tree.map(jnp.copy, params), run.objective, run.tx)

  layout = sharding_rules.tree_shardings(jax.eval_shape(new, run.params), run.mesh)
  with jax.set_mesh(run.mesh):
    state = jax.jit(new, out_shardings=layout)(run.params)
  train_step = train.compile_steps(config, run, layout).train
  respond = responder(config, run, shape)
  return Trainer(config, run, respond, prompts, train_step, state)


def ours(channel: Channel, settings: dict) -> None:
  """Takes one training step an order, then measures the parts of a step."""
  import jax

  from opsd_jax.runtime import allocator, monitoring

  allocator.keep_freed()
  compiled = monitoring.compiles()
  trainer = make_trainer(settings)
  with jax.set_mesh(trainer.run.mesh):
    channel.answer(
      jax=jax.__version__,
      backend=jax.default_backend(),
      devices=jax.device_count(),
      dtype=trainer.config.model.dtype,
    )
    for order in channel.orders:
      if order.get("split"):
        channel.answer(**trainer.split())
        break
      before = compiled.count, compiled.seconds
      line = trainer.step(order["step"])
      channel.answer(
        **line,
        compiles=compiled.count - before[0],
        compile_seconds=compiled.seconds - before[1],
        **sizes(trainer.batch),
      )


def responder(config, run, shape: shapes.Shape):
  """(params, prompts, step) -> groups of Rollouts; where the shape has lengths, only
  they end a response."""
  import numpy as np

  from opsd_jax import setup
  from opsd_jax.rollouts import answering
  from opsd_jax.structs import Rollout

  tokenizer, lengths = run.tokenizer, config.rollout.max_new_tokens
  if shape.lengths:
    lengths = np.asarray(shape.lengths)
    tokenizer = types.SimpleNamespace(eos_ids=(), decode=tokenizer.decode)

  def respond(params, prompts, step: int):
    groups = answering.complete(
      run.model_config,
      params,
      tokenizer,
      [p.student_ids for p in prompts],
      [p.example.id for p in prompts],
      seed=config.seed,
      step=step,
      role="rollout",
      sampling=setup.sampling(config.rollout),
      n=config.rollout.samples_per_prompt,
      max_new_tokens=lengths,
      slots=config.rollout.slots,
      host_sync_every=config.rollout.host_sync_every,
      prompt_bucket=config.batch.prompt_bucket,
    )
    return [
      [Rollout(p, c, p.views) for c in group]
      for p, group in zip(prompts, groups, strict=True)
    ]

  return respond


def sizes(batch) -> dict:
  """Shapes that the train step computes, rows x tokens, and their padding."""
  from opsd_jax.rollouts import collate

  return {
    "student_shape": list(batch.views[0].ids_RxL.shape),
    "teacher_shape": list(batch.views[1].ids_RxL.shape),
    "response_shape": list(batch.tokens.y_BxT.shape),
    "padding": collate.padding_share(batch),
  }


def useful_flops(model_config, batch) -> float:
  """Useful FLOPs of a train step, padding not counted.

  For N parameters of the layers, 6N a token of the student's and 2N a token of the
  teacher's; the same with V x D parameters at response tokens; and 4 H C a layer for
  every pair of a query and a key, three times that for the student.
  """
  from opsd_jax.planning import flops

  N, head = flops.weights(model_config)
  c = model_config
  pair = 4 * c.num_layers * c.num_heads * c.head_dim
  total, responses = 0.0, float(batch.tokens.mask_BxT.sum())
  for side, passes in ((batch.views[0], 3), (batch.views[1], 1)):
    real = side.segment_RxL > 0
    pairs = (side.pos_RxL + 1)[real].sum()
    total += passes * (2 * N * real.sum() + pair * pairs + 2 * head * responses)
  return float(total)


def step_parts(
  run, state, batch, alone, *, micro_batches: int, times: int = 5
) -> dict[str, float]:
  """Median seconds of the train step and of its parts; the state is used up.

  `alone` is the batch with a row for every response, see `learn_alone` in bench.py.
  """
  import optax

  from opsd_jax import train

  def optimizer(state, batch, frozen):
    grads = state.params  # any tree of this shape
    updates, opt = run.tx.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(params=params, opt=opt), optax.tree.norm(grads)

  of_response = run.objective.terms["distill"]._replace(
    value=lambda seen, tokens: (-seen.stats.logp_BxT, None), reads_logits=False
  )
  without_teacher = run.objective._replace(terms={"distill": of_response})

  def step(objective):
    return train.make_train_step(
      train.Models(run.model_config),
      lambda values: objective,
      run.tx,
      micro_batches=micro_batches,
    )

  medians = []
  for function, rows in (
    (step(run.objective), batch),
    (step(without_teacher), batch),
    (optimizer, batch),
    (step(run.objective), alone),
  ):
    median, state = median_seconds(function, state, rows, times)
    medians.append(median)
  learn, student_alone, update, learn_alone = medians
  return {
    "learn": learn,
    "teacher": learn - student_alone,
    "student": student_alone - update,
    "optimizer": update,
    "learn_alone": learn_alone,
  }


def median_seconds(function, state, batch, times: int):
  """(median seconds of a donating step, the state after it)."""
  import jax

  from opsd_jax import train

  function, seconds = jax.jit(function, donate_argnums=0), []
  for _ in range(1 + times):
    began = time.perf_counter()
    state, *_ = jax.block_until_ready(function(state, batch, train.Frozen()))
    seconds.append(time.perf_counter() - began)
  return statistics.median(seconds[1:]), state  # the first step compiles
