"""What a step learns from: problems answered, verified, given contexts, routed.

`collect` is the host's half of a step, in the order of the README's figure; each
stage takes groups of rollouts, one a problem, and returns them with more known.
"""

import collections
import zlib

import numpy as np

from opsd_jax.losses import objective as objectives
from opsd_jax.models import attention
from opsd_jax.registry import accepted, bind, pick
from opsd_jax.rollouts import (
  advantages,
  answering,
  collate,
  contexts,
  routing,
  shapes,
  sources,
)
from opsd_jax.runtime import distributed
from opsd_jax.runtime.mesh import row_shards
from opsd_jax.structs import Completion


def collect(config, run, answer, draw):
  """(groups of this process's rollouts, metrics of all processes').

  Args:
    config: with the values that scheduled fields have in this step.
    answer: answering.Answer, how a source samples.
    draw: () -> the next problems of all processes.
  """
  groups, metrics = sample_groups(config, run, answer, draw)
  groups, absent = with_contexts(config, run, groups)
  if run.host_memory is not None:
    run.host_memory.update(groups)
  groups = with_routing(config, run, groups)
  if objectives.learns_from_rewards(config):
    groups, more = with_advantages(config, groups)
    metrics |= more
  return groups, metrics | absent


# ------------------------------------------------------ rollouts and verdicts


def needs_verdicts(config) -> bool:
  """Whether any stage reads what the task says of a response."""
  return (
    objectives.learns_from_rewards(config)
    or config.controller.name != "none"
    or config.routing.name not in routing.NO_SCORE
    or config.rollout.source in sources.VERIFY
    or bool(contexts.late_views(config.context))
  )


def sample_groups(config, run, answer, draw):
  """(groups, verified where a stage reads verdicts; metrics).

  With rewards.dynamic_sampling_rounds above 1 problems are drawn and answered
  again until every process has its number of prompts with an advantage that is not
  0, or the rounds are over (DAPO, arXiv:2503.14476, eq. 11); what is missing then is
  filled up with the others, whose rewards teach nothing.
  """
  c, asked = config.rewards, collections.Counter()
  source, n = (
    pick(sources.ALL, config.rollout.source),
    config.rollout.samples_per_prompt,
  )
  fields = accepted(source, {**config.routing, **config.rollout})

  def respond():
    problems, before = next_problems(draw, asked)
    return source(problems, before, answer, lambda g: verified(run, g), n, **fields)

  if not needs_verdicts(config):
    return respond(), {}
  groups, rounds, missing, most = [], 0, True, c.dynamic_sampling_rounds
  while missing and rounds < most:
    new = verified(run, respond())
    groups, rounds = groups + new, rounds + 1
    missing = (
      most > 1 and distributed.maximum([len(new) - signal(c, groups).sum()])[0] > 0
    )
  everything = [r for group in groups for r in group]
  signal_P = signal(c, groups)
  first = sorted(np.argsort(~signal_P, kind="stable")[: len(new)])
  return [groups[i] for i in first], {
    "score": distributed.mean(np.mean([r.verdict.score for r in everything])),
    "correct": distributed.mean(np.mean([r.verdict.is_correct for r in everything])),
    "unverified": distributed.mean(
      np.mean([not r.verdict.is_verified for r in everything])
    ),
    "rewards/no_signal": distributed.mean(1 - signal_P.mean()),
    "rewards/rounds": rounds,
  }


def next_problems(draw, asked: collections.Counter):
  """This process's next problems, and how often each was asked before: a
  problem that comes twice in a step is answered with other draws."""
  problems, before = draw(), []
  for problem in problems:
    before.append(asked[problem.example.id])
    asked[problem.example.id] += 1
  return distributed.local_shard(problems), distributed.local_shard(before)


def verified(run, groups):
  """The groups with the task's verdict on each completion that has none."""
  flat = [r for group in groups for r in group if r.verdict is None]
  verdicts = run.verify(
    [r.prompts.example for r in flat], [r.completion.text for r in flat]
  )
  new = iter(verdicts)
  return [
    [r if r.verdict else r._replace(verdict=next(new)) for r in group]
    for group in groups
  ]


# ------------------------------------------------------------------ contexts


