"""Writes configs/README.md: every field of the base config, and every method.

  python -m experiments.document_configs

A field's meaning is its comment in base.py or base_loss.py: the block above its line, and what
stands behind it. A method's row is its file's docstring and what the file sets.
"""

import ast
import importlib
import inspect
import io
import pathlib
import re
import tokenize
from typing import NamedTuple

from configs import base, base_loss

CONFIGS = pathlib.Path(base.__file__).parent
PATH = CONFIGS / "README.md"
COMMAND = "python -m experiments.document_configs"

# Functions of base.py that make one node for several paths: how the table writes
# these paths, and which they are at first.
BUILDERS = {
  "memory": ("<memory>", ("teacher", "reference")),
  "target": ("targets.<target>", ("targets.teacher", "targets.reference")),
  "term": ("loss.<term>", tuple(f"loss.{kind}" for kind in base.KINDS)),
  **{f.__name__: ("loss.<term>", (f"loss.{kind}",)) for kind, f in base.KINDS.items()},
}
HELPERS = ("shrink", "with_external", "external_teacher")  # they make no field
UNITS = (
  "tokens|steps|seconds|nats|MiB|problems|prompts|responses|rollouts|replies"
  "|rounds|rows|devices"
)
# Where a comment begins with it ("synced: steps", "optimiser steps on ...") or ends
# with it ("address space of each, MiB"), or a field's name does ("warmup_steps").
UNIT = re.compile(
  r"(?:\w+(?:, \w+)*: )?(?:(?:last|bad|optimiser|sampled|unrelated) )?"
  rf"({UNITS})\b(?! (?:are|split))|.*, ({UNITS})$"
)
UNIT_OF_NAME = re.compile(rf".*[._]({UNITS})$")


class Field(NamedTuple):
  """One assignment of base.py."""

  function: str
  path: str  # below the function's node, as "divergence.name"
  comment: str


# ------------------------------------------------------------------- base.py


def comments(source: str) -> dict[int, tuple[str, bool]]:
  """{line: (comment, whether it has the line for itself)}."""
  lines, found = source.splitlines(), {}
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      line = token.start[0]
      alone = lines[line - 1].strip() == token.string
      found[line] = token.string.removeprefix("#").strip(), alone
  return found


def comments_of(node, known: dict[int, tuple[str, bool]]) -> tuple[str, str]:
  """The comment directly above a statement, and the one on its own lines."""
  first = node.lineno
  while known.get(first - 1, ("", False))[1]:
    first -= 1

  def joined(lines):
    return " ".join(known[line][0] for line in lines if line in known)

  return (
    joined(range(first, node.lineno)),
    joined(range(node.lineno, node.end_lineno + 1)),
  )


def assigned(target) -> list[str]:
  """`config.mesh.data` -> ["mesh.data"]; the names of a tuple; [] of variables."""
  if isinstance(target, ast.Tuple):
    return [path for element in target.elts for path in assigned(element)]
  names = []
  while isinstance(target, ast.Attribute):
    names.insert(0, target.attr)
    target = target.value
  return [".".join(names)] if names and isinstance(target, ast.Name) else []


def entries(value) -> list[str]:
  """The names in `ConfigDict({"name": ...})`."""
  given = value.args if isinstance(value, ast.Call) else []
  return [k.value for d in given if isinstance(d, ast.Dict) for k in d.keys]


def fields_of(source: str) -> list[Field]:
  """The assignments to config nodes, in the order of the file."""
  known, found = comments(source), []
  for function in ast.parse(source).body:
    if not isinstance(function, ast.FunctionDef) or function.name in HELPERS:
      continue
    for node in ast.walk(function):
      if not isinstance(node, ast.Assign):
        continue
      above, behind = comments_of(node, known)
      for path in assigned(node.targets[0]):
        below = entries(node.value)  # a node that is filled on the spot
        names = [f"{path}.{name}" for name in below] or [path]
        said = [above] + [""] * (len(names) - 1)
        said[-1] = f"{said[-1]} {behind}".strip()
        for name, comment in zip(names, said, strict=True):
          found.append((node.lineno, Field(function.name, name, comment)))
  return [field for _, field in sorted(found, key=lambda pair: pair[0])]


def all_fields() -> list[Field]:
  """Those of base.py, the loss's where they stand in a config."""
  of_run, of_loss = (
    fields_of((CONFIGS / name).read_text()) for name in ("base.py", "base_loss.py")
  )
  names = [field.function for field in of_run]
  last = len(names) - names[::-1].index("loss")
  return of_run[:last] + of_loss + of_run[last:]


# ------------------------------------------------------------------- the tables


def leaves(config, path="") -> dict:
  """{dotted path: value} of every field."""
  if not hasattr(config, "items"):
    return {path: config}
  return {
    name: leaf
    for key, value in config.items()
    for name, leaf in leaves(value, f"{path}.{key}" if path else key).items()
  }


def paths_of(field: Field) -> tuple[str, list[str]]:
  """(how the table writes a field, its paths in a config)."""
  if field.function not in BUILDERS:
    return field.path, [field.path]
  shown, nodes = BUILDERS[field.function]
  return f"{shown}.{field.path}", [f"{node}.{field.path}" for node in nodes]


