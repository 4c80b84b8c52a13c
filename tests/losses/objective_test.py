"""How much a token counts, and what the sum is divided by."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from opsd_jax import rules
from opsd_jax.losses import denominators, objective, token_weights
from opsd_jax.losses.reads import reads
from opsd_jax.registry import accepted
from opsd_jax.structs import ResponseTokens, TermStats
from tests.families import token_weight_keywords

MASK = jnp.array([[1.0, 1, 1], [1, 0, 0]])
LOSSES = jnp.array([[0.1, 0.2, 0.3], [0.5, 7.0, 7.0]])


# What some target's mixing finds and some weight reads.
NUMBERS = set().union(
  *(
    objective.numbers_of(reads(functools.partial(f, **token_weight_keywords(f))))
    for f in token_weights.ALL.values()
  )
)


def token_of(mask):
  """A response in each row of the mask; the second has no advantage."""
  index = jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape)
  length = mask * mask.sum(1, keepdims=True)
  advantage = jnp.ones_like(mask).at[1].set(0.0)
  return ResponseTokens(None, mask, index, length, None, None, advantage_BxT=advantage)


def reduced(weight, denominator, losses=LOSSES, mask=MASK):
  """As the step does it: the masked weighted sum over the denominator."""
  token = token_of(mask)
  f = token_weights.ALL[weight]
  zero = jnp.zeros_like(mask)
  stats = TermStats(*[zero] * 7, numbers=dict.fromkeys(NUMBERS, zero))
  w = mask * f(stats, token, **token_weight_keywords(f))
  divide = denominators.ALL[denominator]
  by = divide(token, 1.0, **accepted(divide, {"max_new_tokens": 5}))
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


@pytest.mark.parametrize("weight", token_weights.ALL)
@pytest.mark.parametrize("denominator", denominators.ALL)
def test_empty_rows_and_empty_batches_are_invisible(weight, denominator):
  more = jnp.concatenate([MASK, jnp.zeros((2, 3))])
  losses = jnp.concatenate([LOSSES, jnp.full((2, 3), 9.0)])
  assert reduced(weight, denominator, losses, more) == pytest.approx(
    reduced(weight, denominator), rel=1e-6
  )
  assert reduced(weight, denominator, mask=jnp.zeros((2, 3))) == 0


@pytest.mark.parametrize("weight", token_weights.ALL)
def test_a_weight_looks_at_its_own_token_alone(weight):
  """Whatever the statistics are: one number a token, finite, without gradient."""
  f, tokens, rng = token_weights.ALL[weight], token_of(MASK), np.random.default_rng(0)
  f = functools.partial(f, **token_weight_keywords(f))

  def draw():
    return jnp.asarray(-rng.exponential(size=MASK.shape), jnp.float32)

  stats = TermStats(-draw(), draw(), -draw(), draw(), -draw(), draw(), -draw())
  stats = stats._replace(numbers={name: -draw() for name in NUMBERS})
  whole = f(stats, tokens)
  assert whole.shape == MASK.shape and whole.dtype == jnp.float32
  assert np.isfinite(whole).all()
  for place in np.ndindex(*MASK.shape):
    alone = jax.tree.map(lambda x, place=place: x[place], (stats, tokens))
    assert f(*alone) == whole[place]


def test_tokens_that_count_in_a_term():
  weights = jnp.array([[1.0, 0, 2], [0, 3, 3]])
  assert float(denominators.weighted_tokens(token_of(MASK), weights)) == 2
  assert float(denominators.weighted_tokens(token_of(MASK), 0 * weights)) == 1


def test_a_completion_in_two_rows_is_counted_once():
  token = token_of(MASK)._replace(counted_BxT=jnp.array([[1.0] * 3, [0.0] * 3]))
  for name, expected in (("tokens", 3), ("responses", 1), ("weighted_tokens", 3)):
    assert float(denominators.ALL[name](token, jnp.ones_like(MASK))) == expected


# ------------------------------------------------------------ objective

DIVERGENCE = "loss.distill.divergence."


def config_of(**fields):
  config = base.get_config()
  config.loss.distill.scale = 1.0
  config.update_from_flattened_dict(fields)
  return config


def divergence(**fields):
  return {DIVERGENCE + name: value for name, value in fields.items()}


@pytest.mark.parametrize(
  "fields,words",
  [
    (divergence(name="kl"), "forward_kl"),
    (divergence(name="jsd", beta=1.5), "beta is 1.5"),
    (divergence(support="half"), "top_k_tail"),
    (divergence(support="top_k_tail"), "k >= 1"),
    (divergence(support="top_k_tail", k=5, support_from="both"), "teacher or student"),
    (divergence(clip="hard"), "signed"),
    (divergence(clip="signed"), "tau > 0"),
    (
      divergence(name="sampled_token", support="top_k_tail", k=5),
      "sampled_token takes no",
    ),
    ({"teacher.name": "frozen"}, "fixed"),
    ({"teacher.name": "ema", "teacher.rate": 2.0}, "rate is 2.0"),
    ({"teacher.name": "ema", "teacher.rate": 0.0}, "teacher.rate is 0"),
    (
      {"targets.teacher.name": "anchored", "targets.teacher.anchor_weight": -1.0},
      "anchor_weight is -1.0",
    ),
    ({"targets.teacher.name": "blend"}, "extrapolated"),
    ({"targets.teacher.weights": "mentor"}, "teacher, reference"),
    ({"targets.teacher.view": 2}, "there are 0 to 1"),
    ({"targets.teacher.weights": "external"}, "external.source"),
    ({"loss.distill.target": "judge"}, "known: reference, teacher"),
    ({"teacher.name": "synced", "teacher.every": 0}, "every is 0"),
    ({"loss.distill.token_weight.name": "entropy"}, "sequence_mean"),
    (
      {
        "loss.distill.token_weight.name": "soft_or",
        "loss.distill.token_weight.kept_share": 0.0,
      },
      "kept_share is 0.0",
    ),
    ({"loss.distill.denominator": "batch"}, "tokens, responses"),
    ({"loss.distill.denominator": "active_tokens"}, "policy_gradient"),
    ({"loss.temperature": 0.0}, "temperature is 0.0"),
    ({"loss.temperature": -1.0}, "temperature is -1.0"),
    ({"loss.distill.scale": 0.0}, "nothing to learn from"),
    ({"routing.name": "router"}, "wrong_to_teacher"),
    ({"loss.distill.importance_cap": -1.0}, "at least 0"),
    ({"rollout.source": "dataset", "loss.distill.importance_cap": 2.0}, "dataset"),
    ({"loss.nll.kind": "distill"}, "base.term"),
    ({"loss.nll.kind": "likelihood"}, "policy_gradient"),
    ({"loss.ranking.scale": 1.0, "loss.ranking.ranking.k": 1}, "at least 2"),
    ({"targets.teacher.temperature": 0.0}, "temperature is 0.0"),
    ({"targets.teacher.name": "mean", "targets.teacher.views": 0}, "views is 0"),
    ({"routing.name": "both_views"}, "teacher_view"),
    ({"routing.name": "rescued"}, "rescue"),
    ({"routing.name": "pass_rate", "routing.a": -1.0}, "at least 0"),
    (
      {"loss.distill.scale": 0.0, "loss.nll.scale": 1.0, "routing.name": "correct"},
      "none of them is on",
    ),
    (
      divergence(name="sampled_token") | {"loss.distill.token_weight.name": "soft_or"},
      "over the vocabulary",
    ),
    (
      {
        "loss.distill.scale": 0.0,
        "loss.nll.scale": 1.0,
        "loss.nll.token_weight.name": "calm_teacher",
      },
      "have no target",
    ),
    *(
      (divergence(name="sampled_token") | fields, words)
      for fields, words in (
        ({"rollout.top_k": 2}, "importance_cap"),
        (
          {"rollout.temperature": 0.0, "loss.distill.importance_cap": 2.0},
          "random draws",
        ),
        ({"rollout.temperature": 0.7}, "importance_cap"),
        ({"rollout.source": "dataset"}, "own responses"),
        ({"rollout.source": "teacher_view"}, "own responses"),
      )
    ),
    ({"loss.kl_penalty.scale": 0.1, "rollout.top_p": 0.5}, "importance_cap"),
    ({"targets.teacher.weights": "live", "targets.teacher.view": 0}, "student itself"),
    (
      {
        "teacher.name": "live",
        "context.privileged": "none",
        "context.template": "plain",
      },
      "student itself",
    ),
    *(
      (plain | fields, "student itself")
      for plain in ({"context.privileged": "none", "context.template": "plain"},)
      for fields in (
        {"teacher.name": "ema", "teacher.rate": 1.0},
        {"teacher.name": "synced", "teacher.every": 1},
        {"targets.teacher.name": "anchored", "targets.teacher.anchor_weight": 0.0},
        {"targets.teacher.name": "extrapolated", "teacher.name": "live"},
      )
    ),
    (
      {"targets.teacher.name": "toward", "targets.teacher.teacher_share": 0.0},
      "itself",
    ),
    (
      {"loss.kl_penalty.scale": 0.1, "reference.name": "live"},
      "targets.reference is the student itself",
    ),
    ({"seed": 2**32}, "seed is 4294967296"),
    ({"seed": 2**64}, "seed is"),
    ({"task.seed": -1}, "task.seed is -1"),
    (
      {"optimizer.updates_per_batch": 2, "log.samples_every": 5},
      "log.samples_every is 5",
    ),
  ],
)
def test_a_senseless_objective_is_refused(fields, words):
  with pytest.raises(ValueError, match=words) as error:
    rules.check(config_of(**fields))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "fields,path",
  [
    (divergence(beta=0.9), "loss.distill.divergence.beta"),
    (divergence(tau=0.1), "loss.distill.divergence.tau"),
    (divergence(k=10), "loss.distill.divergence.k"),
    ({"teacher.every": 3}, "teacher.every"),
    ({"reference.name": "ema"}, "reference.name"),
    ({"targets.teacher.bound": 1.0}, "targets.teacher.bound"),
    ({"targets.reference.view": 1}, "targets.reference.view"),
    ({"loss.nll.denominator": "responses"}, "loss.nll.denominator"),
    ({"loss.kl_penalty.estimator": "k1"}, "loss.kl_penalty.estimator"),
    (
      {"loss.distill.token_weight.kept_share": 0.2},
      "loss.distill.token_weight.kept_share",
    ),
    ({"rewards.overlong_margin": 3}, "rewards.overlong_margin"),
    ({"rewards.dynamic_sampling_rounds": 3}, "rewards.dynamic_sampling_rounds"),
    ({"routing.alpha": 0.1}, "routing.alpha"),
    ({"context.include_self": True}, "context.include_self"),
    ({"context.also_privileged": ("answer",)}, "context.also_privileged"),
    ({"external.source": "tiny"}, "external.source"),
    ({"eval.samples": 0, "eval.temperature": 0.5}, "eval.temperature"),
    ({"profile.start": 3}, "profile.start"),
    ({"lora.alpha": 3.0}, "lora.alpha"),
    ({"rollout.source": "dataset", "rollout.top_k": 3}, "rollout.top_k"),
    ({"rollout.source": "dataset", "rollout.stop": ("a",)}, "rollout.stop"),
    ({"data.test_time": True, "data.train": "jsonl:x"}, "data.train"),
    (
      {
        "loss.distill.scale": 0.0,
        "loss.nll.scale": 1.0,
        "context.privileged": "sibling",
      },
      "context.privileged",
    ),
  ],
)
def test_a_field_that_nothing_reads_is_refused_when_it_is_set(fields, path):
  with pytest.raises(ValueError, match=f"{path} is .*nothing reads it"):
    rules.check(config_of(**fields))


def test_what_the_chosen_functions_read_may_be_set():
  rules.check(
    config_of(
      **divergence(name="jsd", beta=0.9, clip="signed", tau=0.1),
      **{"teacher.name": "ema", "teacher.rate": 0.1, "loss.nll.scale": 0.5},
      **{"loss.nll.denominator": "responses", "lora.rank": 2, "lora.alpha": 3.0},
    )
  )


def test_a_term_of_another_name_is_as_complete():
  config = config_of()
  with config.unlocked():
    config.loss.extra = base.term("distill", scale=-0.5)
    config.targets.other = base.target("toward")
  config.loss.extra.target = "other"
  rules.check(config)
  o = objective.from_config(config)
  assert list(o.targets) == ["other", "teacher"] and o.terms["extra"].scale == -0.5
  config.targets.other.strength = 3.0
  with pytest.raises(ValueError, match="targets.other.strength"):
    rules.check(config)


P, Q = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.7, 0.2, 0.1]))


def value_of(o, term):
  seen = objective.Seen(None, None, P[None], Q[None], jnp.array([0]), None)
  return float(o.terms[term].value(seen, None)[0][0])


def test_the_configs_own_values_arrive():
  o = objective.from_config(
    config_of(
      **divergence(name="jsd", beta=0.1),
      **{
        "teacher.name": "ema",
        "teacher.rate": 0.25,
        "loss.temperature": 1.5,
        "loss.chunk": 7,
        "loss.distill.token_weight.name": "sequence_mean",
        "loss.distill.denominator": "responses",
      },
    )
  )
  assert value_of(o, "distill") == pytest.approx(0.007695, abs=1e-6)
  teacher = o.memories["teacher"]
  memory = teacher.init({"a": jnp.ones(1)})
  memory = teacher.update(memory, {"a": jnp.full(1, 2.0)}, 1)
  assert float(memory["a"][0]) == 1.25
  assert (o.temperature, o.chunk) == (1.5, 7)
  assert float(o.terms["distill"].denominator(token_of(MASK), 1.0)) == 2


def test_what_no_term_reads_is_not_there():
  config = base.get_config()
  config.loss.nll.scale = 1.0
  o = objective.from_config(config)
  assert (o.targets, o.memories, o.views) == ({}, {}, 1)
  assert o.teachers(True) == o.teachers(False) == ()
  config.loss.kl_penalty.scale = 0.1
  o = objective.from_config(config)
  assert list(o.memories) == ["reference"] and o.views == 1
  assert o.teachers(True) == ((0, "reference"),)
  config.loss.distill.scale = 1.0
  o = objective.from_config(config)
  assert list(o.memories) == ["teacher", "reference"] and o.views == 2
