"""Output of a benchmark, JSON objects on stdout, and this machine's ceilings."""

import concurrent.futures
import functools
import json
import os
import pathlib
import platform
import statistics
import time

SIZE = 2**26  # numbers that are read and copied: 256 MB of float32
SIDE = 2048  # of the square matrices that are multiplied


def say(what: str, **line) -> None:
  """Prints one line, `what` names its kind."""
  print(json.dumps({"what": what, **rounded(line)}), flush=True)


def rounded(x):
  """Floats to four places, those below 0.1 to four digits, at any depth of dicts."""
  if isinstance(x, dict):
    return {name: rounded(value) for name, value in x.items()}
  if not isinstance(x, float):
    return x
  return round(x, 4) if abs(x) >= 0.1 else float(f"{x:.4g}")


def spread(x) -> dict[str, float]:
  return {"median": statistics.median(x), "min": min(x), "max": max(x)}


def seconds_of(*functions, times: int = 5) -> list[dict[str, float]]:
  """The spread of each function's seconds; functions alternate, after a warm-up."""
  taken = [[] for _ in functions]
  for i in range(1 + times):
    for function, seconds in zip(functions, taken, strict=True):
      began = time.perf_counter()
      function()
      if i:
        seconds.append(time.perf_counter() - began)
  return [spread(seconds) for seconds in taken]


def machine(**about) -> dict[str, float]:
  """Prints the machine and its ceilings; returns the ceilings."""
  import jax

  most = ceilings() if jax.default_backend() == "cpu" else device_ceilings()
  say(
    "machine",
    cpu=cpu(),
    cores=os.cpu_count(),
    load=os.getloadavg()[0],
    device=jax.devices()[0].device_kind,
    python=platform.python_version(),
    **most,
    **about,
  )
  return most


def ceilings() -> dict[str, float]:
  """Median rates of all cores together, in 10^9 a second.

  They are FLOPs of a product of two square float32 matrices, bytes read by a sum
  over 256 MB, and bytes read and written by a copy of them.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np

  matmul, square = jax.jit(jnp.matmul), jnp.ones((SIDE, SIDE))
  parts = np.ones((os.cpu_count(), SIZE // os.cpu_count()), np.float32)
  copies = np.zeros_like(parts)
  with concurrent.futures.ThreadPoolExecutor(len(parts)) as pool:
    seconds = seconds_of(
      lambda: matmul(square, square).block_until_ready(),
      lambda: list(pool.map(np.sum, parts)),
      lambda: list(pool.map(np.copyto, copies, parts)),
      times=7,
    )
  return rates(2 * SIDE**3, parts.nbytes, seconds)


def device_ceilings() -> dict[str, float]:
  """The same rates of one accelerator, with 64 times the FLOPs and 16 times the
  bytes, so that the launch of a program takes little of its time. The product is in
  float32, like float32 training: no TF32, no bfloat16."""
  import jax
  import jax.numpy as jnp

  square, many = jnp.ones((4 * SIDE, 4 * SIDE)), jnp.ones((16, SIZE))
  functions = (functools.partial(jnp.matmul, precision="highest"), jnp.sum, jnp.copy)
  product, read, copy = map(jax.jit, functions)
  seconds = seconds_of(
    lambda: product(square, square).block_until_ready(),
    lambda: read(many).block_until_ready(),
    lambda: copy(many).block_until_ready(),
    times=7,
  )
  return rates(2 * (4 * SIDE) ** 3, many.nbytes, seconds)


def rates(flops: int, nbytes: int, seconds) -> dict[str, float]:
  """Rates of a product, a sum and a copy, in 10^9 a second."""
  product, read, copy = (s["median"] for s in seconds)

  def rate(amount, seconds):
    return round(amount / seconds / 1e9, 1)

  return {
    "matmul_gflops": rate(flops, product),
    "read_gbytes": rate(nbytes, read),
    "copy_gbytes": rate(2 * nbytes, copy),
  }


def cpu() -> str:
  """The name of the processor."""
  path = pathlib.Path("/proc/cpuinfo")
  lines = path.read_text().splitlines() if path.exists() else []
  names = [x.partition(":")[2].strip() for x in lines if "model name" in x]
  return names[0] if names else platform.processor()
