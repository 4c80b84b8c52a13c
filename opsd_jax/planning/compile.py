"""Abstract runs: an experiment's shapes, and its programs lowered and compiled.

The real train step and the real sampler are compiled for TPUs that need not be
there (by libtpu alone) or for simulated CPU devices. Nothing is run, so no array
has a value and no weights are needed.
"""

import importlib.util
import os
import pathlib
import re
import tempfile
import time
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from opsd_jax import setup, train
from opsd_jax.losses import controllers, optimizer
from opsd_jax.losses import objective as objectives
from opsd_jax.models import attention, families, kv_cache, lora, transformer
from opsd_jax.models.weights import sources
from opsd_jax.rollouts import collate, collect, contexts, shapes
from opsd_jax.runtime import sharding_rules
from opsd_jax.runtime.mesh import check_rows, make_mesh, row_shards
from opsd_jax.sampling import sampler, scheduler
from opsd_jax.sampling.programs import Slots, decode, prefill
from opsd_jax.sampling.tokens import SamplingParams
from opsd_jax.structs import (
  Batch,
  Completion,
  Example,
  Prompts,
  ResponseTokens,
  Rollout,
  Verdict,
  View,
)


class Chip(NamedTuple):
  """Published peaks of one chip (Google Cloud's TPU pages, 2026)."""

  flops: float  # bfloat16 FLOP/s
  hbm: float  # bytes
  hbm_rate: float  # bytes/s
  ici_rate: float  # bytes/s sent over all of its links together


CHIPS = {
  "v4": Chip(275e12, 32e9, 1228e9, 300e9),
  "v5e": Chip(197e12, 16e9, 819e9, 200e9),
  "v5p": Chip(459e12, 95e9, 2765e9, 600e9),
  "v6e": Chip(918e12, 32e9, 1600e9, 400e9),
}


# ------------------------------------------------------------------- devices


def parse_topology(topology: str) -> tuple[str, str]:
  """ "v5p:2x2x4" -> ("v5p", "2x2x4"); raises ValueError that lists the known chips."""
  kind, _, shape = topology.partition(":")
  pattern = r"[1-9]\d*" if kind == "cpu" else r"\d+x\d+(x\d+)?"
  if kind not in (*CHIPS, "cpu") or not re.fullmatch(pattern, shape):
    raise ValueError(
      f"topology is {topology!r}, expected cpu:<devices> or"
      f" <chip>:<a>x<b>[x<c>] of {', '.join(CHIPS)}, such as v5p:2x2x4"
    )
  return kind, shape


def simulate_devices(topology: str) -> None:
  """Restricts jax to CPU devices; must be called before jax looks for devices."""
  kind, shape = parse_topology(topology)
  jax.config.update("jax_platforms", "cpu")
  if kind == "cpu":
    jax.config.update("jax_num_cpu_devices", int(shape))


def devices_of(topology: str):
  """The devices of a topology; those of a TPU are abstract and need not exist."""
  kind, shape = parse_topology(topology)
  if kind == "cpu":
    if len(jax.devices()) < int(shape):
      raise ValueError(
        f"topology is {topology!r}, but jax has {len(jax.devices())} CPU devices"
      )
    return jax.devices()[: int(shape)]
  if not importlib.util.find_spec("libtpu"):
    raise ValueError(
      f"compiling for {topology} needs the TPU compiler: pip install libtpu"
    )
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # no metadata server describes a TPU
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # and no device has to be locked
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
  except Exception as e:  # libtpu raises several types for an unknown shape
    raise ValueError(
      f"topology {topology!r} does not exist: {str(e).splitlines()[0]}"
    ) from e


# -------------------------------------------------------------- abstract runs


class AbstractRun(NamedTuple):
  """An experiment as ShapeDtypeStructs with shardings, without values."""

  mesh: jax.sharding.Mesh
  model_config: families.ModelConfig
  objective: objectives.Objective
  tx: object
  state: object
  frozen: train.Frozen  # the weights that do not train
  external_config: families.ModelConfig | None
  batch: Batch


