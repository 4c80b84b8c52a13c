"""Controllers by hand: the same fields always, values from the history alone."""

import functools

import numpy as np
import pytest

from configs import atesd, base, opsd, retire_opd
from opsd_jax import rules, train
from opsd_jax.losses import controllers
from opsd_jax.registry import accepted
from opsd_jax.runtime import paths


@pytest.mark.parametrize("name", controllers.ALL)
def test_the_fields_never_depend_on_the_history(name):
  f = controllers.ALL[name]
  f = functools.partial(f, **accepted(f, dict(base.get_config().controller)))
  fields = set(f([]))
  for seed in range(5):
    history = np.random.default_rng(seed).random(57).tolist()
    made = f(history)
    assert set(made) == fields and all(np.isfinite(list(made.values())))
    assert made == f(list(history))  # nothing is kept between calls


@pytest.mark.parametrize(
  "history,part",
  [
    ([], 1.0),
    ([0, 0, 1], 1.0),  # the second window is not complete
    ([0, 0, 1, 1], 0.75),
    ([0, 0, 1, 1, 1, 1], 1.0),  # no better: all of it again
    ([0, 0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6], 0.25),
  ],
)
def test_the_part_follows_the_score(history, part):
  made = controllers.reference_part(history, window=2, change=0.25)
  assert made == {"context.part": part}


def test_a_teacher_retires_once_and_for_all():
  def scale(history):
    (value,) = controllers.retire_teacher(history, window=1, change=0.1).values()
    return value

  assert [scale(h) for h in ([], [0.1], [0.1, 0.3], [0.1, 0.15])] == [1, 1, 1, 0]
  assert scale([0.1, 0.15, 0.9]) == 0


def test_a_field_has_one_that_sets_it():
  config = retire_opd.get_config("tiny")
  config.schedule = (("loss.distill.scale", (0, 1.0), (5, 0.0)),)
  with pytest.raises(ValueError, match="by the schedule and by controller.name=retire"):
    rules.check(config)
  config = opsd.get_config("tiny")
  config.controller.name = "reference_part"
  with pytest.raises(ValueError, match="context.part is 1.0, and nothing reads it"):
    rules.check(config)
  config = atesd.get_config("tiny")
  config.controller.window = 0
  with pytest.raises(ValueError, match="at least 1 step"):
    rules.check(config)


@pytest.mark.usefixtures("four_devices")
def test_a_resumed_run_decides_as_an_uninterrupted_one(tmp_path, monkeypatch):
  scores = iter([0.0, 0.5] * 4)
  monkeypatch.setattr(
    controllers.History, "add", lambda self, _: self.state.append(next(scores))
  )

  def run(steps):
    config = atesd.get_config("tiny")
    config.compile_cache, config.steps, config.controller.window = "", steps, 1
    config.eval.every = config.checkpoint.every = 1
    train.train_and_evaluate(config, tmp_path)
    rows = [r for r in paths.read_rows(tmp_path / "metrics.jsonl") if "loss" in r]
    return [r["schedule/context.part"] for r in rows]

  assert run(2) == [1.0, 1.0]
  assert run(4) == pytest.approx([1.0, 1.0, 0.9, 1.0])
