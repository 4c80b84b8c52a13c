"""How much a token counts, and what the sum is divided by."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from opsd_jax import objective, weighting
from opsd_jax.structs import Token

MASK = jnp.array([[1.0, 1, 1], [1, 0, 0]])
LOSSES = jnp.array([[0.1, 0.2, 0.3], [0.5, 7.0, 7.0]])


def token_of(mask):
  """A response in each row of the mask; the second has no advantage."""
  index = jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape)
  length = mask * mask.sum(1, keepdims=True)
  advantage = jnp.ones_like(mask).at[1].set(0.0)
  return Token(None, mask, index, length, None, None, advantage)


def reduced(weight, denominator, losses=LOSSES, mask=MASK):
  """As the step does it: the masked weighted sum over the denominator."""
  token = token_of(mask)
  w = mask * weighting.ALL[weight](None, token)
  divide = objective.DENOMINATORS[denominator]
  by = divide(token, **objective.accepted(divide, {"max_new_tokens": 5}))
  return float((w * losses).sum() / by)


@pytest.mark.parametrize(
  "weight,denominator,expected",
  [
    ("sequence_mean", "responses", 0.35),  # (0.2 + 0.5) / 2
    ("uniform", "tokens", 0.275),  # 1.1 / 4
    ("uniform", "responses", 0.55),
    ("sequence_mean", "tokens", 0.175),
    ("uniform", "budget", 0.11),  # 1.1 / (2 x 5)
    ("uniform", "active_tokens", 1.1 / 3),  # the second response's is not one
  ],
)
def test_reductions_by_hand(weight, denominator, expected):
  assert reduced(weight, denominator) == pytest.approx(expected, rel=1e-6)


def test_token_and_sequence_means_agree_where_lengths_do():
  mask = jnp.array([[1.0, 1, 0], [1, 1, 0]])
  assert reduced("uniform", "tokens", mask=mask) == pytest.approx(
    reduced("sequence_mean", "responses", mask=mask), rel=1e-6
  )


@pytest.mark.parametrize("weight", weighting.ALL)
@pytest.mark.parametrize("denominator", objective.DENOMINATORS)
def test_empty_rows_and_empty_batches_are_invisible(weight, denominator):
  more = jnp.concatenate([MASK, jnp.zeros((2, 3))])
  losses = jnp.concatenate([LOSSES, jnp.full((2, 3), 9.0)])
  assert reduced(weight, denominator, losses, more) == pytest.approx(
    reduced(weight, denominator), rel=1e-6
  )
  assert reduced(weight, denominator, mask=jnp.zeros((2, 3))) == 0


@pytest.mark.parametrize("weight", weighting.ALL)
def test_a_weight_looks_at_its_own_token_alone(weight):
  f, token = weighting.ALL[weight], token_of(MASK)
  whole = f(None, token)
  assert whole.shape == MASK.shape and whole.dtype == jnp.float32
  for at in np.ndindex(*MASK.shape):
    alone = Token(*(x if x is None else x[at] for x in token))
    assert f(None, alone) == whole[at]


# ------------------------------------------------------------ objective


def objective_of(**fields):
  config = base.get_config()
  config.update_from_flattened_dict(fields)
  return objective.from_config(config)


@pytest.mark.parametrize(
  "fields,words",
  [
    ({"divergence.name": "kl"}, "forward_kl"),
    ({"divergence.name": "jsd", "divergence.beta": 1.5}, "beta is 1.5"),
    ({"divergence.support": "half"}, "top_k_tail"),
    ({"divergence.support": "top_k_tail"}, "k >= 1"),
    (
      {
        "divergence.support": "top_k_tail",
        "divergence.k": 5,
        "divergence.owner": "both",
      },
      "teacher or student",
    ),
    ({"divergence.clip": "hard"}, "signed"),
    ({"divergence.clip": "signed"}, "tau > 0"),
    (
      {
        "divergence.name": "sampled_token",
        "divergence.support": "top_k_tail",
        "divergence.k": 5,
      },
      "sampled_token takes no",
    ),
    (
      {"divergence.name": "nll", "divergence.clip": "signed", "divergence.tau": 0.1},
      "nll takes no",
    ),
    ({"teacher.name": "frozen"}, "fixed"),
    ({"teacher.name": "none"}, "forward_kl needs a teacher"),
    ({"teacher.name": "ema", "teacher.rate": 2.0}, "rate is 2.0"),
    ({"teacher.name": "anchored", "teacher.pull": -1.0}, "pull is -1.0"),
    ({"teacher.name": "synced", "teacher.every": 0}, "every is 0"),
    ({"token_weight.name": "entropy"}, "sequence_mean"),
    ({"loss.denominator": "batch"}, "tokens, responses"),
    ({"loss.temperature": 0.0}, "temperature is 0.0"),
    ({"loss.temperature": -1.0}, "temperature is -1.0"),
  ],
)
def test_a_senseless_objective_is_refused(fields, words):
  with pytest.raises(ValueError, match=words):
    objective_of(**fields)


def test_fields_of_other_members_are_ignored():
  # beta stands in every config; forward KL does not take it.
  told = objective_of(**{"divergence.beta": 0.9, "teacher.every": 0})
  p = jnp.log(jnp.array([0.5, 0.3, 0.2]))
  q = jnp.log(jnp.array([0.7, 0.2, 0.1]))
  value, _ = told.divergence(p, q, jnp.array(0))
  assert float(value) == pytest.approx(0.085123, abs=1e-6)


def test_the_configs_own_values_arrive():
  told = objective_of(
    **{
      "divergence.name": "jsd",
      "divergence.beta": 0.1,
      "teacher.name": "ema",
      "teacher.rate": 0.25,
      "loss.temperature": 1.5,
      "loss.chunk": 7,
      "token_weight.name": "sequence_mean",
      "loss.denominator": "responses",
    }
  )
  p = jnp.log(jnp.array([0.5, 0.3, 0.2]))
  q = jnp.log(jnp.array([0.7, 0.2, 0.1]))
  value, _ = told.divergence(p, q, jnp.array(0))
  assert float(value) == pytest.approx(0.007695, abs=1e-6)
  memory = told.teacher.init({"a": jnp.ones(1)})
  memory = told.teacher.update(memory, {"a": jnp.full(1, 2.0)}, 1)
  assert float(memory["a"][0]) == 1.25
  assert (told.temperature, told.chunk) == (1.5, 7)
  assert told.token_weight is weighting.sequence_mean
  assert float(told.denominator(token_of(MASK))) == 2


def test_nll_needs_no_teacher():
  told = objective_of(**{"divergence.name": "nll", "teacher.name": "none"})
  assert told.teacher.members(told.teacher.init({}), {}) == ()