def abstract_run(config, devices) -> AbstractRun:
  """The AbstractRun of a config on those devices.

  Raises ValueError where setup.prepare would, and without batch.max_sequence_len,
  since a plan needs the longest row.
  """
  setup.validate(config)
  mesh = make_mesh(**config.mesh, devices=devices)
  rows = setup.rows_per_step(config)
  check_rows(mesh, rows, config.batch.micro_batches)
  packed = config.batch.pack_len > 0
  model_config = setup.resolve_attention(
    read_model_config(setup.origin(config.model.source), setup.runtime_fields(config)),
    mesh,
    packed,
  )
  objective, tx = objectives.from_config(config), optimizer.from_config(config)

  def with_shardings(tree):
    return jax.tree.map(
      lambda x, layout: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout),
      tree,
      sharding_rules.tree_shardings(tree, mesh),
    )

  def abstract_params(model_config):
    return jax.eval_shape(
      lambda: transformer.init_params(model_config, jax.random.key(0))
    )

  external = external_config = None
  if config.external.source:
    fields = setup.external_fields(config)
    external_config = setup.resolve_attention(
      read_model_config(setup.origin(config.external.source), fields), mesh, packed
    )
    external = abstract_params(external_config)
  params, trained = abstract_params(model_config), setup.trained(config)
  state = jax.eval_shape(lambda p: train.init_state(trained(p), objective, tx), params)
  base = params if config.lora.rank else {}
  return AbstractRun(
    mesh,
    model_config,
    objective,
    tx,
    with_shardings(state),
    train.Frozen(with_shardings(base), with_shardings(external or {})),
    external_config,
    largest_batch(config, model_config, mesh, rows, objective),
  )


def read_model_config(source: str, runtime: dict) -> families.ModelConfig:
  """A model's config, published or read from its files."""
  if source in families.KNOWN:
    return families.from_hf(families.KNOWN[source], **runtime)
  return sources.read_config(sources.resolve(source, only_config=True), **runtime)


def largest_batch(config, model_config, mesh, rows: int, objective) -> Batch:
  """The largest batch: a row for every response, all of the greatest length."""
  if not config.batch.max_sequence_len:
    raise ValueError(
      "a plan needs the longest row: set --config.batch.max_sequence_len=<tokens>"
    )
  L = config.batch.max_sequence_len
  parts = row_shards(mesh) * config.batch.micro_batches
  T = rows * config.rollout.max_new_tokens // parts
  split = sharding_rules.rows_sharding(mesh)

  def ints(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=split)

  def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split)

  # Packed rows have positions and segments, and parents where prompts are shared.
  is_packed = config.batch.pack_len > 0
  extra = 2 + attention.supports_shared_prefix(model_config.attention)
  extra = extra if is_packed else 0

  def view():
    return View(ints(rows, L), ints(parts, T), *[ints(rows, L)] * extra)

  present = collate.Optional([collated_row(config, objective)], (1, 1)).arrays
  weights, exists = (
    dict.fromkeys(present.pop(name), floats(parts, T)) for name in ("weights", "exists")
  )
  optional = {
    name: ints(parts, T) if x.dtype == jnp.int32 else floats(parts, T)
    for name, x in present.items()
  }
  tokens = ResponseTokens(
    ints(parts, T),
    floats(parts, T),
    *[ints(parts, T)] * 3,
    floats(parts, T),
    weights,
    exists=exists,
    **optional,
  )
  return Batch(tuple(view() for _ in range(objective.views)), tokens)


def collated_row(config, objective) -> collate.Row:
  """A row as collect makes it for this config; it decides the batch's tree."""
  run = types.SimpleNamespace(objective=objective, host_memory=None)
  views = ((0,),) * (1 + len(contexts.names(config.context)))
  example = Example("planned", "", None, None)
  role = {"dataset": "dataset", "teacher_view": "guided"}
  rollout = Rollout(
    Prompts(example, views),
    Completion("", (0,), (0.0,), False, (0.0,)),
    views,
    role.get(config.rollout.source, "student"),
    Verdict(0.0),
    0.0,
  )
  ((rollout,),) = collect.with_routing(config, run, [[rollout]])
  return collect.row_maker(config, run.objective)(rollout, 0, (0, 0))


# ------------------------------------------------------------------ programs


class Compiled(NamedTuple):
  """A compiled program."""

  seconds: float  # to compile
  memory: object  # XLA's memory analysis
  text: str  # HLO


