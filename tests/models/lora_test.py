"""An adapter: nothing at first, a low-rank product later, and all that trains."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import opsd
from opsd_jax import setup, train
from opsd_jax.losses import objective, teachers
from opsd_jax.models import families, lora, transformer
from opsd_jax.runtime import checkpoint, sharding_rules
from tests.train_test import batch_of, rows, step_of

SCALE = 0.5
MODEL = families.tiny(lora_alpha=SCALE * 4)
EVERYWHERE = "(q|k|v|o|gate|up|down)_proj"


def make(scan=False, targets=EVERYWHERE, trained=True):
  """(config, base, adapter); `trained`: with a b that is not 0."""
  config = dataclasses.replace(MODEL, scan_layers=scan)
  base = transformer.init_params(config, jax.random.key(0))
  adapter = lora.init(base, jax.random.key(1), targets=targets, rank=4)
  if trained:
    adapter = jax.tree.map(
      lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), adapter
    )
  return config, base, adapter


def states(config, params):
  ids_BxL = np.random.default_rng(0).integers(0, 320, (2, 9))
  return np.asarray(
    jax.jit(transformer.apply, static_argnums=0)(config, params, ids_BxL)[0]
  )


@pytest.mark.parametrize("scan", [False, True])
def test_a_new_adapter_is_exactly_nothing(scan):
  """Operation by operation: what a compiler fuses may round otherwise."""
  config, base, adapter = make(scan, trained=False)
  with jax.disable_jit():
    np.testing.assert_array_equal(
      states(config, lora.join(base, adapter)), states(config, base)
    )
  config, base, adapter = make(scan)
  other = states(config, lora.join(base, adapter))
  assert np.abs(other - states(config, base)).max() > 0.1


def merged(base, adapter):
  """kernel + scale a b, by numpy."""
  if "lora_a" in adapter:
    product = adapter["lora_a"] @ adapter["lora_b"]
    return base | {"kernel": base["kernel"] + SCALE * product}
  return base | {k: merged(base[k], v) for k, v in adapter.items()}


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("targets", [EVERYWHERE, "(q|v)_proj"])
def test_an_adapter_is_a_low_rank_change_of_the_kernel(scan, targets):
  config, base, adapter = make(scan, targets)
  np.testing.assert_allclose(
    states(config, lora.join(base, adapter)),
    states(config, merged(base, adapter)),
    atol=2e-5,
  )


def test_targets_choose_modules():
  _, base, adapter = make(targets="(q|v)_proj")
  assert set(adapter["layers_0"]["attn"]) == {"q_proj", "v_proj"}
  assert "mlp" not in adapter["layers_0"]

  def draw(**kw):
    return lora.init(base, jax.random.key(0), rank=2, **kw)

  with pytest.raises(ValueError, match="matches none .* down_proj, gate_proj"):
    draw(targets="q")
  with pytest.raises(ValueError, match="not a regular expression"):
    draw(targets="(q")


def test_new_values_are_as_wide_as_their_input():
  """a ~ U(-1/sqrt(in), 1/sqrt(in)): mean square 1 / (3 in)."""
  _, base, adapter = make(trained=False)
  a = np.concatenate(
    [np.ravel(layer["mlp"]["down_proj"]["lora_a"]) for layer in adapter.values()]
  )
  assert np.abs(a).max() <= 128**-0.5
  assert abs((a**2).mean() * 3 * 128 - 1) < 0.15
  assert not np.any(adapter["layers_1"]["attn"]["q_proj"]["lora_b"])


def lora_config(**overrides):
  config = opsd.get_config("tiny")
  config.compile_cache = ""
  config.log.tensorboard = False
  config.lora.rank = 4
  config.update_from_flattened_dict(overrides)
  return config


def bytes_of(tree):
  return sum(x.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  "name,copies", [("fixed", 0), ("live", 0), ("ema", 1), ("synced", 1)]
)
def test_a_teacher_keeps_an_adapter_at_most(name, copies):
  config, base, adapter = make()
  settings, tx = lora_config(**{"teacher.name": name}), optax.adam(1e-3)
  state = train.init_state(adapter, objective.from_config(settings), tx)
  assert bytes_of(state.memories) == copies * bytes_of(adapter)
  step = jax.jit(step_of(settings, tx, model=config))
  program = step.lower(state, batch_of(rows()), train.Frozen(base)).compile()
  memory = program.memory_analysis()
  # Weights once; the adapter, two moments of it, the teacher's; the batch.
  most = bytes_of(base) + (3 + copies) * bytes_of(adapter) + 20_000
  assert memory.argument_size_in_bytes <= most


def test_the_fixed_teacher_is_the_base():
  config, base, adapter = make()
  kept = teachers.fixed(from_base=True)
  assert lora.join(base, kept.kept(kept.init(adapter), adapter)) == base


def test_only_the_adapter_gets_a_gradient():
  config, base, adapter = make()
  settings, tx = lora_config(), optax.sgd(1.0)
  state = train.init_state(adapter, objective.from_config(settings), tx)
  step = jax.jit(step_of(settings, tx, model=config))
  new, loss, _, _ = step(state, batch_of(rows()), train.Frozen(base))
  assert loss > 1e-4
  assert jax.tree.structure(new.params) == jax.tree.structure(adapter)
  moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), new.params, adapter)
  assert min(jax.tree.leaves(moved)) > 0


def test_a_run_saves_what_trains_and_resumes(tmp_path):
  config = lora_config()
  config.steps = 2
  whole = train.train_and_evaluate(config, tmp_path / "whole")
  run = setup.prepare(config)

  def layout(tree):
    return sharding_rules.tree_shardings(tree, run.mesh)

  step, adapter = checkpoint.restore_params(tmp_path / "whole" / "checkpoints", layout)
  assert step == 2
  assert jax.tree.structure(adapter) == jax.tree.structure(run.trained(run.params))
  assert np.abs(adapter["layers_0"]["attn"]["q_proj"]["lora_b"]).max() > 0
  again = train.train_and_evaluate(config, tmp_path / "whole")
  assert again["drift"] == pytest.approx(whole["drift"], rel=1e-5)
