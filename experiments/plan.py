"""Plans an experiment: whether it compiles and fits, and how fast it can be.

  python -m experiments.plan --config=configs/opsd.py:qwen3_8b --topology=v5p:2x2x4

Compiles the real train step and the real sampler for TPUs that need not be
there (`pip install libtpu`), or for cpu:<N> simulated devices; no weights are
needed. Prints a table and, as its last line, JSON; exits with status 1 where the
experiment does not fit. Times are estimates: see opsd_jax/planning/account.py.
"""

import json
import sys

from absl import flags
from ml_collections import config_flags

from experiments import cli

CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "config file with an optional preset and options, configs/<name>.py[:preset,key=value]",
  lock_config=True,
)
TOPOLOGY = flags.DEFINE_string(
  "topology",
  None,
  "devices to compile for: v4, v5e, v5p or v6e with their arrangement, such as v5p:2x2x4, or cpu:<number>",
)


def main():
  # Imported after the flags are parsed: a typo should not wait for jax.
  from opsd_jax.planning import account as accounts
  from opsd_jax.planning import compile as compilation
  from opsd_jax.reporting import console

  compilation.simulate_devices(TOPOLOGY.value)
  account = accounts.make_account(CONFIG.value, TOPOLOGY.value)
  print(console.plan(account))
  print(json.dumps(account))
  if not account["fits"]:
    sys.exit(f"error: the experiment does not fit: {account['advice']}")


if __name__ == "__main__":
  cli.start(main, ["config", "topology"])
