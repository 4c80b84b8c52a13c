"""Files of a workdir, on a disk or in an object store (`gs://bucket/path`)."""

import contextlib
import errno
import fcntl
import importlib
import json
import math

from etils import epath

# Errors of file systems without locks, such as some mounts of object stores.
NO_LOCKS = errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP


def is_remote(path) -> bool:
  return "://" in str(path)


def need(module: str, package: str) -> None:
  """Raises ImportError, naming the package to install, where a module is missing."""
  try:
    importlib.import_module(module)
  except ImportError as e:
    raise ImportError(f"pip install {package} ({e})") from e


def open_workdir(path) -> epath.Path:
  """The workdir's path; ValueError where its store cannot be reached."""
  try:
    path = epath.Path(path)
    path.exists()
  except KeyError as e:
    raise ValueError(
      f"{path}: {e} is no known store; give a directory or gs://bucket/path"
    ) from e
  except ImportError as e:
    raise ValueError(
      f"{path} needs a package that is not installed ({e}): for gs:// pip install gcsfs"
    ) from e
  return path


def to_json(value, **options) -> str:
  """JSON text; a number that is not finite, which JSON does not know, is null."""
  return json.dumps(finite(value), allow_nan=False, **options)


def finite(value):
  """The value with None for each number in it that is not finite."""
  if isinstance(value, float) and not math.isfinite(value):
    return None
  if isinstance(value, dict):
    return {name: finite(x) for name, x in value.items()}
  return [finite(x) for x in value] if isinstance(value, list | tuple) else value


def read_json(path):
  """The value in a JSON file; ValueError where it is not readable."""
  try:
    return json.loads(path.read_text())
  except ValueError as e:  # bad JSON or bad UTF-8
    raise ValueError(f"{path} is not readable JSON: {e}") from e


def read_object(path) -> dict:
  """The object in a JSON file; ValueError where it holds another value."""
  value = read_json(path)
  if not isinstance(value, dict):
    raise ValueError(f"{path} holds no JSON object, it begins {str(value)[:20]!r}")
  return value


def read_rows(path) -> list:
  """The values of a jsonl file; ValueError names a line that is not readable."""
  rows = []
  for number, line in enumerate(path.read_text().splitlines(), 1):
    try:
      rows.append(json.loads(line))
    except ValueError as e:
      raise ValueError(
        f"{path}:{number} is not readable, expected a JSON object a line: {e}"
      ) from e
  return rows


def whole_rows(lines) -> list:
  """The objects of JSON lines, null as NaN; a line that a kill cut short is left
  out."""
  rows = []
  for line in lines:
    with contextlib.suppress(json.JSONDecodeError):
      row = json.loads(line)
      rows.append({k: math.nan if v is None else v for k, v in row.items()})
  return rows


def write_whole(path, text: str) -> None:
  """Writes a file so that no reader sees half of it."""
  if is_remote(path):  # a store shows an object only once it is complete
    path.write_text(text)
    return
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(text)
  temporary.replace(path)


@contextlib.contextmanager
def locked(path, wait: bool = False):
  """Yields whether the caller holds the file's lock; `wait` waits for it.

  A second holder is refused also within one process. The kernel releases the lock
  when the process ends, for whatever reason. Object stores and some of their mounts
  have no locks: there every process gets True.
  """
  if is_remote(path):
    yield True
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, "w") as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
      is_ours = True
    except OSError as e:
      if e.errno not in (errno.EACCES, errno.EAGAIN, *NO_LOCKS):
        raise
      is_ours = e.errno in NO_LOCKS
    yield is_ours


def differ(a: dict, b: dict) -> dict[str, tuple]:
  """field -> (a's value, b's value) where two settings are not the same."""
  a, b = flat(a), flat(b)
  return {k: (a.get(k), b.get(k)) for k in sorted({*a, *b}) if a.get(k) != b.get(k)}


def flat(tree: dict, prefix: str = "") -> dict:
  """{"a": {"b": 1}} -> {"a.b": 1}."""
  leaves = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      leaves |= flat(value, f"{prefix}{name}.")
    else:
      leaves[prefix + name] = value
  return leaves
