"""ModelConfig: a decoder's sizes, read from a Hugging Face config or GGUF metadata."""

import dataclasses
import hashlib


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Sizes and options of one decoder; hashable, static under jit."""

  family: str  # llama, qwen2, qwen3
  vocab_size: int
  width: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_width: int
  max_positions: int
  rope_theta: float
  # None, ("linear", factor) or ("llama3", factor, low_freq_factor,
  # high_freq_factor, original_max_positions)
  rope_scaling: tuple | None
  norm_eps: float
  qkv_bias: bool
  qk_norm: bool
  tied: bool  # the unembedding is the embedding
  # Chosen by the experiment, not by the model:
  dtype: str  # of activations and matmuls
  param_dtype: str
  scan_layers: bool  # one compiled layer, stacked weights
  remat: str  # none, dots, full
  attention: str  # an entry of attention.ALL
  lora_alpha: float  # scales an adapter's product by lora_alpha / rank


FAMILIES = {  # model_type -> (qkv_bias, qk_norm)
  "llama": (False, False),
  "qwen2": (True, False),
  "qwen3": (False, True),
}


def refuse(name: str, value, expected) -> None:
  raise ValueError(f"unsupported model: {name} is {value!r}, expected {expected}")


def need(sizes: dict, name: str):
  """sizes[name]; raises ValueError naming it where it is missing."""
  if sizes.get(name) is None:
    raise ValueError(f"the model's configuration does not give {name}")
  return sizes[name]


def count(sizes: dict, name: str) -> int:
  """A number of things, at least 1; ValueError names what is none."""
  value = need(sizes, name)
  if not isinstance(value, int) or isinstance(value, bool) or value < 1:
    refuse(name, value, "a whole number above 0")
  return value


def digest(model_config: ModelConfig) -> str:
  """A hash of what the model's own files say, and not the experiment."""
  runtime = ("dtype", "param_dtype", "scan_layers", "remat", "attention", "lora_alpha")
  fields = dataclasses.asdict(model_config)
  sizes = sorted((k, v) for k, v in fields.items() if k not in runtime)
  return hashlib.sha256(repr(sizes).encode()).hexdigest()[:16]


def from_hf(hf_config: dict, **runtime) -> ModelConfig:
  """The ModelConfig of a parsed config.json; `runtime`: the experiment's fields.

  Raises ValueError naming an architecture or feature that the decoder lacks.
  """
  family = hf_config.get("model_type")
  if family not in FAMILIES:
    names = hf_config.get("architectures") or [family]
    refuse("architecture", names[0], " or ".join(FAMILIES))
  bias, qk_norm = FAMILIES[family]
  for key, wanted in (
    ("hidden_act", "silu"),
    ("mlp_bias", False),
    ("attention_bias", False),
    ("use_sliding_window", False),
  ):
    if hf_config.get(key, wanted) != wanted:
      refuse(key, hf_config[key], wanted)
  for key in ("quantization_config", "compression_config"):
    if value := hf_config.get(key):
      method = value.get("quant_method", key) if isinstance(value, dict) else value
      raise ValueError(
        f"unsupported model: its weights are quantised ({method}): give the model that"
        " is not quantised"
      )
  rope = rope_settings(hf_config)

  def size(name):
    return count(hf_config, name)

  heads, width = size("num_attention_heads"), size("hidden_size")
  return ModelConfig(
    family=family,
    vocab_size=size("vocab_size"),
    width=width,
    num_layers=size("num_hidden_layers"),
    num_heads=heads,
    num_kv_heads=hf_config.get("num_key_value_heads") or heads,
    head_dim=hf_config.get("head_dim") or width // heads,
    mlp_width=size("intermediate_size"),
    max_positions=size("max_position_embeddings"),
    rope_theta=rope_theta(rope, hf_config),
    rope_scaling=rope_scaling(rope),
    norm_eps=float(need(hf_config, "rms_norm_eps")),
    qkv_bias=bias,
    qk_norm=qk_norm,
    tied=bool(hf_config.get("tie_word_embeddings", False)),
    **runtime,
  )


