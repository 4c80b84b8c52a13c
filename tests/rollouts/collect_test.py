"""Rewards in a step: what is collected, and what its gradient is."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dapo, dr_grpo, grpo, opsd, pi_distill, rft, sdpo, sft, srpo
from opsd_jax import setup, train
from opsd_jax.losses import objective, optimizer, policy_gradient
from opsd_jax.models import transformer
from opsd_jax.models.tokenizer import ControlToken
from opsd_jax.rollouts import collate as collating
from opsd_jax.rollouts import collect, host_memory
from opsd_jax.runtime import distributed
from opsd_jax.runtime.mesh import make_mesh
from opsd_jax.structs import Completion, Example, Prompts, Verdict
from tests.train_test import MODEL, assert_same, batch_of, gradients, params, step_of


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
    yield [Prompts(Example(n, n, n, n), ((7,), (8, 9))) for n in names]


class Answers:
  """Problem i's responses are right as rights[i] says, and i tokens long, or as
  length(i, place) says; each reads "1" when it is right."""

  def __init__(self, rights, length=lambda i, place: 1 + i):
    self.rights, self.length, self.asked = rights, length, []

  def __call__(self, prompts, names, n, role):
    self.asked.append((prompts, names, n, role))
    return [
      [
        Completion(str(r), (5,) * self.length(int(i), place), None, False)
        for place, r in enumerate(self.rights[int(i)])
      ]
      for i in (name.split("/")[0] for name in names)
    ]

  def old_logp(self, completion):
    return (-1.0,) * len(completion.ids)

  def given(self, text):
    return Completion(text, (5,), None, False)


def run_of(config, **fields):
  def verify(examples, texts):
    return [Verdict(float(t), feedback="" if t == "1" else "no") for t in texts]

  def teacher_prompt(messages):
    text = messages[0]["content"]
    if "forged" in text:
      raise ControlToken("forged")
    return tuple(text.encode())

  return types.SimpleNamespace(
    **{
      "verify": verify,
      "objective": objective.from_config(config),
      "host_memory": None,
      "teacher_prompt": teacher_prompt,
      "longest_row": 1000,
    }
    | fields
  )


def collected(config, rights, count=2, run=None, **kw):
  asked = problems(count)
  groups, metrics = collect.collect(
    config, run or run_of(config), Answers(rights, **kw), lambda: next(asked)
  )
  return groups, metrics


def ids(groups):
  return [r.prompts.example.id for g in groups for r in g]


def advantages_of(groups):
  return [r.advantage for g in groups for r in g]


def test_distillation_looks_at_no_reward():
  config = config_of(opsd)
  groups, metrics = collected(config, [[1], [0]], run=run_of(config, verify=None))
  assert ids(groups) == ["0", "1"] and metrics == {}
  assert all(r.verdict is None and r.weights == {} for g in groups for r in g)


def test_advantages_of_a_step():
  config = config_of(**{"rollout.samples_per_prompt": 4})
  groups, metrics = collected(config, [[1, 1, 0, 0], [0, 0, 0, 0]])
  assert ids(groups) == ["0"] * 4 + ["1"] * 4
  np.testing.assert_allclose(
    advantages_of(groups), [0.86588, 0.86588, -0.86588, -0.86588, 0, 0, 0, 0], atol=1e-5
  )
  assert metrics == {
    "score": 0.25,
    "correct": 0.25,
    "reward": 0.25,
    "rewards/no_signal": 0.5,
    "rewards/rounds": 1,
    "unverified": 0,
  }


def test_prompts_without_signal_are_replaced():
  config = config_of(**{"rollout.samples_per_prompt": 2, ROUNDS: 4})
  groups, metrics = collected(config, [[0, 0], [1, 0], [1, 1], [0, 1], [9, 9]])
  assert ids(groups) == ["1", "1", "3", "3"]
  assert metrics["rewards/rounds"] == 2
  assert metrics["rewards/no_signal"] == 0.5
  assert metrics["score"] == 0.5  # of all that was sampled


ROUNDS = "rewards.dynamic_sampling_rounds"


def active(groups):
  return [a != 0 for a in advantages_of(groups)]


def test_what_is_missing_after_the_last_round_has_no_advantage():
  config = config_of(**{"rollout.samples_per_prompt": 2, ROUNDS: 2})
  groups, _ = collected(config, [[0, 0], [1, 1], [0, 0], [0, 1]])
  assert ids(groups) == ["0", "0", "3", "3"]
  assert active(groups) == [False, False, True, True]


def long_and_short(i, place):
  """Every second response is of three tokens, the others of one."""
  return 1 + 2 * place


def test_nor_has_it_one_for_its_length():
  fields = {
    "rollout.samples_per_prompt": 2,
    "rollout.prompts_per_step": 2,
    "rollout.max_new_tokens": 4,
  }
  config = config_of(dapo, **fields, **{ROUNDS: 2, "rewards.overlong_margin": 4})
  rights = [[0, 1], [1, 1], [1, 1], [0, 0]]
  groups, _ = collected(config, rights, length=long_and_short)
  assert active(groups) == [True, True, False, False]
  config.rewards.dynamic_sampling_rounds = 1  # nothing is filled up: it pays too
  groups, _ = collected(config, rights[:2], length=long_and_short)
  assert all(active(groups))


def test_a_part_of_the_score_is_no_success_unless_asked_for():
  config = config_of(**{"rollout.samples_per_prompt": 2})
  rights = [[0.01, 0], [1, 0.5]]
  groups, metrics = collected(config, rights)
  assert active(groups) == [False, False, True, True]
  assert metrics["rewards/no_signal"] == 0.5
  assert metrics["score"] == pytest.approx(1.51 / 4)
  assert metrics["reward"] == 0.25
  config.rewards.reward = "score"
  groups, metrics = collected(config, rights)
  assert all(active(groups))
  assert metrics["reward"] == pytest.approx(1.51 / 4)


def test_a_problem_that_comes_again_is_asked_under_another_name():
  config = config_of(**{"rollout.samples_per_prompt": 2, ROUNDS: 3})
  a, b = next(problems(2))
  answers, asked = Answers([[0, 0], [0, 0]]), iter([[a, b], [b, b], [a, b]])
  collect.collect(config, run_of(config), answers, lambda: next(asked))
  names = [names for _, names, _, _ in answers.asked]
  assert names == [["0", "1"], ["1/1", "1/2"], ["0/1", "1/3"]]


def test_a_response_near_its_budget_pays():
  fields = {
    "rollout.samples_per_prompt": 2,
    "rollout.prompts_per_step": 2,
    "rollout.max_new_tokens": 4,
  }
  fields |= {ROUNDS: 1, "rewards.overlong_margin": 4, "rewards.advantage": "reward"}
  groups, metrics = collected(config_of(dapo, **fields), [[1, 0], [0, 0]])
  # Nothing for brevity where all are wrong.
  assert advantages_of(groups) == [0.75, -0.25, 0.0, 0.0]
  # the penalty is no signal: dynamic sampling looks at the score alone
  assert metrics["rewards/no_signal"] == 0.5


def test_dynamic_sampling_looks_for_what_the_advantage_learns_from():
  """A reward alone teaches where all are right, and of one response too."""
  fields = {"rewards.advantage": "reward", ROUNDS: 3, "rollout.samples_per_prompt": 2}
  groups, metrics = collected(config_of(**fields), [[1, 1], [0, 1]])
  assert metrics["rewards/rounds"] == 1 and metrics["rewards/no_signal"] == 0
  assert advantages_of(groups) == [1, 1, 0, 1]
  fields["rollout.samples_per_prompt"] = 1
  _, metrics = collected(config_of(**fields), [[1], [1]])
  assert metrics["rewards/rounds"] == 1
  _, metrics = collected(config_of(**fields), [[0], [0], [0], [1], [1], [0]])
  assert metrics["rewards/rounds"] == 3


@pytest.mark.parametrize("reward", ["standardised", "mean_baseline"])
def test_all_wrong_responses_do_not_learn_to_be_short(reward):
  fields = {
    "rollout.samples_per_prompt": 2,
    "rollout.prompts_per_step": 2,
    "rollout.max_new_tokens": 4,
    "rewards.overlong_margin": 4,
    "rewards.advantage": reward,
    ROUNDS: 1,
  }
  groups, _ = collected(
    config_of(dapo, **fields), [[0, 0], [1, 1]], length=long_and_short
  )
  assert active(groups) == [False, False, True, True]


def test_advantages_are_within_the_rewards_of_all_processes(monkeypatch):
  first, own = [[0.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [3.0, 1.0]]
  monkeypatch.setattr(distributed, "gather", lambda mine: [first, mine])
  monkeypatch.setattr(distributed, "index", lambda: 1)
  got = collect.local_advantages("whitened", np.array(own))
  # +-0.5, +-0.5, +-1 of both and two zeros: a standard deviation of 0.61237
  np.testing.assert_allclose(
    got, np.array([[0.5, -0.5], [1, -1]]) / (0.61237 + 1e-4), atol=1e-5
  )


# ---------------------------------------------------- contexts and routing


@pytest.mark.parametrize(
  "rights,include_self,mask",
  [
    ([0, 0, 0, 0], False, [0, 0, 0, 0]),
    ([0, 0, 1, 0], False, [1, 1, 0, 1]),
    ([0, 1, 1, 0], False, [1, 1, 1, 1]),
    ([0, 0, 1, 0], True, [1, 1, 1, 1]),
    ([0, 0, 0, 0], True, [0, 0, 0, 0]),
  ],
)
def test_who_has_a_right_sibling(rights, include_self, mask):
  """The table of arXiv:2601.20802's released code, for four responses."""
  config = config_of(
    sdpo, **{"rollout.samples_per_prompt": 4, "context.include_self": include_self}
  )
  groups, metrics = collected(config, [rights], count=1)
  assert [r.weights["distill"] for r in groups[0]] == mask
  assert [bool(r.views[1]) for r in groups[0]] == [bool(m) for m in mask]
  assert metrics["context/none"] == 1 - np.mean(mask)


