"""`bench scaling`: our train step as rows, length or vocabulary double.

A small decoder, random tokens; one size varies, the others stay. Everything but
attention, quadratic in length, is a matter of proportion: a slope of 1 on paper
with two logarithmic axes, and less where what does not grow still counts.
"""

import math

from experiments.benchmarks import lines

BASE = {"rows": 8, "length": 256, "vocabulary": 8192}
SIZES = {
    "rows": (4, 8, 16, 32, 64),
    "length": (64, 128, 256, 512, 1024),
    "vocabulary": (4096, 8192, 16_384, 32_768, 65_536),
}
MODEL = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 768,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "rope_theta": 1e4,
}  # fmt: skip
RUN = {
    "dtype": "float32", "param_dtype": "float32", "scan_layers": False,
    "remat": "none", "attention": "chunked", "lora_alpha": 1.0,
}  # fmt: skip


def batch_of(rows: int, length: int, vocabulary: int):
  """Random rows of `length` tokens, half of them response, for both sides."""
  import numpy as np

  from opsd_jax import collate

  half = length // 2
  ids = np.random.default_rng(0).integers(0, vocabulary, (rows, 3, half))
  told = [tuple(map(tuple, three)) for three in ids.tolist()]
  return collate.collate(
      [collate.Row(*three, None) for three in told], pad_id=0, bucket=8,
      response_bucket=8,
  )  # fmt: skip


def compiled_step(rows: int, length: int, vocabulary: int):
  """(the compiled train step, its arguments)."""
  import jax
  import jax.numpy as jnp

  from configs import base
  from opsd_jax import objective, optimizer, train
  from opsd_jax.models import families, transformer

  model = families.from_hf(MODEL | {"vocab_size": vocabulary}, **RUN)
  config = base.get_config()
  goal, tx = objective.from_config(config), optimizer.from_config(config)
  params = transformer.init_params(model, jax.random.key(0))
  state = train.init_state(params, goal, tx)
  state = jax.tree.map(jnp.copy, state)  # the teacher's weights are the same
  batch = jax.tree.map(jnp.asarray, batch_of(rows, length, vocabulary))
  step = jax.jit(train.make_train_step(model, goal, tx), donate_argnums=0)
  return step.lower(state, batch, {}).compile(), state, batch


def point(rows: int, length: int, vocabulary: int) -> dict:
  """Seconds of a step of these sizes, and temporary bytes."""
  import jax

  step, state, batch = compiled_step(rows, length, vocabulary)

  def one():
    nonlocal state
    state, *_ = jax.block_until_ready(step(state, batch, {}))

  (seconds,) = lines.seconds_of(one)
  memory = step.memory_analysis().temp_size_in_bytes
  return {"seconds": seconds, "temporary_bytes": memory}


def slope(sizes, seconds) -> float:
  """Of the straight line through the points on two logarithmic axes."""
  x, y = ([math.log(v) for v in values] for values in (sizes, seconds))
  mean = lambda values: sum(values) / len(values)
  dx = [v - mean(x) for v in x]
  return sum(d * v for d, v in zip(dx, y, strict=True)) / sum(d * d for d in dx)


def scaling() -> None:
  """A line a size, and a slope an axis."""
  lines.machine(model=MODEL, base=BASE)
  for axis, sizes in SIZES.items():
    medians = []
    for size in sizes:
      row = point(**BASE | {axis: size})
      lines.say("scaling", axis=axis, size=size, **row)
      medians.append(row["seconds"]["median"])
    lines.say("slope", axis=axis, of_all=slope(sizes, medians),
              of_last_two=slope(sizes[-2:], medians[-2:]))  # fmt: skip
