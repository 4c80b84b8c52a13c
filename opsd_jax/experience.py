"""What a step learns from: problems answered, judged, compared, collated."""

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
    respond: this process's problems -> `samples` rollouts of each, in order.
    draw: () -> the next problems of all processes.

  With reinforce.rounds above 1 problems are drawn and answered again until
  every process has its number of prompts whose responses differ in score, or
  the rounds are over (DAPO's dynamic sampling, arXiv:2503.14476, eq. 11); what
  is missing then is filled up with prompts without signal.
  """
  c, samples = config.reinforce, config.rollout.samples
  if not c.weight:
    return Experience(respond(processes.share(draw())), None, {})
  groups, scores, rounds, missing = [], [], 0, True
  while missing and rounds < c.rounds:
    problems = processes.share(draw())
    rollouts, rounds = respond(problems), rounds + 1
    scores += judged(run, rollouts, samples)
    groups += [
        rollouts[i : i + samples] for i in range(0, len(rollouts), samples)
    ]
    found = reinforce.signal(np.array(scores)).sum()
    missing = processes.maximum([len(problems) - found])[0] > 0
  signal = reinforce.signal(np.array(scores))
  first = np.argsort(~signal, kind="stable")[: len(problems)]
  chosen = [groups[i] for i in sorted(first)]
  scores_PxN = np.array([scores[i] for i in sorted(first)])
  reward_PxN = scores_PxN + penalties(
      chosen, config.rollout.max_new_tokens, c.overlong
  )
  metrics = {
      "score": processes.mean(np.mean(scores)),
      "reward": processes.mean(reward_PxN.mean()),
      "reinforce/no_signal": processes.mean(1 - signal.mean()),
      "reinforce/rounds": rounds,
  }
  advantage_PxN = own_advantages(c.advantage, reward_PxN)
  rollouts = [r for group in chosen for r in group]
  return Experience(rollouts, advantage_PxN.reshape(-1), metrics)


def judged(run, rollouts, samples: int) -> list[list[float]]:
  """The task's score of each rollout, a list a prompt."""
  verdicts = run.verify(
      [r.problem.example for r in rollouts],
      [r.completion.text for r in rollouts],
  )
  scores = [v.score for v in verdicts]
  return [scores[i : i + samples] for i in range(0, len(scores), samples)]


def penalties(groups, max_new_tokens: int, margin: int) -> np.ndarray:
  """Of overlong responses, P x N; 0 or less."""
  return np.array([
      [
          reinforce.overlong(len(r.completion.ids), max_new_tokens, margin)
          for r in group
      ]
      for group in groups
  ])  # fmt: skip


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
          r.problem.student_ids, r.problem.teacher_ids if told else (),
          r.completion.ids, r.completion.logp, r.completion.sampled_logp, A,
      )
      for r, A in zip(rollouts, advantages, strict=True)
  ]  # fmt: skip
  shards = sharding.row_shards(run.mesh) // processes.count()
  batch = collate.collate(
      rows, pad_id=run.tokenizer.pad_id, bucket=config.batch.bucket,
      response_bucket=config.batch.response_bucket,
      row_tokens=config.batch.row_tokens,
      share=attention.shares(run.model_config.attention),
      parts=shards * config.batch.micro_batches, agree=processes.maximum,
  )  # fmt: skip
  if not config.reinforce.weight or config.reinforce.updates == 1:
    return batch
  unknown = np.full_like(batch.token.advantage_BxT, np.nan)
  return batch._replace(token=batch.token._replace(old_logp_BxT=unknown))
