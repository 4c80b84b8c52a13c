"""The plan: its formulas by hand and against XLA, its programs, its refusals."""

import json
import subprocess
import sys

import jax
import pytest

from configs import opsd
from experiments import plan as command
from opsd_jax import setup
from opsd_jax.losses import objective
from opsd_jax.models import families
from opsd_jax.planning import account as accounts
from opsd_jax.planning import compile as compilation
from opsd_jax.planning import flops
from opsd_jax.reporting import console
from opsd_jax.rollouts import sources
from tests import configs_test

SMALL = {  # a Qwen3 in shape, with heads as wide as a TPU likes them
  "model_type": "qwen3",
  "vocab_size": 2080,
  "hidden_size": 256,
  "intermediate_size": 512,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 128,
  "max_position_embeddings": 4096,
  "rms_norm_eps": 1e-6,
  "tie_word_embeddings": False,
  "rope_theta": 1e6,
}


@pytest.fixture
def config(tmp_path):
  """The 8B preset on a small model of which there is a config.json alone."""
  (tmp_path / "config.json").write_text(json.dumps(SMALL))
  c = opsd.get_config("qwen3_8b")
  c.model.source = str(tmp_path)
  c.rollout.prompts_per_step = c.rollout.slots = 8
  c.batch.max_sequence_len, c.rollout.max_new_tokens = 512, 128
  c.loss.chunk = 32
  return c


def test_parameters_are_as_published():
  """Qwen3-8B has 8.2 billion parameters, 6.95 outside the embeddings."""
  runtime = setup.runtime_fields(opsd.get_config("qwen3_8b"))
  model_config = families.from_hf(families.KNOWN["Qwen/Qwen3-8B"], **runtime)
  layers, head = flops.weights(model_config)
  assert layers / 1e9 == pytest.approx(6.95, abs=0.005)
  assert (layers + 2 * head) / 1e9 == pytest.approx(8.19, abs=0.005)


def test_useful_flops_by_hand(config):
  run = compilation.abstract_run(config, jax.devices()[:8])
  layer = 256 * (512 + 512 + 2 * 256) + 3 * 256 * 512
  N, head = 2 * layer, 2080 * 256
  attention = 2 * 2 * 512**2 * 512  # layers, L^2, heads x channels
  student = 6 * (N * 512 + head * 128) + 3 * attention
  teacher = 2 * (N * 512 + head * 128) + attention
  assert flops.useful_flops(config, run) == 8 * (student + teacher)
  config.lora.rank = 4
  run = compilation.abstract_run(config, jax.devices()[:8])
  student = 4 * (N * 512 + head * 128) + 3 * attention
  assert flops.useful_flops(config, run) == 8 * (student + teacher)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_executed_flops_are_what_xla_counts(config, remat):
  """Without loops XLA counts every product; it counts the rest too, so little
  that one in ten would show."""
  config.model.scan_layers, config.model.remat = False, remat
  config.model.attention = "xla"
  config.loss.chunk = 10**9
  config.mesh.fsdp = 1
  run = compilation.abstract_run(config, jax.devices()[:1])
  _, step = compilation.train_programs(config, run)
  counted = step.compile().cost_analysis()["flops"]
  # The unembedding's gradient is a loop over 16 blocks, counted once.
  hidden = 15 / 16 * 2 * flops.weights(run.model_config)[1] * 8 * 128
  assert counted + hidden == pytest.approx(flops.executed_flops(config, run), rel=0.1)


def test_a_plan_for_simulated_devices(config):
  config.mesh.fsdp, config.mesh.tensor = 4, 2
  account = accounts.make_account(config, "cpu:8")
  assert account["fits"] and account["hbm"] is None
  train = account["train"]
  # A device's half of the vocabulary, never more tokens than a chunk.
  assert 0 < train["tokens_with_logits_at_once"] <= 32
  assert train["collective_bytes"]["all-gather"] > 0
  # float32 weights and moments beside bfloat16 parameters and teacher.
  resident = account["resident"]
  assert resident["teachers"] == resident["parameters"]
  assert resident["optimizer"] == pytest.approx(6 * resident["parameters"], rel=0.01)
  assert train["bytes"] >= sum(resident.values()) + train["activations"]
  json.dumps(account)
  assert "all-gather" in console.plan(account)


# The others' steps are made of the same parts: -m slow.
PLANNED = "opsd sft gsm_symbolic grpo pi_distill srpo rlad hdpo rlcsd ded avsd".split()


