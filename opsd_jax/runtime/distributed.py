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

AGAIN = (
  "all processes have to be started again; the run resumes from its last checkpoint"
)
# What an error says that comes of another process being gone.
LOST = ("gloo", "nccl", "by peer", "unavailable", "coordination", "heartbeat")
ENDED = "opsd_jax/ended"  # folder of the store: what each failed process said
LOOK = 1  # seconds between two looks into it
PATIENCE = 24 * 3600  # seconds that the first to finish waits for the last

leaving = threading.Lock()  # never released: whoever holds it ends the process


# ------------------------------------------------------------------- start


def start(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  heartbeat_seconds: int = 30,
) -> None:
  """Joins the other processes of this run, if there are any.

  Told by the three arguments, or by the environment of a cluster. Must come
  before anything touches a device. Where a process ends without a word, jax
  ends the others after `heartbeat_seconds` at most. All but process 0 become
  silent: their standard output is closed, errors still show.
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
  # The end of a process shall be its end: nothing here waits for SIGTERM.
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
      pass  # no machine of that cloud
  return len((names or "").split(","))


def count() -> int:
  return jax.process_count()


def index() -> int:
  return jax.process_index()


def is_first() -> bool:
  """Whether this is the process that writes and prints."""
  return jax.process_index() == 0


def rank() -> int:
  """`index`, without opening a device."""
  return distributed.global_state.process_id


def store():
  """The coordinator's keys and values; jax has no public name for them."""
  return distributed.global_state.client


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


def exchange(topic: str, value, timeout: int) -> list:
  """`gather` without opening a device, once a topic; seconds to wait at most.

  Processes whose versions of jax differ can do it, devices or none. Raises
  ValueError that names a process whose value did not come.
  """
  key = f"opsd_jax/exchange/{topic}"
  store().key_value_set(f"{key}/{rank()}", json.dumps(value))
  found = []
  for i in range(distributed.global_state.num_processes):
    try:
      found.append(store().blocking_key_value_get(f"{key}/{i}", 1000 * timeout))
    except RuntimeError as e:
      raise ValueError(f"process {i} did not tell its {topic}: {e}") from e
  return [json.loads(text) for text in found]


def maximum(values) -> list[int]:
  """The largest over all processes, of each of a few integers."""
  return [max(column) for column in zip(*gather([int(v) for v in values]), strict=True)]


def mean(value: float) -> float:
  """The mean over all processes."""
  return float(np.mean(gather(value)))


def broadcast_from_first(decide):
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


def local_shard(items, index: int | None = None, processes: int | None = None):
  """This process's part of a list; every process's part has the same size.

  Parts are consecutive. Where they do not come out even the last item fills
  up, which `gather_shards` takes off again.
  """
  processes = processes or count()
  if processes == 1:
    return items
  index = jax.process_index() if index is None else index
  size = -(-len(items) // processes)
  part = list(items[index * size : (index + 1) * size])
  return part + [items[-1]] * (size - len(part))


def gather_shards(part, total: int) -> list:
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


def to_global(tree, mesh):
  """This process's rows -> the rows of all, on the devices of the mesh."""
  return jax.make_array_from_process_local_data(
    sharding_rules.rows_sharding(mesh), tree
  )


@functools.cache
def reshard(layout):
  return jax.jit(lambda tree: tree, out_shardings=layout)


def to_local(tree, mesh):
  """What belongs to the rows that this process put in, as numpy."""
  if count() == 1:
    return jax.tree.map(np.asarray, tree)

  def own(x):
    parts = {s.index[0].start or 0: s.data for s in x.addressable_shards}
    return np.concatenate([np.asarray(parts[i]) for i in sorted(parts)])

  return jax.tree.map(own, reshard(sharding_rules.rows_sharding(mesh))(tree))


def to_replicated(tree, mesh):
  """The rows of all processes as numpy, in the same order everywhere."""
  if count() > 1:
    tree = reshard(NamedSharding(mesh, P()))(tree)
  return jax.tree.map(np.asarray, tree)


# --------------------------------------------------------------------- end


def watch_others() -> None:
  """Ends this process soon after another one has ended.

  One that fails says so in the coordinator's store, where a thread looks.
  One that is killed says nothing: jax misses its heartbeat, or the connection
  to process 0, and aborts this process. That happens in C++ and runs no Python,
  so that what it means is said by a shell that waits for this process's end.
  """
  done = threading.Event()

  def look():
    while not done.wait(LOOK):
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        if what := error_of_another():
          abort(f"another process ended: {what}; {AGAIN}")

  thread = threading.Thread(target=look, daemon=True)
  thread.start()
  last_words()

  @atexit.register
  def finish():
    # jax waits here too, but not as long, and nobody would hear of an error.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      store().wait_at_barrier("opsd_jax/finished", 1000 * PATIENCE)
    done.set()
    thread.join()  # jax closes the store next
    last_words().communicate(b"ended well\n")


@functools.cache
def last_words() -> subprocess.Popen:
  """A shell that says what this process cannot say once it is killed.

  It waits for the end of its input; a line that comes first silences it.
  """
  words = f"error: this process was killed, as another process ended; {AGAIN}"
  command = ["sh", "-c", 'read -r _ || echo "$0" >&2', words]
  return subprocess.Popen(
    command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
  )


def error_of_another() -> str:
  """What a process said that failed; empty where none did."""
  said = store().key_value_dir_get(ENDED)
  return said[0][1] if said else ""


def reason(error: BaseException) -> str:
  """Why another process ended: its own words, which may be on their way, or
  those of the error that its end caused here."""
  for _ in range(3):
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      if what := error_of_another():
        return what
    time.sleep(LOOK)
  return str(error).splitlines()[0]


def end(error: BaseException, trace: bool = False) -> None:
  """Ends this process for an error, and the others with it.

  Returns where there are no others. The usual way out would wait for them.
  """
  if not jax.distributed.is_initialized():
    return
  if is_of_another(error):
    abort(f"another process ended: {reason(error)}; {AGAIN}")
  words = str(error) or type(error).__name__
  shown = "".join(traceback.format_exception(error)) if trace else words
  abort(shown, f"process {rank()}, with: {words.splitlines()[0]}")


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


def abort(words: str, to_others: str = "") -> None:
  """Prints why, tells the others where this one is the cause, and ends."""
  leaving.acquire()
  with contextlib.suppress(OSError):
    last_words().communicate(b"it said why itself\n")
  print(f"error: {words}", file=sys.stderr, flush=True)
  if to_others:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      store().key_value_set(f"{ENDED}/{rank()}", to_others)
  if rank() == 0:
    time.sleep(3 * LOOK)  # the store ends with this process: the others look first
  os._exit(1)
