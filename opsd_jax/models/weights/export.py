"""Export to a Hugging Face directory, one tensor at a time.

The model is never whole in host memory: each tensor is gathered from its devices,
merged with its adapter, if any, and written before the next.
"""

import contextlib
import functools
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from opsd_jax.models import families
from opsd_jax.models.weights import hf, safetensors_file
from opsd_jax.runtime import paths


def export(
  directory,
  model_config,
  params,
  tokenizer,
  *,
  card: str,
  adapter=None,
  alpha: float | None = None,
  max_shard_bytes: float = 5e9,
  dtype=None,
  generation_config: dict | None = None,
) -> None:
  """Writes a model that transformers and `opsd_jax.load_model` read.

  Of several processes all must call it, and process 0 writes.

  Args:
    directory: new or empty.
    model_config, params, tokenizer: the model.
    card: text of README.md.
    adapter: merged into the weights: kernel + alpha / r * a @ b.
    alpha: of the adapter.
    max_shard_bytes: of one file of weights.
    dtype: of the written values; by default model_config.param_dtype.
    generation_config: sampling settings to write beside the ends of a response.

  Raises:
    ValueError: the directory is not empty, tokenizer or adapter belong to another
      model, or a weight is too large for `dtype`; nothing is written then.
  """
  if adapter is not None and alpha is None:
    raise ValueError("adapter is given without alpha, expected both")
  if adapter is not None:
    adapted(model_config, adapter)
  tokenizer.check_fits(model_config.vocab_size)
  dtype = dtype or model_config.param_dtype
  table = hf.name_table(model_config)
  read = functools.partial(
    hf_tensor, model_config, params, adapter=adapter, alpha=alpha
  )
  if jnp.finfo(dtype).max < jnp.finfo(model_config.param_dtype).max:
    check_range(table, dtype, read)
  with new_directory(directory) as new:
    if jax.process_index() == 0:
      write_metadata(new, model_config, tokenizer, dtype, card, generation_config or {})
    write_weights(
      new, {n: row[3] for n, row in table.items()}, dtype, read, max_shard_bytes
    )


def export_adapter(
  directory, model_config, adapter, *, alpha: float, base: str, card: str
) -> None:
  """Writes an adapter, in float32, that peft loads beside its base.

  Args:
    directory: new or empty.
    model_config, adapter: the adapter and the sizes of its base.
    alpha: scales the adapter's product by alpha / r.
    base: name of the base, as from_pretrained takes it.
    card: text of README.md.
  """
  modules = adapted(model_config, adapter)
  tensors = {}  # PEFT's name -> (shape, () -> values)
  for module, (a, b, layer) in modules.items():
    for side, x in (("A", a), ("B", b)):
      name = f"base_model.model.{module}.lora_{side}.weight"
      shape = x.shape[-1], x.shape[-2]
      tensors[name] = shape, lambda x=x, i=layer: to_host(x, i).T
  ranks = {b.shape[-2] for _, b, _ in modules.values()}
  if len(ranks) != 1:
    raise ValueError(f"the adapter has ranks {sorted(ranks)}, expected one")
  config = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": ranks.pop(),
    "lora_alpha": alpha,
    "lora_dropout": 0.0,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "base_model_name_or_path": base,
    "target_modules": targets(model_config, modules),
  }
  with new_directory(directory) as new:
    if jax.process_index() == 0:
      write_json(new / "adapter_config.json", config)
      (new / "README.md").write_text(card)
    shapes = {name: shape for name, (shape, _) in tensors.items()}
    write_file(
      new / "adapter_model.safetensors",
      shapes,
      "float32",
      lambda name: tensors[name][1](),
    )


# ----------------------------------------------------------------- content


def hf_tensor(model_config, params, name, *, adapter=None, alpha=None) -> np.ndarray:
  """One tensor in Hugging Face's orientation, merged with its adapter; numpy."""
  path, layer, transposed, _ = hf.name_table(model_config)[name]
  path, layer = path_in_tree(model_config, path, layer)
  value = to_host(hf.find(params, path), layer)
  pair = hf.find(adapter or {}, path.rpartition("/")[0])
  if path.endswith("/kernel") and pair is not None:
    a, b = (to_host(pair[x], layer) for x in ("lora_a", "lora_b"))
    product = a.astype(np.float32) @ b.astype(np.float32)
    value = value.astype(np.float32) + np.float32(alpha / a.shape[1]) * product
  return value.T if transposed else value


def path_in_tree(model_config, path: str, layer: int | None):
  """(path of an array in our tree, index into it where layers are stacked)."""
  if layer is None:
    return path, None
  if model_config.scan_layers:
    return f"layers/{path}", layer
  return f"layers_{layer}/{path}", None


def to_host(x, layer: int | None = None) -> np.ndarray:
  """An array, or one layer of a stack, gathered in host memory."""
  # jax caches the host values of an array for as long as the array lives: take them
  # from a copy that does not.
  x = (
    jnp.copy(x)
    if layer is None
    else jax.lax.dynamic_index_in_dim(x, layer, keepdims=False)
  )
  if x.is_fully_addressable:
    return np.asarray(x)
  return multihost_utils.process_allgather(x, tiled=True)