@pytest.mark.parametrize(
  "name",
  [
    name if name in PLANNED else pytest.param(name, marks=pytest.mark.slow)
    for name in configs_test.CONFIGS
  ],
)
def test_every_configs_real_step_is_planned(name):
  """Views, teachers, another model and the scoring program included: what is
  compiled takes the batch that training makes."""
  config = configs_test.get_config(name, "tiny")
  config.batch.max_sequence_len, config.mesh.fsdp = 256, 1
  account = accounts.make_account(config, "cpu:1")
  assert account["fits"] and account["train"]["bytes"] > 0
  assert ("score" in account) == objective.from_config(config).is_scored
  assert ("decode" in account) == (config.rollout.source not in sources.GIVEN)
  assert "train" in console.plan(account)


def test_another_models_weights_are_counted():
  config = configs_test.get_config("rlad", "tiny")
  config.batch.max_sequence_len, config.mesh.fsdp = 256, 1
  run = compilation.abstract_run(config, jax.devices()[:1])
  assert accounts.bytes_a_chip(run.frozen.external) > accounts.bytes_a_chip(
    run.state.params
  )


def test_what_cannot_fit_is_refused_with_the_field_to_change():
  config = opsd.get_config("qwen3_32b")
  pytest.importorskip("libtpu")
  account = accounts.make_account(config, "v5e:2x4")
  assert not account["fits"] and "train" not in account  # nothing was compiled
  assert "more chips" in account["advice"] and "lora.rank" in account["advice"]
  assert "does not fit" in console.plan(account)


def test_advice(config):
  account = {"hbm": 32e9, "resident": {"parameters": 1}}

  def words(phase, devices=4, **changes):
    config.update_from_flattened_dict(changes)
    run = compilation.abstract_run(config, jax.devices()[:devices])
    return accounts.advice(config, run, account, phase)

  assert "rollout.slots" in words("decode")
  assert "micro_batches=2" in words("train")
  assert "mesh.tensor=2" in words("train", devices=8)  # a row a device
  assert "micro_batches=3" in words("train", **{"rollout.prompts_per_step": 12})
  assert "model.remat=full" in words("train", **{"model.remat": "none"})


@pytest.mark.parametrize("phase", ["step_account", "rollout_account"])
def test_a_program_that_does_not_compile_is_named(config, phase, monkeypatch):
  def fails(*_):
    raise compilation.DoesNotFit("RESOURCE_EXHAUSTED: 20G of 16G")

  monkeypatch.setattr(accounts, "devices_of", lambda _: jax.devices()[:4])
  monkeypatch.setattr(accounts, "step_account", lambda *_: {"train": {"bytes": 1}})
  monkeypatch.setattr(accounts, phase, fails)
  account = accounts.make_account(config, "v5e:2x2")
  assert not account["fits"] and "RESOURCE" in account["compiler"]
  field = {"step_account": "micro_batches", "rollout_account": "rollout.slots"}[phase]
  assert field in account["advice"]


def test_a_plan_for_tpus_that_are_not_there(config):
  pytest.importorskip("libtpu")
  account = accounts.make_account(config, "v5e:2x2")
  assert account["fits"] and account["attention"] == "splash"
  train, chip = account["train"], compilation.CHIPS["v5e"]
  assert train["tokens_with_logits_at_once"] <= 32
  parts = (
    train["executed_flops"] / chip.flops
    + train["hbm_bytes"] / chip.hbm_rate
    + sum(train["collective_bytes"].values()) / chip.ici_rate
  )
  assert train["seconds"] == pytest.approx(parts)
  assert train["mfu"] == pytest.approx(train["useful_flops"] / chip.flops / parts)


@pytest.mark.parametrize(
  "topology,words",
  [
    ("v5p", "expected cpu:<devices> or"),
    ("v9:2x2", "v5e, v5p"),
    ("cpu:two", "cpu:<devices>"),
    ("v5p:2", "v5p:2x2x4"),
  ],
)
def test_a_bad_topology_is_named(topology, words):
  with pytest.raises(ValueError, match=words):
    compilation.parse_topology(topology)


def test_a_plan_needs_the_longest_row(config):
  config.batch.max_sequence_len = 0
  with pytest.raises(ValueError, match="batch.max_sequence_len"):
    compilation.abstract_run(config, jax.devices()[:8])


def test_the_command(tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      command.__name__,
      "--config=configs/opsd.py:tiny",
      "--config.batch.max_sequence_len=128",
      "--topology=cpu:2",
    ],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  account = json.loads(done.stdout.splitlines()[-1])
  assert account["mesh"] == {"data": 1, "fsdp": 2, "tensor": 1}
  assert account["fits"]
