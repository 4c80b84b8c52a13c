"""The metrics of a step, computed by hand."""

import json

import numpy as np
import pytest

from opsd_jax.reporting import step_metrics
from opsd_jax.structs import Batch, Completion, ResponseTokens, Rollout, TokenStats

# Two rows of three tokens, the second of one; nothing masked is 0 here, as if
# a mask had been forgotten.
MASK = np.array([[1.0, 1, 1], [1, 0, 0]], np.float32)


def stats_of(targets=("teacher",)):
  def rows(*two):
    return np.array(two, np.float32)

  return TokenStats(
    rows([-1, -2, -3], [-2, 9, 9]),
    rows([-1, -2, -3], [-2.5, 9, 9]),
    rows([1, 1, 1], [2, 9, 9]),
    {"distill": rows([0.1, 0.2, 0.3], [0.6, 9, 9])},
    {name: rows([-1, -1, -1], [-1, 9, 9]) for name in targets},
    {name: rows([0, 0, 0], [1, 9, 9]) for name in targets},
    {"distill": rows([0, 0.5, 0], [0.5, 9, 9])},
  )


def batch_of(mask=MASK, sampler=((-1, -2, -3), (-2, 0, 0))):
  index = np.broadcast_to(np.arange(3), (2, 3))
  sampler = np.array(sampler, np.float32)
  weights = {"distill": np.array([[1, 0, 1], [0, 9, 9]], np.float32)}
  return Batch((), ResponseTokens(None, mask, index, None, None, sampler, weights))


def rollout(logp=(), truncated=False, ids=(1,)):
  return Rollout(None, Completion("", ids, logp, truncated, logp), ())


def test_without_a_teacher_it_has_no_metrics():
  row = step_metrics.batch_metrics(0.3, 2.0, stats_of(()), batch_of(), [rollout()] * 2)
  assert not [k for k in row if k.startswith("teacher")]


def test_a_step_in_numbers():
  row = step_metrics.batch_metrics(
    0.3, 2.0, stats_of(), batch_of(), [rollout(), rollout(truncated=True)]
  )
  assert row == pytest.approx(
    {
      "loss": 0.3,
      "grad_norm": 2.0,
      "non_finite": 0,
      "distill/value": 0.3,  # (0.1 + 0.2 + 0.3 + 0.6) / 4
      "distill/first_token": 0.35,  # (0.1 + 0.6) / 2
      "distill/clipped": 0.25,
      "distill/weight": 0.5,
      "student/nll": 2.0,
      "student/entropy": 1.25,
      "teacher/nll": 1.0,
      "teacher/nll_gap": -1.0,
      "teacher/entropy": 0.25,
      "response_tokens": 4,
      "truncated": 0.5,
      "empty": 0,
      "sampler/logp_gap": 0.5,
    }
  )
  assert json.loads(json.dumps(row)) == row


def test_the_gap_needs_a_sampler():
  row = step_metrics.batch_metrics(
    0.3, 2.0, stats_of(), batch_of(), [rollout(), rollout(logp=None)]
  )
  assert "sampler/logp_gap" not in row


@pytest.mark.parametrize("loss,norm", [(np.nan, 1.0), (1.0, np.inf), (np.inf, np.nan)])
def test_what_is_not_finite_is_counted(loss, norm):
  row = step_metrics.batch_metrics(loss, norm, stats_of(), batch_of(), [rollout()] * 2)
  assert row["non_finite"] == 1


def test_empty_responses_are_counted_and_divide_nothing():
  row = step_metrics.batch_metrics(
    0.3,
    2.0,
    stats_of(),
    batch_of(np.float32([[0, 0, 0], [1, 0, 0]])),
    [rollout(ids=()), rollout()],
  )
  assert row["empty"] == 1 and row["response_tokens"] == 1
  assert row["distill/first_token"] == pytest.approx(0.6)
  row = step_metrics.batch_metrics(
    0.0, 0.0, stats_of(), batch_of(np.zeros((2, 3))), [rollout(ids=())] * 2
  )
  assert row["empty"] == 2 and row["distill/value"] == 0
  assert np.isfinite(list(row.values())).all()
