"""The metrics of a training step, self-checks included."""

import numpy as np

from opsd_jax.losses import objective as objectives
from opsd_jax.rollouts import collate, collect
from opsd_jax.runtime import distributed


def update_metrics(config, run, learned, groups) -> dict[str, float]:
  """The metrics of all updates on one batch, in nats a token.

  A process has sampled and collated its shard; statistics and batch are gathered
  from all processes.

  Args:
    learned: a train.Learned.
    groups: this process's Rollouts, one group a prompt.
  """
  stats, batch = distributed.to_replicated((learned.stats, learned.batch), run.mesh)
  rollouts = [r for group in groups for r in group]
  is_student = config.rollout.source == "student"  # learned from what it has read
  row = batch_metrics(
    learned.loss, learned.grad_norm, stats, batch, rollouts, is_student
  )
  if learned.log_ratio_BxT is not None:
    ratio = distributed.to_replicated(
      (learned.log_ratio_BxT, learned.mask_BxT), run.mesh
    )
    row |= ratio_metrics(*ratio, config)
  if run.objective.is_scored:
    row["overflow"] = float(learned.overflow)
  if config.batch.mask_truncated:
    masked = sum(collect.is_masked(config, r) for r in rollouts)
    row["masked"] = sum(distributed.gather(masked))
  return row | {
    "truncated": distributed.mean(row["truncated"]),
    "padding": collate.padding_share(batch),
  }


def batch_metrics(
  loss, grad_norm, stats, batch, rollouts, is_student: bool = True
) -> dict[str, float]:
  """The metrics of a batch, from its statistics of all processes, as numpy.

  Each term has its value, `<term>/value`. `<target>/nll_gap` is the target's minus
  the student's NLL of the responses: a jump means shifted alignment or a wrong
  template. `sampler/logp_gap` is the largest difference between the log-probs of a
  token by the sampler and by the trainer.
  """
  real = batch.tokens.mask_BxT > 0
  first = real & (batch.tokens.index_BxT == 0)

  def mean(x, of=real):
    return float(x[of].mean()) if of.any() else 0.0

  loss, grad_norm = float(loss), float(grad_norm)
  row = {
    "loss": loss,
    "grad_norm": grad_norm,
    "non_finite": int(not np.isfinite([loss, grad_norm]).all()),
    "student/nll": -mean(stats.logp_BxT),
    "student/entropy": mean(stats.entropy_BxT),
    "response_tokens": int(real.sum()),
    "truncated": float(np.mean([r.completion.truncated for r in rollouts])),
    "empty": sum(not r.completion.ids for r in rollouts),
  }
  for term, value_BxT in stats.values.items():
    row[f"{term}/value"] = mean(value_BxT)
    row[f"{term}/first_token"] = mean(value_BxT, first)
  for term, clipped_BxT in stats.clipped.items():
    row[f"{term}/clipped"] = mean(clipped_BxT)
  for term, weight_BxT in batch.tokens.weights.items():
    row[f"{term}/weight"] = mean(weight_BxT)
  for target, logp_BxT in stats.teacher_logp.items():
    row |= {
      f"{target}/nll": -mean(logp_BxT),
      f"{target}/nll_gap": mean(stats.logp_BxT - logp_BxT),
      f"{target}/entropy": mean(stats.teacher_entropy[target]),
    }
  if all(r.completion.logp is not None for r in rollouts) and is_student:
    gap = np.abs(stats.raw_logp_BxT - batch.tokens.sampler_logp_BxT)
    row["sampler/logp_gap"] = float((gap * real).max())
  return row


def ratio_metrics(log_ratio_BxT, mask_BxT, config) -> dict:
  """How far several updates on one batch moved the policy: mean |log ratio| of new
  to old probability, and for each policy-gradient term the share of tokens whose
  ratio is outside its clip."""
  log_ratio = log_ratio_BxT[mask_BxT > 0]
  ratio = np.exp(log_ratio)

  def mean(x):
    return float(x.mean()) if x.size else 0.0

  row = {"ratio/log": mean(np.abs(log_ratio))}
  for name, node in objectives.active_terms(config).items():
    if node.kind == "policy_gradient":
      low, high = node.surrogate.clip_low, node.surrogate.clip_high
      outside = (ratio < 1 - low) | (ratio > 1 + high)
      row[f"{name}/outside_clip"] = mean(outside)
  return row
