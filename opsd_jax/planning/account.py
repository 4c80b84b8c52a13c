"""Whether an experiment compiles, fits and how fast it can be, on any machine.

Bytes are XLA's own account of the programs that compile.py compiles; traffic is
read off the compiled programs (hlo.py); times are an estimate, a roofline of
published peaks:

  time = executed FLOPs / peak + HBM bytes / bandwidth + collective bytes / ICI
  MFU  = useful FLOPs / (peak x time)

The three parts are summed as if nothing overlapped. flops.py counts the useful and
the executed FLOPs. The interconnect's rate is that of all links of a chip, some of
which a chip at the border of a small slice does not have.
"""

import math

import jax
import jax.numpy as jnp

from opsd_jax.planning import flops, hlo
from opsd_jax.planning.compile import (
  CHIPS,
  AbstractRun,
  Chip,
  Compiled,
  DoesNotFit,
  abstract_run,
  compile_program,
  devices_of,
  parse_topology,
  sampler_programs,
  sampler_shape,
  train_programs,
)
from opsd_jax.rollouts import sources
from opsd_jax.runtime.mesh import divisors, row_shards


def bytes_a_chip(tree) -> int:
  """Bytes that the first device holds of a tree with shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def make_account(config, topology: str) -> dict:
  """The account of an experiment on a topology, as JSON types.

  `fits` says whether memory suffices, else `advice` which field to change. Raises
  ValueError for a bad config or topology.
  """
  kind, _ = parse_topology(topology)
  devices = devices_of(topology)
  run, chip = abstract_run(config, devices), CHIPS.get(kind)
  resident = {
    "parameters": bytes_a_chip((run.frozen.base, run.state.params)),
    "optimizer": bytes_a_chip(run.state.opt),
    "teachers": bytes_a_chip((run.state.memories, run.frozen.external)),
  }
  account = {
    "model": config.model.source,
    "topology": topology,
    "chips": len(devices),
    "mesh": dict(run.mesh.shape),
    "attention": run.model_config.attention,
    "remat": run.model_config.remat,
    "lora_rank": config.lora.rank,
    "rows": len(run.batch.views[0].ids_RxL),
    "row_tokens": config.batch.max_sequence_len,
    "new_tokens": config.rollout.max_new_tokens,
    "hbm": chip and chip.hbm,
    "resident": resident,
  }
  if chip and sum(resident.values()) > chip.hbm:
    return account | {"fits": False, "advice": advice(config, run, account, "train")}
  phases = {"train": lambda: step_account(config, run, chip)}
  if config.rollout.source not in sources.GIVEN:
    phases["decode"] = lambda: {"decode": rollout_account(config, run, chip, resident)}
  for name, account_of_phase in phases.items():
    try:
      account |= account_of_phase()
    except DoesNotFit as e:
      account["compiler"] = str(e).splitlines()[0]
    most = max(
      (account[n]["bytes"] for n in ("score", name) if n in account), default=0
    )
    if name not in account or (chip and most > chip.hbm):
      return account | {"fits": False, "advice": advice(config, run, account, name)}
  return account | {"fits": True, "advice": ""}


def step_account(config, run: AbstractRun, chip: Chip | None) -> dict[str, dict]:
  """{"score": ..., "train": ...}: the programs of one step; there is a scoring
  program only where a token's weight reads other tokens."""
  score, step = train_programs(config, run)
  found = {}
  if score is not None:
    scoring = flops.score_flops(config, run)
    found["score"] = program_account(
      compile_program(score), run, chip, useful=scoring, executed=scoring
    )
  found["train"] = program_account(
    compile_program(step),
    run,
    chip,
    useful=flops.useful_flops(config, run),
    executed=flops.executed_flops(config, run),
  )
  return found


