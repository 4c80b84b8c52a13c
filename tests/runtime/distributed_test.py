"""Two processes equal one; what they agree on; how they end."""

import http.server
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax.runtime import distributed

ROOT = pathlib.Path(__file__).parents[2]
# The words that the transport prints, its threads into one another's lines.
GLOO = set("Gloo Rank is connected to peer ranks Expected number of".split())


def free_port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def launch(command, devices: int):
  env = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles in half the time
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"
    f" {os.environ['FAST_COMPILATION']}",
  }
  return subprocess.Popen(
    [sys.executable, *command],
    cwd=ROOT,
    env=env,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


def launch_two(command):
  """Two processes of two devices each; the coordinator is process 0."""
  where = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
  return [launch([*command, *where, f"--process_id={i}"], 2) for i in (0, 1)]


def end(launched, seconds=240):
  """[(exit status, what it printed, its errors)] of all, killed if they hang."""
  try:
    texts = [p.communicate(timeout=seconds) for p in launched]
  finally:
    for p in launched:
      p.kill()
  return [(p.returncode, *text) for p, text in zip(launched, texts, strict=True)]


def ours(text: str) -> list[str]:
  """The lines that hold a word which is not the transport's."""

  def words(line):
    return set(re.findall("[A-Za-z]+", line))

  return [line for line in text.splitlines() if words(line) - GLOO]


# ------------------------------------------------------------ a whole run


def train(scratch, name, *more, config="opsd", steps=6):
  return [
    "-m",
    "experiments.train",
    f"--config=configs/{config}.py:tiny",
    f"--workdir={scratch / name}",
    f"--config.steps={steps}",
    "--config.log.tensorboard=False",
    f"--config.compile_cache={scratch / 'programs'}",
    *more,
  ]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
  """A directory in which one process of four devices has run."""
  scratch = tmp_path_factory.mktemp("runs")
  ((status, _, errors),) = end([launch(train(scratch, "one"), 4)])
  assert status == 0, errors
  return scratch


def rows_of(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").open()]


def assert_same_run(got, expected):
  rows, expected_rows = rows_of(got), rows_of(expected)
  assert len(rows) == len(expected_rows) == 6 + 4  # steps and evaluations
  for row, other in zip(rows, expected_rows, strict=True):
    assert row.keys() == other.keys()
    times = {k for k in row if k.startswith(("time/", "memory/"))}
    for key in row.keys() - times - {"compiles"}:
      assert row[key] == pytest.approx(other[key], rel=1e-5, abs=1e-5), key
    if "loss" in row:  # small numbers are not the same for being small
      assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
      assert row["loss"] == pytest.approx(other["loss"], rel=1e-2)
      assert row["grad_norm"] > 1e-3
  names = sorted(p.name for p in (expected / "samples").iterdir())
  assert names == sorted(p.name for p in (got / "samples").iterdir())
  for name in (n for n in names if n.startswith("eval")):
    text = (got / "samples" / name).read_text()
    assert text == (expected / "samples" / name).read_text()
    assert len(text.splitlines()) == 8


def test_two_processes_are_one_run_and_one_writes(scratch):
  (first, out, errors), (second, other_out, other_errors) = end(
    launch_two(train(scratch, "two"))
  )
  assert first == 0 and second == 0, errors + other_errors
  assert_same_run(scratch / "two", scratch / "one")
  assert "held-out accuracy" in out and "step 6: accuracy" in out
  assert ours(other_out) == []
  assert (scratch / "two" / "summary.png").stat().st_size > 10_000


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_both_resume(scratch, victim):
  workdir = scratch / f"killed {victim}"
  launched = launch_two(train(scratch, workdir.name))
  path = workdir / "metrics.jsonl"
  while launched[0].poll() is None:  # until the third step, past a checkpoint
    if path.exists() and '"step": 3,' in path.read_text():
      break
    time.sleep(0.02)
  launched[victim].send_signal(signal.SIGKILL)
  began = time.time()
  ends = end(launched, 60)
  print(f"{victim} was killed, the other ended after {time.time() - began:.1f} s")
  assert time.time() - began < 60
  (killed, *_), (status, _, errors) = ends[victim], ends[1 - victim]
  assert killed == -signal.SIGKILL and status not in (0, None), errors
  ours = [x for x in errors.splitlines() if x.startswith("error: ")]
  assert len(ours) == 1 and "another process ended" in ours[0], errors
  assert "resumes from its last checkpoint" in ours[0]
  assert max(r["step"] for r in rows_of(workdir)) < 6
  if victim == 0:
    return  # resuming is the same, and takes a minute

  (status, out, errors), (other, _, other_errors) = end(
    launch_two(train(scratch, workdir.name))
  )
  assert status == 0 and other == 0, errors + other_errors
  assert "resumed at step" in out
  assert_same_run(workdir, scratch / "one")


# What a step may do at once: SDPO, a second sampling where all failed, what
# contexts remember, an adapter, two updates of two micro-batches each.
EVERYTHING = (
  "--config.mesh.data=2",  # weights split within a process: the runs above do it across
  "--config.seed=2",  # of whose random replies two are right
  "--config.task.name=reasoning_gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,"
  "max_digits=1",
  "--config.rollout.max_new_tokens=16",
  "--config.rollout.source=rescue",
  "--config.rollout.prompts_per_step=4",
  "--config.rollout.samples_per_prompt=4",
  "--config.context.privileged=solution",
  "--config.context.also_privileged=('remembered',)",
  "--config.targets.teacher.view=2",
  "--config.lora.rank=4",
  "--config.optimizer.updates_per_batch=2",
  "--config.batch.micro_batches=2",
  "--config.optimizer.learning_rate=0.01",
  "--config.optimizer.eps=1e-4",  # the rounding of a gradient near 0 is no step
  "--config.checkpoint.every=2",
  "--config.eval.every=6",
  "--config.eval.samples=0",
)


def saved(workdir):
  """The parameters of the newest checkpoint, and the state of its iterator."""
  from opsd_jax.runtime import checkpoint

  def layout(tree):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda _: one, tree)

  step, params = checkpoint.restore_params(workdir / "checkpoints", layout)
  assert step == 6
  manager = checkpoint.open_manager(workdir / "checkpoints", keep=1)
  state = checkpoint.restore_iterator_state(manager, step)
  manager.close()
  return jax.device_get(params), state


def test_verdicts_memory_and_a_second_sampling_on_two_processes_and_over_a_kill(
  scratch,
):
  """The same weights as one process uninterrupted, to 1e-4 of what they moved."""

  def command(name):
    return train(scratch, name, *EVERYTHING, config="sdpo")

  ends = end([launch(command("one, all"), 4)])
  first, second = launch_two(command("two, all"))
  path = scratch / "two, all" / "metrics.jsonl"
  while first.poll() is None:  # until the second step, at a checkpoint
    if path.exists() and '"step": 4,' in path.read_text():
      break
    time.sleep(0.02)
  second.send_signal(signal.SIGKILL)
  end([first, second], 90)
  ends += end(launch_two(command("two, all")))
  assert [status for status, *_ in ends] == [0, 0, 0], ends
  (params, state), (expected, one_state) = (
    saved(scratch / name) for name in ("two, all", "one, all")
  )
  assert state["memory"] == one_state["memory"] and state["memory"]["right"]
  assert state["stream"] == one_state["stream"]
  for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
    largest = np.abs(b).max()
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * largest)
  rows = [r for r in rows_of(scratch / "two, all") if "loss" in r]
  assert max(r["distill/weight"] for r in rows) > 0
  assert max(r["grad_norm"] for r in rows) > 1e-4


