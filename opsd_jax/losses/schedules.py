"""Values that change with the step: linear between the knots of a schedule.

config.schedule is ((field, (step, value), (step, value), ...), ...); before the
first knot the first value holds, after the last the last. The values of a step
are made once, on the host: plain numbers for sources, contexts and routing, and
traced scalars for the compiled step, which is one program whatever they are.
"""

import numpy as np

# Fields that a step reads anew: of the loss, and of what its rollouts go through.
PREFIXES = (
  "loss.", "targets.", "teacher.rate", "reference.rate", "routing.", "context.part",
  "context.agreement", "rollout.student_share", "rollout.threshold",
)  # fmt: skip
ON_HOST = ("routing.", "context.", "rollout.")  # no traced value of the compiled step


def values_at(schedule, step: int) -> dict[str, float]:
  """{field: its value at this step}."""
  values = {}
  for field, *knots in schedule:
    steps, numbers = zip(*knots, strict=True)
    values[field] = float(np.interp(step, steps, numbers))
  return values


def check(schedule) -> None:
  """Raises ValueError for a schedule that is none."""
  for entry in schedule:
    field, *knots = entry if isinstance(entry, tuple) and entry else (None,)
    if not (
      isinstance(field, str)
      and knots
      and all(isinstance(k, tuple) and len(k) == 2 for k in knots)
      and all(is_number(x) for k in knots for x in k)
    ):
      raise ValueError(
        f"schedule entry {entry!r}, expected (field, (step, value), ...), such as"
        ' ("loss.distill.scale", (0, 0.0), (100, 1.0))'
      )
    steps = [step for step, _ in knots]
    if steps != sorted(set(steps)):
      raise ValueError(f"schedule of {field}: steps {steps} do not rise")
    if not field.startswith(PREFIXES):
      raise ValueError(
        f"schedule of {field}: fields that can change begin with {', '.join(PREFIXES)}"
      )
  check_once(schedule)


def check_once(schedule) -> None:
  """Raises ValueError where two entries are of one field."""
  fields = [field for field, *_ in schedule]
  for field in fields:
    if fields.count(field) > 1:
      raise ValueError(f"schedule of {field}: it has {fields.count(field)} entries")


def is_number(x) -> bool:
  return isinstance(x, (int, float)) and not isinstance(x, bool)


def with_values(config, values: dict):
  """The config with some fields replaced by numbers, which may be traced."""
  if not values:
    return config
  config = config.copy_and_resolve_references()
  with config.ignore_type(), config.unlocked():
    config.update_from_flattened_dict(values)
  return config
