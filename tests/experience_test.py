"""Rewards in a step: what is collected, and what its gradient is."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dapo, dr_grpo, grpo, rft, sft
from opsd_jax import (
  collate,
  experience,
  objective,
  optimizer,
  prepare,
  processes,
  reinforce,
  sharding,
  train,
)
from opsd_jax.models import transformer
from opsd_jax.structs import Completion, Example, Problem, Rollout, Verdict
from tests.train_test import MODEL, assert_same, batch_of, gradients, params


def config_of(module=grpo, **overrides):
  config = module.get_config("tiny")
  config.update_from_flattened_dict(overrides)
  return config


# ------------------------------------------------------- what is collected


def problems(count):
  """Endless batches of `count` problems, named 0, 1, 2, ..."""
  made = 0
  while True:
    names = [str(i) for i in range(made, made + count)]
    made += count
    yield [Problem(Example(n, n, n, n), (7,), ()) for n in names]


def collected(config, rights, count=2):
  """What is collected when problem i's responses are right as rights[i] says;
  a response is `i` tokens long for problem i, and reads "1" when it is right."""
  asked = problems(count)

  def right(p):
    return rights[int(p.example.id)]

  def respond(problems, before):
    assert before == [0] * len(problems)
    return [
      Rollout(p, Completion(str(r), (5,) * (1 + int(p.example.id)), None, False))
      for p in problems
      for r in right(p)
    ]

  def verify(examples, texts):
    return [Verdict(float(t)) for t in texts]

  run = types.SimpleNamespace(verify=verify)
  return experience.collect(config, run, respond, lambda: next(asked))


def ids(found):
  return [r.problem.example.id for r in found.rollouts]


def test_distillation_looks_at_no_reward():
  config = config_of(**{"reinforce.weight": 0.0, "loss.distill": 1.0})
  run = types.SimpleNamespace(verify=None)
  asked = next(problems(2))
  found = experience.collect(config, run, lambda p, _: p, lambda: asked)
  assert found == (asked, None, {})


def test_advantages_of_a_step():
  config = config_of(**{"rollout.samples": 4})
  found = collected(config, [[1, 1, 0, 0], [0, 0, 0, 0]])
  assert ids(found) == ["0"] * 4 + ["1"] * 4
  np.testing.assert_allclose(
    found.advantages, [0.86588, 0.86588, -0.86588, -0.86588, 0, 0, 0, 0], atol=1e-5
  )
  assert found.metrics == {
    "score": 0.25,
    "reward": 0.25,
    "reinforce/no_signal": 0.5,
    "reinforce/rounds": 1,
    "unjudged": 0,
  }


def test_prompts_without_signal_are_replaced():
  config = config_of(**{"rollout.samples": 2, "reinforce.rounds": 4})
  found = collected(config, [[0, 0], [1, 0], [1, 1], [0, 1], [9, 9]])
  assert ids(found) == ["1", "1", "3", "3"]
  assert found.metrics["reinforce/rounds"] == 2
  assert found.metrics["reinforce/no_signal"] == 0.5
  assert found.metrics["score"] == 0.5  # of all that was sampled


def test_what_is_missing_after_the_last_round_has_no_advantage():
  config = config_of(**{"rollout.samples": 2, "reinforce.rounds": 2})
  found = collected(config, [[0, 0], [1, 1], [0, 0], [0, 1]])
  assert ids(found) == ["0", "0", "3", "3"]
  assert (found.advantages != 0).tolist() == [False, False, True, True]


def test_nor_has_it_one_for_its_length():
  config = config_of(
    dapo,
    **{
      "rollout.samples": 2,
      "rollout.prompts": 2,
      "reinforce.rounds": 2,
      "rollout.max_new_tokens": 4,
      "reinforce.overlong": 4,
    },
  )
  found = long_and_short(config, [[0, 1], [1, 1], [1, 1], [0, 0]])
  assert (found.advantages != 0).tolist() == [True, True, False, False]
  config.reinforce.rounds = 1  # nothing is filled up: it pays as any other
  found = long_and_short(config, [[0, 1], [1, 1]])
  assert (found.advantages != 0).all()


def long_and_short(config, rights):
  """Every second response is of three tokens, the others of one."""
  asked = problems(2)

  def respond(problems, before):
    return [
      Rollout(p, Completion(str(r), (5,) * (1 + 2 * i), None, False))
      for p in problems
      for i, r in enumerate(rights[int(p.example.id)])
    ]

  def verify(examples, texts):
    return [Verdict(float(t)) for t in texts]

  run = types.SimpleNamespace(verify=verify)
  return experience.collect(config, run, respond, lambda: next(asked))


def test_a_part_of_the_score_is_no_success_unless_asked_for():
  config = config_of(**{"rollout.samples": 2})
  found = collected(config, [[0.01, 0], [1, 0.5]])
  assert (found.advantages != 0).tolist() == [False, False, True, True]
  assert found.metrics["reinforce/no_signal"] == 0.5
  assert found.metrics["score"] == pytest.approx(1.51 / 4)
  assert found.metrics["reward"] == 0.25
  config.reinforce.reward = "score"
  found = collected(config, [[0.01, 0], [1, 0.5]])
  assert (found.advantages != 0).all()
  assert found.metrics["reward"] == pytest.approx(1.51 / 4)


def test_a_problem_that_comes_again_is_told_so():
  config = config_of(**{"rollout.samples": 2, "reinforce.rounds": 3})
  a, b = next(problems(2))
  told = []

  def respond(problems, before):
    told.append(before)
    return [
      Rollout(p, Completion("0", (5,), None, False)) for p in problems for _ in range(2)
    ]

  def verify(examples, texts):
    return [Verdict(0.0) for _ in texts]

  run = types.SimpleNamespace(verify=verify)
  asked = iter([[a, b], [b, b], [a, b]])
  experience.collect(config, run, respond, lambda: next(asked))
  assert told == [[0, 0], [1, 2], [1, 3]]


def test_a_response_near_its_budget_pays():
  config = config_of(
    dapo,
    **{
      "rollout.samples": 2,
      "rollout.prompts": 2,
      "reinforce.rounds": 1,
      "rollout.max_new_tokens": 4,
      "reinforce.overlong": 4,
      "reinforce.advantage": "reward",
    },
  )
  found = collected(config, [[1, 0], [0, 0]])
  assert found.advantages.tolist() == [0.75, -0.25, -0.5, -0.5]
  # the penalty is no signal: dynamic sampling looks at the score alone
  assert found.metrics["reinforce/no_signal"] == 0.5


def test_advantages_are_within_the_rewards_of_all_processes(monkeypatch):
  first, own = [[0.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [3.0, 1.0]]
  monkeypatch.setattr(processes, "gather", lambda mine: [first, mine])
  monkeypatch.setattr(processes, "index", lambda: 1)
  got = experience.own_advantages("whitened", np.array(own))
  # +-0.5, +-0.5, +-1 of both and two zeros: a standard deviation of 0.61237
  np.testing.assert_allclose(
    got, np.array([[0.5, -0.5], [1, -1]]) / (0.61237 + 1e-4), atol=1e-5
  )


# ------------------------------------------------------ what its gradient is

PROMPTS = ((5, 6, 7), (8, 9, 10, 11))
RESPONSES = ((20, 21, 22), (23,), (24, 25), (26, 27, 28, 29))
A = (1.5, -0.5, -0.25, 0.0)


def rewarded(advantages=A, **kw):
  """Two prompts with two responses each, sampled with log-prob -4 a token."""
  return batch_of(
    [
      collate.Row(PROMPTS[i // 2], (), y, (-4.0,) * len(y), (-4.0,) * len(y), a)
      for i, (y, a) in enumerate(zip(RESPONSES, advantages, strict=True))
    ],
    **kw,
  )


def logps(tree):
  """Log-probs of each response's tokens, from all logits of its row alone."""
  for i, y in enumerate(RESPONSES):
    prompt = PROMPTS[i // 2]
    h_1xLxD, _ = transformer.apply(MODEL, tree, jnp.array([prompt + y]))
    z_TxV = h_1xLxD[0, len(prompt) - 1 : -1] @ transformer.unembedding(tree).T
    logp_TxV = jax.nn.log_softmax(z_TxV)
    yield logp_TxV[jnp.arange(len(y)), jnp.array(y)]


def dense(loss_of, tree):
  """(loss, gradient) of loss_of([log-probs of each response]), by autodiff."""
  return jax.value_and_grad(lambda p: loss_of(list(logps(p))))(tree)


def test_grpo_at_the_first_update_is_reinforce():
  """mean over responses of -A x mean over tokens of log pi; the loss itself is
  -A, its ratio being 1."""
  got = gradients(rewarded(), config_of())
  loss, grads = dense(
    lambda logps: -sum(a * x.mean() for a, x in zip(A, logps, strict=True)) / 4,
    params(),
  )
  assert got[0] == pytest.approx(-sum(A) / 4, abs=1e-6)
  assert_same((1.0, got[1]), (1.0, grads))


def test_dr_grpo_divides_by_the_budget():
  got = gradients(rewarded(), config_of(dr_grpo))
  _, grads = dense(
    lambda logps: -sum(a * x.sum() for a, x in zip(A, logps, strict=True)) / 32,
    params(),
  )
  assert_same((1.0, got[1]), (1.0, grads))  # 4 responses of 8 tokens at most


def test_rejection_sampling_is_sft_on_what_is_right():
  right = [i for i, a in enumerate((1, 0, 0, 1)) if a]
  got = gradients(rewarded((1.0, 0.0, 0.0, 1.0)), config_of(rft))
  kept = batch_of([collate.Row(PROMPTS[i // 2], (), RESPONSES[i], None) for i in right])
  assert_same(got, gradients(kept, config_of(sft)))


def test_a_second_update_is_clipped_by_the_ratio_to_the_first():
  """Log-probs of the first update are noted; ratios are to them."""
  old = jnp.full_like(rewarded().token.mask_BxT, -5.0)
  batch = rewarded()
  batch = batch._replace(token=batch.token._replace(old_logp_BxT=old))

  def loss(logps):
    total = 0.0
    for a, x in zip(A, logps, strict=True):
      r = jnp.exp(x + 5.0)
      total -= jnp.minimum(r * a, jnp.clip(r, 0.8, 1.2) * a).mean()
    return total / 4

  assert_same(gradients(batch, config_of()), dense(loss, params()))


def test_two_updates_on_one_batch_are_two_steps_with_the_old_noted():
  config = config_of(**{"reinforce.updates": 2, "steps": 4})
  told, tx = objective.from_config(config), optimizer.from_config(config)
  step = jax.jit(train.make_train_step(MODEL, told, tx))
  mesh = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
  run = types.SimpleNamespace(params={}, mesh=mesh)
  batch = rewarded()
  unknown = np.full_like(batch.token.mask_BxT, np.nan)
  batch = batch._replace(token=batch.token._replace(old_logp_BxT=unknown))
  state = train.init_state(params(), told, tx)
  with jax.set_mesh(mesh):
    state, loss, _, first, last = train.learn_from(batch, step, state, run, 2)
    one, first_loss, _, tok = step(train.init_state(params(), told, tx), batch, {})
    noted = batch.token._replace(old_logp_BxT=tok.logp_BxT)
    two, *_ = step(one, batch._replace(token=noted), {})
  assert loss == first_loss
  assert np.abs(last.logp_BxT - first.logp_BxT).max() > 1e-3
  for a, b in zip(
    jax.tree.leaves(state.params), jax.tree.leaves(two.params), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_importance_weighs_a_token_by_how_it_was_drawn():
  """pi / exp(-4), at most 2, on every term."""
  config = config_of(**{"reinforce.importance_cap": 2.0})

  def loss(logps):
    def weight(x):
      return jax.lax.stop_gradient(jnp.minimum(jnp.exp(x + 4.0), 2.0))

    terms = zip(A, logps, strict=True)
    return (
      -sum(
        (a * weight(x) * jnp.exp(x - jax.lax.stop_gradient(x))).mean() for a, x in terms
      )
      / 4
    )

  assert_same(gradients(rewarded(), config), dense(loss, params()))


@pytest.mark.parametrize("module", [grpo, dapo, rft])
def test_micro_batches_and_packing_are_invisible_to_rewards(module):
  config = config_of(module, **{"reinforce.importance_cap": 1.5})
  plain = gradients(rewarded(), config)
  assert_same(gradients(rewarded(parts=2), config, micro_batches=2), plain)
  assert_same(gradients(rewarded(row_tokens=32, share=True), config), plain)


def test_rewards_and_distillation_add_up():
  told = batch_of(
    [
      collate.Row(PROMPTS[i // 2], (1, 2, 3), y, (-4.0,) * len(y), (-4.0,) * len(y), a)
      for i, (y, a) in enumerate(zip(RESPONSES, A, strict=True))
    ]
  )

  def of(distill, weight):
    return gradients(
      told,
      config_of(
        **{
          "teacher.name": "fixed",
          "divergence.name": "forward_kl",
          "loss.distill": distill,
          "reinforce.weight": weight,
        }
      ),
    )

  (a, da), (b, db), both = of(2.0, 0.0), of(0.0, 3.0), of(2.0, 3.0)
  assert_same(both, (a + b, jax.tree.map(np.add, da, db)))


def test_the_kl_is_from_the_teacher():
  """With a plain prompt the teacher is the base: k3 of its log-probs."""
  kw = {"teacher.name": "fixed", "reinforce.kl_weight": 0.1}
  batch = batch_of(
    [
      collate.Row(
        PROMPTS[i // 2], PROMPTS[i // 2], y, (-4.0,) * len(y), (-4.0,) * len(y), a
      )
      for i, (y, a) in enumerate(zip(RESPONSES, A, strict=True))
    ]
  )
  base = list(logps(params(seed=1)))

  def loss(logps):
    total = 0.0
    for a, x, ref in zip(A, logps, base, strict=True):
      pg = -a * jnp.exp(x - jax.lax.stop_gradient(x))
      total += (pg + 0.1 * reinforce.k3(x, ref, None)).mean()
    return total / 4

  assert_same(gradients(batch, config_of(**kw)), dense(loss, params()))


# ------------------------------------------------------------- bad configs


@pytest.mark.parametrize(
  "overrides,words",
  [
    ({"rollout.samples": 1}, "at least 2"),
    (
      {
        "rollout.source": "dataset",
        "rollout.samples": 1,
        "reinforce.advantage": "reward",
      },
      "on_policy",
    ),
    ({"reinforce.kl_weight": 0.1}, "needs a reference"),
    ({"reinforce.weight": 0.0}, "nothing to learn from"),
    ({"reinforce.weight": -1.0}, "at least 0"),
    ({"reinforce.surrogate": "trpo"}, "cispo"),
    ({"reinforce.advantage": "gae"}, "leave_one_out"),
    ({"reinforce.kl": "k4"}, "ratio_k3"),
    ({"reinforce.reward": "half"}, "right"),
    (
      {
        "loss.denominator": "active_tokens",
        "reinforce.kl_weight": 0.1,
        "teacher.name": "fixed",
      },
      "active_tokens",
    ),
    ({"rollout.temperature": 0.0}, "all the same"),
    ({"rollout.temperature": 0.5}, "importance_cap"),
    ({"rollout.top_p": 0.5}, "importance_cap"),
    ({"rollout.top_k": 5}, "importance_cap"),
    ({"reinforce.overlong": 65}, "at most rollout.max_new_tokens"),
    (
      {"reinforce.weight": 0.0, "loss.distill": 1.0, "reinforce.kl_weight": 0.5},
      "would do nothing",
    ),
    (
      {"reinforce.weight": 0.0, "loss.distill": 1.0, "reinforce.rounds": 4},
      "would do nothing",
    ),
    ({"reinforce.updates": 3}, "multiple of reinforce.updates"),
    ({"reinforce.rounds": 0}, "reinforce.rounds"),
    (
      {
        "reinforce.weight": 0.0,
        "loss.distill": 1.0,
        "loss.denominator": "active_tokens",
      },
      "reinforce.weight",
    ),
  ],
)
def test_bad_configs_are_refused(overrides, words):
  with pytest.raises(ValueError, match=words):
    prepare.validate(config_of(**overrides))
