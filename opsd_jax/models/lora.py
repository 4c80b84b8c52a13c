"""LoRA: a small trainable tree beside frozen weights (arXiv:2106.09685).

An adapter is a tree with the paths of the parameters. Where those have an adapted
`kernel`, it has `lora_a` (in x r) and `lora_b` (r x out), stacked where layers are.
`join` merges both trees; the model's dense layers add the low-rank product wherever
the tree has one, so the base alone is the model without its adapter. There is no
dropout.
"""

import re

import jax
import jax.numpy as jnp


def init(params, key: jax.Array, *, targets: str, rank: int):
  """A new adapter: a ~ U(-1/sqrt(in), 1/sqrt(in)), b = 0, both float32.

  Args:
    params: the base.
    key: a random key.
    targets: regular expression that the whole name of a module must match, such
      as "(q|v)_proj".
    rank: r.

  Raises:
    ValueError: the pattern is invalid or matches no module.
  """
  adapter = {}
  for path, kernel in kernels(params, targets):
    *layers, d_in, d_out = kernel.shape
    key, kernel_key = jax.random.split(key)
    a = jax.random.uniform(kernel_key, (*layers, d_in, rank), minval=-1.0, maxval=1.0)
    put(
      adapter,
      path,
      {"lora_a": a * d_in**-0.5, "lora_b": jnp.zeros((*layers, rank, d_out))},
    )
  return adapter


def kernels(params, targets: str):
  """(module path, kernel) of every module that `targets` matches."""
  check(targets)
  found, names = [], set()

  def visit(tree, path):
    for name, child in sorted(tree.items()):
      if not isinstance(child, dict):
        continue
      if "kernel" in child:
        names.add(name)
        if re.fullmatch(targets, name):
          found.append(((*path, name), child["kernel"]))
      visit(child, (*path, name))

  visit(params, ())
  if not found:
    raise ValueError(
      f"lora.targets is {targets!r}, which matches none of the model's modules:"
      f" {', '.join(sorted(names))}"
    )
  return found


def check(targets: str) -> None:
  """Raises ValueError where `targets` is not a regular expression."""
  try:
    re.compile(targets)
  except re.error as e:
    raise ValueError(
      f"lora.targets is {targets!r}, not a regular expression: {e}"
    ) from e


def put(tree: dict, path, value) -> None:
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = value


def join(base: dict, trained: dict) -> dict:
  """One tree of the leaves of both, `trained` first; no array is copied."""
  both = dict(base)
  for name, value in trained.items():
    inner = both.get(name)
    both[name] = join(inner, value) if isinstance(inner, dict) else value
  return both
