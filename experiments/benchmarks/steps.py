"""`bench step`: whole training steps of ours and of a peer, alternating."""

import importlib.util
import os
import pathlib
import statistics
import tempfile

from experiments.benchmarks import peers, shapes
from experiments.benchmarks.lines import machine, say, spread
from experiments.benchmarks.workers import Worker


def step(source: str, shape: str, steps: int | None, with_peers: bool) -> None:
  """Starts a worker for each side, warms up, alternates, prints."""
  import jax

  from opsd_jax.models.weights import sources

  sources.check(source)
  steps = steps or shapes.STEP[shape].steps
  missing = [m for m in peers.NEEDS if not importlib.util.find_spec(m)]
  most = machine(model=source, shape=shape)
  with tempfile.TemporaryDirectory() as directory:
    settings = {
      "source": source,
      "steps": steps,
      "shape": shape,
      "directory": directory,
      "backend": jax.default_backend(),
    }
    workers = {"ours": Worker("ours", settings)}
    if with_peers and missing:
      say("skipped", side="trl", reason=f"{missing[0]} is not installed")
    elif with_peers:
      peers.export(source, pathlib.Path(directory))
      workers["trl"] = Worker("trl", settings)
    for side, worker in workers.items():
      say("side", side=side, **worker.about)
    measure(workers, steps, most)
    for worker in workers.values():
      worker.close()


def measure(workers: dict, steps: int, most: dict) -> None:
  """Prints the timed steps, each side's summary, their ratio, and our split."""
  for side, worker in workers.items():
    # We meet every timed step once, to compile its shapes. TRL compiles nothing, and
    # its batches cannot be repeated.
    count = shapes.WARM_UP + (steps if side == "ours" else 0)
    warm = [worker.request(step=i) for i in range(count)]

    def total(name, rows=warm):
      return sum(row.get(name, 0) for row in rows)

    say(
      "warm_up",
      side=side,
      steps=count,
      compiles=total("compiles"),
      compile_seconds=total("compile_seconds"),
    )
  timed = {side: [] for side in workers}
  for i in range(shapes.WARM_UP, shapes.WARM_UP + steps):
    for side, worker in workers.items():
      timed[side].append(worker.request(step=i))
      say("step", side=side, step=i, load=os.getloadavg()[0], **timed[side][-1])
    prompts = {side: rows[-1]["prompts"] for side, rows in timed.items()}
    if len(set(prompts.values())) > 1:
      raise RuntimeError(f"the sides read different prompts: {prompts}")
  summaries = {side: summary(rows) for side, rows in timed.items()}
  for side, result in summaries.items():
    say("summary", side=side, **result)
  if "trl" in timed:
    mine, theirs = ([r["seconds"] for r in rows] for rows in timed.values())
    pairs = [b / a for a, b in zip(mine, theirs, strict=True)]
    ratio = statistics.median(theirs) / statistics.median(mine)
    say("ratio", ours_over_trl_steps_per_second=ratio, of_pairs=spread(pairs))
    workers.pop("trl").close()  # the split may need its memory
  parts = workers["ours"].request(split=True)
  of_ceiling = parts["learn_gflops_per_second"] / most["matmul_gflops"]
  say(
    "split",
    rollout=summaries["ours"]["rollout_seconds"]["median"],
    share_of_matmul=of_ceiling,
    **parts,
  )


def summary(rows: list[dict]) -> dict:
  """Medians with spread, means and sums of one side's timed steps."""

  def of(name):
    return [row.get(name, 0) for row in rows]

  return {
    "steps": len(rows),
    "steps_per_second": 1 / statistics.median(of("seconds")),
    "tokens_per_second": sum(of("response_tokens")) / sum(of("seconds")),
    "seconds": spread(of("seconds")),
    "rollout_seconds": spread(of("rollout_seconds")),
    "cpu_seconds": spread(of("cpu_seconds")),
    "idle_cpu_seconds": spread(of("idle_cpu_seconds")),
    "mean_response_tokens": statistics.mean(of("response_tokens")),
    "mean_divergence": statistics.mean(of("divergence")),
    "mean_longest": statistics.mean(of("longest")),
    "compiles": sum(of("compiles")),
  }
