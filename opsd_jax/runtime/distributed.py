"""One run on several processes: start, exchange of values, and end.

With one process every function returns its input, or does nothing. Small values
are exchanged as JSON, rows of a batch as arrays.
"""

import atexit
import contextlib
import functools
import glob
import json
import os
import subprocess
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

from opsd_jax.runtime import sharding_rules

RESTART = (
  "all processes have to be started again; the run resumes from its last checkpoint"
)
# Parts of the errors that jax raises where another process has ended.
PEER_ERRORS = ("gloo", "nccl", "by peer", "unavailable", "coordination", "heartbeat")
ENDED = "opsd_jax/ended"  # folder of the store: the error of each failed process
POLL_SECONDS = 1  # between two reads of that folder
MAX_WAIT = 24 * 3600  # seconds that the first finished process waits for the last

aborting = threading.Lock()  # never released: the thread that holds it ends the process


# ------------------------------------------------------------------- start


def start(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  heartbeat_seconds: int = 30,
) -> None:
  """Joins the other processes of this run, if there are any.

  Must run before anything touches a device. Closes the standard output of all
  processes but 0; errors still show.

  Args:
    coordinator, num_processes, process_id: address of process 0, the number of
      processes and this one's index; by default from the cluster's environment.
    heartbeat_seconds: after so long jax ends this process where another one ended
      without reporting an error.
  """
  args = (coordinator, num_processes, process_id)
  if None in args and any(x is not None for x in args):
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
  # With the preemption service SIGTERM would not end this process.
  jax.config.update("jax_enable_preemption_service", False)
  jax.distributed.initialize(
    coordinator, num_processes, process_id, heartbeat_timeout_seconds=heartbeat_seconds
  )
  watch_others()
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
      pass  # not a Google Cloud machine
  return len((names or "").split(","))


def count() -> int:
  return jax.process_count()


def index() -> int:
  return jax.process_index()


def is_first() -> bool:
  """Whether this is process 0, which writes and prints."""
  return jax.process_index() == 0


def rank() -> int:
  """`index`, without initialising the devices."""
  return distributed.global_state.process_id


def store():
  """The coordinator's key-value store, for which jax has no public name."""
  return distributed.global_state.client


# ---------------------------------------------------------------- exchange


def gather(value) -> list:
  """Every process's value (of JSON), by index; all processes must call."""
  if count() == 1:
    return [value]
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.array(len(data), np.int32))
  # A power of two, so that few shapes are compiled.
  padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)
  padded[: len(data)] = data
  rows = multihost_utils.process_allgather(padded)
  return [
    json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)
  ]


def exchange(topic: str, value, timeout: int) -> list:
  """`gather` through the coordinator's store, without devices; once a topic.

  Works between processes whose versions of jax differ, which may not share a
  compiled program. Raises ValueError naming a process whose value did not arrive
  within `timeout` seconds.
  """
  key = f"opsd_jax/exchange/{topic}"
  store().key_value_set(f"{key}/{rank()}", json.dumps(value))
  texts = []
  for i in range(distributed.global_state.num_processes):
    try:
      texts.append(store().blocking_key_value_get(f"{key}/{i}", 1000 * timeout))
    except RuntimeError as e:
      raise ValueError(f"process {i} did not send its {topic}: {e}") from e
  return [json.loads(text) for text in texts]


def maximum(values) -> list[int]:
  """The maximum over all processes of each of a few integers."""
  return [max(column) for column in zip(*gather([int(v) for v in values]), strict=True)]


def mean(value: float) -> float:
  """The mean over all processes."""
  return float(np.mean(gather(value)))


def broadcast_from_first(decide):
  """Calls `decide()` on process 0 alone and returns its result everywhere.

  A ValueError or OSError that it raises there is raised on every process.
  """
  if count() == 1:
    return decide()
  result = error = None
  if is_first():
    try:
      result = decide()
    except (ValueError, OSError) as e:
      error = e
  result, message = gather([result, error and str(error)])[0]
  if message is not None:
    raise error or ValueError(message)
  return result


