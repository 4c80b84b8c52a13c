"""Intervals against known numbers; accuracy by hand; drift from the base."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax import tasks
from opsd_jax.data import unrelated
from opsd_jax.evaluation import in_training
from opsd_jax.models import families, transformer
from opsd_jax.rollouts.collate import Row
from opsd_jax.structs import Completion, Example, Verdict


@pytest.mark.parametrize(
  "successes,n,low,high",
  [
    # Newcombe 1998, table I, method 3.
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
    (5, 10, 0.2366, 0.7634),
    (10, 10, 0.7225, 1.0),
    (0, 1, 0.0, 0.7935),
  ],
)
def test_wilson_against_known_numbers(successes, n, low, high):
  got = in_training.wilson(successes, n)
  assert got == pytest.approx((low, high), abs=6e-5)


@given(n=st.integers(1, 2000), share=st.floats(0, 1))
def test_wilson_holds_the_rate_and_mirrors(n, share):
  low, high = in_training.wilson(share * n, n)
  assert 0 <= low <= share + 1e-9 and share - 1e-9 <= high <= 1
  mirrored = in_training.wilson((1 - share) * n, n)
  assert (low, high) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]))
  wider = in_training.wilson(share * n, n, z=3)
  assert wider[0] <= low + 1e-9 and high <= wider[1] + 1e-9


def test_rate_by_hand():
  low, high = in_training.wilson(2.5, 5)
  assert in_training.rate("x", [1, 0, 0.5, 1, 0]) == {
    "x": 0.5,
    "x_ci_low": low,
    "x_ci_high": high,
  }


def test_accuracy_by_hand():
  examples = [Example(str(i), f"q{i}", None, f"right {i}") for i in range(4)]
  # Greedy first: right, wrong, partly, right; then two samples each.
  texts = [
    ("right 0", "right 0", "wrong"),
    ("wrong", "right 1", "right 1"),
    ("part", "part", "wrong"),
    ("right 3", "wrong", "wrong"),
  ]
  asked = []

  def complete(params, prompts, ids, *, sampling, n):
    asked.append((params, prompts, ids, sampling.temperature, n))
    return [
      [Completion(t, (7,) * (i + 1), None, i == 2) for t in group]
      for i, group in enumerate(texts)
    ]

  def verify(examples, texts):
    return [
      Verdict(1.0 if text == e.answer else 0.9 * (text == "part"))
      for e, text in zip(examples, texts, strict=True)
    ]

  got, greedy = in_training.accuracy(
    "weights", "prompts", examples, verify, complete, temperature=0.7, samples=2
  )
  assert asked == [("weights", "prompts", ["0", "1", "2", "3"], (0.0, 0.7, 0.7), 3)]
  assert [r.text for r in greedy] == ["right 0", "wrong", "part", "right 3"]
  assert [r.score for r in greedy] == [1.0, 0.0, 0.9, 1.0]
  assert got == {
    **in_training.rate("accuracy", [1, 0, 0, 1]),
    # A problem is one observation, however many samples it has.
    **in_training.rate("sampled_accuracy", [0.5, 1, 0, 0]),
    "truncated": 0.25,
    "tokens": 2.5,
    "unverified": 0.0,
  }
  alone, _ = in_training.accuracy(
    "weights", "prompts", examples, verify, complete, temperature=0.7, samples=0
  )
  assert not any("sampled" in name for name in alone)


# ---------------------------------------------------------------- drift

MODEL = families.tiny()


@pytest.fixture(scope="module")
def params():
  tree = transformer.init_params(MODEL, jax.random.key(0))
  # Sharper than at initialisation, where all next tokens are as likely.
  tree["embed"]["embedding"] = 10 * tree["embed"]["embedding"]
  return tree


def replies():
  rng = np.random.default_rng(0)

  def draw(n):
    return tuple(rng.integers(5, 250, n).tolist())

  return [Row((draw(p),), draw(r)) for p, r in ((5, 3), (1, 7), (7, 1))]


def drift_from(params, rows=None, **kw):
  kw = {"pad_id": 0, "bucket": 8, "chunk": 4, "parts": 1} | kw
  return in_training.drift_from(MODEL, params, rows or replies(), **kw)


def moved(params, size):
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  return structure.unflatten(
    [
      x + size * jax.random.normal(k, x.shape)
      for x, k in zip(leaves, keys, strict=True)
    ]
  )


def by_hand(base, params, rows):
  """Mean over reply tokens of KL(base || model), row after row, in float64."""
  total = count = 0
  for row in rows:
    ids = jnp.array([[*row.prompts[0], *row.response_ids]])
    at = slice(len(row.prompts[0]) - 1, ids.shape[1] - 1)
    logp = []
    for tree in (base, params):
      h, _ = jax.jit(transformer.apply, static_argnums=0)(MODEL, tree, ids)
      W = transformer.unembedding(tree)
      z = np.float64(h)[0, at] @ np.float64(W).T
      logp.append(z - np.log(np.exp(z).sum(-1, keepdims=True)))
    total += (np.exp(logp[0]) * (logp[0] - logp[1])).sum()
    count += len(row.response_ids)
  return total / count


def test_drift_is_zero_at_the_base_and_grows_with_the_weights_change(params):
  drift = drift_from(params)
  assert abs(drift(params)) <= 1e-6
  sizes = [drift(moved(params, s)) for s in (0.01, 0.03, 0.1)]
  assert sizes == sorted(sizes) and sizes[0] > 1e-5 and sizes[-1] > 0.1


def test_drift_equals_a_dense_computation(params):
  other = moved(params, 0.05)
  assert drift_from(params)(other) == pytest.approx(
    by_hand(params, other, replies()), rel=1e-4
  )


def test_padding_and_absent_rows_do_not_change_drift(params):
  other = moved(params, 0.05)
  plain = drift_from(params)(other)
  padded = drift_from(params, pad_id=9, bucket=32, parts=8, chunk=64)
  assert padded(other) == pytest.approx(plain, rel=1e-5)


def test_the_base_is_remembered_as_it_was(params):
  base = jax.tree.map(jnp.copy, params)
  drift = drift_from(base)
  before = drift(moved(params, 0.05))
  jax.tree.map(lambda x: x.delete(), base)  # as a donating step leaves it
  assert drift(moved(params, 0.05)) == before


# ------------------------------------------------------- unrelated prompts


def test_the_unrelated_prompts_are_64_different_ones():
  prompts = unrelated.prompts(64)
  assert len({tasks.normalize_question(p) for p in prompts}) == 64
  assert all(p == p.strip() and len(p) > 10 for p in prompts)
  assert unrelated.prompts(3) == prompts[:3]
  with pytest.raises(ValueError, match="65 unrelated prompts .* 64 exist"):
    unrelated.prompts(65)


def test_the_unrelated_prompts_are_not_about_the_task():
  related = re.compile(
    r"\d|\b(numbers?|integers?|digits?|largest|biggest|greatest|highest"
    r"|maximum|larger|bigger|sum|add|count)\b",
    re.IGNORECASE,
  )
  for prompt in unrelated.prompts(64):
    assert not related.search(prompt), prompt


@pytest.mark.parametrize(
  "told,sides",
  [((1, 2), ["teacher", "student"]), ((1,), ["student"]), ((), ["student"])],
)
def test_a_teacher_that_is_told_nothing_is_not_asked_again(told, sides):
  """Its replies would be the student's."""
  judge, asked, rows = object.__new__(in_training.Evaluator), [], []
  judge.run = types.SimpleNamespace(
    eval=[types.SimpleNamespace(student_ids=(1,), teacher_ids=told)]
  )
  judge.writer = types.SimpleNamespace(rows=lambda: [])
  judge.samples = 1

  def accuracy(params, side, samples):
    asked.append(side)
    return {"accuracy": {"student": 0.25, "teacher": 0.75}[side]}, []

  judge.accuracy = accuracy
  judge.evaluate = lambda params, step, more: rows.append(
    more(judge.accuracy(params, "student", 1)[0])
  )
  judge.evaluate_base({})
  assert asked == sides
  figure = {"eval/teacher_accuracy": 0.75 if len(sides) > 1 else 0.25}
  assert rows == [figure if told else {}]  # nobody could be told anything
