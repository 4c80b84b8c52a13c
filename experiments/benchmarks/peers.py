"""The peer's side of `bench step`, TRL's SDFT trainer, and what it needs of ours."""

import os
import pathlib
import statistics
import time

from experiments.benchmarks import shapes
from experiments.benchmarks.workers import Channel, fingerprint

NEEDS = ("trl", "torch", "accelerate", "datasets")


def export(source: str, directory: pathlib.Path) -> None:
  """Writes our model as a Hugging Face directory, which the peers read."""
  from opsd_jax import api
  from opsd_jax.models.weights import export

  model = api.load_model(source)
  export.export(
    directory, model.config, model.params, model.tokenizer, card="A copy.\n"
  )


class Ends:
  """A logits processor that ends row r after exactly lengths[r] tokens."""

  def __init__(self, lengths, end: int):
    import torch

    self.lengths, self.end = torch.tensor(lengths), end
    self.prompt = None  # tokens before the first generated one

  def __call__(self, ids, scores):
    self.prompt = self.prompt or ids.shape[1]
    last = self.lengths == ids.shape[1] - self.prompt + 1
    scores[:, self.end] = -float("inf")
    scores[last] = -float("inf")
    scores[last, self.end] = 0
    return scores


def sdft_config(config, directory: str, steps: int, on_gpu: bool):
  """TRL's settings for the same training as `config`."""
  from trl.experimental.sdft import SDFTConfig

  from opsd_jax.rollouts import contexts

  template = contexts.TEMPLATES[config.context.template]
  optimizer, samples = config.optimizer, config.rollout.samples_per_prompt
  rows = config.rollout.prompts_per_step * samples
  return SDFTConfig(
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
    per_device_train_batch_size=rows // config.batch.micro_batches,
    gradient_accumulation_steps=config.batch.micro_batches,
    num_generations=samples,
    max_steps=steps,
    max_prompt_length=None,
    max_completion_length=config.rollout.max_new_tokens,
    temperature=config.rollout.temperature,
    top_p=1.0,
    top_k=0,
    distillation_mode="full_logits",
    distillation_alpha=0.0,
    teacher_model_kind="base",
    teacher_prompt_template=template.teacher("{prompt}", "{privileged_context}"),
    learning_rate=optimizer.learning_rate,
    lr_scheduler_type="constant",
    adam_beta1=optimizer.b1,
    adam_beta2=optimizer.b2,
    adam_epsilon=optimizer.eps,
    weight_decay=optimizer.weight_decay,
    max_grad_norm=optimizer.clip_norm,
  )


def sdft_trainer(config, examples, directory: str, on_gpu: bool):
  """TRL's trainer on our weights and problems."""
  import torch
  from datasets import Dataset
  from transformers import AutoModelForCausalLM, AutoTokenizer
  from trl.experimental.sdft import SDFTTrainer

  from opsd_jax.rollouts import contexts

  steps = len(examples) // config.rollout.prompts_per_step
  return SDFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(
      directory, dtype=torch.float32, local_files_only=True
    ),
    processing_class=AutoTokenizer.from_pretrained(
      directory, padding_side="left", local_files_only=True
    ),
    train_dataset=Dataset.from_list(
      [
        {
          "prompt": contexts.student_messages(config.context.template, e),
          "privileged_context": e.solution,
        }
        for e in examples
      ]
    ),
    args=sdft_config(config, directory, steps, on_gpu),
  )


def step_per_order(channel: Channel, trainer, synchronize):
  """A callback that waits for an order before each step and answers after it."""
  from transformers import TrainerCallback

  micro_batches = trainer.args.gradient_accumulation_steps

  class StepPerOrder(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
      order = next(channel.orders)
      assert order["step"] == state.global_step, (order, state.global_step)
      self.began = time.perf_counter()

    def on_self_distillation_batch_prepared(self, **batch):
      synchronize()
      self.answered, self.batch = time.perf_counter(), batch

    def on_step_end(self, args, state, control, **kwargs):
      synchronize()
      seconds = time.perf_counter() - self.began
      losses = trainer._metrics["train"]["sdft/distillation_loss"]
      channel.answer(
        seconds=seconds,
        rollout_seconds=self.answered - self.began,
        divergence=statistics.mean(losses[-micro_batches:]),
        **batch_sizes(self.batch, kwargs["processing_class"].pad_token_id),
      )

  return StepPerOrder()


def batch_sizes(batch, pad: int) -> dict:
  """Response tokens of a batch of TRL's, and a fingerprint of its prompts."""
  T = batch["completion_ids"].shape[1]
  real = batch["teacher_attention_mask"].bool()
  lengths = real[:, -T:].sum(1)
  ids = [row[(row != pad).int().argmax() :] for row in batch["prompt_ids"]]
  ids += [
    row[:-T][mask[:-T]]
    for row, mask in zip(batch["teacher_input_ids"], real, strict=True)
  ]
  return {
    "response_tokens": int(lengths.sum()),
    "longest": int(lengths.max()),
    "prompts": fingerprint(ids),
  }


def sdft(channel: Channel, settings: dict) -> None:
  """TRL's SDFT trainer on our config: its own `train()`, one step an order.

  A step is everything from the prompts' text to the updated weights. What would
  slow it is off: gradient checkpointing, logging, saving, data workers.
  """
  os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
  import torch
  import transformers
  import trl

  from opsd_jax.models import tokenizer

  directory, shape = settings["directory"], shapes.STEP[settings["shape"]]
  config = shapes.experiment(**settings)
  our_tokenizer = tokenizer.load(directory)
  examples = shapes.examples(config, shape, our_tokenizer)
  on_gpu = settings["backend"] == "gpu"
  trainer = sdft_trainer(config, examples, directory, on_gpu)
  if shape.lengths:
    generate, end = trainer.model.generate, our_tokenizer.end_of_turn_id
    trainer.model.generate = lambda *args, **kwargs: generate(
      *args, logits_processor=[Ends(shape.lengths, end)], **kwargs
    )
  synchronize = torch.cuda.synchronize if on_gpu else lambda: None
  trainer.add_callback(step_per_order(channel, trainer, synchronize))
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
