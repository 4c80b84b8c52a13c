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
  credit,
  divergences,
  policy_gradient,
  schedules,
  targets,
  token_weights,
)
from opsd_jax.losses import teachers as teacher_memories
from opsd_jax.registry import accepted, bind, pick
from opsd_jax.structs import TermStats, TokenStats

sg = jax.lax.stop_gradient
MEMORIES = ("teacher", "reference")  # the roles that config has a node for


class Term(NamedTuple):
  """One named summand of the loss."""

  scale: Any
  target: str | None  # whose statistics its functions read; None: nobody's
  reads_logits: bool  # its value reads the target's, so that learning runs it
  value: Callable  # (Seen, tokens) -> (N, fraction that a clip changed or None)
  weight: Callable  # (TermStats, tokens) -> N, of its own token
  whole_weight: Callable | None  # the same, of tokens that look at others
  whole_credit: Callable | None  # (TermStats, tokens) -> advantage, likewise
  denominator: Callable  # (tokens, weights) of the whole batch -> scalar
  bound: Callable | None  # lengths -> how many tokens its weight keeps at most


class Seen(NamedTuple):
  """What a term's value is made of, for some tokens."""

  logp_NxV: Any  # the student's, with gradient
  logq_NxV: Any  # its target's; None without one
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
    read = {t.target for t in self.terms.values() if t.reads_logits or not learning}
    chosen = [target for name, target in self.targets.items() if name in read]
    return tuple(dict.fromkeys(pair for t in chosen for pair in t.teachers))

  @property
  def views(self) -> int:
    """How many views a batch has."""
    return 1 + max((view for view, _ in self.teachers(False)), default=0)

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
    return divergences.bounded(jnp.take_along_axis(logp, y_N[:, None], 1)[:, 0])

  logp = jax.nn.log_softmax(z_NxV / o.temperature)
  raw = logp if o.temperature == 1 else jax.nn.log_softmax(z_NxV)
  logqs = {}
  for name, target in o.targets.items():
    if all(pair in teachers for pair in target.teachers):
      zt = target.mix(sg(z_NxV), *(teachers[pair] for pair in target.teachers))
      temperature = o.temperature if target.temperature is None else target.temperature
      logqs[name] = sg(jax.nn.log_softmax(sg(zt) / temperature))
  stats = TokenStats(
    at_y(logp),
    sg(at_y(raw)),
    sg(entropy(logp)),
    {},
    {name: at_y(logq) for name, logq in logqs.items()},
    {name: entropy(logq) for name, logq in logqs.items()},
    {},
  )
  losses = {}
  for name, term in o.terms.items():
    seen = Seen(logp, logqs.get(term.target), y_N, stats.of(name, term.target))
    advantage_N = tokens.credits.get(name, tokens.advantage_BxT)
    term_tokens = tokens._replace(advantage_BxT=advantage_N)
    value, clipped = term.value(seen, term_tokens)
    stats.values[name] = value
    if clipped is not None:
      stats.clipped[name] = sg(clipped)
    if denominators:
      weight = term.weight(sg(stats.of(name, term.target)), term_tokens)
      weight = tokens.weights.get(name, 1.0) * weight
      losses[name] = term.scale * weight * value / denominators[name]
  return losses, stats


def entropy(logp):
  """-sum p log p, nats."""
  return -(jnp.exp(logp) * jnp.where(logp > -jnp.inf, logp, 0.0)).sum(-1)


def denominators(o: Objective, batch) -> dict:
  """{term: what its sum is divided by}, of the whole batch: before micro-batches
  are split, and as scoring has left it where there was one."""
  if batch.denominators:
    return batch.denominators
  tokens = batch.tokens

  def count(name, term):
    advantage_BxT = tokens.credits.get(name, tokens.advantage_BxT)
    weights = tokens.weights.get(name, 1.0)
    return term.denominator(tokens._replace(advantage_BxT=advantage_BxT), weights)

  return {name: count(name, term) for name, term in o.terms.items()}


# ------------------------------------- what needs all tokens' statistics


def weigh(o: Objective, stats: TokenStats, batch, kept: int | None):
  """(the batch with the weights and credits that the statistics of all its tokens
  give, its denominators, and `kept` columns of each part: those that some term
  counts first; how many of these there was no room for). None: all columns."""
  tokens, weights, credits = batch.tokens, dict(batch.tokens.weights), {}
  for name, term in o.terms.items():
    term_stats = stats.of(name, term.target)
    counts = weights.get(name, 1.0) != 0
    seen = tokens._replace(mask_BxT=tokens.mask_BxT * counts)
    if term.whole_weight:
      weights[name] = weights.get(name, 1.0) * term.whole_weight(term_stats, seen)
    if term.whole_credit:
      credits[name] = term.whole_credit(term_stats, seen)
  old_logp_BxT = tokens.old_logp_BxT
  if old_logp_BxT is not None:
    unknown = jnp.isnan(old_logp_BxT)
    old_logp_BxT = jnp.where(unknown, stats.logp_BxT, old_logp_BxT)
  tokens = tokens._replace(weights=weights, credits=credits, old_logp_BxT=old_logp_BxT)
  batch = batch._replace(tokens=tokens)
  batch = batch._replace(denominators=denominators(o, batch))
  counted_BxT = sum((weights.get(name, 1.0) != 0) * tokens.mask_BxT for name in o.terms)
  tokens = tokens._replace(mask_BxT=(counted_BxT > 0) * tokens.mask_BxT)
  size = tokens.mask_BxT.shape[1] if kept is None else kept
  overflow = jnp.maximum(tokens.mask_BxT.sum(1) - size, 0).sum()
  return with_columns(batch._replace(tokens=tokens), kept), overflow


