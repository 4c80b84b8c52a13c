"""Imports point down one ordered list, and every file has its place in it."""

import ast
import pathlib

import pytest

from configs import base

HERE = pathlib.Path(__file__).parents[1]
ROOT = HERE / "opsd_jax"

# Each part may import the parts of the lines above it, and itself.
ORDER = (
  ("structs", "registry", "spec"),
  ("runtime",),
  ("tasks",),
  ("data",),
  ("models",),
  ("losses",),
  ("sampling",),
  ("rollouts",),
  ("reporting",),
  ("rules",),
  ("problems",),
  ("setup",),
  ("evaluation",),
  ("train",),
  ("planning", "sweeps", "api"),
)
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}

JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
NO_JAX = ("structs", "registry", "spec", "tasks", "data") + tuple(
  f"rollouts.{name}"
  for name in (
    "contexts",
    "contexts_after",
    "routing",
    "advantages",
    "collate",
    "sources",
  )
)
MATHEMATICS = {"structs", "registry"}  # beside their own kind
CONFIG_TO_OBJECTIVE = "losses.objective"

# Files that take fields of the experiment's ConfigDict; the others are given
# values.
READ_CONFIG = {
  "evaluation.evaluated_model",
  "losses.controllers",
  "losses.objective",
  "losses.optimizer",
  "planning.account",
  "planning.compile",
  "planning.flops",
  "problems",
  "reporting.console",
  "reporting.self_checks",
  "reporting.step_metrics",
  "rollouts.collect",
  "rollouts.answering",
  "rules",
  "rules.numbers",
  "rules.targets",
  "rules.unread",
  "setup",
  "train",
}


def name_of(path):
  """`opsd_jax/losses/chunked.py` -> "losses.chunked"; a package is its name."""
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts).removesuffix("__init__").removesuffix(".")


FILES = {name_of(p): p for p in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def part_of(name):
  return name.partition(".")[0]


def imports(name):
  """Every module that a file names in an import, at any depth of its code."""
  for node in ast.walk(TREES[name]):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{name} imports relatively, line {node.lineno}"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(name):
  """The files of this package that a file imports, by their names."""
  found = set()
  for target in imports(name):
    if target.partition(".")[0] == "opsd_jax":
      target = target.removeprefix("opsd_jax").removeprefix(".")
      while target and target not in FILES:
        target = target.rpartition(".")[0]
      found.add(target)
  return found


def test_every_file_has_a_place():
  assert not {name for name in FILES if name and part_of(name) not in RANK}


@pytest.mark.parametrize("name", [n for n in FILES if n])
def test_imports_point_down(name):
  part = part_of(name)
  for target in ours(name):
    other = part_of(target)
    assert other, f"{name} imports the package itself, which imports api and train"
    lower = RANK.get(other, len(RANK)) < RANK.get(part, -1)
    assert other == part or lower, f"{name} imports {target}, which is not below it"


@pytest.mark.parametrize("name", [n for n in FILES if part_of(n) == "losses"])
def test_mathematics_sees_arrays(name):
  if name in ("losses", CONFIG_TO_OBJECTIVE):
    return
  allowed = MATHEMATICS | (
    {"runtime.sharding_rules"} if name == "losses.chunked" else set()
  )
  strangers = {t for t in ours(name) if part_of(t) != "losses"} - allowed
  assert not strangers
  assert CONFIG_TO_OBJECTIVE not in ours(name)


@pytest.mark.parametrize(
  "name", [n for n in FILES if n in NO_JAX or part_of(n) in NO_JAX]
)
def test_host_modules_do_not_import_jax(name):
  """Neither themselves nor through what they import."""
  seen, waiting = set(), [name]
  while waiting:
    module = waiting.pop()
    roots = {n.partition(".")[0] for n in imports(module)}
    assert not roots & JAX, f"{name} imports jax in {module}"
    new = ours(module) - seen
    for target in list(new):
      if part_of(target) in FILES:
        new.add(part_of(target))  # a package's __init__ runs too
    seen |= new
    waiting += new


def test_models_never_see_losses():
  for name in FILES:
    if part_of(name) == "models":
      assert not {t for t in ours(name) if part_of(t) == "losses"}, name


def test_nothing_imports_the_experiments():
  """But rules, which knows every field's value in configs/base.py."""
  for name in FILES:
    roots = {n.partition(".")[0] for n in imports(name)}
    known = {"configs"} if part_of(name) == "rules" else set()
    assert not roots & {"experiments", "configs", "tests"} - known, name


def fields_read(tree, fields, nodes):
  """(line, field) of what code takes from a `config`: `config.loss.chunk`,
  `c = config.loss`, `**config.mesh`, `config["loss"]`, `getattr(config, "loss")`.
  """

  def is_config(node):
    name = getattr(node, "id", getattr(node, "attr", None))
    return name == "config"  # a variable, or a field that holds one

  for node in ast.walk(tree):
    field = None
    if isinstance(node, ast.Attribute) and is_config(node.value):
      field = node.attr
    elif isinstance(node, ast.Subscript) and is_config(node.value):
      field = getattr(node.slice, "value", None)
      field = field if field in nodes else None  # a flat dict has "steps" too
    elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
      if is_config(node.args[0]):
        field = getattr(node.args[1], "value", None)
    if field in fields:
      yield node.lineno, field


def test_only_some_files_read_a_config():
  fields = set(base.get_config())
  nodes = {f for f in fields if hasattr(base.get_config()[f], "keys")}
  found = {name: list(fields_read(TREES[name], fields, nodes)) for name in FILES}
  readers = {name for name, read in found.items() if read}
  strangers = {name: found[name] for name in readers - READ_CONFIG}
  assert not strangers
  assert not READ_CONFIG - readers, "no reader any more: take it off the list"


def test_no_pickle_no_remote_code_no_eval():
  for name, tree in TREES.items():
    assert "trust_remote_code=True" not in FILES[name].read_text(), name
    roots = {n.partition(".")[0] for n in imports(name)}
    assert not roots & {"pickle", "dill", "cloudpickle"}, name
    calls = {
      node.func.id
      for node in ast.walk(tree)
      if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"eval", "exec"}, name
