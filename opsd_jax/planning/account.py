"""Whether an experiment compiles, fits and how fast it can be, on any machine.

The real train step and the real sampler are compiled for TPUs that need not be
there (by libtpu alone) or for simulated CPU devices; nothing is run. Bytes are
XLA's own account; traffic is read off the compiled program (hlo.py); times are
a roofline of published peaks, an estimate:

  time = executed FLOPs / peak + HBM bytes / bandwidth + collective bytes / ICI
  MFU  = useful FLOPs / (peak x time)

one after the other, as if nothing overlapped. What is useful and what is
executed is counted in flops.py. The interconnect counts with all its links,
which chips at the border of a small slice do not have.
"""

import importlib.util
import math
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
from opsd_jax.losses import objective as objectives
from opsd_jax.losses import optimizer, schedules
from opsd_jax.models import attention, families, kv_cache, lora, transformer
from opsd_jax.models.weights import sources
from opsd_jax.planning import flops, hlo
from opsd_jax.rollouts import collate, collect, contexts
from opsd_jax.runtime import sharding_rules
from opsd_jax.runtime.mesh import check_rows, divisors, make_mesh, row_shards
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
  ici_rate: float  # bytes/s that it sends to all its neighbours


CHIPS = {
  "v4": Chip(275e12, 32e9, 1228e9, 300e9),
  "v5e": Chip(197e12, 16e9, 819e9, 200e9),
  "v5p": Chip(459e12, 95e9, 2765e9, 600e9),
  "v6e": Chip(918e12, 32e9, 1600e9, 400e9),
}


def check(topology: str) -> tuple[str, str]:
  """("v5p", "2x2x4") of "v5p:2x2x4"; ValueError with what is known."""
  kind, _, shape = topology.partition(":")
  pattern = r"[1-9]\d*" if kind == "cpu" else r"\d+x\d+(x\d+)?"
  if kind not in (*CHIPS, "cpu") or not re.fullmatch(pattern, shape):
    raise ValueError(
      f"topology is {topology!r}, expected cpu:<devices> or"
      f" <chip>:<a>x<b>[x<c>] of {', '.join(CHIPS)}, such as v5p:2x2x4"
    )
  return kind, shape


def simulate(topology: str) -> None:
  """Keeps jax to the CPU; must come before it looks for devices."""
  kind, shape = check(topology)
  jax.config.update("jax_platforms", "cpu")
  if kind == "cpu":
    jax.config.update("jax_num_cpu_devices", int(shape))


def devices_of(topology: str):
  """The devices of a topology, abstract where they are not there."""
  kind, shape = check(topology)
  if kind == "cpu":
    if len(jax.devices()) < int(shape):
      raise ValueError(f"{topology}: jax has {len(jax.devices())} CPU devices")
    return jax.devices()[: int(shape)]
  if not importlib.util.find_spec("libtpu"):
    raise ValueError(f"{topology} cannot be compiled for here: pip install libtpu")
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is no TPU to ask about
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # nor one to hold
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
  except Exception as e:  # of an unknown shape
    raise ValueError(
      f"{topology} is no shape that the chip comes in: {str(e).splitlines()[0]}"
    ) from e


class Setup(NamedTuple):
  """An experiment in shapes: every leaf knows its layout, none has a value."""

  mesh: jax.sharding.Mesh
  model_config: families.ModelConfig
  objective: objectives.Objective
  state: object
  frozen: train.Frozen  # the weights that do not train
  external_config: families.ModelConfig | None
  batch: Batch


def set_up(config, devices) -> Setup:
  """Raises ValueError for whatever `prepare` would, and without batch.max_sequence_len
  where rows have no other bound."""
  setup.validate(config)
  mesh = make_mesh(**config.mesh, devices=devices)
  rows = setup.rows_per_step(config)
  check_rows(mesh, rows, config.batch.micro_batches)
  packed = config.batch.pack_len > 0
  model_config = setup.resolve_attention(
    sizes(config.model.source, setup.runtime_fields(config)), mesh, packed
  )
  objective, tx = objectives.from_config(config), optimizer.from_config(config)

  def laid_out(tree):
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      tree,
      sharding_rules.tree_shardings(tree, mesh),
    )

  def weights(model_config):
    return jax.eval_shape(
      lambda: transformer.init_params(model_config, jax.random.key(0))
    )

  external = external_config = None
  if config.external.source:
    fields = setup.external_fields(config)
    external_config = setup.resolve_attention(
      sizes(config.external.source, fields), mesh, packed
    )
    external = weights(external_config)
  params, trained = weights(model_config), setup.trained(config)
  state = jax.eval_shape(lambda p: train.init_state(trained(p), objective, tx), params)
  base = params if config.lora.rank else {}
  return Setup(
    mesh,
    model_config,
    objective,
    laid_out(state),
    train.Frozen(laid_out(base), laid_out(external or {})),
    external_config,
    batch_of(config, model_config, mesh, rows, objective),
  )