def default_of(paths, values: dict) -> str:
  """A field's defaults: one, where its nodes agree."""
  return ", ".join(dict.fromkeys(code(repr(values[path])) for path in paths))


def unit_of(path: str, comment: str, nodes: dict) -> str:
  """What a field counts; `nodes` are the units of whole nodes."""
  if found := UNIT.match(comment):
    return found[1] or found[2]
  found = UNIT_OF_NAME.match(path)
  return found[1] if found else nodes.get(path.rpartition(".")[0], "")


def builder(function: str):
  """The function of this name, of base.py or of base_loss.py."""
  return getattr(base, function, None) or getattr(base_loss, function)


def heading(function: str) -> str:
  """The heading of a function of base.py, and what it says of itself."""
  if function == "get_config":
    return "The run"
  doc = " ".join(inspect.getdoc(builder(function)).split())
  name = function
  if function in BUILDERS:
    kind = "".join(f", kind={k}" for k, f in base.KINDS.items() if f.__name__ == name)
    name = code(BUILDERS[function][0] + kind)
  return f"{name}\n\n{prose(doc)}"


def field_tables() -> str:
  """Markdown of every field of base.py and base_loss.py. ValueError where a field of the base config has no
  row, or a row no field."""
  values = leaves(base.get_config())
  missing, parts, function, nodes = set(values), [], None, {}
  for field in all_fields():
    shown, paths = paths_of(field)
    if field.function != function:
      function = field.function
      parts += ["", f"### {heading(function)}", ""]
      parts += ["| field | default | unit | meaning |", "|---|---|---|---|"]
    unit = unit_of(shown, field.comment, nodes)
    is_node = any(name.startswith(f"{path}.") for path in paths for name in values)
    if is_node:
      nodes[shown] = unit
      if not field.comment:
        continue
    elif not all(path in values for path in paths):
      raise ValueError(f"configs/base.py assigns {shown}, which no base config has")
    missing -= set(paths)
    default = "" if is_node else default_of(paths, values)
    parts.append(row(code(shown), default, unit, prose(field.comment)))
  if missing:
    raise ValueError(
      f"no row of the table is {', '.join(sorted(missing))}: does a new function of"
      " configs/base.py make it? Name it in BUILDERS of experiments/document_configs.py"
    )
  return "\n".join(parts).strip()


def method_table() -> str:
  """Markdown of every config file."""
  rows = ["| config | method | paper | sets, beside `base.py` | arguments |"]
  rows.append("|---|---|---|---|---|")
  for name in names():
    module = importlib.import_module(f"configs.{name}")
    title = module.__doc__.strip().split("\n\n")[0]
    papers = dict.fromkeys(re.findall(r"arXiv:(\d{4}\.\d{4,5})", module.__doc__))
    links = ", ".join(f"[{p}](https://arxiv.org/abs/{p})" for p in papers)
    text = re.sub(r"\s*\((?:[^()]*, )?arXiv:[^()]*\)", "", " ".join(title.split()))
    changed = "<br>".join(code(change) for change in changes(module.get_config()))
    arguments = " ".join(inspect.getdoc(module.get_config).split())
    arguments = arguments.removeprefix("`arg`: ")
    rows.append(row(f"[`{name}`]({name}.py)", prose(text), links, changed, arguments))
  return "\n".join(rows)


def names() -> list[str]:
  """The methods: every config file but base.py."""
  return sorted(
    p.stem for p in CONFIGS.glob("*.py") if not p.stem.startswith(("__", "base"))
  )


def changes(config) -> list[str]:
  """`field=value` of every field that differs from configs/base.py."""
  there = leaves(base.get_config())
  now = leaves(config)
  return [f"{k}={v}" for k, v in now.items() if k not in there or there[k] != v]


def code(text: str) -> str:
  """A code span; a table's cell ends at a bare |."""
  return f"`{text}`".replace("|", "\\|")


def prose(text: str) -> str:
  """A comment or docstring as Markdown that shows it as it is."""
  return re.sub(r"([|<*])", r"\\\1", text)


def row(*cells: str) -> str:
  return " ".join("|" + (f" {cell}" if cell else "") for cell in cells) + " |"


def document() -> str:
  """The text of configs/README.md."""
  return f"""# Configs

`{COMMAND}` writes this page from the files of this
folder: change those, not the page. A config is `--config=configs/<name>.py`, with
arguments behind a colon: `configs/opsd.py:tiny,control=other`. A field is a flag:
`--config.optimizer.learning_rate=1e-4`. `tiny` is any config in a minute, with random
weights. `base.py` gives every field its default; no other file holds one.

## Methods

{method_table()}

## Fields

`<term>` is a name below `loss`: a kind, or a further name whose node `base.term` has
made. `<target>` is a name below `targets`; `<memory>` is `teacher` or `reference`. A
unit stands where the comment or the name of a field says one.

{field_tables()}
"""


if __name__ == "__main__":
  PATH.write_text(document())
  print(f"wrote {PATH}")
