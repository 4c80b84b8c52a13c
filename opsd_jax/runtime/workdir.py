"""A workdir belongs to one experiment, and to one run of it at a time."""

import contextlib
import datetime
import json
import re

from ml_collections import ConfigDict

from opsd_jax.runtime import distributed, paths

CONFIG = "config.json"  # of a training run
SETTINGS = "settings.json"  # of an evaluation
IDENTITY = "identity.json"  # of a training run: what its config does not say

# Fields that may change between a run and its resumption: they change neither what
# is trained on nor what an evaluation measures.
RESUMABLE_CHANGES = re.compile(
  r"eval\.every|checkpoint\.|log\.|profile\.|compile_cache|verify\.workers"
)
NOTHING = re.compile("(?!)")
# Summary-only settings, and names already covered by a digest.
SUMMARY = re.compile(
  r"summary\.|date$|model\.run$|sets\..*\.(source|in_training|unverifiable)$"
)


def check_same_config(config, workdir) -> None:
  """Raises ValueError where the workdir belongs to another experiment."""
  path = workdir / CONFIG
  if not path.exists():
    if (workdir / "checkpoints").exists():
      raise ValueError(f"{workdir} holds checkpoints of an unknown config")
    return
  # More steps continue a run, at the learning rates of the longer schedule.
  free = re.compile(rf"{RESUMABLE_CHANGES.pattern}|steps$")
  check_same(path, plain(config), free, "a run of another config")


def write_config(config, workdir, identity: dict | None = None) -> None:
  """Writes config.json and identity.json, and says where there are other steps than
  before; ValueError where the workdir holds another run."""
  check_same_config(config, workdir)
  if identity and (workdir / IDENTITY).exists():
    check_same(workdir / IDENTITY, identity, NOTHING, "a run that began otherwise")
  if (workdir / CONFIG).exists():
    before, now = (
      x["steps"] for x in (paths.read_json(workdir / CONFIG), plain(config))
    )
    if before != now:
      print(
        f"steps is {now}, it was {before}: from here on the learning rate is that of"
        f" {now} steps",
        flush=True,
      )
  workdir.mkdir(parents=True, exist_ok=True)
  for name, content in ((IDENTITY, identity), (CONFIG, plain(config))):
    if content is not None:
      paths.write_whole(workdir / name, json.dumps(content, indent=2) + "\n")


def check_base(workdir, weights: str) -> None:
  """Raises ValueError where a run began from other weights than those with this
  fingerprint: its adapter belongs to them."""
  if (workdir / IDENTITY).exists():
    before = paths.read_json(workdir / IDENTITY).get("base", weights)
    if before != weights:
      raise ValueError(
        f"{workdir} trained an adapter of the base {before}, and the weights of"
        f" model.source are now {weights}: give back the model that it began from"
      )


def today() -> str:
  return datetime.date.today().isoformat()


def date_of(*workdirs) -> datetime.date:
  """The day on which the first run or evaluation in one of these began; today where
  there is none. It is that of the first process on all."""

  def found() -> str:
    for workdir in workdirs:
      for path in (workdir / SETTINGS, workdir / IDENTITY):
        if path.exists():
          return paths.read_json(path).get("date") or today()
    return today()

  return datetime.date.fromisoformat(distributed.broadcast_from_first(found))


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
      f"{path.parent} holds {content}; restore what changed, or give another"
      " --workdir:\n" + "\n".join(different)
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
