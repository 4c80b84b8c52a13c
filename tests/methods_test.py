"""Methods are equal where they should be: to others, and to their dense formulas."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import grpo, opsd, pi_distill, rl_reverse_kl, rlad, sdpo, srpo, tip
from opsd_jax import train
from opsd_jax.losses import objective
from opsd_jax.models import families, transformer
from opsd_jax.rollouts import collate, collect
from opsd_jax.runtime.mesh import make_mesh
from tests.train_test import MODEL, assert_same, batch_of, gradients, params

PROMPTS = ((5, 6, 7), (8, 9, 10, 11))
TOLD = ((1, 2, 3, 5, 6), (4, 8, 9))
RESPONSES = ((20, 21, 22), (23,), (24, 25), (26, 27, 28, 29))
A = (1.5, -0.5, -0.25, 0.75)


def rows(advantages=A, told=True, **fields):
  """Two prompts with two responses each."""
  return [
    collate.Row(
      (PROMPTS[i // 2], TOLD[i // 2]) if told else (PROMPTS[i // 2],),
      y,
      (-4.0,) * len(y),
      (-4.0,) * len(y),
      a,
      group=i // 2,
      **fields,
    )
    for i, (y, a) in enumerate(zip(RESPONSES, advantages, strict=True))
  ]


def config_of(module, arg="tiny", **overrides):
  config = module.get_config(arg)
  config.update_from_flattened_dict(overrides)
  return config


def assert_equal(a, b):
  """Gradients to the last digit, not trivially; the loss that is reported to two
  units in its last place (XLA adds it up as it fuses)."""
  assert max(np.abs(g).max() for g in jax.tree.leaves(a[1])) > 1e-4
  jax.tree.map(np.testing.assert_array_equal, a[1], b[1])
  np.testing.assert_allclose(a[0], b[0], rtol=2.4e-7)


def logp(tree, prompt, y, model=MODEL):
  """Log-probs of a response's tokens over the vocabulary, of its row alone."""
  h_1xLxD, _ = transformer.apply(model, tree, jnp.array([prompt + y]))
  z_TxV = h_1xLxD[0, len(prompt) - 1 : -1] @ transformer.unembedding(tree).T
  return jax.nn.log_softmax(z_TxV)


def at(logp_TxV, y):
  return logp_TxV[jnp.arange(len(y)), jnp.array(y)]


def dense(loss, tree):
  return jax.jit(jax.value_and_grad(loss))(tree)


sg = jax.lax.stop_gradient


# ------------------------------------------------------------- exact equalities

# The suite compiles without these (conftest.py), and then what is fused with what, and
# so the last digit, depends on the whole program.
is_old = jax.__version__.startswith("0.10.")
EMITTERS = {"xla_cpu_use_fusion_emitters": True} if is_old else None
exact_gradients = functools.partial(gradients, options=EMITTERS)


def external_of(seed=3):
  model = families.tiny_wide()
  weights = transformer.init_params(model, jax.random.key(seed))
  # A teacher that is sure of something: the student is moved visibly.
  weights["embed"]["embedding"] = 10 * weights["embed"]["embedding"]
  return train.Frozen({}, weights), model


def test_trrd_without_a_teacher_is_grpo():
  frozen, model = external_of()
  batch = batch_of(rows(told=False))
  share = "loss.policy_gradient.surrogate.old_share"
  got = exact_gradients(
    batch, config_of(rlad, **{share: 1.0}), frozen=frozen, external=model
  )
  clip = {"loss.policy_gradient.surrogate.clip_high": 0.28}
  assert_equal(got, exact_gradients(batch, config_of(grpo, **clip)))
  other = exact_gradients(batch, config_of(rlad), frozen=frozen, external=model)
  assert np.abs(other[0] - got[0]) > 1e-3


def test_srpo_without_right_siblings_is_grpo():
  """No wrong response has a right sibling, and rewards differ over the groups."""
  weights = {"distill": 0.0, "policy_gradient": 1.0}
  advantages = (0.5, -0.5, -0.25, 0.25)
  plain = config_of(srpo, **{"loss.distill.scale": 0.0})
  for name in ("token_weight.name", "token_weight.sharpness", "denominator"):
    *path, end = ("loss", "distill", *name.split("."))
    functools.reduce(getattr, path, plain)[end] = functools.reduce(
      getattr, path, opsd.get_config()
    )[end]
  one_view = [r._replace(prompts=r.prompts[:1]) for r in rows(advantages)]
  expected = exact_gradients(batch_of(one_view), plain)
  routed = batch_of(rows(advantages, weights=weights))
  assert_equal(exact_gradients(routed, config_of(srpo)), expected)


def test_tip_of_every_token_is_reverse_kl():
  batch = batch_of(rows((0.0,) * 4))
  whole = config_of(tip, **{"loss.distill.token_weight.kept_share": 1.0})
  reverse = config_of(opsd, **{"loss.distill.divergence.name": "reverse_kl"})
  assert_equal(exact_gradients(batch, whole), exact_gradients(batch, reverse))
  part = config_of(tip, **{"loss.distill.token_weight.kept_share": 0.3})
  assert exact_gradients(batch, part)[0] != pytest.approx(
    exact_gradients(batch, whole)[0]
  )


