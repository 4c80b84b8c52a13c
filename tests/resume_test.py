"""A run goes on as it began: its prompts, tokenizer and base are part of it."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import opsd
from opsd_jax import train
from opsd_jax.evaluation import evaluated_model
from opsd_jax.models import families, tokenizer
from opsd_jax.models.weights import sources as weight_sources
from opsd_jax.runtime import checkpoint, workdir

pytestmark = pytest.mark.usefixtures("four_devices")

DATED = "{{ strftime_now('%d %b %Y') }}" + tokenizer.CHATML


def tiny(**overrides):
  config = opsd.get_config("tiny")
  config.compile_cache, config.log.tensorboard = "", False
  config.optimizer.decay, config.eval.samples = "constant", 0
  config.eval.every = config.checkpoint.every = 2
  config.update_from_flattened_dict(overrides)
  return config


def final_params(directory):
  def layout(tree):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda _: one, tree)

  return jax.device_get(checkpoint.restore_params(directory / "checkpoints", layout))


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def rows_of(directory):
  return [json.loads(x) for x in (directory / "metrics.jsonl").open()]


def test_a_finished_run_goes_on(tmp_path, capsys):
  """At constant rates a run of 2 steps that goes on to 4 is one of 4."""
  train.train_and_evaluate(tiny(steps=4), tmp_path / "whole")
  train.train_and_evaluate(tiny(steps=2), tmp_path / "parts")
  capsys.readouterr()
  summary = train.train_and_evaluate(tiny(steps=4), tmp_path / "parts")
  out = capsys.readouterr().out
  assert "steps is 4, it was 2" in out and "learning rate" in out
  assert summary["steps"] == 4
  assert_same(final_params(tmp_path / "parts"), final_params(tmp_path / "whole"))
  steps = [r["step"] for r in rows_of(tmp_path / "parts") if "loss" in r]
  assert steps == [1, 2, 3, 4]
  with pytest.raises(ValueError, match="has taken 4 steps, steps is 2"):
    train.train_and_evaluate(tiny(steps=2), tmp_path / "parts")


def test_a_run_over_midnight_reads_the_day_it_began(tmp_path, monkeypatch):
  monkeypatch.setattr(tokenizer, "CHATML", DATED)
  monkeypatch.setattr(workdir, "today", lambda: "2026-07-26")
  train.train_and_evaluate(tiny(steps=4), tmp_path / "whole")
  train.train_and_evaluate(tiny(steps=2), tmp_path / "parts")
  monkeypatch.setattr(workdir, "today", lambda: "2026-07-27")
  train.train_and_evaluate(tiny(steps=4), tmp_path / "parts")
  assert_same(final_params(tmp_path / "parts"), final_params(tmp_path / "whole"))
  other = tmp_path / "other"  # the day decides what is read
  train.train_and_evaluate(tiny(steps=2), other)
  identities = [
    json.loads((d / "identity.json").read_text()) for d in (tmp_path / "parts", other)
  ]
  assert [i["date"] for i in identities] == ["2026-07-26", "2026-07-27"]
  assert identities[0]["prompts"] != identities[1]["prompts"]


@pytest.mark.parametrize(
  "edited,field",
  [
    ("template", "prompts"),
    ("base", "base"),
    ("tokenizer", "tokenizer"),
    ("sizes", "sizes"),
  ],
)
def test_what_a_run_began_with_must_be_there_again(
  edited, field, tmp_path, monkeypatch
):
  train.train_and_evaluate(tiny(steps=2, **{"lora.rank": 2}), tmp_path)
  before = (tmp_path / "metrics.jsonl").read_text()
  if edited == "template":
    monkeypatch.setattr(tokenizer, "CHATML", "Hello. " + tokenizer.CHATML)
  elif edited == "tokenizer":
    digest = tokenizer.Tokenizer.digest
    monkeypatch.setattr(tokenizer.Tokenizer, "digest", lambda t: digest(t)[::-1])
  elif edited == "sizes":  # what config.json says beside the weights

    def turned(**kw):
      return dataclasses.replace(families.tiny(**kw), rope_theta=1e6)

    monkeypatch.setitem(weight_sources.TINY, "tiny", turned)
  else:
    load = weight_sources.load_model_weights

    def permuted(*args, **kw):  # rows of one array exchanged: their sum is the same
      model_config, params = load(*args, **kw)
      embed = params["embed"]["embedding"]
      params["embed"]["embedding"] = embed[::-1]
      return model_config, params

    monkeypatch.setattr(weight_sources, "load_model_weights", permuted)
  with pytest.raises(ValueError, match=f"{field}: .* there"):
    train.train_and_evaluate(tiny(steps=4, **{"lora.rank": 2}), tmp_path)
  assert (tmp_path / "metrics.jsonl").read_text() == before
  if edited == "base":  # nor is the adapter joined with another one
    with pytest.raises(ValueError, match="an adapter of the base"):
      evaluated_model.load_run(tmp_path)


def test_arguments_of_the_chat_template_are_free(tmp_path, monkeypatch):
  named = "{{ date_string }}{% if loud %}!{% endif %}" + tokenizer.CHATML
  monkeypatch.setattr(tokenizer, "CHATML", named)
  fields = {
    "context.student_args": "date_string=1 May 2026,loud=true",
    "context.teacher_args": "date_string=1 May 2026,loud=false",
    "log.samples_every": 2,
  }
  train.train_and_evaluate(tiny(steps=2, **fields), tmp_path)
  (row,) = (tmp_path / "samples").glob("rollouts_*.jsonl")
  first = json.loads(row.read_text().splitlines()[0])
  assert first["prompt"].startswith("1 May 2026!")
  assert first["teacher_prompt"].startswith("1 May 2026<|im_start|>")


def test_truncated_responses_are_said_and_may_be_left_out(tmp_path, capsys):
  config = tiny(steps=2, **{"batch.mask_truncated": True, "log.samples_every": 1})
  summary = train.train_and_evaluate(config, tmp_path)
  out = capsys.readouterr().out
  assert summary["truncated_final"] > 0.5
  assert f"truncated {summary['truncated_final']:.0%}" in out
  assert "warning: " in out and "did not end within eval.max_new_tokens" in out
  assert "did not end within rollout.max_new_tokens" in out
  steps = [r for r in rows_of(tmp_path) if "loss" in r]
  for r in steps:  # of 8 responses of at most 8 tokens
    assert r["masked"] == round(8 * r["truncated"]) > 4
    assert r["response_tokens"] <= 8 * (8 - r["masked"])
