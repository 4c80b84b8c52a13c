"""config -> Objective: the only file that knows all families of the loss.

The loss is a table of named terms, scale / denominator x the sum over response
tokens of weight x value. `of_logits` says what a token costs; `weigh` makes the
weights and credits that look at other tokens, from statistics of the whole batch.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opsd_jax.losses import (
  controllers,
  credit,
  denominators,
  divergences,
  label_losses,
  logit_transforms,
  policy_gradient,
  schedules,
  targets,
  token_weights,
)
from opsd_jax.losses import teachers as teacher_memories
from opsd_jax.losses.bounds import bounded
from opsd_jax.losses.reads import reads
from opsd_jax.registry import accepted, bind, pick
from opsd_jax.structs import TermStats, TokenStats

sg = jax.lax.stop_gradient
MEMORIES = ("teacher", "reference")  # the roles that config has a node for
OF_TARGET = {"teacher_logp_BxT", "teacher_entropy_BxT", "has_teacher_BxT"}
OF_AGAINST = {"against_logp_BxT"}


class Term(NamedTuple):
  """One named summand of the loss."""

  scale: Any
  target: str | None  # whose statistics its functions read; None: nobody's
  against: str | None  # and a second one, whose log-prob is compared with its
  reads: frozenset[str]  # what its functions look at, see losses/reads.py
  reads_logits: bool  # its value reads the target's, so that learning runs it
  value: Callable  # (Seen, tokens) -> (N, fraction that a clip changed or None)
  weight: Callable  # (TermStats, tokens) -> N, of its own token
  whole_weight: Callable | None  # the same, of tokens that look at others
  whole_credit: Callable | None  # (TermStats, tokens) -> advantage, likewise
  denominator: Callable  # (tokens, weights) of the whole batch -> scalar
  bound: Callable | None  # lengths -> how many tokens its weight keeps at most

  @property
  def read_targets(self) -> set[str]:
    """The targets whose logits or statistics it reads."""
    is_read = self.reads_logits or self.reads & OF_TARGET or numbers_of(self.reads)
    found = {self.target} if is_read else set()
    return found | ({self.against} if self.reads & OF_AGAINST else set())


def numbers_of(read: frozenset[str]) -> set[str]:
  """The numbers of a target's mixing among what a function reads."""
  prefix = "numbers."
  return {name.removeprefix(prefix) for name in read if name.startswith(prefix)}


def reads_teachers(*functions) -> bool:
  """Whether functions of (stats, tokens) look at what teachers' logits give."""
  read = frozenset().union(*map(reads, functions))
  return bool(read & (OF_TARGET | OF_AGAINST) or numbers_of(read))


class Seen(NamedTuple):
  """What a term's value is made of, for some tokens."""

  z_NxV: Any  # the student's logits, with gradient
  zt_NxV: Any  # its target's; None without one
  logp_NxV: Any  # the student's log-probs, with gradient
  logq_NxV: Any  # its target's
  y_N: Any
  stats: TermStats


class Objective(NamedTuple):
  terms: dict[str, Term]
  targets: dict[str, targets.Target]  # those that a term reads
  memories: dict[str, teacher_memories.Teacher]  # those that a target reads
  temperature: float
  chunk: int

  def teachers(self, learning: bool) -> tuple[tuple[int, str], ...]:
    """The (view, weights) pairs whose logits are run: where statistics of all
    tokens are made, or (`learning`) those alone that a loss reads."""
    chosen = [t for t in self.terms.values() if t.reads_logits or not learning]
    read = set().union(*(t.read_targets for t in chosen))
    read_in_order = [target for name, target in self.targets.items() if name in read]
    return tuple(dict.fromkeys(pair for t in read_in_order for pair in t.teachers))

  @property
  def views(self) -> int:
    """How many views a batch has."""
    return 1 + max((view for view, _ in self.teachers(False)), default=0)

  @property
  def partial_views(self) -> frozenset[int]:
    """The views of which something must know whether a response has them."""
    asked = {
      name
      for term in self.terms.values()
      if "has_teacher_BxT" in term.reads
      for name in (term.target, term.against)
    }
    chosen = [t for name, t in self.targets.items() if t.is_partial or name in asked]
    return frozenset(view for t in chosen for view, _ in t.teachers if view)

  @property
  def is_scored(self) -> bool:
    """Whether a weight or a credit looks at other tokens than its own."""
    return any(t.whole_weight or t.whole_credit for t in self.terms.values())

  def kept(self, length_N) -> np.ndarray | None:
    """How many tokens of responses of these lengths some term counts, at most;
    None where a term counts any."""
    if any(t.bound is None for t in self.terms.values()):
      return None
    counts = sum(t.bound(length_N) for t in self.terms.values())
    return np.minimum(counts, length_N)


