"""Schedules: their knots, one program for all steps, and what cannot change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import opsd, sdpo
from opsd_jax import rules, train
from opsd_jax.losses import objective, schedules
from opsd_jax.runtime import monitoring
from tests.train_test import MODEL, batch_of, params, rows

SCHEDULE = (("loss.distill.scale", (10, 0.5), (20, 1.0), (40, 0.0)),)


@pytest.mark.parametrize(
  "step,expected",
  [(0, 0.5), (10, 0.5), (15, 0.75), (20, 1.0), (30, 0.5), (40, 0.0), (99, 0.0)],
)
def test_a_schedule_at_its_knots_and_between(step, expected):
  assert schedules.values_at(SCHEDULE, step) == {"loss.distill.scale": expected}


def test_one_program_has_the_loss_of_every_step():
  config = opsd.get_config("tiny")
  config.schedule = SCHEDULE
  at, tx = functools.partial(objective.from_config, config), optax.sgd(0.0)
  step = jax.jit(train.make_train_step(train.Models(MODEL), at, tx))
  state = train.init_state(params(), at({}), tx)
  state = state._replace(memories={"teacher": params(seed=1)})

  monitoring.compiles()  # counts from here on

  def loss(number):
    values = schedules.values_at(SCHEDULE, number)
    values = {name: jnp.float32(x) for name, x in values.items()}
    return float(step(state, batch_of(rows()), train.Frozen(), values)[1])

  whole, programs = loss(20), monitoring.compiles().variants["jit(train_step)"]
  np.testing.assert_allclose([loss(10), loss(15)], [whole / 2, 0.75 * whole], rtol=1e-6)
  assert loss(40) == 0
  assert monitoring.compiles().variants["jit(train_step)"] == programs > 0


@pytest.mark.parametrize(
  "schedule,words",
  [
    ((("loss.distill.scal", (0, 1.0)),), "no such field"),
    ((("loss.distill.divergence.name", (0, 1.0)),), "no number"),
    ((("loss.distill.divergence.beta", (0, 0.5)),), "chooses what is computed"),
    ((("loss.temperature", (0, 0.5)),), "chooses what is computed"),
    ((("optimizer.learning_rate", (0, 0.5)),), "begin with loss."),
    ((("loss.distill.scale", (5, 0.5), (5, 1.0)),), "do not rise"),
    ((("loss.distill.scale", 0.5),), "expected .field"),
    ((("loss.distill.scale",),), "expected .field"),
    (((),), "expected .field"),
    ((("loss.distill.scale", (0, 1.0)),) * 2, "2 entries"),
    ((("routing.alpha", (0, 0.5)),), "nothing reads it"),
    ((("loss.chunk", (0, 64), (5, 128)),), "chooses what is computed"),
    ((("teacher.rate", (0, 0.1), (5, 2.0)),), "rate is 2.0"),
    ((("targets.teacher.temperature", (0, 1.0), (9, -2.0)),), "temperature is -2.0"),
    ((("loss.distill.importance_cap", (0, 0.0), (9, -1.0)),), "importance_cap is -1.0"),
    ((("loss.distill.scale", (0, float("nan"))),), "a knot is nan"),
  ],
)
def test_what_cannot_be_scheduled_is_refused_in_one_line(schedule, words):
  config = opsd.get_config("tiny")
  config.loss.distill.divergence.name = "jsd"
  config.teacher.name = "ema"
  config.targets.teacher.temperature = 1.0
  config.schedule = schedule
  with pytest.raises(ValueError, match=words) as error:
    rules.check(config)
  assert "\n" not in str(error.value)


def test_a_term_may_begin_at_0():
  config = sdpo.get_config("tiny")
  config.schedule = (("loss.nll.scale", (0, 0.0), (4, 1.0)),)
  rules.check(config)
  assert set(objective.from_config(config).terms) == {"distill", "nll"}
