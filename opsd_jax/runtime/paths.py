"""The workdir, on a disk or in an object store (`gs://bucket/path`)."""

import contextlib
import errno
import fcntl
import importlib
import json

from etils import epath

NO_LOCKS = errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP  # said by such a mount


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
      f"{path} needs a package that is not installed ({e}): for gs:// pip install gcsfs"
    ) from e
  return path


def read_json(path):
  """What a file holds; ValueError where that is no JSON."""
  try:
    return json.loads(path.read_text())
  except ValueError as e:  # of JSON or of UTF-8
    raise ValueError(f"{path} is not readable JSON: {e}") from e


def read_rows(path) -> list:
  """What a file holds with a value a line; ValueError names the line that is none."""
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
  """The values of lines; one that a kill has torn is left out."""
  rows = []
  for line in lines:
    with contextlib.suppress(json.JSONDecodeError):
      rows.append(json.loads(line))
  return rows


def write_whole(path, text: str) -> None:
  """Writes a file that is never seen half-written."""
  if is_remote(path):  # an object appears when it is complete
    path.write_text(text)
    return
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(text)
  temporary.replace(path)


@contextlib.contextmanager
def locked(path, wait: bool = False):
  """Whether this process has the file's lock to itself; waits until it has, or
  not.

  The lock is the kernel's: it ends with the process, however that ends. Object
  stores and some mounts of them have none: there everybody has it.
  """
  if is_remote(path):
    yield True
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, "w") as f:
    try:
      fcntl.lockf(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
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


def flat(tree: dict, at: str = "") -> dict:
  """{"a": {"b": 1}} -> {"a.b": 1}."""
  leaves = {}
  for name, value in tree.items():
    leaves |= (
      flat(value, f"{at}{name}.") if isinstance(value, dict) else {at + name: value}
    )
  return leaves
