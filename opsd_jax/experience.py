"""What a step learns from: problems answered, judged, compared, collated."""

import collections
from typing import NamedTuple

import numpy as np

from opsd_jax import collate, processes, reinforce, sharding
from opsd_jax.models import attention
from opsd_jax.structs import Rollout


class Experience(NamedTuple):
  """This process's rollouts of a step."""

  rollouts: list[Rollout]
  advantages: np.ndarray | None  # one a rollout; None: no rewards are used
  metrics: dict[str, float]  # of all processes' rollouts


def collect(config, run, respond, draw) -> Experience:
  """Rollouts of a step's problems and, where they are learned from, rewards.

  Args:
    respond: this process's problems, and how often each has been asked in this
      step before -> `samples` rollouts of each, in order.
    draw: () -> the next problems of all processes.

  With reinforce.rounds above 1 problems are drawn and answered again until
  every process has its number of prompts whose responses differ in score, or
  the rounds are over (DAPO's dynamic sampling, arXiv:2503.14476, eq. 11); what
  is missing then is filled up with prompts without signal, whose advantages,
  where they compare, are 0: no penalty of theirs counts.
  """
  c, samples = config.reinforce, config.rollout.samples
  asked = collections.Counter()
  if not c.weight:
    return Experience(respond(*ask(draw, asked)), None, {})
  groups, scores, lost, rounds, missing = [], [], 0, 0, True
  while missing and rounds < c.rounds:
    problems, before = ask(draw, asked)
    rollouts, rounds = respond(problems, before), rounds + 1
    found, unjudged = judged(run, rollouts, samples)
    scores, lost = scores + found, lost + unjudged
    groups += [rollouts[i : i + samples] for i in range(0, len(rollouts), samples)]
    rewards_PxN = reinforce.REWARDS[c.reward](np.array(scores))
    signal_P = reinforce.signal(rewards_PxN)
    missing = processes.maximum([len(problems) - signal_P.sum()])[0] > 0
  first = sorted(np.argsort(~signal_P, kind="stable")[: len(problems)])
  chosen = [groups[i] for i in first]
  penalty_PxN = penalties(chosen, config.rollout.max_new_tokens, c.overlong)
  if c.rounds > 1:
    penalty_PxN *= signal_P[first][:, None]
  reward_PxN = rewards_PxN[first] + penalty_PxN
  metrics = {
    "score": processes.mean(np.mean(scores)),
    "reward": processes.mean(reward_PxN.mean()),
    "unjudged": processes.mean(lost / np.size(scores)),
    "reinforce/no_signal": processes.mean(1 - signal_P.mean()),
    "reinforce/rounds": rounds,
  }
  advantage_PxN = own_advantages(c.advantage, reward_PxN)
  rollouts = [r for group in chosen for r in group]
  return Experience(rollouts, advantage_PxN.reshape(-1), metrics)


def ask(draw, asked: collections.Counter):
  """This process's next problems, and how often each was asked before: a
  problem that comes twice in a step is answered with other draws."""
  problems, before = draw(), []
  for problem in problems:
    before.append(asked[problem.example.id])
    asked[problem.example.id] += 1
  return processes.share(problems), processes.share(before)


def judged(run, rollouts, samples: int) -> tuple[list[list[float]], int]:
  """(the task's score of each rollout, a list a prompt; how many it could not
  judge)."""
  verdicts = run.verify(
    [r.problem.example for r in rollouts], [r.completion.text for r in rollouts]
  )
  scores = [v.score for v in verdicts]
  unjudged = sum(not v.is_judged for v in verdicts)
  groups = [scores[i : i + samples] for i in range(0, len(scores), samples)]
  return groups, unjudged


def penalties(groups, max_new_tokens: int, margin: int) -> np.ndarray:
  """Of overlong responses, P x N; 0 or less."""
  return np.array(
    [
      [reinforce.overlong(len(r.completion.ids), max_new_tokens, margin) for r in group]
      for group in groups
    ]
  )


def own_advantages(name: str, reward_PxN) -> np.ndarray:
  """This process's part of the advantages within the rewards of all."""
  everyones = processes.gather(reward_PxN.tolist())
  rewards = np.array([row for rows in everyones for row in rows])
  P, here = len(reward_PxN), processes.index()
  return reinforce.ADVANTAGES[name](rewards)[here * P : (here + 1) * P]


def collated(config, run, rollouts, advantages=None) -> collate.Batch:
  """The two views of every rollout, aligned and packed (numpy).

  All processes make the same shapes. Where rewards are learned from several
  times, what a token's log-prob is at the first is not known yet: NaN.
  """
  told = config.teacher.name != "none"
  if advantages is None:
    advantages = [None] * len(rollouts)
  rows = [
    collate.Row(
      r.problem.student_ids,
      r.problem.teacher_ids if told else (),
      r.completion.ids,
      r.completion.logp,
      r.completion.sampled_logp,
      A,
    )
    for r, A in zip(rollouts, advantages, strict=True)
  ]
  shards = sharding.row_shards(run.mesh) // processes.count()
  batch = collate.collate(
    rows,
    pad_id=run.tokenizer.pad_id,
    bucket=config.batch.bucket,
    response_bucket=config.batch.response_bucket,
    row_tokens=config.batch.row_tokens,
    share=attention.shares(run.model_config.attention),
    parts=shards * config.batch.micro_batches,
    agree=processes.maximum,
  )
  if not config.reinforce.weight or config.reinforce.updates == 1:
    return batch
  unknown = np.full_like(batch.token.advantage_BxT, np.nan)
  return batch._replace(token=batch.token._replace(old_logp_BxT=unknown))