def adapted(model_config, adapter) -> dict:
  """Hugging Face module -> (lora_a, lora_b, index of the layer in them or None).

  Raises ValueError where an array of the adapter has no kernel in the model.
  """
  found, used = {}, 0
  for name, (path, layer, *_) in hf.name_table(model_config).items():
    path, layer = path_in_tree(model_config, path, layer)
    pair = hf.find(adapter, path.rpartition("/")[0])
    if path.endswith("/kernel") and pair is not None:
      module = name.removesuffix(".weight")
      found[module] = pair["lora_a"], pair["lora_b"], layer
      used += 2 if not layer else 0  # a stack counts once
  if not used or used != len(jax.tree.leaves(adapter)):
    raise ValueError(
      f"the adapter has {len(jax.tree.leaves(adapter))} arrays, of which {used}"
      " belong to a kernel of the model; expected all"
    )
  return found


def targets(model_config, modules) -> list[str]:
  """PEFT's target_modules: module names where all layers adapt the same ones, else
  full paths."""
  names = sorted({m.rpartition(".")[2] for m in modules})
  alike = len(modules) == len(names) * model_config.num_layers
  return names if alike else sorted(modules)


# ----------------------------------------------------------------- writing


def check_range(names, dtype, read) -> None:
  """Raises ValueError where `dtype` cannot hold a weight; `read`: name -> values."""
  limit = float(jnp.finfo(dtype).max)
  for name in names:
    size = float(np.abs(read(name).astype(np.float32)).max())
    if not size <= limit:
      raise ValueError(
        f"{name} holds a weight of size {size:.6g}, {dtype} at most {limit:.6g}: export"
        " another dtype"
      )


def write_metadata(
  new, model_config, tokenizer, dtype, card, generation_config: dict
) -> None:
  """Writes everything but the weights."""
  ids = {
    "bos_token_id": tokenizer.inner.bos_token_id,
    "eos_token_id": list(tokenizer.eos_ids),
    "pad_token_id": tokenizer.pad_id,
  }
  config = families.to_hf(model_config) | ids | {"torch_dtype": dtype}
  write_json(new / "config.json", config)
  known = {name: i for name, i in ids.items() if i is not None}
  write_json(new / "generation_config.json", generation_config | known)
  tokenizer.save(new)
  (new / "README.md").write_text(card)


def write_weights(new, shapes: dict, dtype, read, max_shard_bytes) -> None:
  """Writes model.safetensors, or numbered files of at most max_shard_bytes each (a
  larger tensor alone in its file) and their index.

  Args:
    new: the directory.
    shapes: name -> shape of every tensor.
    dtype: of the written values.
    read: name -> numpy array.
    max_shard_bytes: of one file.
  """

  def size(n):
    return int(np.prod(shapes[n])) * hf.np_dtype(dtype).itemsize

  files, free_bytes = [[]], max_shard_bytes
  for name in shapes:
    if files[-1] and size(name) > free_bytes:
      files.append([])
      free_bytes = max_shard_bytes
    files[-1].append(name)
    free_bytes -= size(name)

  def number(i):
    return f"model-{i + 1:05}-of-{len(files):05}.safetensors"

  names = list(map(number, range(len(files))))
  if len(files) == 1:
    names = ["model.safetensors"]
  elif jax.process_index() == 0:
    weight_map = {n: f for f, part in zip(names, files, strict=True) for n in part}
    total = sum(map(size, shapes))
    write_json(
      new / "model.safetensors.index.json",
      {"metadata": {"total_size": total}, "weight_map": weight_map},
    )
  for name, part in zip(names, files, strict=True):
    write_file(new / name, {n: shapes[n] for n in part}, dtype, read)


def write_file(path, shapes: dict, dtype, read) -> None:
  """Writes one safetensors file; processes but 0 only take part in gathering."""
  if jax.process_index() == 0:
    safetensors_file.write(path, shapes, hf.np_dtype(dtype), read)
  else:
    for name in shapes:
      read(name)


def write_json(path, content: dict) -> None:
  path.write_text(json.dumps(content, indent=2) + "\n")


def check_new(directory) -> pathlib.Path:
  """The directory; ValueError unless it is local, and new or empty."""
  if paths.is_remote(directory):
    raise ValueError(
      f"{directory} is in an object store: give a local directory and copy it"
    )
  directory = pathlib.Path(directory)
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise ValueError(f"{directory} exists: give a directory that is new or empty")
  return directory


@contextlib.contextmanager
def new_directory(directory):
  """Yields a temporary directory that is renamed to `directory` at the end, and
  removed on an error; ValueError as `check_new`."""
  first = jax.process_index() == 0
  directory = check_new(directory) if first else pathlib.Path(directory)
  unfinished = directory.absolute().with_name(f"{directory.name}.unfinished")
  if first:
    shutil.rmtree(unfinished, ignore_errors=True)  # of a killed export
    unfinished.mkdir(parents=True)
  try:
    yield unfinished
    if first:
      os.replace(unfinished, directory)
  except BaseException:
    if first:
      shutil.rmtree(unfinished, ignore_errors=True)
    raise
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"export to {directory}")
