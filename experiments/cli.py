"""Flags of the experiment scripts; a wrong flag ends in one clear line."""

import sys

from absl import app, flags, logging
from ml_collections import config_flags


def run(main) -> None:
  """Runs `main(config, workdir)` with the flags --config and --workdir, see `start`."""
  config = config_flags.DEFINE_config_file(
    "config",
    None,
    "config file with an optional preset and options, configs/<name>.py[:preset,key=value]",
    lock_config=True,
  )
  workdir = flags.DEFINE_string(
    "workdir", None, "directory of the run; an existing run resumes"
  )
  start(lambda: main(config.value, workdir.value), ["config", "workdir"])


def start(main, required) -> None:
  """Runs `main()` once the flags are parsed; `required` are the names of some.

  On several processes the same command runs on each. On a TPU pod and under srun or
  mpirun the processes find each other; elsewhere set --coordinator, --num_processes
  and --process_id. An error in one process ends all.

  An error that the user can fix is printed as one message with exit status 1; with
  --traceback its traceback is printed too.
  """
  trace = flags.DEFINE_bool("traceback", False, "print the traceback of an error")
  processes = (
    flags.DEFINE_string("coordinator", None, "address of process 0, host:port"),
    flags.DEFINE_integer("num_processes", None, "number of processes of this run"),
    flags.DEFINE_integer("process_id", None, "index of this process, from 0"),
  )

  def body(argv):
    if len(argv) > 1:
      raise app.UsageError(f"unknown argument {argv[1]!r}")
    logging.set_verbosity(logging.WARNING)  # orbax logs much at INFO
    from opsd_jax.runtime import distributed  # after the flags: jax loads slowly

    try:
      distributed.start(*(flag.value for flag in processes))
      main()
    except (ValueError, OSError, FloatingPointError) as e:
      distributed.end(e, trace.value)
      if trace.value:
        raise
      sys.exit(f"error: {e}")
    except BaseException as e:
      distributed.end(e, trace=True)
      raise

  flags.mark_flags_as_required(required)
  app.run(body, flags_parser=_parse)


def _parse(argv):
  try:
    return flags.FLAGS(argv)
  except (AttributeError, KeyError) as e:
    reason = " ".join(str(e.args[0]).split()).strip('"')
    sys.exit(f"error: unknown config field {reason}")
  except (flags.Error, TypeError, ValueError, OSError) as e:
    # Some messages of ml_collections hold a whole traceback.
    sys.exit(f"error: {str(e).strip().splitlines()[-1]}")
