"""Fields that were set and that nothing reads: made from what the chosen functions
take, against the defaults of configs/base.py."""

import functools
import inspect

from configs import base
from opsd_jax.losses import (
  controllers,
  credit,
  divergences,
  label_losses,
  logit_transforms,
  policy_gradient,
  targets,
  teachers,
  token_weights,
)
from opsd_jax.losses import objective as objectives
from opsd_jax.registry import pick
from opsd_jax.rollouts import contexts, routing, sources


def field(config, path: str):
  return functools.reduce(getattr, path.split("."), config)


def check_unread(config, objective) -> None:
  """Raises ValueError for a field that was set and that nothing reads."""
  default = base.get_config()
  scheduled = controllers.changing(config)
  for path, why in unread(config, objective):
    usual = default_of(default, config, path)
    if field(config, path) != usual or path in scheduled:
      raise ValueError(
        f"{path} is {field(config, path)!r}, and nothing reads it: {why}. Leave it"
        f" at {usual!r}"
      )


def default_of(default, config, path: str):
  """A field's value in configs/base.py; a term or target of another name is as
  complete as one there."""
  family, name, *rest = path.split(".")
  if family == "loss" and name not in default.loss:
    return field(base.term(config.loss[name].kind), ".".join(rest))
  if family == "targets" and name not in default.targets:
    return field(base.target(), ".".join(rest))
  return field(default, path)


def unread(config, objective):
  """(path, reason) of each field that no chosen function reads."""
  active = objectives.active_terms(config)
  for name, node in config.loss.items():
    if not hasattr(node, "kind"):
      continue
    if name not in active:
      yield from all_of(config, f"loss.{name}", "its scale is 0", but=("kind", "scale"))
    else:
      yield from of_term(name, node, objective.terms[name], objective)
  for name, node in config.targets.items():
    if name not in objective.targets:
      yield from all_of(config, f"targets.{name}", "no term reads this target")
    else:
      keep = ("temperature",)
      yield from not_taken(f"targets.{name}", node, targets.ALL, keep)
  for role in objectives.MEMORIES:
    if role not in objective.memories:
      yield from all_of(config, role, f"no target reads the weights {role!r}")
    else:
      yield from not_taken(role, config[role], teachers.ALL)
  pairs = objective.teachers(False)
  is_sampled = config.rollout.source in sources.EXTERNAL
  if "external" not in {weights for _, weights in pairs} and not is_sampled:
    why = "neither targets nor rollout.source read the external weights"
    yield from all_of(config, "external", why)
  if not objectives.learns_from_rewards(config):
    yield from all_of(config, "rewards", "no term's credit reads a reward")
  if not config.lora.rank:
    yield from all_of(config, "lora", "lora.rank is 0", but=("rank",))
  if not config.eval.samples:
    yield "eval.temperature", "eval.samples is 0: all replies are greedy"
  if not config.profile.steps:
    yield "profile.start", "profile.steps is 0"
  yield from not_taken("controller", config.controller, controllers.ALL)
  yield from of_pipeline(config, objective)


def of_term(name, node, term, objective):
  """Of a term that is on."""
  yield from not_taken(
    f"loss.{name}.token_weight",
    node.token_weight,
    {**token_weights.ALL, **token_weights.WHOLE},
  )
  if node.kind == "distill":
    table, d = (
      {**divergences.ALL, **label_losses.TOKEN, **label_losses.LABEL},
      node.divergence,
    )
    keep = ["support", "clip", *["tau"] * (d.clip != "none")]
    keep += ["k", "support_from"] * (d.support != "full")
    yield from not_taken(f"loss.{name}.divergence", d, table, keep)
    table = logit_transforms.ALL
    yield from not_taken(f"loss.{name}.logits", node.logits, table)
  if node.kind == "policy_gradient":
    table = policy_gradient.SURROGATES
    yield from not_taken(f"loss.{name}.surrogate", node.surrogate, table)
    table = {**credit.ALL, **credit.WHOLE}
    yield from not_taken(f"loss.{name}.credit", node.credit, table)
    if term.target not in objective.targets:
      yield f"loss.{name}.target", "neither surrogate nor credit reads a target"
    if not term.reads & objectives.OF_AGAINST:
      yield f"loss.{name}.against", "neither credit nor token weight reads it"
  if node.kind == "ranking":
    yield from not_taken(f"loss.{name}.ranking", node.ranking, label_losses.RANKINGS)


SAMPLING = (
  "temperature", "top_k", "top_p", "min_p", "slots", "host_sync_every", "stop",
)  # fmt: skip


def of_pipeline(config, objective):
  """Of data, rollouts, routing and contexts."""
  if config.data.test_time:
    for name in ("train", "train_limit"):
      yield f"data.{name}", "data.test_time learns the problems of data.eval"
  if (given := config.rollout.source) in sources.GIVEN:
    for name in SAMPLING:
      yield f"rollout.{name}", f"rollout.source={given} samples nothing"
    yield "batch.mask_truncated", f"rollout.source={given} truncates nothing"
  is_read = objective.views > 1 or config.rollout.source in sources.READ_CONTEXT
  if not is_read and 1 in contexts.late_views(config.context):
    yield "context.privileged", "no term reads a teacher's view"
  source = pick(sources.ALL, config.rollout.source)
  taken = set(inspect.signature(source).parameters)
  keep = [f for f in config.routing if f in taken]
  yield from not_taken("routing", config.routing, routing.ALL, keep)
  for name in ("student_share", "threshold"):
    if name not in taken:
      yield (
        f"rollout.{name}",
        f"rollout.source={config.rollout.source} does not take it",
      )
  for name in ("include_self", "instruction", "part", "agreement", "most"):
    if name not in contexts.taken(config.context):
      yield f"context.{name}", "no context takes it"
  if config.rollout.source != "pairs":
    yield "data.rejected", "rollout.source=pairs alone reads it"
  if len(config.context.also_privileged) > max(objective.views - 2, 0):
    yield "context.also_privileged", f"targets read views 0 to {objective.views - 1}"


def not_taken(path: str, node, table: dict, keep=()):
  """Fields of a node that the function it names does not take."""
  taken = {"name", *keep, *inspect.signature(pick(table, node.name)).parameters}
  for name in node:
    if name not in taken:
      yield f"{path}.{name}", f"{path}.name={node.name} does not take it"


def all_of(config, path: str, why: str, but=()):
  """Every field below a node."""
  for name, value in field(config, path).items():
    if name in but:
      continue
    if hasattr(value, "items"):
      yield from all_of(config, f"{path}.{name}", why)
    else:
      yield f"{path}.{name}", why