def with_columns(batch, kept: int | None):
  """The batch with the first `kept` tokens of each part that the mask holds."""
  if kept is None or kept >= batch.tokens.mask_BxT.shape[1]:
    return batch
  order_BxT = jnp.argsort(batch.tokens.mask_BxT == 0, axis=1, stable=True)
  columns_BxK = order_BxT[:, :kept]

  def take(x_BxT):
    return jnp.take_along_axis(x_BxT, columns_BxK, 1)

  return batch._replace(
    tokens=jax.tree.map(take, batch.tokens),
    views=tuple(v._replace(predictor_BxT=take(v.predictor_BxT)) for v in batch.views),
  )


# ------------------------------------------------ what a sum is divided by


def all_tokens(tokens, weights):
  """Response tokens of the whole batch, at least 1; those of one completion in
  two rows once."""
  return jnp.maximum(counted(tokens).sum(), 1)


def responses(tokens, weights):
  """Responses of the whole batch with a token, at least 1."""
  first_BxT = (tokens.index_BxT == 0) * counted(tokens)
  return jnp.maximum(first_BxT.sum(), 1)


def weighted_tokens(tokens, weights):
  """Tokens of the whole batch that count in this term, at least 1."""
  return jnp.maximum(((weights != 0) * counted(tokens)).sum(), 1)


def active_tokens(tokens, weights):
  """Tokens of the whole batch's responses with an advantage, at least 1: those
  that a reward moves."""
  return jnp.maximum(((tokens.advantage_BxT != 0) * counted(tokens)).sum(), 1)


def budget(tokens, weights, *, max_new_tokens: int):
  """Responses of the whole batch times the tokens that each may have: a
  constant, where lengths must not matter (Dr. GRPO, arXiv:2503.20783)."""
  return responses(tokens, weights) * max_new_tokens


def counted(tokens):
  once_BxT = 1.0 if tokens.counted_BxT is None else tokens.counted_BxT
  return tokens.mask_BxT * once_BxT


DENOMINATORS = {
  "tokens": all_tokens,
  "responses": responses,
  "weighted_tokens": weighted_tokens,
  "active_tokens": active_tokens,
  "budget": budget,
}


# ------------------------------------------------------------ kinds of terms
# node -> (value, whether it reads the target's logits, credit or None)


def distill(node):
  """A divergence of the student from the target."""
  fields = dict(node.divergence)
  name = fields.pop("name")
  function = pick({**divergences.ALL, **divergences.TOKEN}, name)
  common = {f: fields[f] for f in ("support", "k", "support_from", "clip", "tau")}
  compare = divergences.make(name, **common, **accepted(function, fields))

  def value(seen, tokens):
    div, clipped = compare(seen.logp_NxV, seen.logq_NxV, seen.y_N)
    return div, None if common["clip"] == "none" else clipped

  return value, True, None


def surrogate(node):
  """A policy-gradient surrogate of the response's or the token's advantage."""
  lose = bind(policy_gradient.SURROGATES, node.surrogate)
  credits = {**credit.ALL, **credit.WHOLE}
  credit_of = bind(credits, node.credit)
  is_whole = node.credit.name in credit.WHOLE

  def value(seen, tokens):
    if not is_whole:
      tokens = tokens._replace(advantage_BxT=credit_of(seen.stats, tokens))
    return lose(seen.stats, tokens), None

  reads = node.surrogate.name in policy_gradient.READ_TEACHER
  return value, reads, credit_of if is_whole else None


def kl_penalty(node):
  """An estimate of KL(student || target) from the sampled token."""
  estimate = pick(policy_gradient.KL, node.estimator)

  def value(seen, tokens):
    ref = sg(seen.stats.teacher_logp_BxT)
    ratio = policy_gradient.ratio(seen.stats, tokens)
    return estimate(seen.stats.logp_BxT, ref, ratio), None

  return value, True, None


def nll(node):
  """-log p(y)."""
  return lambda seen, tokens: (-seen.stats.logp_BxT, None), False, None


def ranking(node):
  """A loss of the order of vocabulary entries."""
  compare = bind(divergences.RANKINGS, node.ranking)
  return lambda seen, tokens: (compare(seen.logp_NxV, seen.logq_NxV), None), True, None


def student_entropy(node):
  """The student's entropy."""
  return lambda seen, tokens: (entropy(seen.logp_NxV), None), False, None


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
  scheduled = {field for field, *_ in config.schedule}
  return {
    name: node
    for name, node in config.loss.items()
    if hasattr(node, "kind") and (f"loss.{name}.scale" in scheduled or node.scale != 0)
  }


def learns_from_rewards(config) -> bool:
  return any(n.kind == "policy_gradient" for n in active_terms(config).values())


def term_of(node, config) -> Term:
  value, reads_logits, whole_credit = pick(KINDS, node.kind)(node)
  weights = {**token_weights.ALL, **token_weights.WHOLE}
  weight, whole_weight = bind(weights, node.token_weight), None
  if node.token_weight.name in token_weights.WHOLE:
    weight, whole_weight = token_weights.uniform, weight
  cap, bound = node.importance_cap, token_weights.BOUNDS.get(node.token_weight.name)
  if cap:
    plain = weight

    def weight(stats, tokens):
      return plain(stats, tokens) * policy_gradient.importance(stats, tokens, cap)

  denominator = pick(DENOMINATORS, node.denominator)
  # A weight made inside a chunk finds the target's statistics there alone.
  reads = node.token_weight.name in token_weights.READ_TEACHER
  reads_logits = reads_logits or (reads and whole_weight is None)
  return Term(
    node.scale,
    node.get("target"),
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
  read = {
    term.target
    for name, term in terms.items()
    if term.reads_logits
    or term.whole_credit
    or nodes[name].token_weight.name in token_weights.READ_TEACHER
  }
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
