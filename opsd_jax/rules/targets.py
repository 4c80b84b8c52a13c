"""What targets must not say: checks of those that a term reads, and of the weights
that they name."""

import jax
import jax.numpy as jnp

from opsd_jax.losses import controllers
from opsd_jax.losses import objective as objectives
from opsd_jax.rollouts import contexts

WEIGHTS = ("live", "external", *objectives.MEMORIES)  # that a target may read


def check_targets(config, objective) -> None:
  """Targets that a term reads, and whose weights they name."""
  views = 1 + len(contexts.names(config.context))
  scheduled = controllers.changing(config)
  for role in objective.memories:
    is_moving = config[role].rate != 0 or f"{role}.rate" in scheduled
    if config[role].name == "ema" and not is_moving:
      raise ValueError(
        f"{role}.rate is 0, expected above 0: an ema that stays is {role}.name=fixed"
      )
  check_found(config, objective)
  for name, target in objective.targets.items():
    check_target(f"targets.{name}", config.targets[name])
    is_compared = any(
      t.target == name and t.reads_logits for t in objective.terms.values()
    )
    may_change = any(path.startswith(f"targets.{name}.") for path in scheduled)
    if is_compared and not may_change and is_the_student_itself(config, target):
      raise ValueError(
        f"targets.{name} is the student itself, the same weights on the same prompt:"
        " compared with it nothing can be learned. Let it read another view"
        " (context.privileged, context.template) or other weights"
      )
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


def check_found(config, objective) -> None:
  """A number that a token weight reads is one that its target's mixing finds."""
  for name, term in objective.terms.items():
    if wanted := objectives.numbers_of(term.reads):
      target = objective.targets[term.target]
      logits = [jax.ShapeDtypeStruct((2, 8), jnp.float32)] * (1 + len(target.teachers))
      exists = [1.0] * len(target.teachers)
      _, found = jax.eval_shape(
        lambda *zs, t=target, e=exists: t.mix(*zs, exists=e), *logits
      )
      if missing := wanted - set(found):
        weight = config.loss[name].token_weight.name
        raise ValueError(
          f"loss.{name}.token_weight.name={weight} reads {', '.join(sorted(missing))} of"
          f" targets.{term.target}, whose name={config.targets[term.target].name} finds"
          f" {', '.join(found) or 'no number'}"
        )


def is_the_student_itself(config, target) -> bool:
  """Whether a target's distribution is the learner's, tried on a few logits."""
  student, *others = jax.random.normal(
    jax.random.key(0), (1 + len(target.teachers), 2, 8)
  )
  for i, pair in enumerate(target.teachers):
    others[i] = student if is_the_student(config, *pair) else others[i]
  mixed, _ = target.mix(student, *others, exists=[1.0] * len(others))
  temperature = config.loss.temperature
  logq = jax.nn.log_softmax(mixed / (target.temperature or temperature))
  return jnp.allclose(logq, jax.nn.log_softmax(student / temperature), atol=1e-5)


def is_the_student(config, view: int, weights: str) -> bool:
  """Whether a teacher's distribution is the learner's by construction."""
  c, memory = config.context, config.get(weights, {})
  name = "live" if weights == "live" else memory.get("name")
  is_fixed_rate = f"{weights}.rate" not in controllers.changing(config)
  is_now = (
    name == "live"
    or (name == "synced" and memory.every == 1)
    or (name == "ema" and memory.rate == 1 and is_fixed_rate)
  )
  kind = contexts.names(c)[view - 1] if 0 < view <= len(contexts.names(c)) else None
  reads_the_same = view == 0 or (
    kind == "none" and c.template == "plain" and c.student_args == c.teacher_args
  )
  return is_now and reads_the_same and config.rollout.source != "teacher_view"


def check_target(where: str, node) -> None:
  """The numbers of one target are where its formula means something."""
  above_0 = {
    "temperature": node.temperature,
    "bound": node.bound,
    "views": node.views,
    "low": node.low,
    "high": node.high,
    **({"strength": node.strength} if node.name == "residual" else {}),
  }
  for name, value in above_0.items():
    if isinstance(value, int | float) and not value > 0:
      raise ValueError(f"{where}.{name} is {value}, expected above 0")