def rope_settings(hf_config: dict) -> dict:
  """The RoPE settings of a config.json that may name them twice.

  transformers 5 moved rope_theta and rope_scaling into rope_parameters, and reads a
  rope_scaling that is left instead of rope_parameters. So do we, and raise ValueError
  where rope_parameters says something else than none.
  """
  new, old = (hf_config.get(k) or {} for k in ("rope_parameters", "rope_scaling"))
  for name, rope in (("rope_parameters", new), ("rope_scaling", old)):
    if not isinstance(rope, dict):
      refuse(name, rope, "an object")
    if any(isinstance(value, dict) for value in rope.values()):
      refuse(f"{name} by kind of layer", rope, "one for all layers")
    if rope.get("partial_rotary_factor", 1) != 1:
      refuse("partial_rotary_factor", rope["partial_rotary_factor"], 1)
  if not (new and old):
    return new or old
  if rope_scaling(new) not in (None, rope_scaling(old)):
    refuse("rope_scaling beside another rope_parameters", old, "one of them")
  theta = rope_theta(old, hf_config)
  if (new.get("rope_theta") or theta) != theta:
    refuse("rope_theta of rope_parameters", new["rope_theta"], f"{theta} as elsewhere")
  return old


def rope_theta(rope: dict, hf_config: dict) -> float:
  return float(rope.get("rope_theta") or hf_config.get("rope_theta") or 1e4)


def rope_scaling(rope: dict) -> tuple | None:
  """ModelConfig.rope_scaling of Hugging Face's RoPE settings."""
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind == "default":
    return None

  def size(name):
    return float(need(rope, name))

  if kind == "linear":
    return ("linear", size("factor"))
  if kind == "llama3":
    return (
      "llama3",
      size("factor"),
      size("low_freq_factor"),
      size("high_freq_factor"),
      int(size("original_max_position_embeddings")),
    )
  refuse("rope type", kind, "default, linear or llama3")


def to_hf(model_config: ModelConfig) -> dict:
  """The inverse of `from_hf`: a config.json that every version of transformers
  reads."""
  classes = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
  scaling = None
  if model_config.rope_scaling:
    kind, *values = model_config.rope_scaling
    keys = (
      "factor",
      "low_freq_factor",
      "high_freq_factor",
      "original_max_position_embeddings",
    )
    scaling = {"rope_type": kind} | dict(zip(keys, values, strict=False))
  absent = (
    {"attention_bias": False, "mlp_bias": False}
    if model_config.family == "llama"
    else {"use_sliding_window": False}
  )
  return {
    "architectures": [f"{classes[model_config.family]}ForCausalLM"],
    "model_type": model_config.family,
    "vocab_size": model_config.vocab_size,
    "hidden_size": model_config.width,
    "intermediate_size": model_config.mlp_width,
    "num_hidden_layers": model_config.num_layers,
    "num_attention_heads": model_config.num_heads,
    "num_key_value_heads": model_config.num_kv_heads,
    "head_dim": model_config.head_dim,
    "max_position_embeddings": model_config.max_positions,
    "rope_theta": model_config.rope_theta,
    "rope_scaling": scaling,
    "rms_norm_eps": model_config.norm_eps,
    "tie_word_embeddings": model_config.tied,
    "hidden_act": "silu",
  } | absent