def test_routing_by_a_pass_rate_of_power_0_is_no_routing():
  weights = {"distill": 1.0}  # p^0 (1 - p)^0, also where p is 0 or 1
  batch = batch_of(rows(weights=weights))
  assert_equal(
    exact_gradients(batch, opsd.get_config("tiny")),
    exact_gradients(batch_of(rows()), opsd.get_config("tiny")),
  )


def test_sdpo_without_any_context_has_no_loss():
  made = [
    r._replace(prompts=(r.prompts[0],) * 2, weights={"distill": 0.0}) for r in rows()
  ]
  loss, grads = exact_gradients(batch_of(made), config_of(sdpo))
  assert loss == 0
  assert all((g == 0).all() for g in jax.tree.leaves(grads))


# ------------------------------------------------------------- dense formulas


def both_rows(alpha):
  """What a privileged policy's responses become: see sources.teacher_view."""
  made = []
  for i, row in enumerate(rows()):
    question, told = PROMPTS[i // 2], TOLD[i // 2]
    share = lambda w, is_teacher: {  # noqa: E731
      "policy_gradient": w,
      "distill": w * (not is_teacher),
      "credit": float(is_teacher),
    }
    if alpha > 0:
      made.append(
        row._replace(
          prompts=(told, question),
          weights=share(alpha, True),
          old_logp=(),
          is_copy=False,
        )
      )
    if alpha < 1:
      made.append(
        row._replace(
          prompts=(question, told),
          weights=share(1 - alpha, False),
          old_logp=tuple(np.linspace(-5.0, -6.2, len(row.response_ids))),
          is_copy=alpha > 0,
        )
      )
  return made


def joint_loss(alpha, b, tree):
  """-(alpha J_T + (1 - alpha) J_S) as the paper writes it, at the first update."""
  teacher, student, kl = [], [], []
  for i, y in enumerate(RESPONSES):
    told, asked = (logp(tree, p[i // 2], y) for p in (TOLD, PROMPTS))
    teacher.append((at(told, y), at(asked, y)))
    student.append((at(asked, y), np.linspace(-5.0, -6.2, len(y))))
    kl.append((sg(jnp.exp(told)) * (sg(told) - asked)).sum())
  gap = [sg((t - s).sum()) for t, s in teacher]
  means = [(gap[0] + gap[1]) / 2] * 2 + [(gap[2] + gap[3]) / 2] * 2
  total = 0.0
  for i, ((t, _), (s, old)) in enumerate(zip(teacher, student, strict=True)):
    reward = A[i] - b * (gap[i] - means[i])
    total -= alpha * (reward * jnp.exp(t - sg(t))).sum()
    r = jnp.exp(s - old)
    clipped = jnp.minimum(r * A[i], jnp.clip(r, 0.8, 1.2) * A[i])
    total -= (1 - alpha) * (clipped.sum() - b * kl[i])
  return total / sum(map(len, RESPONSES))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_pi_distill_is_autodiff_of_the_joint_loss(alpha):
  config = config_of(pi_distill, f"tiny,alpha={alpha}")
  expected = dense(functools.partial(joint_loss, alpha, 0.25), params())
  got = gradients(batch_of(both_rows(alpha)), config)
  assert_same(got, expected)
  packed = batch_of(both_rows(alpha), pack_len=32, share_prompts=True)
  assert_same(gradients(packed, config), expected)


def test_rewards_with_a_reverse_kl_are_autodiff_of_both():
  config = config_of(rl_reverse_kl)

  def loss(tree):
    gaps, total = [], 0.0
    pairs = [
      [logp(tree, p[i // 2], y) for p in (PROMPTS, TOLD)]
      for i, y in enumerate(RESPONSES)
    ]
    for (s, t), y in zip(pairs, RESPONSES, strict=True):
      gaps.append(sg((at(s, y) - at(t, y)).sum()))
    means = [(gaps[0] + gaps[1]) / 2] * 2 + [(gaps[2] + gaps[3]) / 2] * 2
    for i, ((s, t), y) in enumerate(zip(pairs, RESPONSES, strict=True)):
      ratio = jnp.exp(at(s, y) - sg(at(s, y)))
      total -= ((A[i] - 0.5 * (gaps[i] - means[i])) * ratio).sum()
      total += 0.5 * (jnp.exp(s) * (s - sg(t))).sum()
    return total / 10

  assert_same(gradients(batch_of(rows()), config), dense(loss, params()))


def test_a_teacher_of_other_sizes_is_its_dense_formula():
  """Its padded vocabulary is cut to the student's."""
  frozen, model = external_of()
  fields = {"external.source": "tiny_wide", "targets.teacher.weights": "external"}
  config = config_of(opsd, **fields)

  def loss(tree):
    total = 0.0
    for i, y in enumerate(RESPONSES):
      s = logp(tree, PROMPTS[i // 2], y)
      h, _ = transformer.apply(model, frozen.external, jnp.array([TOLD[i // 2] + y]))
      W = transformer.unembedding(frozen.external)[: MODEL.vocab_size]
      t = jax.nn.log_softmax(h[0, len(TOLD[i // 2]) - 1 : -1] @ W.T)
      total += (jnp.exp(t) * (t - s)).sum()
    return total / 10

  got = gradients(batch_of(rows()), config, frozen=frozen, external=model)
  assert_same(got, dense(loss, params()))


def test_a_residual_target_is_its_dense_formula():
  fields = {"targets.teacher.name": "residual", "context.also_privileged": ("answer",)}
  fields |= {"targets.teacher.bound": 2.0}
  config = config_of(opsd, **fields)
  hint = ((3, 3), (2, 2, 2))
  made = [r._replace(prompts=(*r.prompts, hint[i // 2])) for i, r in enumerate(rows())]
  base = params(seed=1)

  def loss(tree):
    total = 0.0
    for i, y in enumerate(RESPONSES):
      t, h, b = (logp(base, p[i // 2], y) for p in (TOLD, hint, PROMPTS))
      d = (t - h) - (t - h).mean(-1, keepdims=True)
      q = jax.nn.log_softmax(b + 2.0 * jnp.tanh(d / 2.0))
      s = logp(tree, PROMPTS[i // 2], y)
      total += (jnp.exp(q) * (q - s)).sum()
    return total / 10

  assert_same(gradients(batch_of(made), config), dense(loss, params()))


def test_weights_of_0_are_the_shorter_batch():
  """What a mask of actions leaves out is as if it were not there."""
  config = opsd.get_config("tiny")
  config.loss.distill.denominator = "weighted_tokens"
  weights = [{"distill": float(i != 1)} for i in range(4)]
  whole = [r._replace(weights=w) for r, w in zip(rows(), weights, strict=True)]
  shorter = [r for i, r in enumerate(rows()) if i != 1]
  assert_same(gradients(batch_of(whole), config), gradients(batch_of(shorter), config))


# ------------------------------------------ micro-batches, packing and meshes

CASES = {
  "sdpo": (sdpo, lambda: rows(weights={"distill": 1.0})),
  "srpo": (
    srpo,
    lambda: [
      r._replace(weights={"distill": float(i == 1), "policy_gradient": float(i != 1)})
      for i, r in enumerate(rows())
    ],
  ),
  "tip": (tip, lambda: rows((0.0,) * 4)),
  "pi_distill": (pi_distill, lambda: both_rows(0.5)),
}


@functools.cache
def plain(name):
  module, made = CASES[name]
  return gradients(batch_of(made()), config_of(module))


@pytest.mark.parametrize("micro_batches", [pytest.param(2, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("name", CASES)
def test_micro_batches_are_invisible(name, micro_batches):
  module, made = CASES[name]
  split = batch_of(made(), parts=micro_batches)
  got = gradients(split, config_of(module), micro_batches=micro_batches)
  assert_same(got, plain(name))


@pytest.mark.parametrize(
  "sizes", [pytest.param((2, 2, 1), marks=pytest.mark.slow), (1, 4, 2)], ids=str
)
@pytest.mark.parametrize("name", CASES)
def test_meshes_are_invisible(name, sizes):
  count = sizes[0] * sizes[1] * sizes[2]
  mesh = make_mesh(*sizes, devices=jax.devices()[:count])
  module, made = CASES[name]
  model = dataclasses.replace(MODEL, scan_layers=False)
  split = batch_of(made(), parts=4, pack_len=32, share_prompts=True)
  assert_same(gradients(split, config_of(module), mesh=mesh, model=model), plain(name))


def test_packing_is_invisible_to_tip():
  packed = batch_of(rows((0.0,) * 4), pack_len=32, share_prompts=True)
  assert_same(gradients(packed, config_of(tip)), plain("tip"))


def test_what_no_term_counts_never_reaches_the_backward_pass():
  """The bound of TIP's share: 1 + 1 + 1 + 2 of 10 tokens, rounded up."""
  config = config_of(tip)
  o = objective.from_config(config)
  batch = batch_of(rows((0.0,) * 4), response_bucket=64)
  assert o.kept(np.array([3, 1, 2, 4])).tolist() == [1, 1, 1, 2]
  assert collect.kept_columns(o, batch.tokens) == 32 < batch.tokens.y_BxT.shape[1]
  assert o.chunk == 32  # of config's 64: both sweeps take half
  assert objective.from_config(config_of(opsd)).chunk == 64


def test_active_tokens_are_those_that_the_credit_makes_active():
  """Equal rewards, but a KL in them: the sum is divided by those tokens."""
  config = config_of(pi_distill, "tiny,alpha=1")
  flat = [r._replace(advantage=0.0) for r in both_rows(1.0)]
  by_tokens = gradients(batch_of(flat), config)
  config.loss.policy_gradient.denominator = "active_tokens"
  assert_same(gradients(batch_of(flat), config), by_tokens)