def program_account(
  program: Compiled, run: AbstractRun, chip: Chip | None, *, useful, executed
) -> dict:
  """The account of one program that a step runs; FLOPs are those of all chips."""
  width = run.model_config.width
  account = {
    "compile_seconds": program.seconds,
    "batch": bytes_a_chip(run.batch),
    "activations": program.memory.temp_size_in_bytes,
    "bytes": peak_bytes(program),
    "tokens_with_logits_at_once": hlo.most_tokens(
      program.text, vocabulary_a_chip(run), {width, width // run.mesh.shape["fsdp"]}
    ),
  }
  return account | roofline(
    program, useful / run.mesh.size, executed / run.mesh.size, chip
  )


def peak_bytes(program: Compiled) -> int:
  """Arguments, temporaries and outputs, what outputs share with arguments once."""
  m = program.memory
  return (
    m.argument_size_in_bytes
    + m.temp_size_in_bytes
    + m.output_size_in_bytes
    - m.alias_size_in_bytes
  )


def vocabulary_a_chip(run: AbstractRun) -> int:
  """Rows of the unembedding that a chip holds."""
  V, tensor = run.model_config.vocab_size, run.mesh.shape["tensor"]
  return V // tensor if V % tensor == 0 else V


def rollout_account(
  config, run: AbstractRun, chip: Chip | None, resident: dict
) -> dict:
  """The account of a rollout that fills every slot once with the longest rows.

  Optimiser state and teachers remain in memory while the student samples.
  """
  shape, model_config = sampler_shape(config, run), run.model_config
  prefill, decode = map(compile_program, sampler_programs(config, run))
  # Traffic and time are those of all calls of a program.
  calls = -(-config.rollout.max_new_tokens // config.rollout.host_sync_every)
  counts = flops.prefill_flops(run, shape), flops.decode_flops(config, run, shape)
  parts = [
    scale_roofline(roofline(program, f / run.mesh.size, f / run.mesh.size, chip), k)
    for program, f, k in zip(
      (prefill, decode), counts, (shape.calls, calls), strict=True
    )
  ]
  cache = (
    2
    * model_config.num_layers
    * shape.slots
    * shape.positions
    * model_config.num_kv_heads
    * model_config.head_dim
    * jnp.dtype(model_config.dtype).itemsize
    // run.mesh.size
  )
  # While prefill runs, the cache of all slots is in memory beside its outputs.
  largest = max(peak_bytes(prefill) + cache, peak_bytes(decode))
  account = {
    "compile_seconds": prefill.seconds + decode.seconds,
    "rows": shape.slots,
    "prefill_prompts": shape.prompts,
    "cache": cache,
    "temporaries": max(x.memory.temp_size_in_bytes for x in (prefill, decode)),
    "bytes": largest + resident["optimizer"] + resident["teachers"],
  } | add_rooflines(*parts)
  if chip:
    tokens = shape.slots * config.rollout.max_new_tokens
    account["tokens_per_second"] = tokens / account["seconds"]
    account["mfu"] = account["useful_flops"] / (chip.flops * account["seconds"])
  return account


def scale_roofline(account: dict, k: int) -> dict:
  """The roofline of k runs of one program."""
  return jax.tree.map(lambda x: k * x, account)


def add_rooflines(a: dict, b: dict) -> dict:
  """The roofline of two programs that run one after the other."""
  return {
    name: add_rooflines(a.get(name, {}), b.get(name, {}))
    if isinstance(a.get(name, b.get(name)), dict)
    else a.get(name, 0) + b.get(name, 0)
    for name in {**a, **b}
  }


def roofline(program: Compiled, useful, executed, chip: Chip | None) -> dict:
  """FLOPs and traffic of one chip and, where the chip is known, the time estimate."""
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


def advice(config, run: AbstractRun, account: dict, phase: str) -> str:
  """Which config field to change where a phase does not fit, the cheapest first."""
  hbm, resident = account["hbm"], sum(account["resident"].values())
  shards = row_shards(run.mesh)
  if resident > 0.8 * hbm:
    chips = -(-run.mesh.size * resident // int(0.6 * hbm))
    lighter = "" if config.lora.rank else ", or train an adapter: lora.rank=64"
    return (
      f"parameters, optimizer and teacher alone take {resident / 1e9:.1f} of"
      f" {hbm / 1e9:.0f} GB a chip: split them over more chips (about"
      f" {chips}){lighter}"
    )
  if phase == "decode":
    return (
      f"sampling does not fit: lower rollout.slots, which is {config.rollout.slots}"
    )
  if config.model.remat != "full":
    return "recompute activations in the backward pass: model.remat=full"
  more = [
    n
    for n in divisors(len(run.batch.views[0].ids_RxL) // shards)
    if n > config.batch.micro_batches
  ]
  if more:
    return f"take fewer rows a micro-batch: batch.micro_batches={more[0]}"
  return (
    f"one row a chip does not fit: shorten it (batch.max_sequence_len is"
    f" {config.batch.max_sequence_len}), lower loss.chunk ({config.loss.chunk}), or"
    " split the model: mesh.tensor=2"
  )
