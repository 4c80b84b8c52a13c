"""What README.md and configs/README.md say is so: names, paths, commands, fields."""

import ast
import functools
import importlib
import importlib.util
import inspect
import pathlib
import re
import shlex
import types

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from configs import base
from experiments import document_configs
from opsd_jax import train
from opsd_jax.losses import token_weights
from opsd_jax.registry import bind

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [
  p.relative_to(ROOT).as_posix()
  for p in (
    ROOT / "README.md",
    ROOT / "configs" / "README.md",
    *sorted((ROOT / "experiments").rglob("README.md")),
  )
]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.M | re.S)
PROSE = re.sub(r"^```.*?^```", "", README, flags=re.M | re.S)
SPANS = sorted(set(re.findall(r"`([^`\n]+)`", PROSE)))
FIELDS = document_configs.leaves(base.get_config())
# Modules by the end of their path: `chunked.loss` is of opsd_jax/losses/chunked.py.
MODULES = {}
for top in ("opsd_jax", "configs", "experiments", "tests"):
  for path in (ROOT / top).rglob("*.py"):
    parts = path.relative_to(ROOT).with_suffix("").parts
    for start in range(len(parts)):
      MODULES.setdefault(".".join(parts[start:]), []).append(path)


def test_configs_readme_is_what_the_script_writes():
  written = (ROOT / "configs" / "README.md").read_text()
  assert written == document_configs.document(), f"run {document_configs.COMMAND}"


def test_every_config_has_its_row():
  written = (ROOT / "configs" / "README.md").read_text()
  for path in (ROOT / "configs").glob("*.py"):
    if not path.name.startswith(("__", "base")):
      assert f"({path.name})" in written, f"run {document_configs.COMMAND}"


@pytest.mark.parametrize(
  "lines,comment",
  [
    ("  config.a = 1  # tokens", "tokens"),
    ("  # above\n  # it\n  config.a = 1  # behind", "above it behind"),
    ("  # apart\n\n  config.a = '#no'", ""),
    ("  config.a = (\n    1,  # one\n  )  # all", "one all"),
    ("  config.b = 2  # other\n  config.a = 1", ""),
  ],
)
def test_a_comment_is_that_of_its_field(lines, comment):
  source = f"def f(config):\n{lines}\n"
  assert {f.path: f.comment for f in document_configs.fields_of(source)}["a"] == comment


def test_entries_of_a_node_are_fields():
  source = 'def f(t):\n  # names\n  t.a = ConfigDict({"name": "x", "k": 1})  # count\n'
  found = [(f.path, f.comment) for f in document_configs.fields_of(source)]
  assert found == [("a.name", "names"), ("a.k", "count")]


# ---------------------------------------------------------------- names and paths


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
  text = (ROOT / page).read_text()
  for link in re.findall(r"\]\(([^)\s]+)\)", text):
    if "://" in link:
      continue
    path, _, anchor = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    assert target.exists(), f"{page} links to {link}"
    if anchor:
      headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
      known = {re.sub(r"[^\w\s-]", "", h.lower()).replace(" ", "-") for h in headings}
      assert anchor in known, f"{page} links to {link}; there are {sorted(known)}"


def is_path(span: str) -> bool:
  """`losses/chunked.py`, `configs/`, `.ci/run`; no output of a run, no option."""
  plain = re.fullmatch(r"[\w./-]+", span)
  known = {p.name for top in (ROOT, ROOT / "opsd_jax") for p in top.iterdir()}
  is_file = re.search(r"\.(py|md|sh|toml|txt|ipynb|yaml)$", span)
  return bool(plain and (is_file or "/" in span and span.split("/")[0] in known))


def exists(span: str) -> bool:
  """From the root, or from the package: README says which files it means there."""
  return any((top / span).exists() for top in (ROOT, ROOT / "opsd_jax"))


# The worked example writes it.
EXAMPLE = "configs/likely.py"


@pytest.mark.parametrize("span", [s for s in SPANS if is_path(s)])
def test_paths_exist(span):
  assert exists(span) or span == EXAMPLE, f"README.md names {span}"


def test_paths_are_found():
  assert len([s for s in SPANS if is_path(s)]) > 20


@functools.cache
def defined(path) -> set[str]:
  """Functions, classes and variables of a file, at any depth."""
  nodes = list(ast.walk(ast.parse(path.read_text())))
  functions = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
  return functions | {n.id for n in nodes if isinstance(n, ast.Name)}


def is_field(name: str) -> bool:
  """A field or node of a config, in the notation of configs/README.md or not."""
  name = name.removeprefix("config.")
  name = name.replace("<term>", "distill").replace("<target>", "teacher")
  kinds = [name] + [name.replace("distill", kind) for kind in base.KINDS]
  return any(f == k or f.startswith(f"{k}.") for f in FIELDS for k in kinds)


def problem_with(dotted: str) -> str | None:
  """What is wrong with `module.function` or `node.field`."""
  if is_field(dotted) or dotted in MODULES:
    return None
  module, _, name = dotted.rpartition(".")
  paths = MODULES.get(module, [])
  if any(name in defined(path) for path in paths):
    return None
  return "neither a config field nor a name of a module"


