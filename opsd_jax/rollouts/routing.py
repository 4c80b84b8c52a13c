"""Routing: how much each response of a group counts in each term.

`(score_N, has_view_NxW, role_N, **kw) -> {term: weight_N}`, numpy, one group.
`score` is the task's, `has_view` which teacher views a response has, `role` who
answered (student, teacher, guided, dataset, rejected, external). A term that is not named is
routed as its kind is, if that is named, and else counts every response as 1. The keys never depend on the data.
"""

import numpy as np


def all_alike(score_N, has_view_NxW, role_N):
  """Every response counts in every term."""
  return {}


def correct(score_N, has_view_NxW, role_N):
  """Right responses alone are distilled (MDCS, arXiv:2308.09922)."""
  return {"distill": (score_N >= 1) * 1.0}


def wrong_to_teacher(score_N, has_view_NxW, role_N):
  """Wrong responses that have a teacher are distilled, all others are reinforced
  (SRPO, arXiv:2604.02288)."""
  distilled_N = (score_N < 1) & has_view_NxW[:, 0]
  return {"distill": distilled_N * 1.0, "policy_gradient": ~distilled_N * 1.0}


def pass_rate(score_N, has_view_NxW, role_N, *, a: float, b: float):
  """p^a (1 - p)^b, p the share of right responses (PACED, arXiv:2603.11178)."""
  p = (score_N >= 1).mean()
  return {"distill": np.full(len(score_N), p**a * (1 - p) ** b)}


def both_views(score_N, has_view_NxW, role_N, *, alpha: float):
  """alpha on rows learned under the privileged prompt, the rest on those learned
  from the question; the KL in the reward is the former's, the one in the loss the
  latter's (pi-Distill, arXiv:2602.04942)."""
  is_teacher_N = role_N == "teacher"
  share_N = np.where(is_teacher_N, alpha, 1 - alpha)
  return {
    "policy_gradient": share_N,
    "distill": share_N * ~is_teacher_N,
    "credit": is_teacher_N * 1.0,
  }


def rescued(score_N, has_view_NxW, role_N):
  """The student's own responses are reinforced, right ones of the privileged
  prompt distilled (HDPO, arXiv:2603.23871)."""
  is_guided_N = role_N == "guided"
  return {
    "policy_gradient": ~is_guided_N * 1.0,
    "distill": (is_guided_N & (score_N >= 1)) * 1.0,
  }


def by_verdict(score_N, has_view_NxW, role_N):
  """Right responses are imitated; wrong ones are distilled, or unlearned (SCOPE,
  arXiv:2604.10688; REDI, arXiv:2505.24850; SD-Zero's first phase)."""
  correct_N = (score_N >= 1) * 1.0
  return {"nll": correct_N, "distill": 1 - correct_N, "unlikelihood": 1 - correct_N}


def pairs(score_N, has_view_NxW, role_N):
  """The reference is imitated, the rejected response unlearned (REDI)."""
  is_rejected_N = role_N == "rejected"
  return {"nll": ~is_rejected_N * 1.0, "unlikelihood": is_rejected_N * 1.0}


def above_mean(score_N, has_view_NxW, role_N):
  """Responses better than the mean of their prompt's are distilled (SDPG,
  arXiv:2606.04036)."""
  return {"distill": (score_N > score_N.mean()) * 1.0}


ALL = {
  "all": all_alike,
  "correct": correct,
  "wrong_to_teacher": wrong_to_teacher,
  "pass_rate": pass_rate,
  "both_views": both_views,
  "rescued": rescued,
  "by_verdict": by_verdict,
  "pairs": pairs,
  "above_mean": above_mean,
}
NO_SCORE = ("all", "both_views", "pairs")  # the others read the task's verdicts


def keys(route) -> tuple[str, ...]:
  """The terms that a routing function names, of no data."""
  return tuple(route(np.zeros(1), np.ones((1, 1), bool), np.array(["student"])))
