"""Targets against dense formulas, by hand and at their ends."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from opsd_jax.losses import objective, targets
from opsd_jax.structs import ResponseTokens
from tests.families import target_keywords

T, S, R = (0.7, 0.2, 0.1), (0.5, 0.3, 0.2), (0.2, 0.3, 0.5)
z = {name: jnp.log(jnp.array([p])) + 3 for name, p in (("T", T), ("S", S), ("R", R))}


def mixed(target, *zs, own=S):
  logits, _ = target.mix(jnp.log(jnp.array([own])) - 1, *zs)
  return np.asarray(jax.nn.softmax(logits)[0])


def close(got, expected):
  np.testing.assert_allclose(got, np.array(expected) / np.sum(expected), atol=1e-5)


MADE = {name: f(**target_keywords(f)) for name, f in targets.ALL.items()}


@pytest.mark.parametrize("name", MADE)
def test_no_target_sees_a_constant_or_gives_a_broken_number(name):
  target, rng = MADE[name], np.random.default_rng(0)
  zs = [jnp.asarray(rng.normal(size=(2, 9)), jnp.float32) for _ in target.teachers]
  own = jnp.asarray(rng.normal(size=(2, 9)), jnp.float32)
  got = jax.nn.softmax(target.mix(own, *zs)[0])
  moved = jax.nn.softmax(target.mix(own + 2, *(x - 5 for x in zs))[0])
  np.testing.assert_allclose(got, moved, atol=1e-5)
  wide, _ = target.mix(own, *(x * 1000 for x in zs))
  assert np.isfinite(jax.nn.log_softmax(wide)).any() and not np.isnan(wide).any()


@pytest.mark.parametrize("gap", [0.0, 20.0, 100.0, 1000.0, np.inf])
@pytest.mark.parametrize("name", MADE)
def test_no_gap_of_logits_breaks_a_target(name, gap):
  """-inf on any side or on all; as objective.of_logits calls it."""
  config = base.get_config("tiny")
  config.loss.distill.scale = 1.0
  config.targets.teacher.name = name
  o = objective.from_config(config)
  pairs = o.teachers(True)
  plain = np.zeros((2, 5), np.float32)
  low = np.array([[0, -gap, 1, 2, -1], [0, -gap, -gap, 2, 1]], np.float32)
  ids = np.zeros(2, np.int32)
  one = np.ones(2, np.float32)
  tokens = ResponseTokens(ids, one, ids, ids, ids, one)

  @jax.jit
  def step(z, *teachers):
    def loss(z):
      of = dict(zip(pairs, teachers, strict=True))
      losses, stats = objective.of_logits(o, {"distill": 1.0}, z, of, tokens)
      return losses["distill"].sum(), stats

    return jax.value_and_grad(loss, has_aux=True)(z)

  for sides in itertools.product((plain, low), repeat=1 + len(pairs)):
    (total, stats), gradient = step(*sides)
    assert np.isfinite(total) and np.isfinite(gradient).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(stats))


def test_mixtures_by_hand():
  close(mixed(MADE["one"], z["T"]), T)
  close(mixed(MADE["anchored"], z["S"], z["T"]), np.sqrt(np.multiply(S, T)))
  close(mixed(MADE["toward"], z["T"]), np.sqrt(np.multiply(S, T)))
  expected = np.array(T) ** 1.5 / np.array(R) ** 0.5
  close(
    mixed(
      targets.extrapolated(view=1, weights="teacher", base="", strength=1.5),
      z["T"],
      z["R"],
    ),
    expected,
  )
  close(mixed(MADE["mean"], z["T"], z["R"]), np.add(T, R))


def test_the_residual_is_its_dense_formula():
  """base + b tanh(d / b) / strength; a reference that tells all: the base."""
  target = targets.residual(view=1, weights="teacher", strength=2.0, bound=0.5)
  d = np.log(T) - np.log(R)
  d = d - d.mean()
  expected = np.array(S) * np.exp(0.5 * np.tanh(d / 0.5) / 2.0)
  close(mixed(target, z["T"], z["R"], z["S"]), expected)
  close(mixed(target, z["T"], z["T"], z["S"]), S)
  assert target.teachers == ((1, "teacher"), (2, "teacher"), (0, "teacher"))


def entropy(p):
  return -(p * np.log(p)).sum()


@pytest.mark.parametrize(
  "p,expected", [((0.4, 0.3, 0.2, 0.1), None), ((0.7, 0.2, 0.07, 0.03), 1.03)]
)
def test_softened_raises_the_entropy_or_saturates(p, expected):
  target = MADE["softened"]
  got = np.asarray(jax.nn.softmax(target.mix(z["S"], jnp.log(jnp.array([p])))[0]))[0]
  if expected is None:  # it would have to pass log 4
    flat = np.array(p) ** (1 / 1.5)
    close(got, flat)
  else:
    H = entropy(np.array(p))
    wanted = H + 0.5 / (1 + np.exp(-2 * (H - 1.2)))
    assert entropy(got) == pytest.approx(wanted, abs=1e-3)
    assert wanted == pytest.approx(expected, abs=0.01)
    assert 1.1 <= np.log(p[0] / p[1]) / np.log(got[0] / got[1]) <= 1.5


@pytest.mark.parametrize(
  "make,kw",
  [
    (targets.anchored, {"anchor_weight": 1.1}),
    (targets.toward, {"teacher_share": -0.1}),
  ],
)
def test_a_share_outside_0_to_1_is_refused(make, kw):
  with pytest.raises(ValueError, match="expected 0 to 1"):
    make(view=1, weights="teacher", **kw)