def with_contexts(config, run, groups):
  """(the groups with what each teacher view reads, once verdicts are known; the
  share of responses that lack a view, by reason)."""
  c, reasons = config.context, collections.Counter()
  late = contexts.late_views(c)
  if not late:
    return groups, {}

  def with_views(group, i):
    views = list(group[i].views)
    for view in late:
      views[view], reason = answering.prompt_after(config, run, group, i, view)
      reasons[reason] += reason is not None
    return group[i]._replace(views=tuple(views))

  made = [[with_views(group, i) for i in range(len(group))] for group in groups]
  total = sum(map(len, made)) * len(late)
  return made, {
    f"context/{reason}": distributed.mean(reasons[reason] / total)
    for reason in ("none", "control_token", "too_long")
  }


# ------------------------------------------------------ routing and advantages


def with_routing(config, run, groups):
  """The groups with how much each response counts in each term. A term whose value
  reads a view that a response lacks does not count it."""
  route = bind(routing.ALL, config.routing)
  required = views_required(config, run.objective)
  if not routing.keys(route) and not required:
    return groups
  made = []
  for group in groups:
    has_view_NxW = np.array([[bool(ids) for ids in r.views[1:]] for r in group])
    score_N = np.array([r.verdict.score if r.verdict else np.nan for r in group])
    weights = route(score_N, has_view_NxW, np.array([r.role for r in group]))
    # A term of another name is routed as its kind is.
    kinds = {name: config.loss[name].kind for name in run.objective.terms}
    weights |= {
      t: weights[k] for t, k in kinds.items() if k in weights and t not in weights
    }
    for term, views in required.items():
      has_all_N = has_view_NxW[:, [v - 1 for v in views]].all(1)
      weights[term] = weights.get(term, 1.0) * has_all_N
    made.append(
      [
        r._replace(weights={term: float(w[i]) for term, w in weights.items()})
        for i, r in enumerate(group)
      ]
    )
  return made


def views_required(config, objective) -> dict[str, list[int]]:
  """{what weights name: the views made after verdicts that it reads}, of terms
  whose value reads a target, and `credit` of credits that do. A target that makes
  something of some of its views requires the first alone."""
  late, required = set(contexts.late_views(config.context)), {}
  for name, term in objective.terms.items():
    target = objective.targets.get(term.target)
    if target is None or not (term.reads_logits or term.whole_credit):
      continue
    views = [view for view, _ in target.teachers]
    views = sorted(late & set(views[:1] if target.is_partial else views))
    if views:
      required[name if term.reads_logits else "credit"] = views
  return required


def is_compared(rollout, group) -> bool:
  """Whether its reward is compared: what the group's first was drawn as, once a
  completion."""
  is_first_row = not rollout.is_copy
  return is_first_row and rollout.role == group[0].role


def rewards_of(c, groups) -> np.ndarray:
  """P x N, of the responses that are compared; `c` is config.rewards."""
  scores = [[r.verdict.score for r in g if is_compared(r, g)] for g in groups]
  return advantages.REWARDS[c.reward](np.array(scores))


def signal(c, groups) -> np.ndarray:
  """P booleans: whether a prompt's compared responses teach anything."""
  return advantages.teaches(c.advantage, rewards_of(c, groups))


def with_advantages(config, groups):
  """(the groups with an advantage for each response that is compared, metrics). A
  second row of a completion has its completion's. Where all responses to a prompt
  are wrong none pays for its length: brevity would be all that is learned."""
  c = config.rewards
  reward_PxN = rewards_of(c, groups)
  penalty_PxN = np.array(
    [
      [
        advantages.overlong(
          len(r.completion.ids), config.rollout.max_new_tokens, c.overlong_margin
        )
        for r in g
        if is_compared(r, g)
      ]
      for g in groups
    ]
  )
  pays_P = (reward_PxN != 0).any(1)
  if c.dynamic_sampling_rounds > 1:
    pays_P &= signal(c, groups)
  reward_PxN = reward_PxN + penalty_PxN * pays_P[:, None]
  made = []
  for group, local in zip(
    groups, local_advantages(c.advantage, reward_PxN), strict=True
  ):
    rest, row = iter(local.tolist()), []
    for r in group:
      if is_compared(r, group):
        r = r._replace(advantage=next(rest))
      elif r.is_copy:
        r = r._replace(advantage=row[-1].advantage)
      row.append(r)
    made.append(row)
  return made, {"reward": distributed.mean(reward_PxN.mean())}


