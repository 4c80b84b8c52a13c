"""Loading an external teacher, and a model that is another run's."""

import types

import jax
import numpy as np
import pytest

from configs import opsd, rlad
from opsd_jax import setup, train
from opsd_jax.evaluation import evaluated_model
from opsd_jax.models import tokenizer as tokenizers
from opsd_jax.runtime import checkpoint

TOK = tokenizers.load("tiny")


def load(*, vocab_size=257, row_len=2048, tokenizer=TOK):
  config = rlad.get_config("tiny")
  config.external.source = "tiny_wide"
  model = types.SimpleNamespace(vocab_size=vocab_size)
  mesh = setup.make_run_mesh(config)
  return setup.load_external(config, mesh, model, tokenizer, row_len)


def test_an_external_teacher_reads_what_the_student_writes():
  weights, model = load()
  assert weights and model.max_positions == 2048
  inner = types.SimpleNamespace(get_vocab=lambda: {"a": 0})
  with pytest.raises(ValueError, match="another tokenizer"):
    load(tokenizer=types.SimpleNamespace(inner=inner))
  with pytest.raises(ValueError, match="vocabulary entries, fewer .* 100000"):
    load(vocab_size=100_000)
  with pytest.raises(ValueError, match="2048 positions, rows have up to 2049 tokens"):
    load(row_len=2049)


def tiny(**fields):
  config = opsd.get_config("tiny")
  config.compile_cache, config.steps, config.eval.every = "", 2, 2
  config.update_from_flattened_dict(fields)
  return config


@pytest.mark.usefixtures("four_devices")
def test_a_phase_begins_where_the_run_before_it_ended(tmp_path):
  """As configs/sd_zero.py and configs/dasd.py chain theirs; an adapter on top too."""
  first, second = tmp_path / "first", tmp_path / "second"
  train.train_and_evaluate(tiny(), first)
  saved = evaluated_model.load(None, first, "float32")
  config = tiny(**{"model.source": f"run:{first}", "lora.rank": 2})
  setup.validate(config)
  run = setup.prepare(config)
  assert run.identity["base"] == saved.about["weights"]
  assert setup.origin(f"run:{first}") == "tiny"
  fresh = setup.prepare(tiny())
  leaves = [jax.tree.leaves(r.params) for r in (run, fresh)]
  assert any((np.asarray(a) != b).any() for a, b in zip(*leaves, strict=True))
  train.train_and_evaluate(config, second)
  loaded = evaluated_model.load(None, second, "float32")
  base = checkpoint.fingerprint(run.params, run.mesh)
  assert loaded.about["weights"] != base == run.identity["base"]
  with pytest.raises(ValueError, match="has trained an adapter: export it"):
    setup.prepare(tiny(**{"model.source": f"run:{second}"}))
  with pytest.raises(ValueError, match="laid out otherwise"):
    setup.prepare(tiny(**{"model.source": f"run:{first}", "model.scan_layers": True}))
