"""What a config must not say: checks across fields, before a model is loaded.

Most follow from what the chosen functions read: a field that none of them takes
is refused when it differs from configs/base.py.
"""

import math

import jax
import jax.numpy as jnp

from configs import base
from opsd_jax.losses import (
  controllers,
  divergences,
  label_losses,
  schedules,
  token_weights,
)
from opsd_jax.losses import objective as objectives
from opsd_jax.losses.reads import reads
from opsd_jax.registry import bind, check_share, pick
from opsd_jax.rollouts import advantages, contexts, routing, sources
from opsd_jax.rules.numbers import check_numbers
from opsd_jax.rules.targets import check_targets
from opsd_jax.rules.unread import check_unread, field
from opsd_jax.structs import ResponseTokens


def check(config) -> None:
  """Raises ValueError, in one line, for the first rule that a config breaks."""
  schedules.check(config.schedule)
  check_controller(config)
  check_numbers(config)
  check_kinds(config)
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


# ------------------------------------------------------------------- the loss


def check_kinds(config) -> None:
  """Every node of a term is complete, as base.term makes it."""
  for name, node in config.loss.items():
    if not hasattr(node, "kind"):
      continue
    pick(objectives.KINDS, node.kind)
    if set(node) != set(base.term(node.kind)):
      raise ValueError(
        f"loss.{name} has not the fields of a term of the kind {node.kind}: make it"
        f" with base.term({node.kind!r})"
      )
    read = reads(bind({**token_weights.ALL, **token_weights.WHOLE}, node.token_weight))
    for field_name, asked in (
      ("target", read & objectives.OF_TARGET or objectives.numbers_of(read)),
      ("against", read & objectives.OF_AGAINST),
    ):
      if asked and field_name not in node:
        raise ValueError(
          f"loss.{name}.token_weight.name={node.token_weight.name} looks at a teacher,"
          f" and terms of the kind {node.kind} have no {field_name}"
        )


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
    if node.denominator == "active_tokens" and not (
      node.kind == "policy_gradient" and objectives.learns_from_rewards(config)
    ):
      raise ValueError(
        f"{where}.denominator=active_tokens counts the tokens of responses with an"
        " advantage: it is for terms of the kind policy_gradient"
      )
    source = config.rollout.source
    if node.importance_cap and source not in sources.ON_POLICY:
      raise ValueError(
        f"{where}.importance_cap weighs tokens that the student has sampled,"
        f" rollout.source is {source}: set it to 0"
      )
    if node.kind == "kl_penalty" or (
      node.kind == "distill" and node.divergence.name in label_losses.ON_POLICY
    ):
      check_drawn(config, where, node)
    if node.kind == "ranking" and node.ranking.k < 2:
      raise ValueError(f"{where}.ranking.k is {node.ranking.k}, expected at least 2")
    if node.kind == "policy_gradient":
      for end in ("clip_low", "clip_high"):
        if node.surrogate[end] < 0:
          raise ValueError(
            f"{where}.surrogate.{end} is {node.surrogate[end]}, expected at least 0"
          )
    if node.token_weight.name in ("soft_or", "confident_mismatch") and (
      node.kind != "distill" or node.divergence.name not in divergences.ALL
    ):
      whole = ", ".join(divergences.ALL)
      raise ValueError(
        f"{where}.token_weight.name={node.token_weight.name} looks at a divergence over"
        f" the vocabulary: it is for terms of the kind distill with one of {whole}"
      )


def check_drawn(config, where: str, node) -> None:
  """A term whose value is of the sampled token alone is what it says in expectation
  over the student's own draws."""
  name, source = node.kind, config.rollout.source
  if node.kind == "distill":
    name = f"divergence.name={node.divergence.name}"
  if source not in sources.ON_POLICY or (
    node.kind == "distill" and source != "student"
  ):
    raise ValueError(
      f"{where}: {name} is a KL in expectation over the student's own responses,"
      f" rollout.source is {source}: take the kind distill with reverse_kl"
    )
  if not config.rollout.temperature > 0:
    raise ValueError(
      f"{where}: {name} is a KL in expectation over random draws, and"
      f" rollout.temperature is {config.rollout.temperature}: set it above 0"
    )
  if not is_drawn_as_learned(config) and not node.importance_cap:
    raise ValueError(f"{where}: {name} {DRAWN_OTHERWISE.format(**drawn(config))}")


DRAWN_OTHERWISE = (
  "learns from sampled tokens, and rollout.temperature={temperature}, top_k={top_k},"
  " top_p={top_p}, min_p={min_p} draw from another distribution than"
  " loss.temperature={learned} learns: make them equal, without filters, or set the"
  " term's importance_cap (2, say)"
)


def drawn(config) -> dict:
  """What responses are drawn from, for an error's text."""
  names = ("temperature", "top_k", "top_p", "min_p")
  fields = {name: config.rollout[name] for name in names}
  return fields | {"learned": config.loss.temperature}


