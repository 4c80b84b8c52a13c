"""Weights of a GGUF file, dequantised by the `gguf` package."""

import functools
import re

import gguf
import numpy as np

from opsd_jax.models import families
from opsd_jax.models.weights import hf

NAMES = {  # GGUF block tensor -> Hugging Face module
  "attn_norm": "input_layernorm",
  "ffn_norm": "post_attention_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "attn_q_norm": "self_attn.q_norm",
  "attn_k_norm": "self_attn.k_norm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}
TOP = {
  "token_embd.weight": "model.embed_tokens.weight",
  "output_norm.weight": "model.norm.weight",
  "output.weight": "lm_head.weight",
}

OTHER_FILES = (".safetensors", ".bin", ".pt", ".pth", ".json")


class Reader(gguf.GGUFReader):
  """GGUFReader that raises ValueError for ranges beyond the end of the file."""

  # The package returns empty arrays there, and loops without end over a damaged
  # length.
  def _get(self, offset, dtype, count=1, override_order=None):
    end, size = offset + np.dtype(dtype).itemsize * int(count), len(self.data)
    if end > size:
      raise ValueError(f"the file ends at byte {size}, expected at least {end}")
    return super()._get(offset, dtype, count, override_order)


def open_file(path) -> Reader:
  """Raises ValueError for a file that is damaged, of another kind, or a part."""
  if path.suffix in OTHER_FILES:
    raise ValueError(
      f"{path} is one file of a model: give the directory that holds it and config.json"
    )
  try:
    reader = Reader(path)
  except (ValueError, IndexError, KeyError, OSError) as e:
    raise ValueError(f"{path} is not a readable GGUF file: {e}") from e
  count = reader.get_field("split.count")
  if count is not None and count.contents() > 1:
    raise ValueError(
      f"{path} is one of {count.contents()} parts of a split GGUF file: join them with"
      " `llama-gguf-split --merge <first part> <whole>.gguf` and give the whole"
    )
  return reader


def metadata(reader: Reader) -> dict:
  return {name: field.contents() for name, field in reader.fields.items()}


def read_config(reader: Reader, **runtime) -> families.ModelConfig:
  names = [t.name for t in reader.tensors]
  return families.from_gguf(metadata(reader), names, **runtime)


def hf_name(name: str) -> str:
  """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight."""
  match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
  if match and match[2] in NAMES:
    return f"model.layers.{match[1]}.{NAMES[match[2]]}.{match[3]}"
  return TOP.get(name, name)


def half_split(rows: np.ndarray, heads: int) -> np.ndarray:
  """Rows (pair, side) of each head -> (side, pair): undoes the interleaving of rotary
  pairs in llama.cpp's llama files."""
  per_head = rows.reshape(heads, -1, 2, *rows.shape[1:])
  return per_head.swapaxes(1, 2).reshape(rows.shape)


def load_params(reader: Reader, model_config, path, shardings=None) -> dict:
  """The file's parameters, one tensor at a time; see `hf.to_params`."""
  tensors = {hf_name(t.name): t for t in reader.tensors}

  # The blocks of a tensor are read one after the other: dequantise it once.
  @functools.lru_cache(maxsize=1)
  def dequantized(name):
    tensor = tensors[name]
    try:
      value = gguf.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as e:
      raise ValueError(f"{path}: {tensor.name}: {e}") from e
    if model_config.family == "llama" and ".q_proj." in name:
      value = half_split(value, model_config.num_heads)
    if model_config.family == "llama" and ".k_proj." in name:
      value = half_split(value, model_config.num_kv_heads)
    return value.reshape(len(value), -1)

  def read(name, rows, columns):
    return dequantized(name)[rows, columns]

  # GGUF lists the fastest axis first.
  shapes = {n: tuple(int(s) for s in t.shape[::-1]) for n, t in tensors.items()}
  return hf.to_params(model_config, shapes, read, path, shardings)
