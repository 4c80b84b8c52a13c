"""Eight simulated devices; hypothesis repeats its examples.

Programs compiled once are read by all processes of the run, and by no other run.
"""

import atexit
import importlib.metadata
import os
import shutil
import tempfile

DEVICES = "--xla_force_host_platform_device_count=8"
is_old = importlib.metadata.version("jaxlib").startswith("0.10.")
# Compiles in half the time; jaxlib 0.12 knows it no more.
FAST = "--xla_cpu_use_fusion_emitters=false" if is_old else ""
os.environ["XLA_FLAGS"] = f"{DEVICES} {FAST}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiles sooner
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the first process of the run
  programs = tempfile.mkdtemp(prefix="opsd_jax_programs_")
  atexit.register(shutil.rmtree, programs, ignore_errors=True)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = programs
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

jax.devices()  # the flags are read here; libtpu would end at one that it does not know
os.environ["XLA_FLAGS"] = DEVICES
os.environ["FAST_COMPILATION"] = FAST  # for tests that start processes

settings.register_profile(
  "ours",
  deadline=None,
  max_examples=25,
  derandomize=True,
  suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ours")


@pytest.fixture
def four_devices(monkeypatch):
  """Half of the devices: whole runs compile sooner."""
  some = jax.devices()[:4]
  monkeypatch.setattr(jax, "devices", lambda *_: some)
