"""The workdir, on a disk or in an object store (`gs://bucket/path`)."""

import importlib

from etils import epath


def is_remote(path) -> bool:
  return "://" in str(path)


def need(module: str, package: str) -> None:
  """Raises ImportError with the package to install where it is missing."""
  try:
    importlib.import_module(module)
  except ImportError as e:
    raise ImportError(f"pip install {package} ({e})") from e


def open_workdir(path) -> epath.Path:
  """A path-like object; ValueError where its store cannot be reached."""
  try:
    path = epath.Path(path)
    path.exists()
  except KeyError as e:
    raise ValueError(
        f"{path}: {e} is no known store; give a directory or gs://bucket/path"
    ) from e
  except ImportError as e:
    raise ValueError(
        f"{path} needs a package that is not installed ({e}): for gs://"
        " pip install gcsfs"
    ) from e
  return path


def write_whole(path, text: str) -> None:
  """Writes a file that is never seen half-written."""
  if is_remote(path):  # an object appears when it is complete
    path.write_text(text)
    return
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(text)
  temporary.replace(path)


def flat(tree: dict, at: str = "") -> dict:
  """{"a": {"b": 1}} -> {"a.b": 1}."""
  leaves = {}
  for name, value in tree.items():
    leaves |= (
        flat(value, f"{at}{name}.")
        if isinstance(value, dict)
        else {at + name: value}
    )
  return leaves