def sizes(source: str, runtime: dict) -> families.ModelConfig:
  """A model's sizes: published ones, or those of its files."""
  if source in families.KNOWN:
    return families.from_hf(families.KNOWN[source], **runtime)
  return sources.read_config(sources.resolve(source, only_config=True), **runtime)


def batch_of(config, model_config, mesh, rows: int, objective) -> Batch:
  """The largest batch: a row for every response, each as long as it may be."""
  if not config.batch.max_sequence_len:
    raise ValueError(
      "a plan needs the longest row: set --config.batch.max_sequence_len=<tokens>"
    )
  L, parts = config.batch.max_sequence_len, row_shards(mesh)
  parts *= config.batch.micro_batches
  T = rows * config.rollout.max_new_tokens // parts
  split = sharding_rules.rows_sharding(mesh)

  def ints(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=split)

  def floats(*s):
    return jax.ShapeDtypeStruct(s, jnp.float32, sharding=split)

  where = (config.batch.pack_len > 0) * (
    2 + attention.supports_shared_prefix(model_config.attention)
  )

  def view():
    return View(ints(rows, L), ints(parts, T), *[ints(rows, L)] * where)

  present = collate.Optional([collated_row(config, objective)], (1, 1)).arrays
  weights = dict.fromkeys(present.pop("weights"), floats(parts, T))
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
    **optional,
  )
  return Batch(tuple(view() for _ in range(objective.views)), tokens)


def collated_row(config, objective) -> collate.Row:
  """A row such as every batch of this config has: the tree comes of it."""
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
  return collect.row_of(config, run, rollout, 0, (0, 0))


class Compiled(NamedTuple):
  seconds: float  # to compile
  memory: object  # XLA's account
  text: str  # HLO


def compiled(lowered) -> Compiled:
  """Raises `DoesNotFit` where the compiler finds no room."""
  with tempfile.TemporaryDirectory() as scratch:
    began = time.time()
    options = {"xla_dump_to": scratch, "xla_dump_hlo_as_text": True}
    try:
      done = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as e:
      if "RESOURCE_EXHAUSTED" in str(e):
        raise DoesNotFit(str(e)) from e
      raise
    seconds = time.time() - began
    dumps = pathlib.Path(scratch).glob("*after_optimizations.txt")
    text = max(dumps, key=lambda p: p.stat().st_size).read_text()
  return Compiled(seconds, done.memory_analysis(), text)


class DoesNotFit(ValueError):
  """The compiler's words on what it could not place."""


def train_programs(config, s: Setup):
  """(scoring or None, the train step), lowered as training compiles them."""
  layout = jax.tree.map(lambda x: x.sharding, s.state)
  run = types.SimpleNamespace(
    mesh=s.mesh,
    model_config=s.model_config,
    external_config=s.external_config,
    objective=s.objective,
    tx=optimizer.from_config(config),
  )
  with jax.set_mesh(s.mesh):
    programs = train.compile_steps(config, run, layout)
    values = schedules.values_at(config.schedule, 0)
    values = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in values}
    if not programs.score:
      return None, programs.train.lower(s.state, s.batch, s.frozen, values)
    B, T = s.batch.tokens.y_BxT.shape
    each = config.rollout.max_new_tokens
    kept = s.objective.kept(np.full(T // each, each))
    columns = (
      None if kept is None else min(collate.round_up(kept.sum(), 32, digits=3), T)
    )
    given = s.state, s.batch, s.frozen, values
    score = programs.score.lower(*given, kept_columns=columns)
    batch, *_ = jax.eval_shape(
      lambda *given: programs.score(*given, kept_columns=columns), *given
    )
    rows = sharding_rules.rows_sharding(s.mesh)
    batch = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=rows if x.ndim else sharding_rules.replicated(s.mesh)
      ),
      batch,
    )
    return score, programs.train.lower(s.state, batch, s.frozen, values)


class Sampling(NamedTuple):
  """The sampler at its fullest: every slot taken, prompts as long as may be."""

  slots: int
  prompts: int  # prefilled together
  calls: int  # of prefill, until every slot is taken
  length: int  # of a prompt
  positions: int  # of a slot's cache


