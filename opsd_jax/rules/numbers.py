"""Numbers of a config that are too small, or do not divide one another."""

from opsd_jax.rules.unread import field
from opsd_jax.sampling.tokens import check_seed

COUNTS = (  # fields that must be at least 1
  "steps", "rollout.prompts_per_step", "rollout.samples_per_prompt", "rollout.max_new_tokens",
  "rollout.slots", "rollout.host_sync_every", "batch.micro_batches", "batch.bucket",
  "batch.response_bucket", "batch.prompt_bucket", "loss.chunk", "eval.every",
  "eval.slots", "eval.host_sync_every", "eval.max_new_tokens", "eval.drift_prompts",
  "eval.drift_tokens", "checkpoint.every", "checkpoint.keep", "log.samples_every",
  "task.eval_count", "task.train_count", "optimizer.max_bad_steps",
  "verify.workers", "verify.memory_mb", "optimizer.updates_per_batch",
  "rewards.dynamic_sampling_rounds",
)  # fmt: skip
AT_LEAST_0 = (
  "eval.samples", "lora.rank", "batch.max_sequence_len", "batch.pack_len",
  "profile.start", "profile.steps", "rewards.overlong_margin", "data.skip_bad",
  "data.train_limit", "data.eval_limit",
)  # fmt: skip


def check_numbers(config) -> None:
  for path in (*COUNTS, *AT_LEAST_0):
    least = 1 if path in COUNTS else 0
    if (value := field(config, path)) < least:
      raise ValueError(f"{path} is {value}, expected at least {least}")
  for path in ("seed", "task.seed"):
    check_seed(path, field(config, path))
  updates = config.optimizer.updates_per_batch
  for path in ("steps", "eval.every", "checkpoint.every", "log.samples_every"):
    if field(config, path) % updates:
      raise ValueError(
        f"{path} is {field(config, path)}, expected a multiple of"
        f" optimizer.updates_per_batch = {updates}"
      )
  rows = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
  if rows % config.batch.micro_batches:
    raise ValueError(
      f"{rows} rows a step do not split into batch.micro_batches ="
      f" {config.batch.micro_batches}"
    )
  if not config.loss.temperature > 0:
    raise ValueError(f"loss.temperature is {config.loss.temperature}, expected above 0")
  if not config.lora.alpha > 0:
    raise ValueError(f"lora.alpha is {config.lora.alpha}, expected above 0")
  if 0 < config.batch.max_sequence_len <= config.rollout.max_new_tokens:
    raise ValueError(
      f"batch.max_sequence_len is {config.batch.max_sequence_len}, which leaves no prompt beside"
      f" rollout.max_new_tokens = {config.rollout.max_new_tokens}"
    )
