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

LISTED = 6  # tensors of each kind in a message
CONVERT = (
  "convert it with transformers,"
  " AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
)


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
    ValueError: names missing, unexpected and misshapen tensors, or one that holds
      NaN, Inf or what model_config.param_dtype cannot hold.
  """
  check_tensors(name_table(model_config), shapes, model_config.tied, source)
  dtype, tree = np_dtype(model_config.param_dtype), {}
  for path, leaf in leaves(model_config).items():
    put(tree, path, jax.ShapeDtypeStruct(leaf.shape, dtype))
  layout = {} if shardings is None else shardings(tree)
  for path, leaf in leaves(model_config).items():
    try:
      put(tree, path, assemble.array(leaf, dtype, find(layout, path), read))
    except assemble.NotFinite as e:
      raise ValueError(f"{source}: {e}") from e
  return tree


def check_tensors(table: dict, shapes: dict, tied: bool, source) -> None:
  """Raises ValueError unless the tensors are those of the table."""

  # Old files hold RoPE's frequencies, and copies of a tied embedding (`check_tied`).
  def ignored(n):
    return n.endswith("rotary_emb.inv_freq") or (n == "lm_head.weight" and tied)

  kinds = (
    [f"missing {n}" for n in table if n not in shapes],
    [f"unexpected {n}" for n in shapes if n not in table and not ignored(n)],
    [
      f"{n} has shape {tuple(shapes[n])}, expected {table[n][3]}"
      for n in table
      if n in shapes and tuple(shapes[n]) != table[n][3]
    ],
  )
  if any(kinds):
    raise ValueError(
      f"{source} does not hold the weights that its config describes:\n  "
      + "\n  ".join(line for problems in kinds for line in first(problems))
    )


def first(lines: list[str]) -> list[str]:
  """The first lines in order, and how many more there are."""
  more = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
  return sorted(lines)[:LISTED] + more


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
  """The parsed config.json; ValueError without one, and for a PEFT adapter."""
  adapter, path = (directory / f for f in ("adapter_config.json", "config.json"))
  if adapter.exists():
    base = paths.read_object(adapter).get("base_model_name_or_path")
    raise ValueError(
      f"{directory} is a PEFT adapter of {base}, expected all weights: merge them with"
      f" peft.AutoPeftModelForCausalLM.from_pretrained('{directory}')"
      ".merge_and_unload().save_pretrained(...), or export a run of this package"
      " without --adapter"
    )
  if not path.exists():
    files = sorted(p.name for p in directory.iterdir() if p.suffix == ".gguf")
    hint = f"; give one of its files, {', '.join(files[:3])}" if files else ""
    raise ValueError(f"{directory} has no config.json: not a model directory{hint}")
  return paths.read_object(path)


def weight_files(directory: pathlib.Path) -> list[pathlib.Path]:
  """The safetensors files of a model, from its index if any.

  model.safetensors beside an index of other files is read alone, as transformers
  does. Raises ValueError where a file is missing or elsewhere.
  """
  index, names = directory / "model.safetensors.index.json", ["model.safetensors"]
  if index.exists():
    weight_map = paths.read_object(index).get("weight_map")
    values = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not values:
      raise ValueError(f"{index} names no files: its weight_map is empty")
    if odd := [v for v in values if not isinstance(v, str)]:
      raise ValueError(f"{index}: its weight_map holds {odd[0]!r}, expected file names")
    indexed = sorted(set(values))
    if names[0] not in indexed and (directory / names[0]).is_file():
      print(f"{directory}: model.safetensors is read, not the files of its index")
    else:
      names = indexed
  for name in names:
    if pathlib.PurePath(str(name)).name != name:
      raise ValueError(f"{index}: file name {name!r} leaves the directory")
    if not (directory / name).is_file():
      hint = ", which its index names" if index.exists() else other_files(directory)
      raise ValueError(f"{directory / name} is missing{hint}")
  return [directory / name for name in names]


def other_files(directory: pathlib.Path) -> str:
  """What a directory without safetensors or their index holds, and what to do."""
  endings = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack")
  found = sorted(p.name for p in directory.iterdir() if p.suffix in endings)
  if not found:
    return "; pytorch_model.bin, if that is all there is, is not read: " + CONVERT
  held = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
  if found[0].endswith(".gguf"):
    return f"; {directory} holds {held}: give that file"
  return f"; {directory} holds {held} instead: {CONVERT}"


def load_params(directory: pathlib.Path, model_config, shardings=None) -> dict:
  """The parameters of a model directory; see `to_params`."""
  reader = safetensors_file.Reader(weight_files(directory))
  if model_config.tied and "lm_head.weight" in reader.shapes:
    check_tied(reader, directory)
  params = to_params(model_config, reader.shapes, reader.read, directory, shardings)
  reader.close()
  return params


def check_tied(reader, directory) -> None:
  """Raises ValueError where the file of a model whose unembedding is its embedding
  holds another unembedding. (transformers then leaves them apart.)"""
  names = "model.embed_tokens.weight", "lm_head.weight"
  shapes = [reader.shapes.get(name) for name in names]
  if shapes[0] is None:
    return  # which `check_tensors` says

  def equal(start, step):
    rows = slice(start, min(start + step, shapes[0][0]))
    a, b = (reader.read(name, rows, slice(0, shapes[0][1])) for name in names)
    return np.array_equal(a.astype(np.float32), b.astype(np.float32))

  if shapes[0] == shapes[1]:
    step = max(1, assemble.BLOCK // (4 * shapes[0][1]))
    if all(equal(start, step) for start in range(0, shapes[0][0], step)):
      return
  raise ValueError(
    f"{directory}: config.json ties the unembedding to the embedding, but lm_head.weight"
    " holds other values: set tie_word_embeddings to false there to use them, as"
    " transformers does, or remove lm_head.weight"
  )