DOTTED = re.compile(r"[a-z_]+(\.[A-Za-z_<>]+)+")


@pytest.mark.parametrize(
  "span", [s.split("=")[0] for s in SPANS if DOTTED.fullmatch(s.split("=")[0])]
)
def test_module_functions_and_fields_exist(span):
  if is_path(span) or re.search(r"\.(jsonl?|png|gguf|py)$", span):
    return
  assert problem_with(span) is None, f"README.md names {span}: {problem_with(span)}"


@pytest.mark.parametrize("name", ["chunked.lose", "loss.distil.scale", "trains.learn"])
def test_a_wrong_name_is_found(name):
  assert DOTTED.fullmatch(name) and problem_with(name)


# ----------------------------------------------------------------- code and commands


@pytest.mark.parametrize(
  "code", [c for kind, c in BLOCKS if kind == "python"], ids=lambda c: c[:30]
)
def test_python_parses_and_imports_what_exists(code):
  for node in ast.walk(ast.parse(code)):
    if isinstance(node, ast.ImportFrom):
      module = importlib.import_module(node.module)
      for alias in node.names:
        submodule = f"{node.module}.{alias.name}"
        assert hasattr(module, alias.name) or importlib.util.find_spec(submodule)


def test_the_loop_is_the_three_calls():
  """The lines of the README, in this order, in train.learn."""
  (code,) = (c for kind, c in BLOCKS if kind == "python" and "collect.collect(" in c)
  source, place = inspect.getsource(train.learn), 0
  for line in code.strip().splitlines():
    place = source.find(line.partition("#")[0].strip(), place)
    assert place >= 0, f"train.learn does not say {line!r}"


COMMANDS = [
  line
  for kind, code in BLOCKS
  if kind == "bash"
  for line in code.replace("\\\n", "").splitlines()
  if "python -m" in line
]
CONFIGS = sorted(
  set(re.findall(r"configs/\w+\.py(?::[\w,=]+)?", README))
  - {EXAMPLE, "configs/base.py", "configs/base_loss.py"}
)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_what_exists(command):
  words = shlex.split(command, comments=True)
  module = words[-words[::-1].index("-m")]
  assert importlib.util.find_spec(module), command
  for flag in (w for w in words if w.startswith("--config.")):
    assert is_field(flag.removeprefix("--").partition("=")[0]), flag


@pytest.mark.parametrize("config", [c for c in CONFIGS if "<" not in c])
def test_configs_can_be_read(config):
  path, _, argument = config.partition(":")
  importlib.import_module(f"configs.{pathlib.Path(path).stem}").get_config(
    argument or None
  )


def test_ci_runs_the_tests_of_the_readme():
  """Its first line with `-m pytest` is a command for a fresh machine."""
  line = next(x for x in README.splitlines() if "-m pytest" in x)
  assert line.startswith("python3 -m venv .venv && ")
  assert "grep -m 1 -e '-m pytest' README.md" in (ROOT / ".ci" / "run").read_text()


def test_ruff_is_one_version():
  (pin,) = re.findall(
    r"^ruff==[\d.]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE
  )
  hooks = (ROOT / ".pre-commit-config.yaml").read_text()
  assert set(re.findall(r"ruff==[\d.]+", hooks)) == {pin}


# --------------------------------------------------------------------- signatures

ROW = re.compile(
  r"^\| (?P<new>[^|]+) \| `\((?P<names>[^)`]*)\)`[^|]*"
  r"\| \[`(?P<path>[^`]+\.py)`\]\([^)]*\) (?P<tables>[^|]+) \|",
  re.M,
)
ROWS = [
  (m["new"], m["names"], m["path"], table)
  for m in ROW.finditer(README)
  for table in re.findall(r"`(\w+)`", m["tables"])
]


@pytest.mark.parametrize("new,names,path,table", ROWS, ids=[r[0] for r in ROWS])
def test_signatures_are_those_of_the_code(new, names, path, table):
  module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
  functions = getattr(importlib.import_module(f"opsd_jax.{module}"), table)
  names = [name.strip() for name in names.split(",") if name.strip()]
  for function in functions.values():
    parameters = list(inspect.signature(function).parameters)
    assert parameters[: len(names)] == names, function


def test_rows_are_found():
  assert len({new for new, *_ in ROWS}) == 18


# -------------------------------------------------------------------- the example


def test_the_worked_example_works():
  """As a reader puts it into the two files that it names."""
  code, field = (c for _, c in BLOCKS if "likely" in c and c.startswith("# "))
  lines = [x for x in (code + field).splitlines() if x.strip() and x[0] != "#"]
  assert len(lines) <= 12
  of_file, term = dict(vars(token_weights)), base.term("distill")
  exec(code, of_file)
  exec(field, {"t": term})
  weight = bind(of_file["ALL"], ConfigDict({**term.token_weight, "name": "likely"}))
  tokens = types.SimpleNamespace(mask_BxT=jnp.array([1.0, 1.0, 0.0]))
  stats = types.SimpleNamespace(teacher_logp_BxT=jnp.log(jnp.array([0.003, 0.5, 0.5])))
  assert weight(stats, tokens).tolist() == [0, 1, 0]