def sampling(config, s: Setup) -> Sampling:
  shards, n = row_shards(s.mesh), config.rollout.samples_per_prompt
  max_prompt_len = config.batch.max_sequence_len - config.rollout.max_new_tokens
  sizes = scheduler.size_ladder(
    config.batch.prompt_bucket, s.model_config.max_positions
  )
  board, waiting = sampler.set_up(
    s.model_config,
    [()] * config.rollout.prompts_per_step,
    n,
    *scheduler.slots_per_shard(config.rollout.slots, shards),
    shards,
    sizes[0],
  )
  filled = -(-board.width // len(waiting[0]))  # prompts of a shard
  together = scheduler.prefill_batch_size(filled)
  positions = scheduler.bucket_for(sizes, config.batch.max_sequence_len)
  return Sampling(
    board.width * shards,
    together * shards,
    -(-filled // together),
    min(-(-max_prompt_len // sizes[0]) * sizes[0], positions),
    positions,
  )


def sampler_programs(config, s: Setup):
  """(prefill, decode), lowered: the largest that a rollout runs."""
  size, split = sampling(config, s), sharding_rules.rows_sharding(s.mesh)

  def of(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

  def ints(*shape):
    return of(shape, jnp.int32)

  def floats(*shape):
    return of(shape, jnp.float32)

  R = size.slots
  slots = Slots(
    ints(R),
    ints(R),
    ints(R),
    ints(R),
    of((R,), jnp.bool),
    of((R, 2), jnp.uint32),
    SamplingParams(floats(R), ints(R), floats(R), floats(R)),
  )
  params = lora.join(s.frozen.base, s.state.params)
  cache = jax.eval_shape(lambda: kv_cache.init(s.model_config, R, size.positions))
  cache = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=kv_cache.sharding_of(x, s.mesh)
    ),
    cache,
  )
  scalars = (2,), ()
  eos_E, enough = (jax.ShapeDtypeStruct(n, jnp.int32) for n in scalars)
  with jax.set_mesh(s.mesh):
    return (
      prefill.lower(s.model_config, params, ints(size.prompts, size.length)),
      decode.lower(
        s.model_config,
        params,
        cache,
        slots,
        eos_E,
        enough,
        steps=config.rollout.host_sync_every,
      ),
    )


# ------------------------------------------------------------- the account


def bytes_a_chip(tree) -> int:
  """Of a laid-out tree: the first device's share."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def make(config, topology: str) -> dict:
  """The whole account, JSON-able; `fits` says whether, `advice` what to turn.

  Raises ValueError for a config or topology that makes no sense.
  """
  kind, _ = check(topology)
  devices = devices_of(topology)
  s, chip = set_up(config, devices), CHIPS.get(kind)
  resident = {
    "parameters": bytes_a_chip((s.frozen.base, s.state.params)),
    "optimizer": bytes_a_chip(s.state.opt),
    "teachers": bytes_a_chip((s.state.memories, s.frozen.external)),
  }
  account = {
    "model": config.model.source,
    "topology": topology,
    "chips": len(devices),
    "mesh": dict(s.mesh.shape),
    "attention": s.model_config.attention,
    "remat": s.model_config.remat,
    "lora_rank": config.lora.rank,
    "rows": len(s.batch.views[0].ids_RxL),
    "row_tokens": config.batch.max_sequence_len,
    "new_tokens": config.rollout.max_new_tokens,
    "hbm": chip and chip.hbm,
    "resident": resident,
  }
  if chip and sum(resident.values()) > chip.hbm:
    return account | {"fits": False, "advice": advice(config, s, account, "train")}
  phases = {"train": lambda: of_step(config, s, chip)}
  if config.rollout.source != "dataset":
    phases["decode"] = lambda: {"decode": of_decode(config, s, chip, resident)}
  for name, accounts_of in phases.items():
    try:
      account |= accounts_of()
    except DoesNotFit as e:
      account["compiler"] = str(e).splitlines()[0]
    most = max(
      (account[n]["bytes"] for n in ("score", name) if n in account), default=0
    )
    if name not in account or (chip and most > chip.hbm):
      return account | {"fits": False, "advice": advice(config, s, account, name)}
  return account | {"fits": True, "advice": ""}


def of_step(config, s: Setup, chip) -> dict[str, dict]:
  """{"score": ..., "train": ...}: the programs of one step, the first only where a
  weight looks at other tokens."""
  score, step = train_programs(config, s)
  found = {}
  if score is not None:
    found["score"] = of_program(
      compiled(score),
      s,
      chip,
      flops.score_flops(config, s),
      flops.score_flops(config, s),
    )
  found["train"] = of_program(
    compiled(step),
    s,
    chip,
    flops.useful_flops(config, s),
    flops.executed_flops(config, s),
  )
  return found


def of_program(program: Compiled, s: Setup, chip, useful, executed) -> dict:
  """The account of one program that a step runs."""
  m, width = program.memory, s.model_config.width
  account = {
    "compile_seconds": program.seconds,
    "batch": bytes_a_chip(s.batch),
    "activations": m.temp_size_in_bytes,
    "bytes": m.argument_size_in_bytes
    + m.temp_size_in_bytes
    + m.output_size_in_bytes
    - m.alias_size_in_bytes,
    "tokens_with_logits_at_once": hlo.most_tokens(
      program.text, vocabulary_a_chip(s), {width, width // s.mesh.shape["fsdp"]}
    ),
  }
  return account | roofline(program, useful / s.mesh.size, executed / s.mesh.size, chip)


def vocabulary_a_chip(s: Setup) -> int:
  V, tensor = s.model_config.vocab_size, s.mesh.shape["tensor"]
  return V // tensor if V % tensor == 0 else V


def of_decode(config, s: Setup, chip, resident: dict) -> dict:
  """A rollout in which every slot is filled once and every row is longest.

  The optimiser and the teacher stay where they are while the student answers.
  """
  size, model_config = sampling(config, s), s.model_config
  first, then = map(compiled, sampler_programs(config, s))
  # How often each is called; traffic and time are those of all calls.
  calls = -(-config.rollout.max_new_tokens // config.rollout.host_sync_every)
  counts = flops.prefill_flops(s, size), flops.decode_flops(config, s, size)
  parts = [
    times(roofline(program, f / s.mesh.size, f / s.mesh.size, chip), k)
    for program, f, k in zip((first, then), counts, (size.calls, calls), strict=True)
  ]
  cache = (
    2
    * model_config.num_layers
    * size.slots
    * size.positions
    * model_config.num_kv_heads
    * model_config.head_dim
    * jnp.dtype(model_config.dtype).itemsize
    // s.mesh.size
  )

  def in_all(m):
    return (
      m.argument_size_in_bytes
      + m.temp_size_in_bytes
      + m.output_size_in_bytes
      - m.alias_size_in_bytes
    )

  # The cache of all slots lies beside what prefill makes.
  largest = max(in_all(first.memory) + cache, in_all(then.memory))
  account = {
    "compile_seconds": first.seconds + then.seconds,
    "rows": size.slots,
    "prefill_prompts": size.prompts,
    "cache": cache,
    "temporaries": max(m.temp_size_in_bytes for m in (first.memory, then.memory)),
    "bytes": largest + resident["optimizer"] + resident["teachers"],
  } | plus(*parts)
  if chip:
    tokens = size.slots * config.rollout.max_new_tokens
    account["tokens_per_second"] = tokens / account["seconds"]
    account["mfu"] = account["useful_flops"] / (chip.flops * account["seconds"])
  return account


def times(account, k: int):
  """All numbers of a roofline, k times."""
  return jax.tree.map(lambda x: k * x, account)


def plus(a: dict, b: dict) -> dict:
  """Two rooflines one after the other."""
  return {
    name: plus(a.get(name, {}), b.get(name, {}))
    if isinstance(a.get(name, b.get(name)), dict)
    else a.get(name, 0) + b.get(name, 0)
    for name in {**a, **b}
  }


def roofline(program: Compiled, useful, executed, chip) -> dict:
  """FLOPs, traffic and, for a known chip, the estimate; all of one chip."""
  traffic = hlo.traffic(program.text)
  account = {
    "useful_flops": useful,
    "executed_flops": executed,
    "hbm_bytes": traffic.memory,
    "collective_bytes": dict(traffic.collectives),
    "collective_counts": dict(traffic.counts),
  }
  if chip is None:
    return account
  parts = {
    "compute_seconds": executed / chip.flops,
    "memory_seconds": traffic.memory / chip.hbm_rate,
    "collective_seconds": sum(traffic.collectives.values()) / chip.ici_rate,
  }
  total = sum(parts.values())
  return account | parts | {"seconds": total, "mfu": useful / (chip.flops * total)}


def advice(config, s: Setup, account: dict, phase: str) -> str:
  """Which knob to turn, the cheapest first, where a phase does not fit."""
  hbm, resident = account["hbm"], sum(account["resident"].values())
  shards = row_shards(s.mesh)
  if resident > 0.8 * hbm:
    chips = -(-s.mesh.size * resident // int(0.6 * hbm))
    lighter = "" if config.lora.rank else ", or train an adapter: lora.rank=64"
    return (
      f"parameters, optimizer and teacher alone take {resident / 1e9:.1f} of"
      f" {hbm / 1e9:.0f} GB a chip: split them over more chips (about"
      f" {chips}){lighter}"
    )
  if phase == "decode":
    return f"sampling needs the room: lower rollout.slots, it is {config.rollout.slots}"
  if config.model.remat != "full":
    return "keep less for the backward pass: model.remat=full"
  more = [
    n
    for n in divisors(len(s.batch.views[0].ids_RxL) // shards)
    if n > config.batch.micro_batches
  ]
  if more:
    return f"take fewer rows at a time: batch.micro_batches={more[0]}"
  return (
    f"one row a chip is too much: shorten it (batch.max_sequence_len is"
    f" {config.batch.max_sequence_len}), lower loss.chunk ({config.loss.chunk}), or"
    " split it: mesh.tensor=2"
  )
