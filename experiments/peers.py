"""The sides of a benchmark, ours and TRL's SDFT trainer, each a process.

A worker measures one step when it is told to and sleeps between. Both ends of
its pipes speak JSON lines.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
import zlib

NEEDS = ("trl", "torch", "accelerate", "datasets")


class Worker:
  """A side's process, as the parent sees it; its other output is stderr."""

  def __init__(self, side: str, settings: dict):
    self.side = side
    self.process = subprocess.Popen(
        [sys.executable, "-m", "experiments.bench", "worker", side],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    self.about = self.ask(**settings)

  def ask(self, **order) -> dict:
    """Sends an order and waits for its answer."""
    self.process.stdin.write(json.dumps(order) + "\n")
    self.process.stdin.flush()
    line = self.process.stdout.readline()
    if not line:
      raise RuntimeError(f"the worker of {self.side} ended early; see above")
    return json.loads(line)

  def close(self):
    self.process.stdin.close()
    self.process.wait(timeout=60)


class Channel:
  """The worker's end. Whatever else prints to stdout goes to stderr."""

  def __init__(self):
    self.answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    self.told = self.left = time.process_time()
    self.orders = self.read()

  def read(self):
    """The parent's orders until it closes the pipe."""
    for line in sys.stdin:
      self.told = time.process_time()
      yield json.loads(line)

  def answer(self, **reply):
    """Adds the processor time of this order and of the wait before it."""
    reply["cpu_seconds"] = time.process_time() - self.told
    reply["idle_cpu_seconds"] = self.told - self.left
    print(json.dumps(reply), file=self.answers, flush=True)
    self.left = time.process_time()


def fingerprint(rows) -> int:
  """A number for lists of token ids: both sides must read the same."""
  return zlib.crc32(json.dumps([list(map(int, row)) for row in rows]).encode())


def ours(channel, config, directory) -> None:
  """A step of train.loop without its files, one an order."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from opsd_jax import metrics, prepare, rollout, sharding, train

  prepare.validate(config)
  run = prepare.prepare(config)
  compiled = []

  def listen(event, seconds, **_):
    if event.endswith("backend_compile_duration"):
      compiled.append(seconds)

  jax.monitoring.register_event_duration_secs_listener(listen)
  respond = rollout.ALL[config.rollout.source](
      run.model_config, run.tokenizer, seed=config.seed,
      knobs=prepare.knobs(config.rollout), n=config.rollout.samples,
      max_new_tokens=config.rollout.max_new_tokens,
      batch_prompts=config.rollout.batch_prompts,
      prompt_bucket=config.batch.prompt_bucket,
  )  # fmt: skip
  new = lambda p: train.init_state(
      jax.tree.map(jnp.copy, p), run.objective, run.tx
  )
  layout = sharding.tree_shardings(jax.eval_shape(new, run.params), run.mesh)
  train_step = jax.jit(
      train.make_train_step(run.model_config, run.objective, run.tx),
      donate_argnums=0, out_shardings=(layout, None, None, None),
  )  # fmt: skip
  rows, batch = config.rollout.prompts, None
  with jax.set_mesh(run.mesh):
    state = jax.jit(new, out_shardings=layout)(run.params)
    matmul, x = jax.jit(jnp.matmul), jnp.ones((2048, 2048))
    channel.answer(
        jax=jax.__version__, backend=jax.default_backend(),
        devices=jax.device_count(), dtype=config.model.dtype,
        matmul_gflops=gflops(lambda: matmul(x, x).block_until_ready()),
    )  # fmt: skip
    for order in channel.orders:
      if order.get("split"):
        channel.answer(**split(run, state, batch), **shapes(batch))
        break
      compiled.clear()
      i, clock = order["step"], [time.perf_counter()]
      problems = run.train[i * rows : (i + 1) * rows]
      rollouts = respond(state.params, problems, i)
      clock.append(time.perf_counter())
      batch = train.collate_rollouts(config, run, rollouts)
      on_device = jax.device_put(batch, sharding.rows_sharding(run.mesh))
      state, loss, grad_norm, tok = train_step(state, on_device)
      tok = jax.tree.map(np.asarray, tok)
      row = metrics.of_step(loss, grad_norm, tok, batch, rollouts)
      clock.append(time.perf_counter())
      channel.answer(
          seconds=clock[2] - clock[0], rollout_seconds=clock[1] - clock[0],
          divergence=row["divergence"],  # nats a response token
          response_tokens=row["response_tokens"],
          longest=max(len(r.completion.ids) for r in rollouts),
          prompts=fingerprint(
              [p.student_ids for p in problems]
              + [p.teacher_ids for p in problems]
          ),
          compiles=len(compiled), compile_seconds=sum(compiled),
          **shapes(batch),
      )  # fmt: skip


def shapes(batch) -> dict[str, list[int]]:
  """Rows x tokens that the train step computes."""
  return {
      "student_shape": list(batch.student.ids_BxL.shape),
      "teacher_shape": list(batch.teacher.ids_BxL.shape),
      "response_shape": list(batch.y_BxT.shape),
  }


def split(run, state, batch, times: int = 5) -> dict[str, float]:
  """Median seconds of the train step and of its parts; the state is used up."""
  import jax
  import optax

  from opsd_jax import teacher, train

  def optimizer(state, batch):
    grads = state.params  # any tree of this shape
    updates, opt = run.tx.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(params=params, opt=opt), optax.tree.norm(grads)

  alone = run.objective._replace(teacher=teacher.none())
  make = lambda o: train.make_train_step(run.model_config, o, run.tx)
  medians = []
  for function in (make(run.objective), make(alone), optimizer):
    function, seconds = jax.jit(function, donate_argnums=0), []
    for _ in range(1 + times):
      began = time.perf_counter()
      state, *_ = jax.block_until_ready(function(state, batch))
      seconds.append(time.perf_counter() - began)
    medians.append(statistics.median(seconds[1:]))  # the first one compiles
  whole, without_teacher, update = medians
  return {
      "learn": whole, "teacher": whole - without_teacher,
      "student": without_teacher - update, "optimizer": update,
  }  # fmt: skip


def export(source: str, directory: pathlib.Path) -> None:
  """Our model as the peer reads it: a Hugging Face directory."""
  from opsd_jax import api
  from opsd_jax.models import export

  model = api.load_model(source)
  export.export(
      directory, model.config, model.params, model.tokenizer, card="A copy.\n"
  )


def sdft(channel: Channel, config, directory: str) -> None:
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

  from opsd_jax import context, tasks

  examples = tasks.load(
      config.task.name, train_count=config.task.train_count,
      eval_count=config.task.eval_count, seed=config.task.seed,
      privileged_field=config.task.privileged_field,
  ).train  # fmt: skip
  template, marker = config.context.template, "{prompt}"
  teacher = context.TEMPLATES[template].teacher(marker, "{privileged_context}")
  optimizer, rows = config.optimizer, config.rollout.prompts
  trainer = SDFTTrainer(
      model=AutoModelForCausalLM.from_pretrained(
          directory, dtype=torch.float32, local_files_only=True
      ),
      processing_class=AutoTokenizer.from_pretrained(
          directory, padding_side="left", local_files_only=True
      ),
      train_dataset=Dataset.from_list([
          {
              "prompt": context.student_messages(template, e),
              "privileged_context": e.solution,
          }
          for e in examples
      ]),
      args=SDFTConfig(
          output_dir=f"{directory}/trl", use_cpu=True, bf16=False,
          gradient_checkpointing=False, report_to="none", disable_tqdm=True,
          logging_strategy="no", save_strategy="no", seed=config.seed,
          dataloader_num_workers=0, shuffle_dataset=False,
          per_device_train_batch_size=rows, gradient_accumulation_steps=1,
          num_generations=1, max_steps=len(examples) // rows,
          max_prompt_length=None,
          max_completion_length=config.rollout.max_new_tokens,
          temperature=config.rollout.temperature, top_p=1.0, top_k=0,
          distillation_mode="full_logits", distillation_alpha=0.0,
          teacher_model_kind="base", teacher_prompt_template=teacher,
          learning_rate=optimizer.learning_rate, lr_scheduler_type="constant",
          adam_beta1=optimizer.b1, adam_beta2=optimizer.b2,
          adam_epsilon=optimizer.eps, weight_decay=optimizer.weight_decay,
          max_grad_norm=optimizer.clip_norm,
      ),
  )  # fmt: skip

  class OneStepAnOrder(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
      order = next(channel.orders)
      assert order["step"] == state.global_step, (order, state.global_step)
      self.began = time.perf_counter()

    def on_self_distillation_batch_prepared(self, **batch):
      self.answered, self.batch = time.perf_counter(), batch

    def on_step_end(self, args, state, control, **kwargs):
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
      channel.answer(
          seconds=seconds, rollout_seconds=self.answered - self.began,
          divergence=losses[-1], response_tokens=int(lengths.sum()),
          longest=int(lengths.max()), prompts=fingerprint(ids),
      )  # fmt: skip

  trainer.add_callback(OneStepAnOrder())
  x = torch.ones(2048, 2048)
  channel.answer(
      trl=trl.__version__, torch=torch.__version__,
      transformers=transformers.__version__, threads=torch.get_num_threads(),
      attention=trainer.model.config._attn_implementation,
      optimizer=str(trainer.args.optim.value),
      matmul_gflops=gflops(lambda: x @ x),
  )  # fmt: skip
  trainer.train()


def gflops(matmul, size: int = 2048, times: int = 5) -> float:
  """The best rate of `times` products of two size x size matrices."""
  matmul()
  seconds = []
  for _ in range(times):
    began = time.perf_counter()
    matmul()
    seconds.append(time.perf_counter() - began)
  return round(2 * size**3 / min(seconds) / 1e9, 1)


SIDES = {"ours": ours, "trl": sdft}