# ------------------------------------------------------- what a token costs


def of_logits(o: Objective, denominators, z_NxV, teachers: dict, tokens):
  """({term: losses N}, TokenStats) of some tokens, each by itself.

  `teachers`: the logits N x V of (view, weights) pairs; a target that lacks one is
  left out. Without `denominators` there are statistics alone.
  """
  y_N = tokens.y_BxT

  def at_y(logp):
    return bounded(jnp.take_along_axis(logp, y_N[:, None], 1)[:, 0])

  logp = jax.nn.log_softmax(z_NxV / o.temperature)
  raw = logp if o.temperature == 1 else jax.nn.log_softmax(z_NxV)
  mixed, logqs, numbers, exists = {}, {}, {}, {}
  for name, target in o.targets.items():
    if all(pair in teachers for pair in target.teachers):
      has_views = [tokens.exists.get(view, 1.0) for view, _ in target.teachers]
      zts = (teachers[pair] for pair in target.teachers)
      zt, found = jax.tree.map(sg, target.mix(sg(z_NxV), *zts, exists=has_views))
      temperature = o.temperature if target.temperature is None else target.temperature
      mixed[name], numbers[name] = zt, found
      logqs[name] = sg(jax.nn.log_softmax(zt / temperature))
      if any(view in tokens.exists for view, _ in target.teachers):
        exists[name] = target.needs(has_views)
  stats = TokenStats(
    at_y(logp),
    sg(at_y(raw)),
    sg(entropy(logp)),
    {},
    {name: at_y(logq) for name, logq in logqs.items()},
    {name: entropy(logq) for name, logq in logqs.items()},
    {},
    numbers,
    exists,
  )
  losses = {}
  for name, term in o.terms.items():
    term_stats = stats.of(name, term.target, term.against)
    seen = Seen(
      z_NxV, mixed.get(term.target), logp, logqs.get(term.target), y_N, term_stats
    )
    advantage_N = tokens.credits.get(name, tokens.advantage_BxT)
    if advantage_N is None:  # no reward, and scoring has yet to make the credit
      advantage_N = jnp.zeros_like(logp[:, 0])
    term_tokens = tokens._replace(advantage_BxT=advantage_N)
    value, clipped = term.value(seen, term_tokens)
    stats.values[name] = value
    if clipped is not None:
      stats.clipped[name] = sg(clipped)
    if denominators:
      term_stats = stats.of(name, term.target, term.against)
      weight = term.weight(sg(term_stats), term_tokens)
      weight = tokens.weights.get(name, 1.0) * weight
      losses[name] = term.scale * weight * value / denominators[name]
  return losses, stats


def entropy(logp):
  """-sum p log p, nats."""
  return -(jnp.exp(logp) * jnp.where(logp > -jnp.inf, logp, 0.0)).sum(-1)


# ------------------------------------------------------------ kinds of terms
# node -> (value, whether it reads the target's logits itself, the functions of
# (stats, tokens) that it is made of, its credit where that looks at other tokens)


def distill(node):
  """A divergence of the student from the target."""
  fields = dict(node.divergence)
  name = fields.pop("name")
  function = pick({**divergences.ALL, **label_losses.TOKEN, **label_losses.LABEL}, name)
  common = {f: fields[f] for f in ("support", "k", "support_from", "clip", "tau")}
  compare = divergences.make(name, **common, **accepted(function, fields))
  transform = bind(logit_transforms.ALL, node.logits)
  is_plain = node.logits.name == "plain"

  def value(seen, tokens):
    pair = seen.logp_NxV, seen.logq_NxV
    if not is_plain:
      logp, logq = transform(seen.z_NxV, seen.zt_NxV, seen.y_N)
      pair = logp, sg(logq)
    div, clipped = compare(*pair, seen.y_N)
    return div, None if common["clip"] == "none" else clipped

  return value, True, (), None


def surrogate(node):
  """A policy-gradient surrogate of the response's or the token's advantage."""
  lose = bind(policy_gradient.SURROGATES, node.surrogate)
  credits = {**credit.ALL, **credit.WHOLE}
  credit_of = bind(credits, node.credit)
  is_whole = node.credit.name in credit.WHOLE

  def value(seen, tokens):
    if not is_whole:
      advantage = sg(credit_of(seen.stats, tokens))
      tokens = tokens._replace(advantage_BxT=advantage)
    return lose(seen.stats, tokens), None

  # What is made inside a chunk finds the target's statistics there alone.
  reads_logits = reads_teachers(lose, *(() if is_whole else (credit_of,)))
  return value, reads_logits, (lose, credit_of), credit_of if is_whole else None


