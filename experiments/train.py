"""Trains one experiment, or resumes it.

  python -m experiments.train --config=configs/opsd.py --workdir=runs/opsd

`--config.optimizer.learning_rate=1e-4` overrides a field; a preset and options
follow the file, `--config=configs/opsd.py:tiny`.
"""

from experiments import cli


def main(config, workdir):
  from opsd_jax import (
    train,  # after the flags are parsed: a typo should not wait for jax
  )

  train.train_and_evaluate(config, workdir)


if __name__ == "__main__":
  cli.run(main)