def test_what_the_first_process_refuses_ends_all(scratch):
  command = train(scratch, "one", "--config.optimizer.learning_rate=1.0")
  before = (scratch / "one" / "metrics.jsonl").read_text()
  for status, _, errors in end(launch_two(command), 60):
    assert status not in (0, None)
    assert "another config" in errors and "Traceback" not in errors
  assert (scratch / "one" / "metrics.jsonl").read_text() == before


def test_rewards_of_two_processes_are_of_one_run(scratch):
  """Advantages within the rewards of all; numbers that random replies hit."""
  lines = [{"problem": f"Count {i}", "answer": i % 10} for i in range(64)]
  (scratch / "counts.jsonl").write_text("\n".join(map(json.dumps, lines)))

  def command(name):
    return train(
      scratch,
      name,
      "--config.mesh.data=2",
      "--config.task.name=gsm8k",
      f"--config.data.train={scratch / 'counts.jsonl'}",
      f"--config.data.eval={scratch / 'counts.jsonl'}",
      "--config.rollout.max_new_tokens=24",
      "--config.rollout.prompts_per_step=16",
      "--config.eval.every=2",
      "--config.rewards.advantage=whitened",
      config="grpo",
      steps=2,
    )

  ends = end([launch(command("one, rewarded"), 4)])
  ends += end(launch_two(command("two, rewarded")))
  assert [status for status, *_ in ends] == [0, 0, 0], ends
  one, two = (
    [r for r in rows_of(scratch / f"{n}, rewarded") if "loss" in r]
    for n in ("one", "two")
  )
  for row, other in zip(two, one, strict=True):
    for key in ("score", "reward", "rewards/no_signal", "unverified"):
      assert row[key] == pytest.approx(other[key], abs=1e-9), key
    assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
  assert max(row["score"] for row in two if row["grad_norm"] > 1e-2) > 0


