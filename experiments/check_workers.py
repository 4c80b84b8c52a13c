"""Checks that the workers of a cluster can train together.

  python -m experiments.check_workers --workdir=gs://bucket/run

Run it on every worker at once, as tpu_setup.sh does. Before anyone opens a
device, each worker tells the others its versions, its code, and what is wrong
with its TPU and its workdir; then they count devices and gather a number over
all of them. What is wrong on one is printed by all, and all exit with status 1.

The workers of a TPU find each other. Elsewhere say where process 0 listens:
--platform=cpu --coordinator=host:1234 --num_processes=2 --process_id=0
"""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import os
import pathlib
import socket
import sys
import uuid

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from opsd_jax.runtime import distributed

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = (
  "jax",
  "jaxlib",
  "libtpu",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "numpy",
)
TPU_DEVICES = ("/dev/accel", "/dev/vfio/")
LOCKFILE = pathlib.Path("/tmp/libtpu_lockfile")


@dataclasses.dataclass(frozen=True)
class Cluster:
  """This worker's place among all."""

  index: int
  hosts: list[str]
  timeout: int  # seconds

  def name(self, i: int) -> str:
    return f"worker {i} ({self.hosts[i]})"

  def exchange(self, topic: str, mine) -> list:
    """Every worker's value, in order. Touches no device."""
    # jax's public all-gather runs on devices, which workers of different
    # versions cannot be asked to do.
    return distributed.exchange(topic, mine, self.timeout)

  def blame(self, problems: list[list[str]]) -> list[str]:
    """One list a worker -> lines that say whose they are."""
    return [f"{self.name(i)}: {p}" for i, ps in enumerate(problems) for p in ps]


def join(args) -> Cluster:
  """Meets the other workers."""
  print(
    f"waiting {args.timeout} s at most for the other workers; if this ends"
    " in a crash, read what the others said",
    flush=True,
  )
  try:
    jax.distributed.initialize(
      args.coordinator,
      args.num_processes,
      args.process_id,
      initialization_timeout=args.timeout,
      shutdown_timeout_seconds=args.timeout,
    )
  except ValueError as e:
    raise ValueError(
      f"jax joined no cluster: {e} On a TPU VM `ls /dev/accel* /dev/vfio/*`"
      " should show the chips; elsewhere give --coordinator=host:port,"
      " --num_processes and --process_id"
    ) from e
  hosts = distributed.exchange("host", socket.gethostname(), args.timeout)
  return Cluster(distributed.rank(), hosts, args.timeout)


def versions() -> dict[str, str]:
  """What has to be the same on every worker."""
  found = {"python": sys.version.split()[0]}
  for package in PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[package] = "none"
  return {**found, "code": code()}


def code() -> str:
  """A short digest of our Python files, their names and contents."""
  digest = hashlib.sha256()
  for part in ("configs", "experiments", "opsd_jax"):
    for path in sorted((ROOT / part).rglob("*.py")):
      digest.update(f"{path.relative_to(ROOT)}\0".encode())
      digest.update(path.read_bytes())
  return digest.hexdigest()[:12]


def differences(cluster, found: list[dict[str, str]]) -> list[str]:
  """One line for each version that workers disagree on, and who has which."""
  lines = []
  for what in found[0]:
    who = {}
    for i, versions in enumerate(found):
      who.setdefault(versions[what], []).append(cluster.name(i))
    if len(who) > 1:
      values = (f"{v} on {', '.join(workers)}" for v, workers in who.items())
      lines.append(f"{what} differs: {'; '.join(values)}")
  return lines


def tpu_in_use(lockfile=LOCKFILE, proc=pathlib.Path("/proc")) -> list[str]:
  """Who holds this worker's TPU, and what to do about it."""
  lines = [
    f"process {pid} holds the TPU ({command}); let it end, or `kill {pid}`"
    for pid, command in holders(proc)
  ]
  if lockfile.exists() and not os.access(lockfile, os.R_OK | os.W_OK):
    lines.append(
      f"{lockfile} belongs to user id {lockfile.stat().st_uid}, who may be"
      " using the TPU: ask `sudo lsof -w /dev/accel* /dev/vfio/*`. Where it"
      " lists no process the file is stale: its owner may delete it, or you"
      f" with `sudo rm {lockfile}`; we leave other users' files alone"
    )
  return lines


