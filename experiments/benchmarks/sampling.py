"""`bench sample`: rollouts of forced lengths, by our sampler and two peers.

The length of every response is given, so that all sides generate the same number of
tokens: our sampler has a budget a row, transformers a logits processor that forces
an end of turn, and Tunix decodes to the longest row of a batch, as it also does with
rows that end. Every side is timed at every batch size, then all sides alternate at
their best batch sizes.
"""

import importlib.util
import os
import pathlib
import statistics
import tempfile

from experiments.benchmarks import peers, shapes
from experiments.benchmarks.lines import machine, say, spread
from experiments.benchmarks.workers import Worker

BATCHES = (8, 16, 32, 64)  # rows decoded at once
SHORT, LONG = 32, 96  # tokens; their difference has no prefill


def sample(source: str, shape: str, times: int, with_peers: bool, tunix):
  """`tunix`: the Python of an environment that has it, or None."""
  import jax

  from opsd_jax.models import tokenizer as tokenizers
  from opsd_jax.models.weights import sources
  from opsd_jax.rollouts.prompts import build_prompts

  sources.check(source)
  most = machine(model=source, shape=shape)
  config = shapes.experiment(source, "ragged", steps=1)
  tokenizer = tokenizers.load(sources.resolve(source))
  examples = shapes.examples(config, shapes.STEP["ragged"], tokenizer)
  prompts = build_prompts(config.context, tokenizer, examples, 1024, {}, "training")
  with tempfile.TemporaryDirectory() as directory:
    settings = {
      "source": source,
      "directory": directory,
      "backend": jax.default_backend(),
      "prompts": [p.student_ids for p in prompts],
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
  """Times every batch size once, then every side at its best, alternating."""
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
      row = worker.request(batch=best[side], **order)
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
  """The answer to an order, repeated where the first one compiled a program."""
  row = worker.request(**order)
  return worker.request(**order) if row.get("compiles") else row


def decode(workers: dict, most: dict, times: int) -> None:
  """Times decoding alone, as long responses minus short ones, all rows of one length.

  The shares are of this machine's ceilings: a decode step reads every weight once
  and takes two FLOPs a weight and row.
  """
  weights = workers["ours"].about["weights"]
  for rows in (8, 64):
    timed = {side: {SHORT: [], LONG: []} for side in workers}
    for i in range(1 + times):
      for side, worker in workers.items():
        for size in (SHORT, LONG):
          row = worker.request(count=rows, n=1, lengths=[size] * rows, batch=rows)
          if i:  # the first round compiles
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
