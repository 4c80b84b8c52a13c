"""`bench load`: memory and bytes read to load a model.

Random weights of Qwen2.5-1.5B's sizes, in bfloat16, are written shard by shard and
loaded onto eight simulated CPU devices, by one process and by two with four devices
each. A process prints the growth of its resident memory and the bytes that it read,
as shares of the checkpoint's bytes.
"""

import functools
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

from experiments.benchmarks import lines

SIZES = {
  "model_type": "qwen2",
  "vocab_size": 151_936,
  "hidden_size": 1536,
  "intermediate_size": 8960,
  "num_hidden_layers": 28,
  "num_attention_heads": 12,
  "num_key_value_heads": 2,
  "max_position_embeddings": 32_768,
  "rms_norm_eps": 1e-6,
  "tie_word_embeddings": True,
  "rope_theta": 1e6,
}
RUN = {
  "dtype": "bfloat16",
  "param_dtype": "bfloat16",
  "scan_layers": True,
  "remat": "full",
  "attention": "xla",
  "lora_alpha": 1.0,
}
FILES = 4


def write(directory: pathlib.Path, sizes=SIZES) -> None:
  """Writes a model directory of random weights, one tensor in memory at a time."""
  import ml_dtypes
  import numpy as np

  from opsd_jax.models import families
  from opsd_jax.models.weights import hf, safetensors_file

  table = hf.name_table(families.from_hf(sizes, **RUN))
  rng = np.random.default_rng(0)

  def bits(shape):
    return rng.integers(0, 0x7F80, shape, dtype=np.uint16)  # below Inf

  def draw(name):
    return bits(table[name][3]).view(ml_dtypes.bfloat16)

  files = {}
  for i in range(FILES):
    name = f"model-{i + 1:05}-of-{FILES:05}.safetensors"
    shapes = {n: table[n][3] for n in sorted(table)[i::FILES]}
    safetensors_file.write(directory / name, shapes, ml_dtypes.bfloat16, draw)
    files |= dict.fromkeys(shapes, name)
  index = directory / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": files}))
  (directory / "config.json").write_text(json.dumps(sizes))


def resident(what: str) -> int:
  """Resident bytes (Linux): "VmRSS" is the present value, "VmHWM" the peak."""
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  return next(int(x.split()[1]) for x in lines if x.startswith(what)) * 1024


def worker(directory: str, port: str, index: str, count: str) -> None:
  """One of `count` processes: loads its shards and prints a line of JSON."""
  import jax

  from opsd_jax.models import families
  from opsd_jax.models.weights import hf, safetensors_file
  from opsd_jax.runtime import sharding_rules
  from opsd_jax.runtime.mesh import make_mesh

  jax.config.update("jax_num_cpu_devices", 8 // int(count))
  if int(count) > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", int(count), int(index))
  mesh = make_mesh(fsdp=8)
  directory = pathlib.Path(directory)
  files = hf.weight_files(directory)
  whole = sum(f.stat().st_size for f in files)
  config = families.from_hf(hf.read_config(directory), **RUN)
  jax.block_until_ready(jax.numpy.zeros(8))
  before = resident("VmRSS")
  reader = safetensors_file.Reader(files)
  params = hf.to_params(
    config,
    reader.shapes,
    reader.read,
    directory,
    functools.partial(sharding_rules.tree_shardings, mesh=mesh),
  )
  jax.block_until_ready(params)
  print(
    json.dumps(
      {
        "processes": int(count),
        "process": int(index),
        "checkpoint_bytes": whole,
        "read": reader.bytes_read / whole,
        "resident": (resident("VmRSS") - before) / whole,
        "peak": (resident("VmHWM") - before) / whole,
      }
    ),
    flush=True,
  )


def load() -> None:
  """Measures one process with eight devices, then two with four each."""
  lines.machine()
  with tempfile.TemporaryDirectory() as directory:
    write(pathlib.Path(directory))
    for count in (1, 2):
      for line in measure(pathlib.Path(directory), count):
        lines.say("load", **line)


def measure(directory: pathlib.Path, count: int) -> list[dict]:
  """The lines of `count` processes that load together."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  env = os.environ | {"JAX_PLATFORMS": "cpu"}

  def start(i):
    return subprocess.Popen(
      [
        sys.executable,
        "-m",
        "experiments.benchmarks.loading",
        str(directory),
        str(port),
        str(i),
        str(count),
      ],
      stdout=subprocess.PIPE,
      text=True,
      env=env,
    )

  outputs = [p.communicate()[0] for p in [start(i) for i in range(count)]]
  # The communication library prints to stdout too.
  lines = [x for out in outputs for x in out.splitlines() if x.startswith("{")]
  if len(lines) != count:
    raise RuntimeError("a process that loads the model ended early")
  return [json.loads(line) for line in lines]


if __name__ == "__main__":
  worker(*sys.argv[1:])