def compile_program(lowered) -> Compiled:
  """Raises DoesNotFit where the program needs more memory than the chip has."""
  with tempfile.TemporaryDirectory() as scratch:
    began = time.time()
    options = {"xla_dump_to": scratch, "xla_dump_hlo_as_text": True}
    try:
      program = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as e:
      if "RESOURCE_EXHAUSTED" in str(e):
        raise DoesNotFit(str(e)) from e
      raise
    seconds = time.time() - began
    dumps = pathlib.Path(scratch).glob("*after_optimizations.txt")
    text = max(dumps, key=lambda p: p.stat().st_size).read_text()
  return Compiled(seconds, program.memory_analysis(), text)


class DoesNotFit(ValueError):
  """The compiler ran out of memory; holds its message."""


def train_programs(config, run: AbstractRun):
  """(the scoring step or None, the train step), lowered as training compiles them."""
  layout = jax.tree.map(lambda x: x.sharding, run.state)
  with jax.set_mesh(run.mesh):
    programs = train.compile_steps(config, run, layout)
    values = controllers.values_at(config, 0, [])
    values = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in values}
    if not programs.score:
      return None, programs.train.lower(run.state, run.batch, run.frozen, values)
    B, T = run.batch.tokens.y_BxT.shape
    length = config.rollout.max_new_tokens
    kept = run.objective.kept(np.full(T // length, length))
    columns = None
    if kept is not None:
      columns = min(shapes.round_up(kept.sum(), 32, digits=3), T)
    given = run.state, run.batch, run.frozen, values
    score = programs.score.lower(*given, kept_columns=columns)
    batch, *_ = jax.eval_shape(
      lambda *given: programs.score(*given, kept_columns=columns), *given
    )
    rows = sharding_rules.rows_sharding(run.mesh)
    batch = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        x.shape,
        x.dtype,
        sharding=rows if x.ndim else sharding_rules.replicated(run.mesh),
      ),
      batch,
    )
    return score, programs.train.lower(run.state, batch, run.frozen, values)


class SamplerShape(NamedTuple):
  """The sampler at its largest: every slot occupied, prompts of greatest length."""

  slots: int
  prompts: int  # prompts that one prefill takes
  calls: int  # prefills until every slot is occupied
  length: int  # tokens of a prompt
  positions: int  # cache positions of a slot


def sampler_shape(config, run: AbstractRun) -> SamplerShape:
  shards, n = row_shards(run.mesh), config.rollout.samples_per_prompt
  max_prompt_len = config.batch.max_sequence_len - config.rollout.max_new_tokens
  initial, waiting = sampler.set_up(
    run.model_config,
    [()] * config.rollout.prompts_per_step,
    n,
    *scheduler.slots_per_shard(config.rollout.slots, shards),
    shards,
    config.batch.prompt_bucket,
    max_prompt_len,
    config.rollout.max_new_tokens,
  )
  filled = -(-initial.width // len(waiting[0]))  # prompts that fill a shard
  prompts = initial.prefill_batch
  sizes = initial.sizes
  return SamplerShape(
    initial.width * shards,
    prompts * shards,
    -(-filled // prompts),
    min(-(-max_prompt_len // sizes[0]) * sizes[0], sizes[-1]),
    sizes[-1],
  )


def sampler_programs(config, run: AbstractRun):
  """(prefill, decode), lowered: the largest programs that a rollout runs."""
  shape, split = sampler_shape(config, run), sharding_rules.rows_sharding(run.mesh)

  def array(dims, dtype):
    return jax.ShapeDtypeStruct(dims, dtype, sharding=split)

  def ints(*dims):
    return array(dims, jnp.int32)

  def floats(*dims):
    return array(dims, jnp.float32)

  R = shape.slots
  slots = Slots(
    ints(R),
    ints(R),
    ints(R),
    ints(R),
    array((R,), jnp.bool),
    array((R, 2), jnp.uint32),
    SamplingParams(floats(R), ints(R), floats(R), floats(R)),
  )
  params = lora.join(run.frozen.base, run.state.params)
  cache = jax.eval_shape(lambda: kv_cache.init(run.model_config, R, shape.positions))
  cache = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=kv_cache.sharding_of(x, run.mesh)
    ),
    cache,
  )
  scalars = (2,), ()
  eos_E, enough = (jax.ShapeDtypeStruct(dims, jnp.int32) for dims in scalars)
  with jax.set_mesh(run.mesh):
    return (
      prefill.lower(run.model_config, params, ints(shape.prompts, shape.length)),
      decode.lower(
        run.model_config,
        params,
        cache,
        slots,
        eos_E,
        enough,
        steps=config.rollout.host_sync_every,
      ),
    )
