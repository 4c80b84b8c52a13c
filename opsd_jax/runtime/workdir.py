"""A workdir belongs to one experiment, and to one run of it at a time."""

import contextlib
import json
import re

from ml_collections import ConfigDict

from opsd_jax.runtime import distributed, paths

CONFIG = "config.json"  # of a training run
SETTINGS = "settings.json"  # of an evaluation

# Fields that may change between a run and its resumption: they change neither what
# is trained on nor what an evaluation measures.
RESUMABLE_CHANGES = re.compile(
  r"eval\.every|checkpoint\.|log\.|profile\.|compile_cache|verify\.workers"
)
# Summary-only settings, and names already covered by a digest.
SUMMARY = re.compile(
  r"summary\.|model\.run$|sets\..*\.(source|in_training|unverifiable)$"
)


def check_same_config(config, workdir) -> None:
  """Raises ValueError where the workdir belongs to another experiment."""
  path = workdir / CONFIG
  if not path.exists():
    if (workdir / "checkpoints").exists():
      raise ValueError(f"{workdir} holds checkpoints of an unknown config")
    return
  check_same(path, plain(config), RESUMABLE_CHANGES, "a run of another config")


def write_config(config, workdir) -> None:
  """Writes workdir/config.json; ValueError as `check_same_config`."""
  check_same_config(config, workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  text = json.dumps(plain(config), indent=2)
  paths.write_whole(workdir / CONFIG, text + "\n")


def write_settings(settings: dict, workdir) -> None:
  """Writes workdir/settings.json; ValueError where the workdir belongs to another
  evaluation."""
  path = workdir / SETTINGS
  if path.exists():
    check_same(path, settings, SUMMARY, "an evaluation of other settings")
  workdir.mkdir(parents=True, exist_ok=True)
  paths.write_whole(path, json.dumps(settings, indent=2) + "\n")


def check_same(path, settings: dict, free: re.Pattern, content: str) -> None:
  """Raises ValueError, listing the differences, where a file has other settings.

  Args:
    path: a JSON file in the workdir.
    settings: those of now.
    free: matches the fields that may differ.
    content: what the workdir holds then, for the message.
  """
  different = [
    f"  {k}: {a!r} there, {b!r} now"
    for k, (a, b) in paths.differ(paths.read_json(path), settings).items()
    if not free.match(k)
  ]
  if different:
    raise ValueError(
      f"{path.parent} holds {content}; give another --workdir:\n" + "\n".join(different)
    )


@contextlib.contextmanager
def exclusive(workdir):
  """Holds the workdir's lock; ValueError where another process holds it."""
  with contextlib.ExitStack() as locks:

    def lock():
      if not locks.enter_context(paths.locked(workdir / ".lock")):
        raise ValueError(
          f"another process is at work in {workdir}: wait for it, end it, or"
          " give another workdir"
        )

    distributed.broadcast_from_first(lock)
    yield


def read(workdir) -> ConfigDict:
  """The config of the run in `workdir`, as it was written, locked."""
  path = workdir / CONFIG
  if not path.exists():
    raise ValueError(f"{path} does not exist: {workdir} holds no run")
  return ConfigDict(with_tuples(paths.read_json(path))).lock()


def plain(config) -> dict:
  """A config as JSON values: tuples become lists."""
  return json.loads(config.to_json_best_effort())


def with_tuples(tree):
  """JSON values as a config holds them: lists become tuples."""
  if isinstance(tree, dict):
    return {name: with_tuples(value) for name, value in tree.items()}
  return tuple(map(with_tuples, tree)) if isinstance(tree, list) else tree