def kl_penalty(node):
  """An estimate of KL(student || target) from the sampled token."""
  estimate = pick(policy_gradient.KL, node.estimator)

  def value(seen, tokens):
    ref = sg(seen.stats.teacher_logp_BxT)
    ratio = policy_gradient.ratio(seen.stats, tokens)
    return estimate(seen.stats.logp_BxT, ref, ratio), None

  return value, True, (policy_gradient.ratio,), None


def nll(node):
  """-log p(y)."""
  return lambda seen, tokens: (-seen.stats.logp_BxT, None), False, (), None


def ranking(node):
  """A loss of the order of vocabulary entries."""
  compare = bind(label_losses.RANKINGS, node.ranking)

  def value(seen, tokens):
    return compare(seen.logp_NxV, seen.logq_NxV, seen.y_N), None

  return value, True, (), None


def student_entropy(node):
  """The student's entropy."""
  return lambda seen, tokens: (entropy(seen.logp_NxV), None), False, (), None


KINDS = {
  "distill": distill,
  "policy_gradient": surrogate,
  "kl_penalty": kl_penalty,
  "nll": nll,
  "ranking": ranking,
  "entropy": student_entropy,
}


# ------------------------------------------------------------- from a config


def active_terms(config) -> dict:
  """{name: node} of the terms that are on, now or by a schedule."""
  scheduled = controllers.changing(config)
  return {
    name: node
    for name, node in config.loss.items()
    if hasattr(node, "kind") and (f"loss.{name}.scale" in scheduled or node.scale != 0)
  }


def learns_from_rewards(config) -> bool:
  """Whether a term of the kind policy_gradient reads the response's advantage."""
  credits = {**credit.ALL, **credit.WHOLE}
  nodes = [n for n in active_terms(config).values() if n.kind == "policy_gradient"]
  return any("advantage_BxT" in reads(bind(credits, n.credit)) for n in nodes)


def term_of(node, config) -> Term:
  value, reads_logits, functions, whole_credit = pick(KINDS, node.kind)(node)
  weights = {**token_weights.ALL, **token_weights.WHOLE}
  weight, whole_weight = bind(weights, node.token_weight), None
  seen = frozenset().union(*map(reads, (*functions, weight)))
  if node.token_weight.name in token_weights.WHOLE:
    weight, whole_weight = token_weights.uniform, weight
  reads_logits = reads_logits or reads_teachers(weight)
  cap, bound = node.importance_cap, token_weights.BOUNDS.get(node.token_weight.name)
  if cap:
    plain, seen = weight, seen | {"sampled_logp_BxT"}

    def weight(stats, tokens):
      return plain(stats, tokens) * policy_gradient.importance(stats, tokens, cap)

  denominator = pick(denominators.ALL, node.denominator)
  return Term(
    node.scale,
    node.get("target"),
    node.get("against"),
    seen,
    reads_logits,
    value,
    weight,
    whole_weight,
    whole_credit,
    functools.partial(denominator, **accepted(denominator, config.rollout)),
    bound and functools.partial(bound, **accepted(bound, node.token_weight)),
  )


def from_config(config, values: dict | None = None) -> Objective:
  """The objective of a step whose scheduled fields have these `values`, which may
  be traced. Raises ValueError for unknown names and bad values."""
  config = schedules.with_values(config, values or {})
  nodes = active_terms(config)
  terms = {name: term_of(node, config) for name, node in nodes.items()}
  read = set().union(*(term.read_targets for term in terms.values()))
  for name in read - set(config.targets):
    raise ValueError(
      f"no target is called {name!r}, known: {', '.join(config.targets)}"
    )
  chosen = {
    name: bind(targets.ALL, node)()._replace(temperature=node.temperature)
    for name, node in config.targets.items()
    if name in read
  }
  roles = {w for target in chosen.values() for _, w in target.teachers}
  memories = {
    role: bind(teacher_memories.ALL, config[role], from_base=config.lora.rank > 0)()
    for role in MEMORIES
    if role in roles
  }
  chunk = config.loss.chunk
  if terms and all(t.bound for t in terms.values()):  # the sweep over kept columns
    kept_share = sum(t.bound(np.array([10_000]))[0] for t in terms.values()) / 10_000
    chunk = max(1, int(chunk * min(kept_share, 1.0)))
  return Objective(terms, chosen, memories, config.loss.temperature, chunk)