def local_shard(items, index: int | None = None, processes: int | None = None):
  """This process's part of a list; every process's part has the same size.

  Parts are consecutive. Where the sizes are uneven the last item is repeated;
  `gather_shards` removes the copies.
  """
  processes = processes or count()
  if processes == 1:
    return items
  index = jax.process_index() if index is None else index
  size = -(-len(items) // processes)
  part = list(items[index * size : (index + 1) * size])
  return part + [items[-1]] * (size - len(part))


def gather_shards(part, total: int) -> list:
  """One result of each of `total` items, from the results of every local shard."""
  return [x for others in gather(part) for x in others][:total]


# -------------------------------------------------------------------- rows


def check_rows(mesh) -> None:
  """Raises ValueError unless each process has rows of its own, equally many."""
  owners = np.vectorize(lambda d: d.process_index, otypes=[int])(mesh.devices)
  owners_RxM = owners.reshape(-1, mesh.shape["tensor"])
  rows_P = np.bincount(owners_RxM[:, 0], minlength=count())
  if (owners_RxM != owners_RxM[:, :1]).any() or len(set(rows_P)) > 1:
    local = owners.size // count()
    raise ValueError(
      f"mesh {dict(mesh.shape)} over {count()} processes of {local} devices:"
      " each process needs rows of its own, as many as the others. Make"
      f" mesh.tensor a divisor of {local} and mesh.data x mesh.fsdp a multiple of"
      f" {count()}: mesh.data=1, mesh.fsdp=-1, mesh.tensor=1 will do"
    )


def to_global(tree, mesh):
  """This process's rows -> the rows of all processes, sharded over the mesh."""
  return jax.make_array_from_process_local_data(
    sharding_rules.rows_sharding(mesh), tree
  )


@functools.cache
def reshard(layout):
  """tree -> tree in another sharding, compiled once a sharding."""
  return jax.jit(lambda tree: tree, out_shardings=layout)


def to_local(tree, mesh):
  """The rows that this process gave to `to_global`, as numpy."""
  if count() == 1:
    return jax.tree.map(np.asarray, tree)

  def addressable_rows(x):
    parts = {s.index[0].start or 0: s.data for s in x.addressable_shards}
    return np.concatenate([np.asarray(parts[i]) for i in sorted(parts)])

  tree = reshard(sharding_rules.rows_sharding(mesh))(tree)
  return jax.tree.map(addressable_rows, tree)


def to_replicated(tree, mesh):
  """The rows of all processes, as numpy, in the same order on each."""
  if count() > 1:
    tree = reshard(NamedSharding(mesh, P()))(tree)
  return jax.tree.map(np.asarray, tree)


# --------------------------------------------------------------------- end


def watch_others() -> None:
  """Ends this process soon after another one has ended.

  A process that fails writes its error to the coordinator's store, which a thread
  of every other process polls. A process that is killed writes nothing: jax misses
  its heartbeat, or the connection to process 0, and aborts this process in C++,
  where no Python runs; `death_notice` then prints the reason.
  """
  done = threading.Event()

  def poll():
    while not done.wait(POLL_SECONDS):
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        if error := error_of_another():
          abort(f"another process ended: {error}; {RESTART}")

  thread = threading.Thread(target=poll, daemon=True)
  thread.start()
  death_notice()

  @atexit.register
  def finish():
    # jax has such a barrier too, with a shorter timeout, and its error would not
    # be printed.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      store().wait_at_barrier("opsd_jax/finished", 1000 * MAX_WAIT)
    done.set()
    thread.join()  # before jax closes the store that the thread reads
    death_notice().communicate(b"finished\n")


@functools.cache
def death_notice() -> subprocess.Popen:
  """A shell that prints why this process was killed, when that happens.

  It reads its input, which ends with this process; a line before the end
  silences it.
  """
  message = f"error: this process was killed, as another process ended; {RESTART}"
  command = ["sh", "-c", 'read -r _ || echo "$0" >&2', message]
  return subprocess.Popen(
    command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
  )


def error_of_another() -> str:
  """The error of a process that failed; empty where none did."""
  errors = store().key_value_dir_get(ENDED)
  return errors[0][1] if errors else ""


def reason(error: BaseException) -> str:
  """Why another process ended: its error, or else `error`, which its end caused in
  this process."""
  for _ in range(3):  # the other's error may arrive later than this one
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      if other := error_of_another():
        return other
    time.sleep(POLL_SECONDS)
  return str(error).splitlines()[0]


def end(error: BaseException, trace: bool = False) -> None:
  """Ends this process for an error, and the others with it; `trace` prints the
  traceback. Returns where there are no other processes."""
  # Raising the error would reach jax's exit handler, which waits for the others.
  if not jax.distributed.is_initialized():
    return
  if is_of_another(error):
    abort(f"another process ended: {reason(error)}; {RESTART}")
  text = str(error) or type(error).__name__
  printed = "".join(traceback.format_exception(error)) if trace else text
  abort(printed, f"process {rank()}, with: {text.splitlines()[0]}")


def is_of_another(error: BaseException) -> bool:
  """Whether jax raised an error because another process ended."""
  return isinstance(error, jax.errors.JaxRuntimeError) and any(
    word in str(error).lower() for word in PEER_ERRORS
  )


@contextlib.contextmanager
def ending_with_others():
  """Within it, the end of another process ends this one at once, before cleanup
  that needs all processes, such as a checkpoint, waits for the one that is gone."""
  try:
    yield
  except jax.errors.JaxRuntimeError as e:
    if jax.distributed.is_initialized() and is_of_another(e):
      end(e)
    raise


def abort(message: str, to_others: str = "") -> None:
  """Prints an error and ends this process; `to_others`: also the other processes,
  with this text."""
  aborting.acquire()
  with contextlib.suppress(OSError):
    death_notice().communicate(b"the error follows\n")
  print(f"error: {message}", file=sys.stderr, flush=True)
  if to_others:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      store().key_value_set(f"{ENDED}/{rank()}", to_others)
  if rank() == 0:
    # The store ends with this process: the others need time to read it first.
    time.sleep(3 * POLL_SECONDS)
  os._exit(1)
