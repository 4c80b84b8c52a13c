"""Weights in Hugging Face format <-> our parameter tree, by one table of names."""

import pathlib

import jax
import ml_dtypes
import numpy as np

from opsd_jax.models.weights import assemble, safetensors_file
from opsd_jax.runtime import paths

# Hugging Face module -> (our path below the layer, transposed?)
LAYER = {
  "input_layernorm.weight": ("input_norm/scale", False),
  "post_attention_layernorm.weight": ("post_norm/scale", False),
  "self_attn.q_norm.weight": ("attn/q_norm/scale", False),
  "self_attn.k_norm.weight": ("attn/k_norm/scale", False),
  "self_attn.o_proj.weight": ("attn/o_proj/kernel", True),
  **{
    f"self_attn.{x}_proj.{theirs}": (f"attn/{x}_proj/{ours}", transposed)
    for x in "qkv"
    for theirs, ours, transposed in (
      ("weight", "kernel", True),
      ("bias", "bias", False),
    )
  },
  **{
    f"mlp.{x}_proj.weight": (f"mlp/{x}_proj/kernel", True)
    for x in ("gate", "up", "down")
  },
}
TOP = {
  "model.embed_tokens.weight": ("embed/embedding", False),
  "model.norm.weight": ("final_norm/scale", False),
  "lm_head.weight": ("lm_head/embedding", False),
}


def name_table(
  model_config,
) -> dict[str, tuple[str, int | None, bool, tuple[int, ...]]]:
  """Every tensor of a model: HF name -> (our path, layer, transposed, HF shape)."""
  D, F = model_config.width, model_config.mlp_width
  q, kv = (
    model_config.num_heads * model_config.head_dim,
    model_config.num_kv_heads * model_config.head_dim,
  )
  shapes = {
    "input_norm/scale": (D,),
    "post_norm/scale": (D,),
    "attn/q_proj/kernel": (q, D),
    "attn/k_proj/kernel": (kv, D),
    "attn/v_proj/kernel": (kv, D),
    "attn/o_proj/kernel": (D, q),
    "mlp/gate_proj/kernel": (F, D),
    "mlp/up_proj/kernel": (F, D),
    "mlp/down_proj/kernel": (D, F),
  }
  if model_config.qkv_bias:
    for x, size in zip("qkv", (q, kv, kv), strict=True):
      shapes[f"attn/{x}_proj/bias"] = (size,)
  if model_config.qk_norm:
    shapes |= {f"attn/{x}_norm/scale": (model_config.head_dim,) for x in "qk"}
  table = {
    f"model.layers.{i}.{name}": (path, i, transposed, shapes[path])
    for i in range(model_config.num_layers)
    for name, (path, transposed) in LAYER.items()
    if path in shapes
  }
  top = {"embed/embedding": (model_config.vocab_size, D), "final_norm/scale": (D,)}
  if not model_config.tied:
    top["lm_head/embedding"] = (model_config.vocab_size, D)
  for name, (path, transposed) in TOP.items():
    if path in top:
      table[name] = (path, None, transposed, top[path])
  return table


def leaves(model_config) -> dict[str, assemble.Leaf]:
  """Path in our tree -> array and its tensors; where layers are scanned, one array
  holds all of them."""
  names, found = {}, {}
  for name, (path, layer, transposed, shape) in name_table(model_config).items():
    stacked = layer is not None and model_config.scan_layers
    if layer is not None:
      path = f"layers/{path}" if stacked else f"layers_{layer}/{path}"
    names.setdefault(path, []).append(name)
    shape = shape[::-1] if transposed else shape
    shape = (model_config.num_layers, *shape) if stacked else shape
    found[path] = assemble.Leaf((), shape, stacked, transposed)
  return {p: x._replace(names=tuple(names[p])) for p, x in found.items()}


def to_params(model_config, shapes: dict, read, source, shardings=None) -> dict:
  """The parameter tree in model_config.param_dtype, assembled from named tensors.

  Args:
    model_config: the model.
    shapes: name -> shape of the tensors that exist.
    read: as `assemble.array` takes it.
    source: name of the file or directory, for messages.
    shardings: tree of ShapeDtypeStructs -> layouts; None leaves arrays whole on the
      default device.

  Raises:
    ValueError: names every missing, unexpected or misshapen tensor.
  """
  check_tensors(name_table(model_config), shapes, model_config.tied, source)
  dtype, tree = np_dtype(model_config.param_dtype), {}
  for path, leaf in leaves(model_config).items():
    put(tree, path, jax.ShapeDtypeStruct(leaf.shape, dtype))
  layout = {} if shardings is None else shardings(tree)
  for path, leaf in leaves(model_config).items():
    x = assemble.array(leaf, dtype, find(layout, path), read)
    put(tree, path, x)
  return tree


def check_tensors(table: dict, shapes: dict, tied: bool, source) -> None:
  """Raises ValueError unless the tensors are those of the table."""

  # Old files hold RoPE's frequencies, and copies of a tied embedding.
  def ignored(n):
    return n.endswith("rotary_emb.inv_freq") or (n == "lm_head.weight" and tied)

  problems = [f"missing {n}" for n in table if n not in shapes]
  problems += [f"unexpected {n}" for n in shapes if n not in table and not ignored(n)]
  problems += [
    f"{n} has shape {tuple(shapes[n])}, expected {table[n][3]}"
    for n in table
    if n in shapes and tuple(shapes[n]) != table[n][3]
  ]
  if problems:
    raise ValueError(
      f"{source} does not hold the weights that its config describes:\n  "
      + "\n  ".join(sorted(problems))
    )


def np_dtype(name: str) -> np.dtype:
  return np.dtype(getattr(ml_dtypes, name, name))


def find(tree: dict, path: str):
  """The leaf or subtree at "a/b/c", None without one."""
  for key in path.split("/"):
    tree = tree.get(key)
    if tree is None:
      return None
  return tree


def put(tree: dict, path: str, value) -> None:
  """Sets the leaf at "a/b/c", making the dicts above it."""
  *parents, last = path.split("/")
  for key in parents:
    tree = tree.setdefault(key, {})
  tree[last] = value


def read_config(directory: pathlib.Path) -> dict:
  path = directory / "config.json"
  if not path.exists():
    raise ValueError(f"{directory} has no config.json: not a model directory")
  return paths.read_json(path)


def weight_files(directory: pathlib.Path) -> list[pathlib.Path]:
  """The safetensors files of a model, from its index if any."""
  index = directory / "model.safetensors.index.json"
  if index.exists():
    names = sorted(set(paths.read_json(index).get("weight_map", {}).values()))
  else:
    names = ["model.safetensors"]
  for name in names:
    if pathlib.PurePath(str(name)).name != name:
      raise ValueError(f"{index}: file name {name!r} leaves the directory")
    if not (directory / name).is_file():
      raise ValueError(f"{directory / name} is missing")
  return [directory / name for name in names]


def load_params(directory: pathlib.Path, model_config, shardings=None) -> dict:
  """The parameters of a model directory; see `to_params`."""
  reader = safetensors_file.Reader(weight_files(directory))
  params = to_params(model_config, reader.shapes, reader.read, directory, shardings)
  reader.close()
  return params
