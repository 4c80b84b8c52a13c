"""config -> Run: what an experiment means, checked, loaded and tokenised."""

import functools
import json
from typing import Any, NamedTuple

import jax

from opsd_jax import context
from opsd_jax import objective as objectives
from opsd_jax import optimizer, rollout, sharding, tasks, tokenizer
from opsd_jax.models import sources
from opsd_jax.pick import pick
from opsd_jax.sample import Knobs, check
from opsd_jax.structs import Problem

# What may differ between a run and its resumption: nothing that training sees.
OBSERVATIONAL = ("eval", "checkpoint", "log", "compile_cache")

COUNTS = (  # fields that must be at least 1
    "steps", "rollout.prompts", "rollout.samples", "rollout.max_new_tokens",
    "rollout.batch_prompts", "batch.micro_batches", "batch.bucket",
    "batch.window_bucket", "batch.prompt_bucket", "loss.chunk", "eval.every",
    "eval.batch_prompts", "eval.max_new_tokens", "eval.drift_prompts",
    "eval.drift_tokens", "checkpoint.every", "checkpoint.keep",
    "log.samples_every", "task.eval_count", "task.train_count",
)  # fmt: skip


class Run(NamedTuple):
  """What a config means, loaded: everything but the state."""

  mesh: Any
  model_config: Any
  params: Any  # as they are at the start
  tokenizer: Any
  train: tuple[Problem, ...]
  eval: tuple[Problem, ...]
  verify: Any  # (example, text) -> Verdict
  removed_as_overlap: int
  dropped: dict[str, int]  # problems that cannot be asked, by reason
  objective: Any
  tx: Any


def validate(config) -> None:
  """Raises ValueError for everything that can be known to be wrong before a
  model is loaded."""
  objectives.from_config(config)
  optimizer.from_config(config)
  sources.check(config.model.source)
  tasks.open_task(config.task.name, config.task.privileged_field)
  context.check(config.context.template, config.context.privileged)
  pick(rollout.ALL, config.rollout.source)
  check(knobs(config.rollout))
  if config.mesh.tensor != 1:
    raise ValueError(
        f"mesh.tensor is {config.mesh.tensor}: tensor parallelism is not built"
        " yet, expected 1"
    )
  for name in COUNTS:
    value = functools.reduce(getattr, name.split("."), config)
    if value < 1:
      raise ValueError(f"{name} is {value}, expected at least 1")
  if (rows := rows_per_step(config)) % config.batch.micro_batches:
    raise ValueError(
        f"{rows} rows a step do not split into batch.micro_batches ="
        f" {config.batch.micro_batches}"
    )


def rows_per_step(config) -> int:
  return config.rollout.prompts * config.rollout.samples


def knobs(c) -> Knobs:
  return Knobs(c.temperature, c.top_k, c.top_p, c.min_p)


def prepare(config) -> Run:
  """Loads model, tokenizer and problems; drops what does not fit, counted."""
  mesh = sharding.make_mesh(**config.mesh)
  split = mesh.shape["data"] * mesh.shape["fsdp"] * config.batch.micro_batches
  if (rows := rows_per_step(config)) % split:
    raise ValueError(
        f"{rows} rows a step cannot be split over data x fsdp devices and"
        f" micro-batches, {split} in all: make rollout.prompts a multiple of it"
    )
  path = sources.resolve(config.model.source)
  tok = tokenizer.load(path)
  model_config, params = sources.load_model_weights(
      path, dtype=config.model.dtype, param_dtype=config.model.param_dtype,
      scan_layers=config.model.scan_layers, remat=config.model.remat,
  )  # fmt: skip
  params = jax.device_put(params, sharding.tree_shardings(params, mesh))
  task = tasks.open_task(config.task.name, config.task.privileged_field)
  data = tasks.load(
      config.task.name, train_count=config.task.train_count,
      eval_count=config.task.eval_count, seed=config.task.seed,
      privileged_field=config.task.privileged_field,
  )  # fmt: skip
  new = max(config.rollout.max_new_tokens, config.eval.max_new_tokens)
  room = model_config.max_positions - new
  dropped = {}
  train = ask(config.context, tok, data.train, room, dropped)
  held_out = ask(config.context, tok, data.eval, room, dropped)
  if not train or not held_out:
    raise ValueError(f"no problem is left to train or evaluate on: {dropped}")
  return Run(
      mesh, model_config, params, tok, train, held_out,
      task.verify, data.removed_as_overlap, dropped,
      objectives.from_config(config), optimizer.from_config(config),
  )  # fmt: skip


def ask(c, tok, examples, room: int, dropped: dict) -> tuple[Problem, ...]:
  """Both sides' prompts of every example; what cannot be asked is dropped and
  counted by reason. `c` is config.context, `room` the longest prompt."""
  args = lambda a: {k: v for k, v in a.items() if v is not None}
  problems = []
  for example in examples:
    try:
      told = context.teacher_messages(
          c.template, c.privileged, example, examples
      )
    except context.Missing as e:
      dropped[str(e)] = dropped.get(str(e), 0) + 1
      continue
    asked = context.student_messages(c.template, example)
    student = tuple(tok.chat_ids(asked, **args(c.student_args)))
    teacher = tuple(tok.chat_ids(told, **args(c.teacher_args)))
    if max(len(student), len(teacher)) > room:
      reason = f"a prompt is longer than {room} tokens"
      dropped[reason] = dropped.get(reason, 0) + 1
      continue
    problems.append(Problem(example, student, teacher))
  return tuple(problems)


def claim(config, workdir) -> None:
  """Writes workdir/config.json, or refuses a workdir of another experiment."""
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / "config.json"
  new = json.loads(config.to_json_best_effort())
  if path.exists():
    there, now = flat(json.loads(path.read_text())), flat(new)
    differ = [
        f"  {k}: {there.get(k)!r} there, {now.get(k)!r} now"
        for k in sorted({*there, *now})
        if there.get(k) != now.get(k) and k.split(".")[0] not in OBSERVATIONAL
    ]
    if differ:
      raise ValueError(
          f"{workdir} holds a run of another config; give another --workdir:\n"
          + "\n".join(differ)
      )
  path.write_text(json.dumps(new, indent=2) + "\n")


def flat(tree: dict, at: str = "") -> dict:
  """{"a": {"b": 1}} -> {"a.b": 1}."""
  leaves = {}
  for name, value in tree.items():
    leaves |= (
        flat(value, f"{at}{name}.")
        if isinstance(value, dict)
        else {at + name: value}
    )
  return leaves
