"""The arrows of the architecture, as the README draws them."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "opsd_jax"

MATH = {"structs", "pick"}
MAY_IMPORT = {
  "structs": set(),
  "pick": set(),
  "spec": set(),
  "style": set(),
  "sharding": set(),
  "files": set(),
  "memory": set(),
  "processes": {"sharding"},
  "tokenizer": {"models", "files"},
  "context": {"structs", "pick", "tasks"},
  "collate": {"structs"},
  "tasks": {"structs", "pick", "spec", "tasks"},
  "records": {"structs", "tasks"},
  "stream": set(),
  "data": {"records", "spec", "structs", "tasks", "files", "tfds_jsonl"},
  "tfds_jsonl": {"records", "structs"},
  "divergence": MATH,
  "weighting": MATH,
  "teacher": MATH,
  "pertoken": MATH | {"sharding"},
  "reinforce": MATH,
  "objective": MATH | {"divergence", "weighting", "reinforce", "teacher", "pertoken"},
  "experience": {"structs", "collate", "processes", "reinforce", "sharding", "models"},
  "optimizer": {"pick"},
  "models": {"models", "sharding", "pick", "files"},
  "draw": set(),
  "decode": {"draw", "models", "sharding"},
  "slots": {"decode", "draw", "processes"},
  "sample": {"decode", "draw", "slots", "sharding", "processes"},
  "rollout": {"draw", "sample", "context", "collate", "tasks", "structs"},
  "metrics": {"structs", "files", "style"},
  "checkpoint": {"structs", "files"},
  "statistics": set(),
  "calibration": {"statistics", "style"},
  "grades": {"statistics", "calibration", "files", "structs", "tasks"},
  "card": set(),
  "hlo": set(),
  "flops": set(),
  "watch": {"files", "processes"},
  "cells": {"files"},
  "claims": {"files", "processes"},
  "sweep": {"cells", "claims", "curves", "files", "processes", "train"},
  "curves": {"claims", "files", "style"},
}
NO_JAX = (
  "structs",
  "pick",
  "spec",
  "style",
  "tokenizer",
  "context",
  "collate",
  "tasks",
  "records",
  "data",
  "tfds_jsonl",
  "metrics",
  "files",
  "card",
  "hlo",
  "flops",
  "statistics",
  "calibration",
  "grades",
)
READ_CONFIG = {
  "objective",
  "optimizer",
  "prepare",
  "report",
  "train",
  "plan",
  "flops",
  "models",
  "cells",
  "claims",
}


def imports(path):
  """Every module a file names in an import, at any depth of the code."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(part):
  return [p for p in ROOT.rglob("*.py") if part_of(p) == part]


def part_of(path):
  return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_arrows(part):
  files = files_of(part)
  assert files
  for path in files:
    ours = {n.split(".")[1] for n in imports(path) if n.startswith("opsd_jax.")}
    assert ours <= MAY_IMPORT[part], path


@pytest.mark.parametrize("part", NO_JAX)
def test_host_modules_do_not_import_jax(part):
  for path in files_of(part):
    roots = {n.split(".")[0] for n in imports(path)}
    assert not roots & {"jax", "flax", "optax", "orbax"}, path


def test_nothing_imports_the_experiments():
  for path in ROOT.rglob("*.py"):
    roots = {n.split(".")[0] for n in imports(path)}
    assert not roots & {"experiments", "configs"}, path


def test_only_some_files_read_a_config():
  readers = {part_of(p) for p in ROOT.rglob("*.py") if "config." in p.read_text()}
  strangers = {
    p
    for p in readers - READ_CONFIG
    if any("ml_collections" in n for f in files_of(p) for n in imports(f))
  }
  assert not strangers


def test_no_pickle_no_remote_code_no_eval():
  for path in ROOT.rglob("*.py"):
    text = path.read_text()
    assert "trust_remote_code=True" not in text, path
    names = {n.split(".")[0] for n in imports(path)}
    assert not names & {"pickle", "dill", "cloudpickle"}, path
    calls = {
      node.func.id
      for node in ast.walk(ast.parse(text))
      if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"eval", "exec"}, path
