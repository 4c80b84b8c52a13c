"""Numbers of a run that say that something is wrong, in words."""

import collections

from opsd_jax.losses import objective as objectives
from opsd_jax.runtime import distributed

LARGEST_LOGP_GAP = 0.05  # nats, in float32
LEAST_MEMORY = 0.08  # share of the machine's memory that should be left
MOSTLY = 0.5  # a share of truncated completions that is worth a warning


def truncated(fraction: float, field: str) -> str | None:
  """What to say of a fraction of completions that did not end within `field` tokens."""
  if fraction < MOSTLY:
    return None
  return (
    f"{fraction:.0%} of the completions did not end within {field}: raise it, or see"
    " whether the model writes the end of a turn that it is stopped by"
  )


def of_step(config, row: dict) -> dict[str, str]:
  """{kind: what a step's metrics say is wrong}."""
  found = {"truncated": truncated(row["truncated"], "rollout.max_new_tokens")}
  gap = row.get("sampler/logp_gap", 0.0)
  if gap > LARGEST_LOGP_GAP and config.model.dtype == "float32":
    found["logp_gap"] = (
      f"sampler and trainer differ by {gap:.2f} nats in a token's log-prob"
      f" (sampler/logp_gap, expected below {LARGEST_LOGP_GAP}): what is learned from is"
      " not what was sampled"
    )
  if objectives.learns_from_rewards(config) and not row["correct"]:
    found["no_reward"] = (
      "no response was right, and rewards are learned from. Easier problems, more"
      " samples or more rollout.max_new_tokens may help"
    )
  if row.get("memory/left", 1.0) < LEAST_MEMORY:
    found["memory"] = (
      f"{row['memory/left']:.0%} of the machine's memory is left, this process holds"
      f" {row['memory/resident']:.1f} GB: more batch.micro_batches need less"
    )
  return {kind: text for kind, text in found.items() if text}


class Warner:
  """Prints each kind of warning the first time that it comes, and at the end how
  often it came."""

  def __init__(self, config):
    self.config, self.count = config, collections.Counter()

  def __call__(self, step: int, row: dict) -> None:
    for kind, text in of_step(self.config, row).items():
      self.count[kind] += 1
      if self.count[kind] == 1 and distributed.is_first():
        print(f"warning, step {step}, {kind}: {text}", flush=True)

  def close(self) -> None:
    for kind, count in self.count.items():
      if distributed.is_first():
        print(f"warning, {kind}: in {count} steps of this session", flush=True)
