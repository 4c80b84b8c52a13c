"""The one way in which a name and its settings share a line."""

import subprocess
import sys

import pytest

from opsd_jax import spec


@pytest.mark.parametrize(
  "text,keys,expected",
  [
    ("tiny", (), ("tiny", {})),
    ("", ("a",), ("", {})),
    ("tiny,a=1,b=", ("a", "b"), ("tiny", {"a": "1", "b": ""})),
    ("a=1,tiny", ("a",), ("tiny", {"a": "1"})),
    ("a=1=2", ("a",), ("", {"a": "1=2"})),
    ("x=y,z.jsonl,a=1", ("a",), ("x=y,z.jsonl", {"a": "1"})),
    ("x=y,z.jsonl,a=1", (), ("x=y,z.jsonl,a=1", {})),
    ("gym:sum,a=1,b=[2]", None, ("gym:sum", {"a": "1", "b": "[2]"})),
    ("gym:sum,odd", None, ("gym:sum,odd", {})),
    ("a=1,b=2", None, ("a=1", {"b": "2"})),
  ],
)
def test_parse(text, keys, expected):
  assert spec.parse(text, keys) == expected


def test_a_config_alone_imports_no_jax():
  code = "import sys; from configs import opsd; opsd.get_config('tiny,control=other')"
  code += "; assert not {'jax', 'numpy', 'flax'} & sys.modules.keys()"
  subprocess.run([sys.executable, "-c", code], check=True)