# ------------------------------------------------------- what they agree on

AGREE = """
import sys
import numpy as np
from opsd_jax.runtime import distributed
from opsd_jax.runtime.mesh import AXES, make_mesh

port, me = sys.argv[1], int(sys.argv[2])
distributed.start(f"127.0.0.1:{port}", 2, me)
import jax
assert (distributed.count(), distributed.is_first()) == (2, me == 0)
assert distributed.gather({"text": "é" * me, "n": [me, None]}) == [
    {"text": "", "n": [0, None]}, {"text": "é", "n": [1, None]}]
assert distributed.maximum([me, -me, np.int64(7)]) == [1, 0, 7]
assert distributed.mean(me) == 0.5
assert distributed.broadcast_from_first(lambda: 3.25 + me) == 3.25
assert distributed.gather_shards(distributed.local_shard([5, 6, 7]), 3) == [5, 6, 7]

# Devices in an order in which no process has neighbouring rows.
order = np.array(jax.devices())[[5, 0, 4, 1, 2, 7, 6, 3]]
mesh = jax.sharding.Mesh(order.reshape(4, 2, 1), AXES)
distributed.check_rows(mesh)
mine = np.arange(16).reshape(8, 2) + 100 * me  # two rows a device
on_devices = distributed.to_global({"x": mine}, mesh)
assert on_devices["x"].shape == (16, 2)
np.testing.assert_array_equal(distributed.to_local(on_devices, mesh)["x"], mine)
doubled = jax.jit(lambda t: t["x"] * 2, out_shardings=jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec(None, "fsdp")))(on_devices)
np.testing.assert_array_equal(distributed.to_local(doubled, mesh), 2 * mine)
whole = distributed.to_replicated(on_devices, mesh)["x"]
assert sorted(whole.ravel()) == [*range(16), *range(100, 116)]
assert distributed.gather(whole.tolist())[0] == whole.tolist()

try:
  distributed.broadcast_from_first(lambda: int("nine"))
  raise AssertionError
except ValueError as e:
  assert "nine" in str(e)

for tensor, fine in ((2, True), (8, False)):
  apart = make_mesh(-1, 1, tensor)
  try:
    distributed.check_rows(apart)
    assert fine
  except ValueError as e:
    assert not fine and "mesh.tensor a divisor of 4" in str(e)

try:
  if me == 1:
    raise OSError("no space left")
  distributed.gather(0)
except BaseException as e:
  distributed.end(e)
"""


def test_what_two_processes_agree_on_and_that_an_error_ends_both():
  port = str(free_port())
  launched = [launch(["-c", AGREE, port, str(i)], 4) for i in (0, 1)]
  (first, _, errors), (second, _, other_errors) = end(launched, 60)
  assert ours(other_errors) == ["error: no space left"]
  (line,) = ours(errors)
  assert "process 1, with: no space left; all processes" in line
  assert first == second == 1


BUSY = """
import sys, time
from opsd_jax.runtime import distributed
distributed.start(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
distributed.gather(0)
print("met", file=sys.stderr, flush=True)
time.sleep(300)  # what a host does without asking the others
"""


def test_a_killed_process_ends_one_that_waits_for_nothing():
  """Whichever is killed; process 0 holds what the others ask for its end."""
  pairs = []
  for _ in (0, 1):
    port = str(free_port())
    pairs.append([launch(["-c", BUSY, port, str(i)], 1) for i in (0, 1)])
  killed = [pair[victim] for victim, pair in enumerate(pairs)]
  others = [pair[1 - victim] for victim, pair in enumerate(pairs)]
  for p in (*killed, *others):
    while "met" not in (line := p.stderr.readline()):
      assert line, p.poll()
  for p in killed:
    p.send_signal(signal.SIGKILL)
  began, seconds = time.time(), {}
  while len(seconds) < 2 and time.time() - began < 90:
    for victim, p in enumerate(others):
      if victim not in seconds and p.poll() is not None:
        seconds[victim] = time.time() - began
    time.sleep(0.05)
  print("seconds until the other ended, by who was killed:", seconds)
  assert max(seconds.values()) < 60
  for status, _, errors in end(others):
    assert status != 0
    assert "another process ended; all processes have to be started" in errors
  assert {status for status, *_ in end(killed)} == {-signal.SIGKILL}