def from_gguf(meta: dict, tensor_names, **runtime) -> ModelConfig:
  """The ModelConfig of a GGUF file's metadata and tensor names; as `from_hf`."""
  family = meta.get("general.architecture")
  if family not in FAMILIES:
    refuse("architecture", family, " or ".join(FAMILIES))
  bias, qk_norm = FAMILIES[family]

  def get(name, default):
    return meta.get(f"{family}.{name}", default)

  def size(name):
    return count(meta, f"{family}.{name}")

  # Without a type a factor is linear; older files call it rope.scale_linear.
  factor = float(get("rope.scaling.factor", get("rope.scale_linear", 0.0)) or 0.0)
  kind = get("rope.scaling.type", "linear" if factor else "none")
  if kind not in ("none", "linear"):
    refuse("rope scaling", kind, "none or linear")
  if kind == "linear" and not factor:
    refuse("rope.scaling.factor", None, "a number for linear scaling")
  if "rope_freqs.weight" in tensor_names:  # llama3 scaling as a table
    refuse("rope_freqs.weight", "present", "the model in Hugging Face format")
  heads, width = size("attention.head_count"), size("embedding_length")
  head_dim = get("attention.key_length", width // heads)
  rotated = get("rope.dimension_count", head_dim)
  if rotated != head_dim:
    refuse("rope.dimension_count", rotated, f"{head_dim}, all of a head")
  return ModelConfig(
    family=family,
    vocab_size=len(need(meta, "tokenizer.ggml.tokens")),
    width=width,
    num_layers=size("block_count"),
    num_heads=heads,
    num_kv_heads=count(
      {"head_count_kv": get("attention.head_count_kv", heads)}, "head_count_kv"
    ),
    head_dim=head_dim,
    mlp_width=size("feed_forward_length"),
    max_positions=size("context_length"),
    rope_theta=float(get("rope.freq_base", 1e4)),
    rope_scaling=("linear", factor) if kind == "linear" else None,
    norm_eps=float(need(meta, f"{family}.attention.layer_norm_rms_epsilon")),
    qkv_bias=bias,
    qk_norm=qk_norm,
    tied="output.weight" not in tensor_names,
    **runtime,
  )


def qwen3(width, mlp_width, layers, heads, tied) -> dict:
  """The config.json of a Qwen3 model, as `from_hf` reads it."""
  return {
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "hidden_size": width,
    "intermediate_size": mlp_width,
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": tied,
    "rope_theta": 1e6,
  }


# Published sizes of models: a memory plan needs no download.
KNOWN = {
  "Qwen/Qwen3-0.6B": qwen3(1024, 3072, 28, 16, True),
  "Qwen/Qwen3-1.7B": qwen3(2048, 6144, 28, 16, True),
  "Qwen/Qwen3-4B": qwen3(2560, 9728, 36, 32, True),
  "Qwen/Qwen3-8B": qwen3(4096, 12_288, 36, 32, False),
  "Qwen/Qwen3-32B": qwen3(5120, 25_600, 64, 64, False),
  "meta-llama/Llama-3.1-8B-Instruct": {
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_theta": 5e5,
    "rope_scaling": {
      "rope_type": "llama3",
      "factor": 8.0,
      "low_freq_factor": 1.0,
      "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192,
    },
  },
}


def tiny(
  *,
  dtype="float32",
  param_dtype="float32",
  scan_layers=False,
  remat="none",
  attention="xla",
  lora_alpha=1.0,
) -> ModelConfig:
  """Two layers over the byte tokenizer's vocabulary."""
  return ModelConfig(
    family="llama",
    vocab_size=320,
    width=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_width=128,
    max_positions=2048,
    rope_theta=1e4,
    rope_scaling=None,
    norm_eps=1e-5,
    qkv_bias=False,
    qk_norm=False,
    tied=True,
    dtype=dtype,
    param_dtype=param_dtype,
    scan_layers=scan_layers,
    remat=remat,
    attention=attention,
    lora_alpha=lora_alpha,
  )


def tiny_wide(**runtime) -> ModelConfig:
  """Other sizes over the same tokenizer, with a padded vocabulary."""
  return dataclasses.replace(
    tiny(**runtime), vocab_size=352, width=96, num_layers=3, mlp_width=192
  )
