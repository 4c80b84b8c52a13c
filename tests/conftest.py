"""Eight simulated devices; hypothesis repeats its examples."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile(
  "ours",
  deadline=None,
  max_examples=25,
  derandomize=True,
  suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ours")
