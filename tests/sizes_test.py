"""Functions fit on a screen, files on a few pages."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(
  p
  for part in ("opsd_jax", "configs", "experiments")
  for p in (ROOT / part).rglob("*.py")
)
FUNCTION, FILE = 60, 400  # lines at most


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_and_files_are_short(path):
  text = path.read_text()
  assert text.count("\n") <= FILE
  long = {
    node.name: lines
    for node in ast.walk(ast.parse(text))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    and (lines := node.end_lineno - node.lineno + 1) > FUNCTION
  }
  assert not long
