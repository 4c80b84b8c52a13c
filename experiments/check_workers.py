"""Checks that the workers of a cluster can train together.

  python -m experiments.check_workers --workdir=gs://bucket/run

Run it on every worker at once, as tpu_setup.sh does. Before any worker opens a
device, the workers exchange their versions, a digest of their code, and faults of
their TPUs and of the workdir; then they count devices and gather a number over all
of them. Every worker prints the faults of all, and all exit with status 1.

The workers of a TPU find each other. Elsewhere give the address of process 0:
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
  """All workers, and the index of this one."""

  index: int
  hosts: list[str]
  timeout: int  # seconds

  def name(self, i: int) -> str:
    return f"worker {i} ({self.hosts[i]})"

  def exchange(self, topic: str, mine) -> list:
    """The values of all workers, in order; uses no device."""
    # jax's public all-gather runs on devices, where workers of different versions
    # may hang.
    return distributed.exchange(topic, mine, self.timeout)

  def name_faults(self, faults: list[list[str]]) -> list[str]:
    """A list of faults for each worker -> lines that name the worker."""
    return [f"{self.name(i)}: {x}" for i, found in enumerate(faults) for x in found]


def join(args) -> Cluster:
  """Connects to the other workers."""
  print(
    f"waiting up to {args.timeout} s for the other workers; if this ends in a crash,"
    " read their output",
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
      f"jax found no cluster: {e} On a TPU VM `ls /dev/accel* /dev/vfio/*`"
      " should show the chips; elsewhere give --coordinator=host:port,"
      " --num_processes and --process_id"
    ) from e
  hosts = distributed.exchange("host", socket.gethostname(), args.timeout)
  return Cluster(distributed.rank(), hosts, args.timeout)


def versions() -> dict[str, str]:
  """Versions that must be equal on all workers, and a digest of the code."""
  found = {"python": sys.version.split()[0]}
  for package in PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[package] = "none"
  return {**found, "code": code()}


def code() -> str:
  """A short digest of the names and contents of our Python files."""
  digest = hashlib.sha256()
  for part in ("configs", "experiments", "opsd_jax"):
    for path in sorted((ROOT / part).rglob("*.py")):
      digest.update(f"{path.relative_to(ROOT)}\0".encode())
      digest.update(path.read_bytes())
  return digest.hexdigest()[:12]


def differences(cluster, found: list[dict[str, str]]) -> list[str]:
  """One line for each version that differs, with the workers that have each value."""
  lines = []
  for package in found[0]:
    workers = {}
    for i, versions in enumerate(found):
      workers.setdefault(versions[package], []).append(cluster.name(i))
    if len(workers) > 1:
      values = (f"{v} on {', '.join(names)}" for v, names in workers.items())
      lines.append(f"{package} differs: {'; '.join(values)}")
  return lines


def tpu_in_use(lockfile=LOCKFILE, proc=pathlib.Path("/proc")) -> list[str]:
  """Processes and files that block this worker's TPU, with what to do."""
  lines = [
    f"process {pid} holds the TPU ({command}); wait for its end, or `kill {pid}`"
    for pid, command in holders(proc)
  ]
  if lockfile.exists() and not os.access(lockfile, os.R_OK | os.W_OK):
    lines.append(
      f"{lockfile} belongs to user id {lockfile.stat().st_uid}, who may be"
      " using the TPU: run `sudo lsof -w /dev/accel* /dev/vfio/*`. Where it"
      " lists no process the file is stale: its owner may delete it, or you"
      f" with `sudo rm {lockfile}`; check_workers deletes no other user's file"
    )
  return lines


def holders(proc: pathlib.Path):
  """(id, command) of every visible process that has opened a TPU."""
  for process in proc.glob("[0-9]*"):
    try:
      opened = [os.readlink(fd) for fd in (process / "fd").iterdir()]
      command = (process / "cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:  # another user's, or just ended
      continue
    if any(path.startswith(TPU_DEVICES) for path in opened):
      yield process.name, command.decode(errors="replace").strip()


def probe(workdir: str):
  """Path of a new file in the workdir, or in its nearest existing parent."""
  folder = epath.Path(workdir)
  while "://" not in workdir and not folder.exists():
    folder = folder.parent
  return folder / f".probe_{uuid.uuid4().hex}"


def not_writable(workdir: str) -> list[str]:
  """Writes and deletes a small file; returns the fault, if any."""
  try:
    path = probe(workdir)
    path.write_text("made by check_workers, to be deleted\n")
    path.unlink()
  except Exception as e:  # every kind of storage raises other types
    return [
      f"cannot write and delete in {workdir} ({type(e).__name__}: {e}); for"
      " gs:// the TPU's service account needs the role Storage Object Admin"
      " on the bucket"
    ]
  return []


def not_shared(cluster, workdir: str) -> list[str]:
  """Faults of workers that do not see a file that worker 0 writes."""
  path = probe(workdir)
  if cluster.index == 0:
    path.write_text("made by check_workers, to be deleted\n")
  try:
    path = type(path)(cluster.exchange("shared", str(path))[0])
    seen = cluster.exchange("seen", path.exists())
  finally:
    if cluster.index == 0:
      path.unlink()
  fault = f"{workdir} is not shared with worker 0; use a gs:// workdir"
  return cluster.name_faults([[] if s else [fault] for s in seen])


def devices(cluster, platform: str) -> str:
  """Counts the devices of every worker, gathers over all of them, and returns a
  description. Raises ValueError for wrong counts or platforms."""
  faults, local, total = [], 0, 0
  try:
    local, total = jax.local_device_count(), jax.device_count()
    if jax.default_backend() != platform:
      faults = [f"jax runs on {jax.default_backend()}, expected {platform}"]
  except RuntimeError as e:
    faults = [f"jax cannot open its devices: {e}"]
  refuse(cluster.name_faults(cluster.exchange("devices", faults)))
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
  """Raises ValueError with all lines, where there are any."""
  if lines := list(lines):
    raise ValueError("\n  ".join(["these workers cannot train:", *lines]))


def check(args) -> str:
  """Runs all checks; raises the same ValueError on every worker."""
  cluster = join(args)
  mine = versions()
  found = cluster.exchange("versions", mine)
  faults = tpu_in_use() if args.platform == "tpu" else []
  if args.workdir:
    faults += not_writable(args.workdir)
  faults = cluster.name_faults(cluster.exchange("faults", faults))
  refuse(differences(cluster, found) + faults)
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
  parser.add_argument(
    "--workdir", help="directory or gs:// path whose access is checked"
  )
  parser.add_argument(
    "--platform", default="tpu", help="expected devices: tpu, gpu or cpu"
  )
  parser.add_argument(
    "--timeout", type=int, default=300, help="seconds to wait for other workers"
  )
  parser.add_argument("--coordinator", help="address of process 0, host:port")
  parser.add_argument("--num_processes", type=int, help="number of processes")
  parser.add_argument("--process_id", type=int, help="index of this process, from 0")
  args = parser.parse_args(argv)
  cluster = (args.coordinator, args.num_processes, args.process_id)
  if None in cluster and any(x is not None for x in cluster):
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