def holders(proc: pathlib.Path):
  """(id, command) of every process that we can see to have a TPU open."""
  for process in proc.glob("[0-9]*"):
    try:
      opened = [os.readlink(fd) for fd in (process / "fd").iterdir()]
      command = (process / "cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:  # another user's, or just ended
      continue
    if any(path.startswith(TPU_DEVICES) for path in opened):
      yield process.name, command.decode(errors="replace").strip()


def probe(workdir: str):
  """A new file's path in the workdir, or in what there is of its parents."""
  folder = epath.Path(workdir)
  while "://" not in workdir and not folder.exists():
    folder = folder.parent
  return folder / f".probe_{uuid.uuid4().hex}"


def not_writable(workdir: str) -> list[str]:
  """Writes a small file and deletes it again."""
  try:
    path = probe(workdir)
    path.write_text("made by check_workers, to be deleted\n")
    path.unlink()
  except Exception as e:  # each storage has errors of its own; all are told
    return [
      f"cannot write and delete in {workdir} ({type(e).__name__}: {e}); for"
      " gs:// the TPU's service account needs the role Storage Object Admin"
      " on the bucket"
    ]
  return []


def not_shared(cluster, workdir: str) -> list[str]:
  """Worker 0 writes a file; the others should see it."""
  path = probe(workdir)
  if cluster.index == 0:
    path.write_text("made by check_workers, to be deleted\n")
  try:
    path = type(path)(cluster.exchange("shared", str(path))[0])
    seen = cluster.exchange("seen", path.exists())
  finally:
    if cluster.index == 0:
      path.unlink()
  what = f"{workdir} is not what worker 0 sees there; give a gs:// workdir"
  return cluster.blame([[] if s else [what] for s in seen])


def devices(cluster, platform: str) -> str:
  """Counts them on every worker and gathers over all; what was found."""
  wrong, local, total = [], 0, 0
  try:
    local, total = jax.local_device_count(), jax.device_count()
    if jax.default_backend() != platform:
      wrong = [f"jax runs on {jax.default_backend()}, expected {platform}"]
  except RuntimeError as e:
    wrong = [f"jax cannot open its devices: {e}"]
  refuse(cluster.blame(cluster.exchange("devices", wrong)))
  counts = cluster.exchange("device counts", [local, total])
  first = counts[0][0]
  refuse(
    f"{cluster.name(i)} has {n} devices and sees {of} in all, expected"
    f" {first}, as worker 0 has, and {first * len(counts)}"
    for i, (n, of) in enumerate(counts)
    if [n, of] != [first, first * len(counts)]
  )
  gathered = multihost_utils.process_allgather(np.int32(1 + cluster.index))
  if gathered.tolist() != list(range(1, 1 + len(counts))):
    raise ValueError(f"an all-gather over the devices gave {gathered.tolist()}")
  return f"{local} of {total} {platform} devices"


def refuse(lines) -> None:
  if lines := list(lines):
    raise ValueError("\n  ".join(["these workers cannot train:", *lines]))


def check(args) -> str:
  """Raises ValueError, with the same words on every worker."""
  cluster = join(args)
  mine = versions()
  found = cluster.exchange("versions", mine)
  problems = tpu_in_use() if args.platform == "tpu" else []
  if args.workdir:
    problems += not_writable(args.workdir)
  problems = cluster.blame(cluster.exchange("problems", problems))
  refuse(differences(cluster, found) + problems)
  if args.workdir:
    refuse(not_shared(cluster, args.workdir))
  opened = devices(cluster, args.platform)
  same = ", ".join(f"{name} {v}" for name, v in mine.items())
  return (
    f"{cluster.name(cluster.index)} of {len(cluster.hosts)}: {opened};"
    f" the same on all: {same}"
  )


def parse(argv):
  parser = argparse.ArgumentParser(
    prog="python -m experiments.check_workers",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("--workdir", help="checked for writing where given")
  parser.add_argument("--platform", default="tpu", help="tpu, gpu or cpu")
  parser.add_argument("--timeout", type=int, default=300, help="seconds")
  parser.add_argument("--coordinator", help="host:port of process 0")
  parser.add_argument("--num_processes", type=int)
  parser.add_argument("--process_id", type=int)
  args = parser.parse_args(argv)
  where = (args.coordinator, args.num_processes, args.process_id)
  if None in where and any(w is not None for w in where):
    parser.error("give all of --coordinator, --num_processes, --process_id")
  return args


def main(argv=None) -> None:
  args = parse(argv)
  try:
    print(check(args), flush=True)
  except (ValueError, OSError, RuntimeError) as e:
    sys.exit(f"error: {e}")


if __name__ == "__main__":
  main()
