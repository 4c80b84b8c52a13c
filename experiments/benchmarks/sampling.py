"""`bench sample`: rollouts of forced lengths, ours and two peers'.

A response has the length that it is told, whatever it says, so that all sides
make as many tokens: ours by a budget a row, transformers by a processor that
puts an end of turn there, Tunix by going on to the longest of a batch, which is
what it does with rows that end. Every side is timed at every batch size, then
all at their best ones, alternating.
"""

import importlib.util
import os
import pathlib
import statistics
import tempfile

from experiments.benchmarks import peers, shapes
from experiments.benchmarks.lines import machine, say, spread
from experiments.benchmarks.workers import Worker

BATCHES = (8, 16, 32, 64)  # rows at once
SHORT, LONG = 32, 96  # tokens; their difference is decoding alone


def sample(source: str, shape: str, times: int, with_peers: bool, tunix):
  """`tunix`: a Python that has it, or None."""
  import jax

  from opsd_jax.models import tokenizer as tokenizers
  from opsd_jax.models.weights import sources
  from opsd_jax.rollouts.prompts import build_prompts

  sources.check(source)
  most = machine(model=source, shape=shape)
  config = shapes.experiment(source, "ragged", steps=1)
  tokenizer = tokenizers.load(sources.resolve(source))
  examples = shapes.examples(config, shapes.STEP["ragged"], tokenizer)
  asked = build_prompts(config.context, tokenizer, examples, 1024, {}, "training")
  with tempfile.TemporaryDirectory() as directory:
    settings = {
      "source": source,
      "directory": directory,
      "backend": jax.default_backend(),
      "prompts": [p.student_ids for p in asked],
      "end": tokenizer.end_of_turn_id,
      "pad": tokenizer.pad_id,
    }
    workers = {"ours": Worker("sample_ours", settings)}
    if with_peers or tunix:
      peers.export(source, pathlib.Path(directory))
    if with_peers and not importlib.util.find_spec("torch"):
      say("skipped", side="transformers", reason="torch is not installed")
    elif with_peers:
      workers["transformers"] = Worker("sample_transformers", settings)
    if tunix:
      workers["tunix"] = Worker("sample_tunix", settings, tunix)
    for side, worker in workers.items():
      say("side", side=side, **worker.about)
    if shape == "full":
      decode(workers, most, times)
    else:
      compare(workers, shapes.SAMPLE[shape], times)
    for worker in workers.values():
      worker.close()


def compare(workers: dict, shape: shapes.Shape, times: int) -> None:
  """Every batch size once, then every side's best, alternating."""
  order = {"count": shape.prompts, "n": shape.samples, "lengths": shape.lengths}
  best = {}
  for side, worker in workers.items():
    tried = {b: steady(worker, batch=b, **order) for b in BATCHES}
    best[side] = min(tried, key=lambda b: tried[b]["seconds"])
    say(
      "tried",
      side=side,
      best_batch=best[side],
      seconds={b: row["seconds"] for b, row in tried.items()},
    )
  timed = {side: [] for side in workers}
  for _ in range(times):
    for side, worker in workers.items():
      row = worker.ask(batch=best[side], **order)
      say("sample", side=side, batch=best[side], load=os.getloadavg()[0], **row)
      timed[side].append(row)
  for side, rows in timed.items():
    seconds = [row["seconds"] for row in rows]
    middle = statistics.median(seconds)
    say(
      "summary",
      side=side,
      batch=best[side],
      seconds=spread(seconds),
      tokens=sum(shape.lengths),
      tokens_per_second=sum(shape.lengths) / middle,
      compiles=sum(row.get("compiles", 0) for row in rows),
      seconds_over_ours=middle
      / statistics.median(row["seconds"] for row in timed["ours"]),
    )


def steady(worker: Worker, **order) -> dict:
  """The answer once nothing is compiled for it any more."""
  row = worker.ask(**order)
  return worker.ask(**order) if row.get("compiles") else row


def decode(workers: dict, most: dict, times: int) -> None:
  """Decoding alone: long responses less short ones, all rows alike.

  The shares are of this machine's reading and matmuls: a step reads every
  weight once, and does two FLOPs a weight and row.
  """
  weights = workers["ours"].about["weights"]
  for rows in (8, 64):
    timed = {side: {SHORT: [], LONG: []} for side in workers}
    for i in range(1 + times):
      for side, worker in workers.items():
        for size in (SHORT, LONG):
          row = worker.ask(count=rows, n=1, lengths=[size] * rows, batch=rows)
          if i:  # the first ones compile
            timed[side][size].append(row["seconds"])
    for side, seconds in timed.items():
      short, long = (statistics.median(seconds[s]) for s in (SHORT, LONG))
      steps_per_second = (LONG - SHORT) / (long - short)
      read = 4 * weights * steps_per_second / 1e9
      flops = 2 * weights * rows * steps_per_second / 1e9
      say(
        "decode",
        side=side,
        rows=rows,
        seconds_short=spread(seconds[SHORT]),
        seconds_long=spread(seconds[LONG]),
        tokens_per_second=rows * steps_per_second,
        weight_gbytes_per_second=read,
        gflops_per_second=flops,
        share_of_read=read / most["read_gbytes"],
        share_of_matmul=flops / most["matmul_gflops"],
      )
