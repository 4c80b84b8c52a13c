"""One run on several processes: how they start, agree, and end together.

With one process every function here is the trivial thing. What a process
tells the others is small and goes as JSON; rows of a batch go as arrays.
"""

import atexit
import contextlib
import functools
import glob
import json
import os
import secrets
import socket
import sys
import threading
import time
import traceback
import urllib.request

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from opsd_jax import sharding

AGAIN = (
  "all processes have to be started again; the run resumes from its last checkpoint"
)
GOODBYE = "goodbye\n"
# What an error says that comes of another process being gone.
LOST = ("gloo", "nccl", "by peer", "unavailable", "coordination", "heartbeat")

leaving = threading.Lock()  # never released: whoever holds it ends the process
lines: dict[int, socket.socket] = {}  # to process 0, or from it to each other


# ------------------------------------------------------------------- start


def start(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  heartbeat_seconds: int = 30,
) -> None:
  """Joins the other processes of this run, if there are any.

  Told by the three arguments, or by the environment of a cluster. Must come
  before anything touches a device. A process that ends is noticed by the
  others after `heartbeat_seconds` at most. All but process 0 become silent:
  their standard output is closed, errors still show.
  """
  told = (coordinator, num_processes, process_id)
  if None in told and any(x is not None for x in told):
    raise ValueError(
      "coordinator, num_processes and process_id belong together, got"
      f" {coordinator}, {num_processes}, {process_id}: give all or none"
    )
  if coordinator and not 0 <= process_id < num_processes:
    raise ValueError(
      f"process_id is {process_id}, expected 0 to {num_processes - 1}:"
      f" num_processes is {num_processes}"
    )
  if jax.distributed.is_initialized() or not (coordinator or is_cluster()):
    return
  # The end of a process shall be its end: nothing here waits for SIGTERM.
  jax.config.update("jax_enable_preemption_service", False)
  jax.distributed.initialize(
    coordinator, num_processes, process_id, heartbeat_timeout_seconds=heartbeat_seconds
  )
  connect()
  if not is_first():
    sys.stdout = open(os.devnull, "w")


def is_cluster() -> bool:
  """Whether the environment says that this is one of several processes."""

  def several(name):
    return int(os.environ.get(name) or 1) > 1

  return (
    "JAX_COORDINATOR_ADDRESS" in os.environ
    or several("SLURM_STEP_NUM_TASKS")  # srun; a batch script alone is one
    or several("OMPI_COMM_WORLD_SIZE")
    or several("MEGASCALE_NUM_SLICES")
    or tpu_hosts() > 1
  )


def tpu_hosts() -> int:
  """Hosts of the TPU slice that this machine belongs to, 1 without a TPU."""
  names = os.environ.get("TPU_WORKER_HOSTNAMES")
  if names is None and glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*"):
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
      f"http://{server}/computeMetadata/v1/instance/attributes/"
      "worker-network-endpoints",
      headers={"Metadata-Flavor": "Google"},
    )
    try:
      with urllib.request.urlopen(request, timeout=5) as answer:
        names = answer.read().decode()
    except OSError:
      pass  # no machine of that cloud
  return len((names or "").split(","))


def count() -> int:
  return jax.process_count()


def index() -> int:
  return jax.process_index()


def is_first() -> bool:
  """Whether this is the process that writes and prints."""
  return jax.process_index() == 0


# ------------------------------------------------------------------- agree


def gather(value) -> list:
  """Every process's value, in the order of the processes.

  A value is what JSON can hold; all processes must call.
  """
  if count() == 1:
    return [value]
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.array(len(data), np.int32))
  padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)  # few shapes
  padded[: len(data)] = data
  rows = multihost_utils.process_allgather(padded)
  return [
    json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)
  ]


def maximum(values) -> list[int]:
  """The largest over all processes, of each of a few integers."""
  return [max(column) for column in zip(*gather([int(v) for v in values]), strict=True)]


def mean(value: float) -> float:
  """The mean over all processes."""
  return float(np.mean(gather(value)))


def from_first(decide):
  """What `decide()` returns on process 0, where alone it is called.

  A ValueError or OSError that it raises there is raised everywhere.
  """
  if count() == 1:
    return decide()
  answer = error = None
  if is_first():
    try:
      answer = decide()
    except (ValueError, OSError) as e:
      error = e
  answer, words = gather([answer, error and str(error)])[0]
  if words is not None:
    raise error or ValueError(words)
  return answer


