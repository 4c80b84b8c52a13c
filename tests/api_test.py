"""Load, generate and score, as a notebook uses them."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

import opsd_jax
from opsd_jax import Completion, generate, load_model, score

PROMPTS = [
  "Hi",
  "What is 2 + 2?",
  [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a colour."},
  ],
]
NEW = 12


@pytest.fixture(scope="module")
def model():
  tiny = load_model("tiny")
  # Sharper than at initialisation, so that sampling has something to do.
  tiny.params["embed"]["embedding"] *= 4
  return tiny


@pytest.fixture(scope="module")
def sampled(model):
  return generate(model, PROMPTS, max_new_tokens=NEW, n=2)


def ids(groups):
  return [[c.ids for c in group] for group in groups]


def test_n_completions_of_every_prompt(model, sampled):
  assert [len(group) for group in sampled] == [2] * len(PROMPTS)
  for completion in (c for group in sampled for c in group):
    assert isinstance(completion, Completion)
    assert 1 <= len(completion.ids) <= NEW
    assert len(completion.logp) == len(completion.ids)
    assert completion.text == model.tokenizer.decode(completion.ids)


def test_a_string_is_one_user_turn(model, sampled):
  turn = [{"role": "user", "content": PROMPTS[1]}]
  spelled_out = generate(model, [turn], max_new_tokens=NEW, n=2)
  assert ids(spelled_out) == ids(sampled[1:2])


def test_a_prompt_does_not_know_its_neighbours(model, sampled):
  for i in (2, 0):
    alone = generate(model, [PROMPTS[i]], max_new_tokens=NEW, n=2)
    assert ids(alone) == ids(sampled[i : i + 1])
  backwards = generate(model, PROMPTS[::-1], max_new_tokens=NEW, n=2)
  assert ids(backwards[::-1]) == ids(sampled)


def test_seeds_and_repetitions_draw_anew(model, sampled):
  again = generate(model, PROMPTS, max_new_tokens=NEW, n=2, seed=0)
  other = generate(model, PROMPTS, max_new_tokens=NEW, n=2, seed=1)
  twice = generate(model, [PROMPTS[0]] * 2, max_new_tokens=NEW, n=2)
  assert ids(again) == ids(sampled)
  draws = [c for group in (*sampled, *other, twice[1]) for c in group]
  assert len({c.ids for c in draws}) == len(draws)
  assert ids(twice[:1]) == ids(sampled[:1])


def test_greedy_has_one_answer(model):
  runs = [
    generate(model, PROMPTS, max_new_tokens=NEW, temperature=0, seed=s, n=2)
    for s in (0, 1)
  ]
  assert ids(runs[0]) == ids(runs[1])
  for first, second in runs[0]:
    assert first.ids == second.ids
    assert set(first.sampled_logp) == {0.0}


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_logp_is_what_score_says_of_the_same_ids(model, temperature):
  out = generate(model, PROMPTS, max_new_tokens=NEW, temperature=temperature)
  flat = [group[0] for group in out]
  for completions in (flat, [c.ids for c in flat]):
    scores = score(model, PROMPTS, completions)
    assert [s.shape for s in scores] == [(len(c.ids),) for c in flat]
    for s, c in zip(scores, flat, strict=True):
      np.testing.assert_allclose(s, c.logp, atol=1e-4)
  assert min(min(c.logp) for c in flat) < -0.1


def test_score_of_a_string_includes_its_end(model):
  tokenizer = model.tokenizer
  with_end = (*tokenizer.encode("four"), tokenizer.end_of_turn_id)
  (as_text,), (as_ids,) = (score(model, PROMPTS[:1], [c]) for c in ("four", with_end))
  assert as_text.shape == (5,)
  np.testing.assert_array_equal(as_text, as_ids)
  # A row's score does not know the rows beside it, nor the batches.
  many = score(model, PROMPTS[:1] * 40, ["four", "some longer text"] * 20)
  for s in many[::2]:
    np.testing.assert_allclose(s, as_text, atol=1e-5)


def test_probabilities_of_the_next_token_sum_to_one(model):
  size = model.config.vocab_size
  scores = score(model, PROMPTS[:1] * size, [(i,) for i in range(size)])
  assert np.exp(np.concatenate(scores)).sum() == pytest.approx(1, abs=1e-4)


def test_truncated_means_no_end_came(model):
  def one():
    return generate(model, PROMPTS[:1], max_new_tokens=NEW, n=2)[0]

  free = one()
  assert all(c.truncated and len(c.ids) == NEW for c in free)
  end = free[0].ids[2]  # let it be an end of turn
  ends = model.tokenizer.eos_ids
  model.tokenizer.eos_ids = (*ends, end)
  try:
    out = one()
  finally:
    model.tokenizer.eos_ids = ends
  assert not out[0].truncated and len(out[0].ids) <= 3
  for c, whole in zip(out, free, strict=True):
    assert c.truncated == (c.ids[-1] != end)
    assert end not in c.ids[:-1] and whole.ids[: len(c.ids)] == c.ids


def test_no_prompts_give_no_completions(model):
  assert generate(model, []) == [] and score(model, [], []) == []


@pytest.mark.parametrize(
  "call,words",
  [
    (lambda m: generate(m, "Hi"), r"\[prompt\]"),
    (lambda m: generate(m, PROMPTS[2]), r"\[prompt\]"),
    (lambda m: score(m, "Hi", ["there"]), r"\[prompt\]"),
    (lambda m: score(m, ["Hi"], []), "argument 2 is shorter"),
    (lambda m: score(m, ["Hi"], ["x" * 3000]), "exceed the model's 2048"),
    (lambda m: generate(m, ["x" * 3000]), "2048 positions"),
    (lambda m: generate(m, ["Hi"], top_p=0.0), "top_p"),
    (lambda m: load_model("no such model"), "expected a directory"),
  ],
)
def test_mistakes_are_named(model, call, words):
  with pytest.raises(ValueError, match=words):
    call(model)


def test_importing_opsd_jax_imports_no_jax():
  code = (
    "import sys, opsd_jax, opsd_jax.structs, opsd_jax.rollouts.collate;"
    "assert 'jax' not in sys.modules;"
    "opsd_jax.generate; assert 'jax' in sys.modules"
  )
  root = pathlib.Path(opsd_jax.__file__).parents[1]
  subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_an_unknown_name_lists_the_known_ones():
  with pytest.raises(AttributeError, match="'generat'.*load_model"):
    opsd_jax.generat  # noqa: B018
  for name in opsd_jax.__all__:
    assert getattr(opsd_jax, name).__name__ == name