@pytest.mark.parametrize(
  "name,told",
  [
    ("sibling", ["S", "", "S"]),
    ("feedback", ["F", "", "F"]),
    ("sibling_or_feedback", ["S", "", "S"]),
    ("sibling_and_feedback", ["SF", "", "SF"]),
  ],
)
def test_what_each_response_is_shown(name, told):
  config = config_of(
    sdpo, **{"rollout.samples_per_prompt": 3, "context.privileged": name}
  )
  groups, _ = collected(config, [[0, 1, 0]], count=1)
  texts = [bytes(r.views[1]).decode() for r in groups[0]]
  marks = ("A correct solution:\n1", "S"), ("Feedback on an earlier attempt:\nno", "F")
  got = ["".join(mark for text, mark in marks if text in t) for t in texts]
  assert got == told
  assert all(t.startswith("0\n\n") for t in texts if t)  # the question comes first


def test_without_a_right_sibling_the_feedback_is_shown():
  fields = {
    "rollout.samples_per_prompt": 2,
    "context.privileged": "sibling_or_feedback",
  }
  groups, _ = collected(config_of(sdpo, **fields), [[0, 0]], count=1)
  assert all("Feedback" in bytes(r.views[1]).decode() for r in groups[0])


def test_what_is_too_long_or_holds_a_control_token_is_left_out_and_counted():
  config = config_of(sdpo, **{"rollout.samples_per_prompt": 2})
  groups, metrics = collected(
    config, [[1, 1]], count=1, run=run_of(config, longest_row=9)
  )
  assert metrics["context/too_long"] == 1 and not groups[0][0].views[1]

  def refused(messages):
    raise ControlToken("a message holds one")

  run = run_of(config, teacher_prompt=refused)
  _, metrics = collected(config, [[1, 1]], count=1, run=run)
  assert metrics["context/control_token"] == 1 and metrics["context/none"] == 0


