"""Loading an external teacher."""

import types

import pytest

from configs import rlad
from opsd_jax import setup
from opsd_jax.models import tokenizer as tokenizers

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
