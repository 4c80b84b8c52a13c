"""The schedule at hand-checked points; AdamW written anew; float32 inside."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from opsd_jax.losses import optimizer


def config_of(steps=10, **fields):
  config = base.get_config()
  config.steps = steps
  config.optimizer.update({"warmup_steps": 0} | fields)
  return config


@pytest.mark.parametrize(
  "decay,expected",
  [
    ("constant", {0: 0.25, 1: 0.5, 3: 1, 4: 1, 8: 1, 11: 1}),
    ("linear", {0: 0.25, 1: 0.5, 3: 1, 4: 1, 8: 0.5, 11: 0.125, 12: 0, 99: 0}),
    ("cosine", {0: 0.25, 3: 1, 4: 1, 6: 0.853553, 8: 0.5, 10: 0.146447, 12: 0, 99: 0}),
  ],
)
def test_schedule_points(decay, expected):
  rate = optimizer.schedule(0.02, decay, warmup_steps=4, steps=12)
  for t, share in expected.items():
    assert float(rate(t)) == pytest.approx(0.02 * share, abs=1e-8), t
    assert float(jax.jit(rate)(t)) == pytest.approx(0.02 * share, abs=1e-8)


@pytest.mark.parametrize("decay", optimizer.DECAYS)
@pytest.mark.parametrize("warmup_steps,steps", [(0, 1), (0, 7), (1, 7), (7, 7), (9, 7)])
def test_every_step_learns_and_none_rises_after_the_warm_up(decay, warmup_steps, steps):
  rate = optimizer.schedule(1.0, decay, warmup_steps, steps)
  rates = [float(rate(t)) for t in range(steps)]
  assert all(0 < r <= 1 for r in rates)
  top = rates[max(0, warmup_steps - 1) :]
  assert top == sorted(top, reverse=True)
  assert rates[0] == pytest.approx(1 / max(1, warmup_steps))


def test_an_unknown_decay_names_the_known_ones():
  with pytest.raises(ValueError, match="cosine"):
    optimizer.from_config(config_of(decay="step"))


def in_numpy(params, gradients, c, rates):
  """Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2, in float64."""
  m = v = 0.0
  for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
    if c.clip_norm:
      norm = np.sqrt((g**2).sum())
      g = g * min(1, c.clip_norm / norm)
    m = c.b1 * m + (1 - c.b1) * g
    v = c.b2 * v + (1 - c.b2) * g**2
    step = (m / (1 - c.b1**t)) / (np.sqrt(v / (1 - c.b2**t)) + c.eps)
    params = params - rate * (step + c.weight_decay * params)
  return params


@pytest.mark.parametrize("clip_norm", [0.0, 0.3, 100.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_equals_its_definition(clip_norm, weight_decay):
  config = config_of(
    steps=4,
    learning_rate=0.05,
    decay="linear",
    warmup_steps=2,
    clip_norm=clip_norm,
    weight_decay=weight_decay,
  )
  rng = np.random.default_rng(0)
  start, gradients = rng.normal(size=(2, 3)), rng.normal(size=(4, 2, 3))
  tx = optimizer.from_config(config)
  # Two leaves: the norm is of both together.
  params = {"a": jnp.float32(start[0]), "b": jnp.float32(start[1])}
  opt = tx.init(params)
  for g in gradients:
    updates, opt = tx.update(
      {"a": jnp.float32(g[0]), "b": jnp.float32(g[1])}, opt, params
    )
    params = optax.apply_updates(params, updates)
  expected = in_numpy(
    start, gradients, config.optimizer, np.array([0.5, 1, 1, 0.5]) * 0.05
  )
  np.testing.assert_allclose(params["a"], expected[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(params["b"], expected[1], rtol=1e-5, atol=1e-6)


def test_a_clipped_gradient_keeps_its_direction():
  # AdamW forgets a scale, so look at its first moment: 0.1 x clipped.
  config = config_of(clip_norm=1.0, b1=0.9)
  tx = optimizer.from_config(config)
  g = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([0.0, 4.0])}
  _, opt = tx.update(g, tx.init(g), g)
  mu = optax.tree_utils.tree_get(opt, "mu")
  np.testing.assert_allclose(mu["a"], [0.06, 0.0], rtol=1e-5)
  np.testing.assert_allclose(mu["b"], [0.0, 0.08], rtol=1e-5)


def test_bfloat16_parameters_have_float32_state_and_arithmetic():
  tx = optimizer.from_config(config_of(clip_norm=1.0, weight_decay=0.1))
  rng = np.random.default_rng(1)

  def half():
    return {"a": jnp.asarray(rng.normal(size=(4, 4)), jnp.bfloat16)}

  params, g = half(), half()

  def full(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

  opt = tx.init(params)
  moments = [x for x in jax.tree.leaves(opt) if x.shape == (4, 4)]
  assert len(moments) == 2 and all(x.dtype == jnp.float32 for x in moments)
  updates, opt = tx.update(g, opt, params)
  expected, _ = tx.update(full(g), tx.init(full(params)), full(params))
  assert updates["a"].dtype == jnp.float32
  np.testing.assert_array_equal(updates["a"], expected["a"])
  new = optax.apply_updates(params, updates)
  assert new["a"].dtype == jnp.bfloat16


def run_steps(config, params, steps):
  """`steps` equal gradients of 1 -> (parameters, state)."""
  tx = optimizer.from_config(config)
  state = tx.init(params)

  @jax.jit
  def step(params, state):
    grads = jax.tree.map(jnp.ones_like, params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  for _ in range(steps):
    params, state = step(params, state)
  return params, state


def low_precision(**fields):
  config = config_of(
    steps=200, learning_rate=1e-5, decay="constant", clip_norm=0.0, **fields
  )
  config.model.param_dtype = "bfloat16"
  return config


def test_a_master_keeps_updates_that_bfloat16_would_lose():
  start = jnp.ones(4)
  exact, _ = run_steps(low_precision(), start, 200)  # float32 parameters
  assert float(exact[0]) == pytest.approx(1 - 200 * 1e-5, rel=1e-5)
  kept, state = run_steps(low_precision(), start.astype(jnp.bfloat16), 200)
  lost, _ = run_steps(low_precision(master=False), start.astype(jnp.bfloat16), 200)
  np.testing.assert_allclose(state.weights, exact, rtol=1e-6)
  assert kept.dtype == jnp.bfloat16
  np.testing.assert_array_equal(kept, state.weights.astype(jnp.bfloat16))
  np.testing.assert_array_equal(lost, start.astype(jnp.bfloat16))


def test_parameters_are_always_the_rounded_master():
  config = low_precision()
  config.optimizer.learning_rate = 0.03
  start = jax.random.normal(jax.random.key(0), (64,), jnp.bfloat16)
  for steps in (1, 2, 7):
    params, state = run_steps(config, start, steps)
    np.testing.assert_array_equal(params, state.weights.astype(jnp.bfloat16))


@pytest.mark.parametrize("dtype", optimizer.MU_DTYPES)
def test_the_first_moments_dtype(dtype):
  _, state = run_steps(config_of(mu_dtype=dtype), jnp.ones(4), 1)
  moments = optax.tree.get(state, "mu"), optax.tree.get(state, "nu")
  assert [m.dtype for m in moments] == [jnp.dtype(dtype), jnp.float32]


def test_an_adapter_needs_no_master():
  config = low_precision()
  config.lora.rank = 4
  _, state = run_steps(config, jnp.ones(4), 1)
  assert not isinstance(state, optimizer.Master)


def test_weight_decay_shrinks_matrices_alone():
  """Stacked layers too, whose norms have two axes."""
  config = config_of(weight_decay=0.1, learning_rate=1e-2, decay="constant")
  tx = optimizer.from_config(config)
  params = {
    "layers": {
      "norm": {"scale": jnp.ones((3, 4))},
      "q": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)},
      "lora": {"a": jnp.ones((4, 2)), "b": jnp.ones((2, 4))},
    },
    "embed": {"embedding": jnp.ones((8, 4))},
  }
  state, zeros = tx.init(params), jax.tree.map(jnp.zeros_like, params)
  for _ in range(100):
    updates, state = tx.update(zeros, state, params)
    params = optax.apply_updates(params, updates)
  shrunk = (1 - 1e-3) ** 100
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    expected = 1.0 if path[-1].key in ("scale", "bias") else shrunk
    np.testing.assert_allclose(leaf, expected, rtol=1e-5, err_msg=str(path))
