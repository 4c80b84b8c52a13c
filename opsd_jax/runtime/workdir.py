"""Whose a workdir is: one experiment's, and one process's at a time."""

import contextlib
import json
import re

from ml_collections import ConfigDict

from opsd_jax.runtime import distributed, paths

CONFIG = "config.json"  # of a training run
SETTINGS = "settings.json"  # of an evaluation

# What may differ between a run and its resumption: nothing that changes what is
# trained on, or what an evaluation means.
RESUMABLE_CHANGES = re.compile(
  r"eval\.every|checkpoint\.|log\.|profile\.|compile_cache|verify\.workers"
)
# Of settings: summary-only settings, and names already covered by a digest.
SUMMARY = re.compile(
  r"summary\.|model\.run$|sets\..*\.(source|in_training|unverifiable)$"
)


def check_same_config(config, workdir) -> None:
  """Raises ValueError where the workdir holds another experiment."""
  path = workdir / CONFIG
  if not path.exists():
    if (workdir / "checkpoints").exists():
      raise ValueError(f"{workdir} holds checkpoints of an unknown config")
    return
  refuse(path, plain(config), RESUMABLE_CHANGES, "a run of another config")


def write_config(config, workdir) -> None:
  """Writes workdir/config.json, or refuses a workdir of another experiment."""
  check_same_config(config, workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  text = json.dumps(plain(config), indent=2)
  paths.write_whole(workdir / CONFIG, text + "\n")


def write_settings(settings: dict, workdir) -> None:
  """Writes settings.json, or refuses a workdir of another evaluation."""
  path = workdir / SETTINGS
  if path.exists():
    refuse(path, settings, SUMMARY, "an evaluation of other settings")
  workdir.mkdir(parents=True, exist_ok=True)
  paths.write_whole(path, json.dumps(settings, indent=2) + "\n")


def refuse(path, now: dict, free: re.Pattern, what: str) -> None:
  """Raises ValueError where the file holds other settings than `now`, but for
  fields that `free` matches."""
  different = [
    f"  {k}: {a!r} there, {b!r} now"
    for k, (a, b) in paths.differ(paths.read_json(path), now).items()
    if not free.match(k)
  ]
  if different:
    raise ValueError(
      f"{path.parent} holds {what}; give another --workdir:\n" + "\n".join(different)
    )


@contextlib.contextmanager
def exclusive(workdir):
  """Nobody else writes here meanwhile: ValueError where somebody already does."""
  with contextlib.ExitStack() as held:

    def hold():
      if not held.enter_context(paths.locked(workdir / ".lock")):
        raise ValueError(
          f"another process is at work in {workdir}: wait for it, end it, or"
          " give another workdir"
        )

    distributed.broadcast_from_first(hold)
    yield


def read(workdir) -> ConfigDict:
  """The config of the run that lives in `workdir`, as it was written."""
  path = workdir / CONFIG
  if not path.exists():
    raise ValueError(f"{path} does not exist: {workdir} holds no run")
  return ConfigDict(with_tuples(paths.read_json(path))).lock()


def plain(config) -> dict:
  """A config as its JSON holds it: tuples are lists there."""
  return json.loads(config.to_json_best_effort())


def with_tuples(tree):
  """What JSON has made lists of, as a config holds it."""
  if isinstance(tree, dict):
    return {name: with_tuples(value) for name, value in tree.items()}
  return tuple(map(with_tuples, tree)) if isinstance(tree, list) else tree