def test_a_right_answer_of_an_earlier_step_is_remembered():
  config = config_of(
    sdpo, **{"rollout.samples_per_prompt": 2, "context.privileged": "remembered"}
  )
  run = run_of(config, host_memory=host_memory.HostMemory())
  (problem,) = next(problems(1))

  def step(rights):
    answer = Answers([rights])
    groups, _ = collect.collect(config, run, answer, lambda: [problem])
    return [bool(r.views[1]) for r in groups[0]]

  assert step([0, 0]) == [False, False]
  assert step([0, 1]) == [True, False]
  assert step([0, 0]) == [True, True]
  again = host_memory.HostMemory(run.host_memory.state)
  assert again.best("0") == "1" and again.best("9") is None


def test_wrong_responses_with_a_teacher_are_distilled_the_rest_reinforced():
  config = config_of(srpo, **{"rollout.samples_per_prompt": 3})
  groups, _ = collected(config, [[0, 1, 0], [0, 0, 0]])
  weights = [
    (r.weights["distill"], r.weights["policy_gradient"]) for g in groups for r in g
  ]
  assert weights == [(1, 0), (0, 1), (1, 0), (0, 1), (0, 1), (0, 1)]


@pytest.mark.parametrize("alpha,roles", [(0, "g"), (0.5, "tg"), (1, "t")])
def test_a_privileged_response_is_learned_with_and_without_its_prompt(alpha, roles):
  config = config_of(
    pi_distill, **{"rollout.samples_per_prompt": 2, "routing.alpha": float(alpha)}
  )
  answer = Answers([[1, 0]])
  (group,), _ = collect.collect(
    config, run_of(config), answer, lambda: [next(problems(1))[0]]
  )
  assert answer.asked[0][0] == [(8, 9)] and answer.asked[0][3] == "guided"
  assert "".join(r.role[0] for r in group) == 2 * roles
  for r in group:
    is_teacher = r.role == "teacher"
    assert r.views == (((8, 9), (7,)) if is_teacher else ((7,), (8, 9)))
    assert r.weights["policy_gradient"] == (alpha if is_teacher else 1 - alpha)
    assert r.weights["distill"] == (0 if is_teacher else 1 - alpha)
    assert r.weights["credit"] == is_teacher
    assert r.is_copy == (len(roles) == 2 and not is_teacher)
    assert (r.old_logp is None) == is_teacher
  assert [r.advantage for r in group] == [*[0.5] * len(roles), *[-0.5] * len(roles)]


