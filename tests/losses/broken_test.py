"""A broken number stays one: NaN of either side reaches the loss, however compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from opsd_jax.losses import divergences, objective, policy_gradient, targets
from opsd_jax.structs import ResponseTokens
from tests.families import divergence_keywords

N, V = 8, 64


def loss_of(term: str, target: str, fields: dict):
  """loss(student's logits, teachers' logits), compiled, and how many teachers."""
  config = base.get_config("tiny")
  config.unlock()
  config.loss[term] = base.term(term, 1.0)
  if "target" in config.loss[term]:
    config.loss[term].target = "teacher"
  config.targets.teacher.name = target
  config.update_from_flattened_dict({f"loss.{term}.{k}": v for k, v in fields.items()})
  o = objective.from_config(config)
  pairs = o.teachers(True)
  ids, one = np.arange(N, dtype=np.int32) % V, np.ones(N, np.float32)
  tokens = ResponseTokens(ids, one, ids, ids, ids, one, advantage_BxT=one)

  @jax.jit
  def loss(z, *zs):
    of = dict(zip(pairs, zs, strict=True))
    return objective.of_logits(o, {term: 1.0}, z, of, tokens)[0][term].sum()

  return loss, len(pairs)


OPTIONS = (
  {"support": "top_k_tail", "k": 4},
  {"support": "top_k_renormalised", "k": 4},
  {"clip": "signed", "tau": 0.05},
  {"clip": "generalized", "tau": 0.05},
  {"clip": "token_sum", "tau": 0.05},
)


def divergence(name, options=()):
  fields = divergence_keywords(divergences.ALL[name]) | {"name": name} | dict(options)
  return {f"divergence.{k}": v for k, v in fields.items()}


CASES = [
  *(("distill", "one", divergence(name)) for name in divergences.ALL),
  *(
    ("distill", "one", divergence(name, options))
    for name in ("forward_kl", "chi_square", "alpha")
    for options in OPTIONS
  ),
  ("distill", "one", {"divergence.name": "sampled_token"}),
  *(("distill", name, {}) for name in targets.ALL),
  *(("kl_penalty", "one", {"estimator": name}) for name in policy_gradient.KL),
  ("policy_gradient", "one", {"surrogate.name": "trrd"}),
  ("ranking", "one", {}),
]


@pytest.mark.parametrize("term,target,fields", CASES, ids=str)
def test_a_side_that_is_not_a_number_makes_a_loss_that_is_none(term, target, fields):
  loss, teachers = loss_of(term, target, fields)
  rng = np.random.default_rng(0)
  fine = [
    jnp.asarray(rng.normal(size=(N, V)), jnp.float32) for _ in range(1 + teachers)
  ]
  assert np.isfinite(loss(*fine))
  for side in range(1 + teachers):
    broken = list(fine)
    broken[side] = jnp.full((N, V), jnp.nan)
    assert np.isnan(loss(*broken)), side
