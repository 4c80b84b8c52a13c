"""Drift from the base, against a dense computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opsd_jax.evaluation import drift as drifts
from opsd_jax.models import families, transformer
from opsd_jax.rollouts.collate import Row

MODEL = families.tiny()


@pytest.fixture(scope="module")
def params():
  tree = transformer.init_params(MODEL, jax.random.key(0))
  # Sharper than at initialisation, where all next tokens are as likely.
  tree["embed"]["embedding"] = 10 * tree["embed"]["embedding"]
  return tree


def base_rows():
  rng = np.random.default_rng(0)

  def draw(n):
    return tuple(rng.integers(5, 250, n).tolist())

  return [Row((draw(p),), draw(r)) for p, r in ((5, 3), (1, 7), (7, 1))]


def drift_from(params, rows=None, **kw):
  kw = {"pad_id": 0, "bucket": 8, "chunk": 4, "parts": 1} | kw
  return drifts.drift_from(MODEL, params, rows or base_rows(), **kw)


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
  """Mean over completion tokens of KL(base || model), row after row, in float64."""
  total = count = 0
  for row in rows:
    ids = jnp.array([[*row.prompts[0], *row.response_ids]])
    predictors = slice(len(row.prompts[0]) - 1, ids.shape[1] - 1)
    logp = []
    for tree in (base, params):
      h, _ = jax.jit(transformer.apply, static_argnums=0)(MODEL, tree, ids)
      W = transformer.unembedding(tree)
      z = np.float64(h)[0, predictors] @ np.float64(W).T
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
    by_hand(params, other, base_rows()), rel=1e-4
  )


def test_padding_and_absent_rows_do_not_change_drift(params):
  other = moved(params, 0.05)
  plain = drift_from(params)(other)
  padded = drift_from(params, pad_id=9, bucket=32, parts=8, chunk=64)
  assert padded(other) == pytest.approx(plain, rel=1e-5)


def test_the_base_is_kept_as_it_was(params):
  base = jax.tree.map(jnp.copy, params)
  drift = drift_from(base)
  before = drift(moved(params, 0.05))
  jax.tree.map(lambda x: x.delete(), base)  # as a donating step leaves it
  assert drift(moved(params, 0.05)) == before