def test_a_rescue_samples_again_where_all_failed_and_is_not_compared():
  config = config_of(
    grpo,
    **{
      "rollout.source": "rescue",
      "rollout.samples_per_prompt": 2,
      "routing.name": "rescued",
      "context.template": "short",
      "context.privileged": "solution",
      "loss.distill.scale": 1.0,
    },
  )
  answer = Answers([[0, 0], [1, 0]])
  groups, _ = collect.collect(config, run_of(config), answer, lambda: next(problems(2)))
  assert [a[1] for a in answer.asked] == [["0", "1"], ["0"]]
  assert [[r.role for r in g] for g in groups] == [
    ["student"] * 2 + ["guided"] * 2,
    ["student"] * 2,
  ]
  assert np.isnan([r.advantage for r in groups[0][2:]]).all()
  answer = Answers([[1, 0], [1, 0]])
  collect.collect(config, run_of(config), answer, lambda: next(problems(2)))
  assert [a[1] for a in answer.asked] == [["0", "1"], []]  # all call equally often


# ------------------------------------------------------ what its gradient is

PROMPTS = ((5, 6, 7), (8, 9, 10, 11))
RESPONSES = ((20, 21, 22), (23,), (24, 25), (26, 27, 28, 29))
A = (1.5, -0.5, -0.25, 0.0)


