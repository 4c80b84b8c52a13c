"""Flags for the experiment scripts: a wrong one ends in one clear line."""

import sys

from absl import app, flags, logging
from ml_collections import config_flags


def run(main) -> None:
  """`main(config, workdir)` with --config and --workdir; see `start`."""
  config = config_flags.DEFINE_config_file(
    "config", None, "configs/<name>.py[:preset,key=value]", lock_config=True
  )
  workdir = flags.DEFINE_string("workdir", None, "where the run lives")
  start(lambda: main(config.value, workdir.value), ["config", "workdir"])


def start(main, required) -> None:
  """`main()` after the flags are read, some of which are required.

  On several processes the same command runs everywhere: on a TPU pod, under
  srun or mpirun as it is, else with --coordinator, --num_processes and
  --process_id. An error of one ends all.

  An error a user can mend is printed as one message with exit status 1; set
  --traceback to see where it came from.
  """
  trace = flags.DEFINE_bool("traceback", False, "print the whole traceback")
  together = (
    flags.DEFINE_string("coordinator", None, "host:port of process 0"),
    flags.DEFINE_integer("num_processes", None, "of this run, in all"),
    flags.DEFINE_integer("process_id", None, "0 to num_processes - 1"),
  )

  def body(argv):
    if len(argv) > 1:
      raise app.UsageError(f"unknown argument {argv[1]!r}")
    logging.set_verbosity(logging.WARNING)  # orbax tells much
    from opsd_jax.runtime import distributed  # after the flags, as jax is slow

    try:
      distributed.start(*(flag.value for flag in together))
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
    words = " ".join(str(e.args[0]).split()).strip('"')
    sys.exit(f"error: unknown config field {words}")
  except (flags.Error, TypeError, ValueError, OSError) as e:
    # ml_collections puts a whole traceback into some of its messages
    sys.exit(f"error: {str(e).strip().splitlines()[-1]}")