def share(items, index: int | None = None, processes: int | None = None):
  """This process's part of a list; every process's part has the same size.

  Parts are consecutive. Where they do not come out even the last item fills
  up, which `gather_shares` takes off again.
  """
  processes = processes or count()
  if processes == 1:
    return items
  index = jax.process_index() if index is None else index
  size = -(-len(items) // processes)
  part = list(items[index * size : (index + 1) * size])
  return part + [items[-1]] * (size - len(part))


def gather_shares(part, total: int) -> list:
  """One result of each of `total` items, out of every process's share."""
  return [x for others in gather(part) for x in others][:total]


# -------------------------------------------------------------------- rows


def check_rows(mesh) -> None:
  """Raises ValueError where processes would have to share rows of a batch."""
  owners = np.vectorize(lambda d: d.process_index, otypes=[int])(mesh.devices)
  owners_RxM = owners.reshape(-1, mesh.shape["tensor"])
  rows_P = np.bincount(owners_RxM[:, 0], minlength=count())
  if (owners_RxM != owners_RxM[:, :1]).any() or len(set(rows_P)) > 1:
    local = owners.size // count()
    raise ValueError(
      f"mesh {dict(mesh.shape)} over {count()} processes of {local} devices:"
      " each process needs rows of its own, as many as the others. Make"
      f" mesh.tensor a divisor of {local} and mesh.data x mesh.fsdp a"
      f" multiple of {count()}: mesh.data=1, mesh.fsdp=-1, mesh.tensor=1 will"
      " do"
    )


def put_rows(tree, mesh):
  """This process's rows -> the rows of all, on the devices of the mesh."""
  return jax.make_array_from_process_local_data(sharding.rows_sharding(mesh), tree)


@functools.cache
def relaid(layout):
  return jax.jit(lambda tree: tree, out_shardings=layout)


def own_rows(tree, mesh):
  """What belongs to the rows that this process put in, as numpy."""
  if count() == 1:
    return jax.tree.map(np.asarray, tree)

  def own(x):
    parts = {s.index[0].start or 0: s.data for s in x.addressable_shards}
    return np.concatenate([np.asarray(parts[i]) for i in sorted(parts)])

  return jax.tree.map(own, relaid(sharding.rows_sharding(mesh))(tree))


def all_rows(tree, mesh):
  """The rows of all processes as numpy, in the same order everywhere."""
  if count() > 1:
    tree = relaid(NamedSharding(mesh, P()))(tree)
  return jax.tree.map(np.asarray, tree)


# --------------------------------------------------------------------- end


def connect() -> None:
  """Opens a line between process 0 and each other.

  The operating system closes it when a process ends, however it ends: both
  sides know at once, whatever their devices wait for. Where a whole machine
  goes, nobody closes it, and jax's heartbeat is left.
  """
  if is_first():
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    server = socket.create_server(("", 0), family=family, dualstack_ipv6=dual)
    server.settimeout(60)
    password = secrets.token_hex(16)
    gather([server.getsockname()[1], password])
    while len(lines) < count() - 1:
      line, _ = server.accept()
      line.settimeout(10)
      if process := greeted(line, password):
        lines[process] = line
    server.close()
  else:
    port, password = gather(None)[0]
    host = distributed.global_state.coordinator_address.rsplit(":", 1)[0]
    lines[0] = socket.create_connection((host.strip("[]"), port), timeout=60)
    tell(f"{password} {jax.process_index():8}\n")
  for process, line in lines.items():
    line.settimeout(None)
    threading.Thread(target=listen, args=(process, line), daemon=True).start()
  atexit.register(tell, GOODBYE)


def greeted(line, password: str) -> int:
  """Which process is on a new line; 0 where it is none of ours."""
  expected = len(f"{password} {0:8}\n")
  with contextlib.suppress(OSError, ValueError):
    said = line.recv(expected, socket.MSG_WAITALL).decode().split()
    if len(said) == 2 and secrets.compare_digest(said[0], password):
      return int(said[1])
  return 0


def tell(words: str) -> None:
  """To process 0, or from it to all others."""
  for line in lines.values():
    with contextlib.suppress(OSError):  # it has gone itself
      line.sendall(words.encode())


def listen(process: int, line) -> None:
  """Waits in a thread for the other side's end, and ends this process too."""
  try:
    words = line.makefile().readline()
  except OSError:
    words = ""
  if words != GOODBYE:
    what = words.strip() or f"process {process}, without a word"
    leave(f"another process ended: {what}; {AGAIN}", what)


def end(error: BaseException, trace: bool = False) -> None:
  """Ends this process for an error, and the others with it.

  Returns where there are no others. The usual way out would wait for them.
  """
  if not jax.distributed.is_initialized():
    return
  if is_of_another(error):
    what = str(error).splitlines()[0]
    leave(f"another process ended: {what}; {AGAIN}", "one that was lost")
  words = str(error) or type(error).__name__
  shown = "".join(traceback.format_exception(error)) if trace else words
  what = f"process {jax.process_index()}, with: {words.splitlines()[0]}"
  leave(shown, what)


def is_of_another(error: BaseException) -> bool:
  return isinstance(error, jax.errors.JaxRuntimeError) and any(
    word in str(error).lower() for word in LOST
  )


@contextlib.contextmanager
def ending_with_others():
  """Inside, the loss of another process ends this one at once: what follows
  (a checkpoint that all must write) would wait for it."""
  try:
    yield
  except jax.errors.JaxRuntimeError as e:
    if jax.distributed.is_initialized() and is_of_another(e):
      end(e)
    raise


def leave(words: str, to_others: str) -> None:
  """Prints why, tells the others, and ends the process."""
  leaving.acquire()
  print(f"error: {words}", file=sys.stderr, flush=True)
  tell(to_others + "\n")
  if is_first():
    time.sleep(1)  # with this process ends what jax needs in the others
  os._exit(1)