def check_controller(config) -> None:
  """A controller's numbers mean something, and nobody else sets its fields."""
  c = config.controller
  if c.window < 1 or not 0 <= c.change <= 1:
    raise ValueError(
      f"controller.window and controller.change are {c.window} and {c.change}, expected"
      " at least 1 step and 0 to 1"
    )
  for path in {path for path, *_ in config.schedule} & set(
    controllers.values(config, [])
  ):
    raise ValueError(f"{path} is set by the schedule and by controller.name={c.name}")


def check_schedule(config) -> None:
  """Fields that may change with the step, and no others."""
  for path, *knots in config.schedule:
    try:
      value = field(config, path)
    except AttributeError as e:
      raise ValueError(f"schedule of {path}: there is no such field") from e
    if not schedules.is_number(value):
      raise ValueError(f"schedule of {path}: it is {value!r}, no number")
    if path == "loss.chunk":
      raise ValueError(
        f"schedule of {path}: it chooses what is computed, and cannot change"
      )
    for _, number in knots:
      check_knot(config, path, float(number))
    if path.startswith(schedules.ON_HOST):
      continue  # plain numbers
    try:
      jax.eval_shape(lambda x, path=path: probe(config, {path: x}), jnp.float32(0))
    except (jax.errors.JAXTypeError, TypeError) as e:
      raise ValueError(
        f"schedule of {path}: it chooses what is computed, and cannot change"
      ) from e


def check_knot(config, path: str, number: float) -> None:
  """A knot is a value that the field might have in the config."""
  if not math.isfinite(number):
    raise ValueError(f"schedule of {path}: a knot is {number}, expected a number")
  changed = config.copy_and_resolve_references()
  with changed.unlocked(), changed.ignore_type():
    changed.update_from_flattened_dict({path: number})
  objective = objectives.from_config(changed)
  if path.startswith(schedules.ON_HOST):
    check_sources(changed)
  else:
    check_terms(changed)
    check_targets(changed, objective)


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
  check_routing(config)
  late, n = contexts.late_views(config.context), config.rollout.samples_per_prompt
  for name in ("context.part", "context.agreement", "rollout.student_share"):
    check_share(name, field(config, name))
  if config.context.most < 1:
    raise ValueError(f"context.most is {config.context.most}, expected at least 1")
  if source in sources.GIVEN and n != 1:
    raise ValueError(
      f"rollout.source={source} has one response a problem: set"
      f" rollout.samples_per_prompt=1, it is {n}"
    )
  if source in sources.EXTERNAL and not config.external.source:
    raise ValueError(
      f"rollout.source={source} samples of the external model: set external.source"
    )
  if source == "revised" and config.context.privileged != "own_attempt":
    raise ValueError(
      "rollout.source=revised answers again with the context own_attempt: set"
      f" context.privileged to it, it is {config.context.privileged}"
    )
  needs = {"calibrated": 2, "most_taught": 2, "majority": 3}
  for name in (source, *contexts.names(config.context)):
    if n < needs.get(name, 1):
      raise ValueError(
        f"{name} compares responses to one prompt: set rollout.samples_per_prompt to at"
        f" least {needs[name]}, it is {n}"
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


def check_routing(config) -> None:
  """What routing names is there, and its numbers mean something."""
  c, source = config.routing, config.rollout.source
  check_share("routing.alpha", c.alpha)
  if min(c.a, c.b) < 0:
    raise ValueError(
      f"routing.a and routing.b are {c.a} and {c.b}, expected at least 0"
    )
  made_for = {"both_views": "teacher_view", "rescued": "rescue"}.get(c.name, source)
  if source != made_for:
    raise ValueError(
      f"routing.name={c.name} routes what rollout.source={made_for} samples,"
      f" rollout.source is {source}"
    )
  active = objectives.active_terms(config)
  terms = [n for n in routing.keys(bind(routing.ALL, c)) if n != "credit"]
  if terms and not set(terms) & set(active):
    raise ValueError(
      f"routing.name={c.name} routes the terms {', '.join(terms)}, and none of them is"
      f" on: those are {', '.join(active)}"
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
  rewarded = objectives.learns_from_rewards(config)
  if rewarded and c.advantage not in advantages.ALONE and r.samples_per_prompt < 2:
    raise ValueError(
      f"rewards.advantage={c.advantage} compares responses to one prompt:"
      f" set rollout.samples_per_prompt to at least 2, it is {r.samples_per_prompt}"
    )
  if r.source not in sources.ON_POLICY:
    raise ValueError(
      "a policy gradient is of responses that the student has sampled, rollout.source"
      f" is {r.source}: set it to student"
    )
  if not r.temperature > 0:
    raise ValueError(
      f"rollout.temperature is {r.temperature}: greedy responses"
      " to a prompt are all the same, so rewards say nothing"
    )
  if not is_drawn_as_learned(config) and not all(n.importance_cap for n in nodes):
    raise ValueError(f"policy_gradient {DRAWN_OTHERWISE.format(**drawn(config))}")
  if c.overlong_margin > r.max_new_tokens:
    raise ValueError(
      f"rewards.overlong_margin is {c.overlong_margin}, expected at most"
      f" rollout.max_new_tokens = {r.max_new_tokens}"
    )
