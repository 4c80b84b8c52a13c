"""What a config must not say: checks across fields, before a model is loaded.

Most follow from what the chosen functions read: a field that none of them takes
is refused when it differs from configs/base.py.
"""

import functools
import inspect

import jax
import jax.numpy as jnp

from configs import base
from opsd_jax.losses import (
  credit,
  divergences,
  policy_gradient,
  schedules,
  targets,
  teachers,
  token_weights,
)
from opsd_jax.losses import objective as objectives
from opsd_jax.registry import pick
from opsd_jax.rollouts import advantages, contexts, routing, sources
from opsd_jax.structs import ResponseTokens

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
  "seed", "eval.samples", "lora.rank", "batch.max_sequence_len", "batch.pack_len",
  "profile.start", "profile.steps", "rewards.overlong_margin", "data.skip_bad",
  "data.train_limit", "data.eval_limit",
)  # fmt: skip
WEIGHTS = ("live", "external", *objectives.MEMORIES)  # that a target may read


def field(config, path: str):
  return functools.reduce(getattr, path.split("."), config)


def check(config) -> None:
  """Raises ValueError, in one line, for the first rule that a config breaks."""
  check_numbers(config)
  objective = objectives.from_config(config)
  if not objective.terms:
    kinds = ", ".join(f"loss.{kind}.scale" for kind in objectives.KINDS)
    raise ValueError(f"nothing to learn from: set one of {kinds}")
  check_terms(config)
  check_sources(config)
  check_rewards(config)
  check_targets(config, objective)
  check_schedule(config)
  check_unread(config, objective)


def check_numbers(config) -> None:
  for path in (*COUNTS, *AT_LEAST_0):
    least = 1 if path in COUNTS else 0
    if (value := field(config, path)) < least:
      raise ValueError(f"{path} is {value}, expected at least {least}")
  updates = config.optimizer.updates_per_batch
  for path in ("steps", "eval.every", "checkpoint.every"):
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


# ------------------------------------------------------------------- the loss


def check_terms(config) -> None:
  """Terms that are on."""
  for name, node in objectives.active_terms(config).items():
    where = f"loss.{name}"
    if node.importance_cap < 0:
      raise ValueError(
        f"{where}.importance_cap is {node.importance_cap}, expected at least 0"
      )
    if not 0 < node.token_weight.kept_share <= 1:
      raise ValueError(
        f"{where}.token_weight.kept_share is {node.token_weight.kept_share}, expected above 0"
        " and at most 1"
      )
    if node.denominator == "active_tokens" and node.kind != "policy_gradient":
      raise ValueError(
        f"{where}.denominator=active_tokens counts the tokens of responses with an"
        " advantage: it is for terms of the kind policy_gradient"
      )
    if node.kind == "policy_gradient":
      for end in ("clip_low", "clip_high"):
        if node.surrogate[end] < 0:
          raise ValueError(
            f"{where}.surrogate.{end} is {node.surrogate[end]}, expected at least 0"
          )
    if node.token_weight.name in ("soft_or", "confident_mismatch") and (
      node.kind != "distill"
    ):
      raise ValueError(
        f"{where}.token_weight.name={node.token_weight.name} looks at a divergence:"
        " it is for terms of the kind distill"
      )


def check_targets(config, objective) -> None:
  """Targets that a term reads, and whose weights they name."""
  views = 1 + len(contexts.names(config.context))
  for name, target in objective.targets.items():
    for view, weights in target.teachers:
      if weights not in WEIGHTS:
        raise ValueError(
          f"targets.{name}.weights is {weights!r}, known: {', '.join(WEIGHTS)}"
        )
      if not 0 <= view < views:
        raise ValueError(
          f"targets.{name} reads view {view}; there are 0 to {views - 1}:"
          " context.also_privileged adds further ones"
        )
      if weights == "external" and not config.external.source:
        raise ValueError(
          f"targets.{name}.weights is external: set external.source to a model"
        )


def check_schedule(config) -> None:
  """Fields that may change with the step, and no others."""
  schedules.check(config.schedule)
  for path, *_ in config.schedule:
    try:
      value = field(config, path)
    except AttributeError as e:
      raise ValueError(f"schedule of {path}: there is no such field") from e
    if not schedules.is_number(value):
      raise ValueError(f"schedule of {path}: it is {value!r}, no number")
    if path.startswith("routing."):
      continue  # numbers on the host
    try:
      jax.eval_shape(lambda x, path=path: probe(config, {path: x}), jnp.float32(0))
    except (jax.errors.JAXTypeError, TypeError) as e:
      raise ValueError(
        f"schedule of {path}: it chooses what is computed, and cannot change"
      ) from e


