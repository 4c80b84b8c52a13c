"""Every mesh computes what one device does."""

import dataclasses
import functools
import json

import jax
import numpy as np
import optax
import pytest

from configs import opsd
from opsd_jax import train
from opsd_jax.losses import objective
from opsd_jax.models import families, kv_cache, lora, transformer
from opsd_jax.rollouts import collate
from opsd_jax.runtime import sharding_rules
from opsd_jax.runtime.mesh import make_mesh
from opsd_jax.sampling.sampler import sample
from opsd_jax.sampling.tokens import SamplingParams, row_keys

MESHES = [
  (d, f, 8 // (d * f)) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if 8 % (d * f) == 0
]
AXES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 4, 2)]  # the rest is slow
# Heads, key/value heads and widths divide by 8.
MODEL = dataclasses.replace(
  families.tiny(scan_layers=True),
  num_heads=8,
  num_kv_heads=8,
  head_dim=8,
  lora_alpha=8.0,
)


def model_of(vocab_size):
  return dataclasses.replace(MODEL, vocab_size=vocab_size)


@functools.cache
def batch():
  rng = np.random.default_rng(0)

  def draw(low, high):
    return tuple(rng.integers(5, 250, rng.integers(low, high)))

  rows = [collate.Row((draw(3, 9), draw(9, 20)), draw(1, 8)) for _ in range(8)]
  return collate.collate(rows, pad_id=0, bucket=8, response_bucket=8, parts=8)


def moved(tree, seed, by=0.05):
  """The tree with every leaf a little elsewhere: nothing is 0 by symmetry."""
  keys = iter(jax.random.split(jax.random.key(seed), 100))
  return jax.tree.map(lambda x: x + by * jax.random.normal(next(keys), x.shape), tree)


def steps(model, mesh=None):
  """(losses, parameters after an SGD step) of full tuning and of LoRA."""
  told = objective.from_config(opsd.get_config("tiny"))
  tx = optax.sgd(16.0)  # so that a rounding of 1 is not a change
  base = transformer.init_params(model, jax.random.key(0))
  adapter = moved(lora.init(base, jax.random.key(1), targets=".*_proj", rank=4), 2)
  told_more = moved(base, 3)
  step = train.make_train_step(train.Models(model), lambda values: told, tx)

  def both(base, adapter, told_more, batch):
    """Both kinds, so that a mesh costs one compilation."""

    def of(params, teacher):
      return train.init_state(params, told, tx)._replace(memories={"teacher": teacher})

    full, loss, _, _ = step(of(base, told_more), batch)
    tuned, lora_loss, _, _ = step(of(adapter, {}), batch, train.Frozen(base))
    return (loss, lora_loss), (full.params, tuned.params)

  args = base, adapter, told_more
  if mesh is None:
    return jax.device_get((jax.jit(both)(*args, batch()), (base, adapter)))
  with jax.set_mesh(mesh):
    laid_out = jax.device_put(args, sharding_rules.tree_shardings(args, mesh))
    rows = jax.device_put(batch(), sharding_rules.rows_sharding(mesh))
    return jax.device_get((jax.jit(both)(*laid_out, rows), (base, adapter)))


@functools.cache
def on_one_device(vocab_size):
  return steps(model_of(vocab_size))


@pytest.mark.parametrize(
  "sizes,vocab_size",
  [
    *(
      pytest.param(sizes, 320, marks=[] if sizes in AXES else pytest.mark.slow)
      for sizes in MESHES
    ),
    # Does not divide: it stays whole.
    *((sizes, 323) for sizes in ((1, 1, 8), (2, 2, 2))),
  ],
  ids=str,
)
def test_every_mesh_steps_as_one_device(sizes, vocab_size):
  mesh = make_mesh(*sizes, devices=jax.devices()[:8])
  (losses, after), _ = steps(model_of(vocab_size), mesh)
  (expected, expected_after), before = on_one_device(vocab_size)
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  for kind in (0, 1):
    change = jax.tree.map(np.subtract, expected_after[kind], before[kind])
    largest = max(np.abs(g).max() for g in jax.tree.leaves(change))
    assert largest > 1e-3
    jax.tree.map(
      lambda a, b, top=largest: np.testing.assert_allclose(
        a, b, rtol=0, atol=1e-5 * top
      ),
      after[kind],
      expected_after[kind],
    )


def tiny_losses(tmp_path, name, **mesh):
  config = opsd.get_config("tiny")
  config.compile_cache, config.log.tensorboard = "", False
  config.steps = config.eval.every = 2
  config.eval.samples, config.eval.max_new_tokens = 0, 1
  config.model.scan_layers = True
  config.mesh.update(mesh)
  train.train_and_evaluate(config, tmp_path / name)
  lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
  return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


@pytest.mark.parametrize(
  "sizes",
  [
    {"fsdp": 4, "tensor": 2},
    pytest.param({"data": 8, "fsdp": 1}, marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_a_whole_run_on_a_mesh_has_the_losses_of_one_device(
  sizes, tmp_path, monkeypatch
):
  losses = tiny_losses(tmp_path, "mesh", **sizes)
  one = jax.devices()[:1]
  monkeypatch.setattr(jax, "devices", lambda *_: one)
  expected = tiny_losses(tmp_path, "one")
  assert len(expected) == 2 and min(expected) > 1e-5
  # Losses of 1e-4 nats: float32's noise in a divergence is 1e-7 of its terms.
  np.testing.assert_allclose(losses, expected, rtol=2e-3)


def rollouts(mesh=None):
  model = model_of(320)
  params = moved(transformer.init_params(model, jax.random.key(0)), 5, 0.3)
  prompts = [tuple(range(5, 12 + i)) for i in range(8)]

  def go(params):
    return sample(
      model,
      params,
      prompts,
      row_keys(0, 0, "generate", map(str, range(8)), 1),
      SamplingParams(temperature=0.0),
      max_new_tokens=12,
      eos_ids=(3,),
      slots=8,
      bucket=8,
      steps=5,
    )

  if mesh is None:
    return go(params)
  with jax.set_mesh(mesh):
    return go(jax.device_put(params, sharding_rules.tree_shardings(params, mesh)))


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_every_mesh_answers_as_one_device(sizes):
  mesh = make_mesh(*sizes, devices=jax.devices()[:8])
  got, expected = rollouts(mesh), rollouts()
  assert len(set(expected.ids_RxT[:, -1])) > 2  # rows that differ
  np.testing.assert_array_equal(got.ids_RxT, expected.ids_RxT)
  np.testing.assert_allclose(got.logp_RxT, expected.logp_RxT, atol=1e-4)


def test_tensor_parallelism_splits_weights_cache_and_logits():
  mesh = make_mesh(1, 1, 8, devices=jax.devices()[:8])
  params = transformer.init_params(MODEL, jax.random.key(0))
  tree = jax.device_put(params, sharding_rules.tree_shardings(params, mesh))
  whole = sum(x.nbytes for x in jax.tree.leaves(tree))
  one = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))
  assert one < 0.14 * whole
  with jax.set_mesh(mesh):
    cache = jax.jit(lambda: kv_cache.init(MODEL, 8, 16))()
  assert cache[0].addressable_shards[0].data.nbytes * 8 == cache[0].nbytes