@given(st.integers(1, 300), st.integers(1, 40))
def test_shares_are_disjoint_complete_and_of_equal_size(count, of):
  items = list(range(count))
  parts = [distributed.local_shard(items, i, of) for i in range(of)]
  assert {len(p) for p in parts} == {-(-count // of)}
  joined = [x for p in parts for x in p]
  assert joined[:count] == items
  assert set(joined[count:]) <= {count - 1}  # what fills up


def test_alone_everything_is_trivial():
  assert distributed.count() == 1 and distributed.is_first()
  assert distributed.local_shard([3, 1, 2]) == [3, 1, 2]
  once = object()
  assert distributed.gather(once)[0] is once
  assert distributed.broadcast_from_first(lambda: once) is once
  distributed.end(ValueError("returns"))


# ------------------------------------------------------------------- rows


def mesh_of(owners, shape):
  """A stand-in for a mesh whose devices belong to these processes."""
  devices = [types.SimpleNamespace(process_index=p) for p in owners]
  return types.SimpleNamespace(
    devices=np.array(devices).reshape(shape),
    shape=dict(zip(("data", "fsdp", "tensor"), shape, strict=True)),
  )


@pytest.mark.parametrize(
  "owners,shape,fine",
  [
    ((0, 0, 1, 1), (1, 4, 1), True),
    ((0, 1, 1, 0), (2, 2, 1), True),
    ((0, 0, 1, 1), (1, 2, 2), True),
    ((0, 1, 0, 1), (2, 1, 2), False),
    ((0, 0, 1, 1), (1, 1, 4), False),
    ((0, 0, 0, 1), (4, 1, 1), False),
  ],
)
def test_rows_are_of_one_process(owners, shape, fine, monkeypatch):
  monkeypatch.setattr(distributed, "count", lambda: 2)
  if fine:
    distributed.check_rows(mesh_of(owners, shape))
  else:
    with pytest.raises(ValueError, match="mesh.tensor=1 will do"):
      distributed.check_rows(mesh_of(owners, shape))


# ------------------------------------------------------------------ start

CLUSTER = (
  "JAX_COORDINATOR_ADDRESS",
  "SLURM_STEP_NUM_TASKS",
  "OMPI_COMM_WORLD_SIZE",
  "MEGASCALE_NUM_SLICES",
  "TPU_WORKER_HOSTNAMES",
)


@pytest.mark.parametrize(
  "name,value,several",
  [
    ("JAX_COORDINATOR_ADDRESS", "host:1234", True),
    ("SLURM_STEP_NUM_TASKS", "4", True),
    ("SLURM_STEP_NUM_TASKS", "1", False),
    ("OMPI_COMM_WORLD_SIZE", "2", True),
    ("MEGASCALE_NUM_SLICES", "2", True),
    ("TPU_WORKER_HOSTNAMES", "a,b", True),
    ("TPU_WORKER_HOSTNAMES", "a", False),
    ("TPU_WORKER_HOSTNAMES", "", False),
    ("NOTHING", "2", False),
  ],
)
def test_a_cluster_is_read_off_the_environment(name, value, several, monkeypatch):
  for other in CLUSTER:
    monkeypatch.delenv(other, raising=False)
  monkeypatch.setattr(distributed.glob, "glob", lambda pattern: [])
  monkeypatch.setenv(name, value)
  assert distributed.is_cluster() == several


@pytest.mark.parametrize("workers", [1, 4])
def test_a_tpu_slice_is_asked_for_its_hosts(workers, monkeypatch):
  class Metadata(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      known = self.path.endswith("instance/attributes/worker-network-endpoints")
      self.send_response(200 if known else 404)
      self.end_headers()
      self.wfile.write(b",".join([b"worker:8470:10.0.0.1"] * workers))

    def log_message(self, *args):
      pass

  server = http.server.HTTPServer(("127.0.0.1", 0), Metadata)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  monkeypatch.delenv("TPU_WORKER_HOSTNAMES", raising=False)
  monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
  monkeypatch.setattr(distributed.glob, "glob", lambda pattern: ["/dev/accel0"])
  assert distributed.tpu_hosts() == workers
  server.shutdown()
  monkeypatch.setattr(distributed.glob, "glob", lambda pattern: [])
  assert distributed.tpu_hosts() == 1  # no chip, nobody asked


@pytest.mark.parametrize(
  "told,words",
  [
    (("host:1", None, 0), "give all or none"),
    ((None, 2, 0), "all or none"),
    (("host:1", 2, 2), "expected 0 to 1"),
    (("host:1", 2, -1), "0 to 1"),
  ],
)
def test_bad_arguments_are_refused(told, words):
  with pytest.raises(ValueError, match=words):
    distributed.start(*told)