def rewarded(advantages=A, **kw):
  """Two prompts with two responses each, sampled with log-prob -4 a token."""
  return batch_of(
    [
      collating.Row((PROMPTS[i // 2],), y, (-4.0,) * len(y), (-4.0,) * len(y), a)
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
  kept = batch_of([collating.Row((PROMPTS[i // 2],), RESPONSES[i]) for i in right])
  assert_same(got, gradients(kept, config_of(sft)))


def test_a_second_update_is_clipped_by_the_ratio_to_the_first():
  """Log-probs of the first update are noted; ratios are to them."""
  old = jnp.full_like(rewarded().tokens.mask_BxT, -5.0)
  batch = rewarded()
  batch = batch._replace(tokens=batch.tokens._replace(old_logp_BxT=old))

  def loss(logps):
    total = 0.0
    for a, x in zip(A, logps, strict=True):
      r = jnp.exp(x + 5.0)
      total -= jnp.minimum(r * a, jnp.clip(r, 0.8, 1.2) * a).mean()
    return total / 4

  assert_same(gradients(batch, config_of()), dense(loss, params()))


def test_two_updates_on_one_batch_are_two_steps_with_the_old_noted():
  config = config_of(**{"optimizer.updates_per_batch": 2, "steps": 4})
  built, tx = objective.from_config(config), optimizer.from_config(config)
  mesh = make_mesh(1, 1, devices=jax.devices()[:1])
  run = types.SimpleNamespace(params={}, external={}, mesh=mesh, objective=built)
  step = jax.jit(step_of(config, tx))
  batch = rewarded()
  unknown = np.full_like(batch.tokens.mask_BxT, np.nan)
  batch = batch._replace(tokens=batch.tokens._replace(old_logp_BxT=unknown))
  with jax.set_mesh(mesh):
    start = train.init_state(params(), built, tx)
    programs = train.Programs(step, None)
    state, learned = train.update(run, programs, start, batch, {}, 2)
    one, first_loss, _, stats = step(start, batch)
    noted = batch.tokens._replace(old_logp_BxT=stats.logp_BxT)
    two, *_ = step(one, batch._replace(tokens=noted))
  assert learned.loss == first_loss
  assert np.abs(learned.log_ratio_BxT).max() > 1e-3
  for a, b in zip(
    jax.tree.leaves(state.params), jax.tree.leaves(two.params), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_importance_weighs_a_token_by_how_it_was_drawn():
  """pi / exp(-4), at most 2, on every term."""
  config = config_of(**{"loss.policy_gradient.importance_cap": 2.0})

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
  config = config_of(module, **{"loss.policy_gradient.importance_cap": 1.5})
  plain = gradients(rewarded(), config)
  assert_same(gradients(rewarded(parts=2), config, micro_batches=2), plain)
  assert_same(gradients(rewarded(pack_len=32, share_prompts=True), config), plain)


def test_rewards_and_distillation_add_up():
  told = batch_of(
    [
      collating.Row(
        (PROMPTS[i // 2], (1, 2, 3)), y, (-4.0,) * len(y), (-4.0,) * len(y), a
      )
      for i, (y, a) in enumerate(zip(RESPONSES, A, strict=True))
    ]
  )

  def of(distill, weight):
    return gradients(
      told,
      config_of(
        **{"loss.distill.scale": distill, "loss.policy_gradient.scale": weight}
      ),
    )

  (a, da), (b, db), both = of(2.0, 0.0), of(0.0, 3.0), of(2.0, 3.0)
  assert_same(both, (a + b, jax.tree.map(np.add, da, db)))


def test_the_kl_is_from_the_base_on_the_question():
  """k3 of the log-probs that the weights of the start have, view 0."""
  config = grpo.get_config("tiny,kl=0.1")
  base = list(logps(params(seed=1)))

  def loss(logps):
    total = 0.0
    for a, x, ref in zip(A, logps, base, strict=True):
      pg = -a * jnp.exp(x - jax.lax.stop_gradient(x))
      total += (pg + 0.1 * policy_gradient.k3(x, ref, None)).mean()
    return total / 4

  assert_same(gradients(rewarded(), config), dense(loss, params()))


# ------------------------------------------------------------- bad configs

PG = "loss.policy_gradient."


@pytest.mark.parametrize(
  "overrides,words",
  [
    ({"rollout.samples_per_prompt": 1}, "at least 2"),
    (
      {
        "rollout.source": "dataset",
        "rollout.samples_per_prompt": 1,
        "rewards.advantage": "reward",
      },
      "student",
    ),
    ({"loss.policy_gradient.scale": 0.0}, "nothing to learn from"),
    ({PG + "surrogate.clip_low": -1.0}, "at least 0"),
    ({PG + "surrogate.name": "trpo"}, "cispo"),
    ({PG + "credit.name": "all"}, "less_kl"),
    ({"rewards.advantage": "gae"}, "leave_one_out"),
    ({"loss.kl_penalty.scale": 1.0, "loss.kl_penalty.estimator": "k4"}, "ratio_k3"),
    ({"rewards.reward": "half"}, "correct"),
    ({"rollout.source": "rescue"}, "context.privileged"),
    ({"rollout.source": "teacher_view"}, "context.privileged"),
    (
      {
        "loss.distill.scale": 1.0,
        "context.privileged": "sibling",
        "context.template": "short",
      },
      "reprompt",
    ),
    ({"rollout.temperature": 0.0}, "all the same"),
    ({"rollout.temperature": 0.5}, "importance_cap"),
    ({"rollout.top_p": 0.5}, "importance_cap"),
    ({"rollout.top_k": 5}, "importance_cap"),
    ({"rewards.overlong_margin": 65}, "at most rollout.max_new_tokens"),
    (
      {
        "loss.policy_gradient.scale": 0.0,
        "loss.policy_gradient.token_weight.name": "uniform",
        "loss.policy_gradient.denominator": "tokens",
        "loss.distill.scale": 1.0,
        "rewards.dynamic_sampling_rounds": 4,
      },
      "dynamic_sampling_rounds is 4, and nothing reads it",
    ),
    ({"optimizer.updates_per_batch": 3}, "multiple of optimizer.updates_per_batch"),
    ({"rewards.dynamic_sampling_rounds": 0}, "rewards.dynamic_sampling_rounds"),
  ],
)
def test_bad_configs_are_refused(overrides, words):
  with pytest.raises(ValueError, match=words):
    setup.validate(config_of(**overrides))
