"""The sides of `bench step`: ours and TRL's SDFT trainer."""

import os
import pathlib
import statistics
import time
import types

from experiments.benchmarks import shapes
from experiments.benchmarks.workers import Channel, fingerprint

NEEDS = ("trl", "torch", "accelerate", "datasets")


def ours(channel: Channel, settings: dict) -> None:
  """A step of train.learn without its files, one an order."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from opsd_jax import setup, train
  from opsd_jax.reporting import step_metrics
  from opsd_jax.rollouts import collect
  from opsd_jax.rollouts.prompts import build_prompts
  from opsd_jax.runtime import allocator, distributed, monitoring, sharding_rules

  allocator.keep_freed()
  compiled = monitoring.compiles()
  config, shape = shapes.experiment(**settings), shapes.STEP[settings["shape"]]
  setup.validate(config)
  run = setup.prepare(config)
  examples = shapes.examples(config, shape, run.tokenizer)
  room = run.model_config.max_positions - config.rollout.max_new_tokens
  asked = build_prompts(config.context, run.tokenizer, examples, room, {}, "training")
  respond = responder(config, run, shape)

  def new(p):
    return train.init_state(jax.tree.map(jnp.copy, p), run.objective, run.tx)

  layout = sharding_rules.tree_shardings(jax.eval_shape(new, run.params), run.mesh)
  train_step = train.compile_steps(config, run, layout).train
  rows, batch, groups = config.rollout.prompts_per_step, None, None
  with jax.set_mesh(run.mesh):
    state = jax.jit(new, out_shardings=layout)(run.params)
    channel.answer(
      jax=jax.__version__,
      backend=jax.default_backend(),
      devices=jax.device_count(),
      dtype=config.model.dtype,
    )
    for order in channel.orders:
      if order.get("split"):
        alone = config.copy_and_resolve_references()
        alone.batch.pack_len = 0
        alone = collect.make_batch(alone, run, groups)
        parts = split(
          run, state, batch, alone, micro_batches=config.batch.micro_batches
        )
        flops = useful_flops(run.model_config, batch)
        channel.answer(
          **parts,
          **sizes(batch),
          useful_gflops=flops / 1e9,
          learn_gflops_per_second=flops / parts["learn"] / 1e9,
        )
        break
      before = compiled.count, compiled.seconds
      i, clock = order["step"], [time.perf_counter()]
      problems = asked[i * rows : (i + 1) * rows]
      groups = respond(state.params, problems, i)
      clock.append(time.perf_counter())
      batch = collect.make_batch(config, run, groups)
      on_device = distributed.to_global(batch, run.mesh)
      state, loss, grad_norm, stats = train_step(state, on_device, train.Frozen(), {})
      stats = jax.tree.map(np.asarray, stats)
      rollouts = [r for group in groups for r in group]
      row = step_metrics.of_step(loss, grad_norm, stats, batch, rollouts)
      clock.append(time.perf_counter())
      channel.answer(
        seconds=clock[2] - clock[0],
        rollout_seconds=clock[1] - clock[0],
        divergence=row["distill/value"],  # nats a response token
        response_tokens=row["response_tokens"],
        longest=max(len(r.completion.ids) for r in rollouts),
        prompts=fingerprint(
          [r.prompts.student_ids for r in rollouts]
          + [r.prompts.teacher_ids for r in rollouts]
        ),
        compiles=compiled.count - before[0],
        compile_seconds=compiled.seconds - before[1],
        **sizes(batch),
      )


def responder(config, run, shape: shapes.Shape):
  """The rollouts of a step; where the shape has lengths, nothing else ends a
  response."""
  import numpy as np

  from opsd_jax import setup
  from opsd_jax.rollouts import sources
  from opsd_jax.structs import Rollout

  tokenizer, lengths = run.tokenizer, config.rollout.max_new_tokens
  if shape.lengths:
    lengths = np.asarray(shape.lengths)
    tokenizer = types.SimpleNamespace(eos_ids=(), decode=tokenizer.decode)

  def respond(params, problems, step: int):
    groups = sources.complete(
      run.model_config,
      params,
      tokenizer,
      [p.student_ids for p in problems],
      [p.example.id for p in problems],
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
      for p, group in zip(problems, groups, strict=True)
    ]

  return respond


def sizes(batch) -> dict:
  """Rows x tokens that the train step computes."""
  from opsd_jax.rollouts import collate

  return {
    "student_shape": list(batch.views[0].ids_RxL.shape),
    "teacher_shape": list(batch.views[1].ids_RxL.shape),
    "response_shape": list(batch.tokens.y_BxT.shape),
    "padding": collate.padding_share(batch),
  }


def useful_flops(c, batch) -> float:
  """Of a train step, padding not counted.

  For N parameters of the layers, 6N a token of the student's and 2N of the
  teacher's, the same with V x D at response tokens, and 4 H C a layer for every
  pair of a token and one that it sees, three times that for the student.
  """
  from opsd_jax.planning import flops

  N, head = flops.weights(c)
  pair = 4 * c.num_layers * c.num_heads * c.head_dim
  total, responses = 0.0, float(batch.tokens.mask_BxT.sum())
  for side, passes in ((batch.views[0], 3), (batch.views[1], 1)):
    real = side.segment_RxL > 0
    pairs = (side.pos_RxL + 1)[real].sum()
    total += passes * (2 * N * real.sum() + pair * pairs + 2 * head * responses)
  return float(total)


def split(
  run, state, batch, alone, *, micro_batches: int, times: int = 5
) -> dict[str, float]:
  """Median seconds of the train step and of its parts; the state is used up.

  `alone` is the batch with a row for every response: `learn_alone`.
  """
  import jax
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
  alone_objective = run.objective._replace(terms={"distill": of_response})

  def make(o):
    models = train.Models(run.model_config)
    return train.make_train_step(
      models, lambda values: o, run.tx, micro_batches=micro_batches
    )

  medians = []
  for function, rows in (
    (make(run.objective), batch),
    (make(alone_objective), batch),
    (optimizer, batch),
    (make(run.objective), alone),
  ):
    function, seconds = jax.jit(function, donate_argnums=0), []
    for _ in range(1 + times):
      began = time.perf_counter()
      state, *_ = jax.block_until_ready(function(state, rows, train.Frozen()))
      seconds.append(time.perf_counter() - began)
    medians.append(statistics.median(seconds[1:]))  # the first one compiles
  whole, without_teacher, update, plain = medians
  return {
    "learn": whole,
    "teacher": whole - without_teacher,
    "student": without_teacher - update,
    "optimizer": update,
    "learn_alone": plain,
  }


def export(source: str, directory: pathlib.Path) -> None:
  """Our model as the peer reads it: a Hugging Face directory."""
  from opsd_jax import api
  from opsd_jax.models.weights import export

  model = api.load_model(source)
  export.export(
    directory, model.config, model.params, model.tokenizer, card="A copy.\n"
  )


class Ends:
  """A logits processor that ends row r after lengths[r] tokens, no sooner."""

  def __init__(self, lengths, end: int):
    import torch

    self.lengths, self.end = torch.tensor(lengths), end
    self.prompt = None  # tokens before the first that it sees

  def __call__(self, ids, scores):
    self.prompt = self.prompt or ids.shape[1]
    last = self.lengths == ids.shape[1] - self.prompt + 1
    scores[:, self.end] = -float("inf")
    scores[last] = -float("inf")
    scores[last, self.end] = 0
    return scores


def sdft(channel: Channel, settings: dict) -> None:
  """TRL's SDFT trainer on our config: its own `train()`, one step an order.

  A step is everything from the prompts' text to the updated weights. What
  would slow it is off: gradient checkpointing, logging, saving, data workers.
  """
  os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
  import torch
  import transformers
  import trl
  from datasets import Dataset
  from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
  from trl.experimental.sdft import SDFTConfig, SDFTTrainer

  from opsd_jax.models import tokenizer
  from opsd_jax.rollouts import contexts

  directory, shape = settings["directory"], shapes.STEP[settings["shape"]]
  config = shapes.experiment(**settings)
  ours = tokenizer.load(directory)
  examples = shapes.examples(config, shape, ours)
  template, marker = config.context.template, "{prompt}"
  teacher = contexts.TEMPLATES[template].teacher(marker, "{privileged_context}")
  optimizer, samples = config.optimizer, config.rollout.samples_per_prompt
  rows = config.rollout.prompts_per_step * samples
  micro_batches = config.batch.micro_batches
  on_gpu = settings["backend"] == "gpu"
  done = torch.cuda.synchronize if on_gpu else lambda: None
  trainer = SDFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(
      directory, dtype=torch.float32, local_files_only=True
    ),
    processing_class=AutoTokenizer.from_pretrained(
      directory, padding_side="left", local_files_only=True
    ),
    train_dataset=Dataset.from_list(
      [
        {
          "prompt": contexts.student_messages(template, e),
          "privileged_context": e.solution,
        }
        for e in examples
      ]
    ),
    args=SDFTConfig(
      output_dir=f"{directory}/trl",
      use_cpu=not on_gpu,
      bf16=False,
      gradient_checkpointing=False,
      report_to="none",
      disable_tqdm=True,
      logging_strategy="no",
      save_strategy="no",
      seed=config.seed,
      dataloader_num_workers=0,
      shuffle_dataset=False,
      per_device_train_batch_size=rows // micro_batches,
      gradient_accumulation_steps=micro_batches,
      num_generations=samples,
      max_steps=len(examples) // config.rollout.prompts_per_step,
      max_prompt_length=None,
      max_completion_length=config.rollout.max_new_tokens,
      temperature=config.rollout.temperature,
      top_p=1.0,
      top_k=0,
      distillation_mode="full_logits",
      distillation_alpha=0.0,
      teacher_model_kind="base",
      teacher_prompt_template=teacher,
      learning_rate=optimizer.learning_rate,
      lr_scheduler_type="constant",
      adam_beta1=optimizer.b1,
      adam_beta2=optimizer.b2,
      adam_epsilon=optimizer.eps,
      weight_decay=optimizer.weight_decay,
      max_grad_norm=optimizer.clip_norm,
    ),
  )

  class OneStepAnOrder(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
      order = next(channel.orders)
      assert order["step"] == state.global_step, (order, state.global_step)
      self.began = time.perf_counter()

    def on_self_distillation_batch_prepared(self, **batch):
      done()
      self.answered, self.batch = time.perf_counter(), batch

    def on_step_end(self, args, state, control, **kwargs):
      done()
      seconds, batch = time.perf_counter() - self.began, self.batch
      pad = kwargs["processing_class"].pad_token_id
      T = batch["completion_ids"].shape[1]
      real = batch["teacher_attention_mask"].bool()
      lengths = real[:, -T:].sum(1)
      ids = [row[(row != pad).int().argmax() :] for row in batch["prompt_ids"]]
      ids += [
        row[:-T][mask[:-T]]
        for row, mask in zip(batch["teacher_input_ids"], real, strict=True)
      ]
      losses = trainer._metrics["train"]["sdft/distillation_loss"]
      loss = statistics.mean(losses[-micro_batches:])
      channel.answer(
        seconds=seconds,
        rollout_seconds=self.answered - self.began,
        divergence=loss,
        response_tokens=int(lengths.sum()),
        longest=int(lengths.max()),
        prompts=fingerprint(ids),
      )

  if shape.lengths:
    generate = trainer.model.generate
    trainer.model.generate = lambda *args, **how: generate(
      *args, logits_processor=[Ends(shape.lengths, ours.end_of_turn_id)], **how
    )
  trainer.add_callback(OneStepAnOrder())
  channel.answer(
    trl=trl.__version__,
    torch=torch.__version__,
    transformers=transformers.__version__,
    threads=torch.get_num_threads(),
    device=str(trainer.args.device),
    attention=trainer.model.config._attn_implementation,
    optimizer=str(trainer.args.optim.value),
  )
  trainer.train()


SIDES = {"ours": ours, "trl": sdft}