def probe(config, values: dict):
  """What a step does with the objective of some values, on two tokens."""
  o = objectives.from_config(config, values)
  size = 2, max([1024, *(node.divergence.k for node in distilled(config))])
  one, ids = jnp.ones((1, 2)), jnp.ones((1, 2), jnp.int32)
  names = ("advantage_BxT", "sampled_logp_BxT", "old_logp_BxT", "gumbel_BxT")
  tokens = ResponseTokens(
    ids, one, ids, ids, ids, one, group_BxT=ids, **dict.fromkeys(names, one)
  )
  flat = jax.tree.map(lambda x: x[0], tokens)
  teachers = {pair: jnp.zeros(size) for pair in o.teachers(False)}
  losses, stats = objectives.of_logits(
    o, dict.fromkeys(o.terms, 1.0), jnp.zeros(size), teachers, flat
  )
  for t in o.memories.values():
    t.update(t.init(one), one, 1)
  return losses


def distilled(config):
  nodes = objectives.active_terms(config).values()
  return [node for node in nodes if node.kind == "distill"]


# ------------------------------------------------------- rollouts and rewards


def check_sources(config) -> None:
  source = config.rollout.source
  pick(sources.ALL, source), pick(routing.ALL, config.routing.name)
  late = contexts.late_views(config.context)
  if source == "dataset" and config.rollout.samples_per_prompt != 1:
    raise ValueError(
      "rollout.source=dataset has one response a problem: set"
      f" rollout.samples_per_prompt=1, it is {config.rollout.samples_per_prompt}"
    )
  if source in sources.PRIVILEGED and (
    1 in late or config.context.privileged == "none"
  ):
    raise ValueError(
      f"rollout.source={source} samples with the privileged prompt: set"
      " context.privileged to solution, answer or other"
    )
  if (
    source in sources.PRIVILEGED
    and config.loss.temperature != 1
    and not (is_drawn_as_learned(config))
  ):
    raise ValueError(
      f"rollout.source={source} needs log-probs at the loss's temperature: set"
      " loss.temperature=1, or rollout.temperature to the same without filters"
    )


def is_drawn_as_learned(config) -> bool:
  """Whether responses come from the distribution that the loss is about."""
  r = config.rollout
  filters = r.top_k, r.top_p, r.min_p
  return r.temperature == config.loss.temperature and filters == (0, 1, 0)


def check_rewards(config) -> None:
  """Terms that learn from rewards."""
  c, r = config.rewards, config.rollout
  pick(advantages.REWARDS, c.reward), pick(advantages.ALL, c.advantage)
  nodes = objectives.active_terms(config).values()
  nodes = [node for node in nodes if node.kind == "policy_gradient"]
  if not nodes:
    return
  if c.advantage not in advantages.ALONE and r.samples_per_prompt < 2:
    raise ValueError(
      f"rewards.advantage={c.advantage} compares responses to one prompt:"
      f" set rollout.samples_per_prompt to at least 2, it is {r.samples_per_prompt}"
    )
  if r.source == "dataset":
    raise ValueError(
      "rewards are learned from of sampled responses, rollout.source is dataset:"
      " set it to student"
    )
  if not r.temperature > 0:
    raise ValueError(
      f"rollout.temperature is {r.temperature}: greedy responses"
      " to a prompt are all the same, so rewards say nothing"
    )
  if not is_drawn_as_learned(config) and not all(n.importance_cap for n in nodes):
    raise ValueError(
      f"rollout.temperature={r.temperature}, top_k={r.top_k},"
      f" top_p={r.top_p}, min_p={r.min_p} draw from another"
      f" distribution than loss.temperature={config.loss.temperature} learns:"
      " make them equal, without filters, or set the term's importance_cap"
      " (2, say)"
    )
  if c.overlong_margin > r.max_new_tokens:
    raise ValueError(
      f"rewards.overlong_margin is {c.overlong_margin}, expected at most"
      f" rollout.max_new_tokens = {r.max_new_tokens}"
    )


# ------------------------------------------------- fields that nothing reads


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


def of_pipeline(config, objective):
  """Of routing and contexts."""
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
