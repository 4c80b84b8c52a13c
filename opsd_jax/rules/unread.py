"""Fields that were set and that nothing reads: made from what the chosen functions
take, against the defaults of configs/base.py."""

import functools
import inspect

from configs import base
from opsd_jax.losses import (
  credit,
  divergences,
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
  scheduled = {path for path, *_ in config.schedule}
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
  if "external" not in {weights for _, weights in pairs}:
    yield from all_of(config, "external", "no target reads the weights 'external'")
  if not any(node.kind == "policy_gradient" for node in active.values()):
    yield from all_of(config, "rewards", "no term of the kind policy_gradient is on")
  if not config.lora.rank:
    yield from all_of(config, "lora", "lora.rank is 0", but=("rank",))
  if not config.eval.samples:
    yield "eval.temperature", "eval.samples is 0: all replies are greedy"
  if not config.profile.steps:
    yield "profile.start", "profile.steps is 0"
  yield from of_pipeline(config, objective)


def of_term(name, node, term, objective):
  """Of a term that is on."""
  yield from not_taken(
    f"loss.{name}.token_weight",
    node.token_weight,
    {**token_weights.ALL, **token_weights.WHOLE},
  )
  if node.kind == "distill":
    table, d = {**divergences.ALL, **divergences.TOKEN}, node.divergence
    keep = ["support", "clip", *["tau"] * (d.clip != "none")]
    keep += ["k", "support_from"] * (d.support != "full")
    yield from not_taken(f"loss.{name}.divergence", d, table, keep)
  if node.kind == "policy_gradient":
    table = policy_gradient.SURROGATES
    yield from not_taken(f"loss.{name}.surrogate", node.surrogate, table)
    table = {**credit.ALL, **credit.WHOLE}
    yield from not_taken(f"loss.{name}.credit", node.credit, table)
    if term.target not in objective.targets:
      yield f"loss.{name}.target", "neither surrogate nor credit reads a target"
  if node.kind == "ranking":
    yield from not_taken(f"loss.{name}.ranking", node.ranking, divergences.RANKINGS)


SAMPLING = (
  "temperature", "top_k", "top_p", "min_p", "slots", "host_sync_every", "stop",
)  # fmt: skip


def of_pipeline(config, objective):
  """Of data, rollouts, routing and contexts."""
  if config.data.test_time:
    for name in ("train", "train_limit"):
      yield f"data.{name}", "data.test_time learns the problems of data.eval"
  if config.rollout.source == "dataset":
    for name in SAMPLING:
      yield f"rollout.{name}", "rollout.source=dataset samples nothing"
    yield "batch.mask_truncated", "rollout.source=dataset truncates nothing"
  if objective.views < 2 and 1 in contexts.late_views(config.context):
    yield "context.privileged", "no term reads a teacher's view"
  source = pick(sources.ALL, config.rollout.source)
  keep = [f for f in config.routing if f in inspect.signature(source).parameters]
  yield from not_taken("routing", config.routing, routing.ALL, keep)
  chosen = [
    contexts.AFTER[name]
    for name in contexts.names(config.context)
    if name in contexts.AFTER
  ]
  if not any("include_self" in inspect.signature(f).parameters for f in chosen):
    yield "context.include_self", "no context takes it"
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