def local_advantages(name: str, reward_PxN) -> np.ndarray:
  """This process's part of the advantages within the rewards of all."""
  everyones = distributed.gather(reward_PxN.tolist())
  rewards = np.array([row for rows in everyones for row in rows])
  P, process = len(reward_PxN), distributed.index()
  return advantages.ALL[name](rewards)[process * P : (process + 1) * P]


# --------------------------------------------------------------------- batch


def make_batch(config, run, groups, step: int = 0) -> collate.Batch:
  """The views of every rollout, aligned and packed (numpy).

  All processes make the same shapes, and the tree of a batch comes of the config
  alone.
  """
  row_of = row_maker(config, run.objective)
  rows = [
    row_of(r, distributed.index() * len(groups) + p, (step, i))
    for p, group in enumerate(groups)
    for i, r in enumerate(group)
  ]
  shards = row_shards(run.mesh) // distributed.count()
  return collate.collate(
    rows,
    pad_id=run.tokenizer.pad_id,
    bucket=config.batch.bucket,
    response_bucket=config.batch.response_bucket,
    pack_len=config.batch.pack_len,
    share_prompts=attention.supports_shared_prefix(run.model_config.attention),
    parts=shards * config.batch.micro_batches,
    all_reduce_max=distributed.maximum,
    shapes=run.shapes,
  )


def row_maker(config, objective):
  """(rollout, group, (step, sample)) -> collate.Row: what no term reads stays away,
  as the config says, so that all batches of a run have one tree."""
  read = frozenset().union(*(term.reads for term in objective.terms.values()))
  rewarded = objectives.learns_from_rewards(config)
  drawn, noisy, grouped = (
    name in read for name in ("sampled_logp_BxT", "gumbel_BxT", "group_BxT")
  )
  partial = sorted(set(contexts.late_views(config.context)) & objective.partial_views)
  # A completion may have two rows.
  twice = config.rollout.source in ("teacher_view", "revised")
  off_policy = config.rollout.source in sources.PRIVILEGED
  anchored = off_policy or config.optimizer.updates_per_batch > 1
  views, seed = objective.views, config.seed

  def row(r, group: int, draw: tuple[int, int]) -> collate.Row:
    if is_masked(config, r):
      r = r._replace(completion=Completion("", (), (), True, ()), old_logp=())
    # A view that it lacks reads the learner's prompt, with weight 0.
    prompts = tuple(ids or r.views[0] for ids in r.views[:views])
    old_logp = () if r.old_logp is None else r.old_logp
    return collate.Row(
      prompts,
      r.completion.ids,
      r.completion.logp,
      r.completion.sampled_logp if rewarded or drawn else None,
      np.nan_to_num(r.advantage) if rewarded else None,
      r.weights,
      old_logp if anchored else None,
      group if grouped else None,
      r.is_copy if twice else None,
      gumbel(seed, r, draw) if noisy else None,
      {view: bool(r.views[view]) for view in partial},
    )

  return row


def is_masked(config, rollout) -> bool:
  """Whether a response is left out of the loss and of its denominators."""
  return config.batch.mask_truncated and rollout.completion.truncated


def gumbel(seed: int, r, draw: tuple[int, int]) -> tuple[float, ...]:
  """Standard Gumbel noise for each token: (seed, step, sample, example) decide
  it."""
  example = zlib.crc32(r.prompts.example.id.encode())
  rng = np.random.default_rng([seed, *draw, example])
  return tuple(rng.gumbel(size=len(r.completion.ids)).tolist())


def kept_columns(objective, tokens) -> int | None:
  """How many tokens of each part some term counts, at most, rounded up so that few
  shapes are compiled; the same on all processes. `tokens` are the host's."""
  first_BxT = (tokens.index_BxT == 0) * (tokens.mask_BxT > 0)
  counts = [
    objective.kept(tokens.length_BxT[b, first_BxT[b] > 0])
    for b in range(len(first_BxT))
  ]
  if counts[0] is None:
    return None
  (most,) = distributed.maximum([max(c.sum() for c in counts)])
  return min(shapes.round_up(most, 32, digits=3), first_BxT.shape[1])
