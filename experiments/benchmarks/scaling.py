"""`bench scaling`: how time grows as one size doubles, of our train step (rows,
length, vocabulary) and of rollouts (new tokens).

The train step is that of a small decoder on random tokens; one size varies, the
others are constant. Everything but attention, quadratic in length, is proportional
to the sizes: a slope of 1 on two logarithmic axes, and less where constant parts
still count.

The rollouts are of the given model, 4 prompts with forced lengths. The log-probs of
the longest responses are compared with one forward pass over the whole sequence,
without a cache.
"""

import math

from experiments.benchmarks import lines

BASE = {"rows": 8, "length": 256, "vocabulary": 8192}
SIZES = {
  "rows": (4, 8, 16, 32, 64),
  "length": (64, 128, 256, 512, 1024),
  "vocabulary": (4096, 8192, 16_384, 32_768, 65_536),
}
NEW_TOKENS = (128, 256, 512, 1024, 2048)
BUCKET = 64  # positions of the smallest cache
MODEL = {
  "model_type": "llama",
  "hidden_size": 256,
  "intermediate_size": 768,
  "num_hidden_layers": 4,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 2048,
  "rms_norm_eps": 1e-5,
  "tie_word_embeddings": True,
  "rope_theta": 1e4,
}
RUN = {
  "dtype": "float32",
  "param_dtype": "float32",
  "scan_layers": False,
  "remat": "none",
  "attention": "chunked",
  "lora_alpha": 1.0,
}


def batch_of(rows: int, length: int, vocabulary: int):
  """Random rows of `length` tokens, half of them response, for student and teacher."""
  import numpy as np

  from opsd_jax.rollouts import collate

  half = length // 2
  ids = np.random.default_rng(0).integers(0, vocabulary, (rows, 3, half))
  triples = [tuple(map(tuple, three)) for three in ids.tolist()]
  return collate.collate(
    [
      collate.Row((student, teacher), response)
      for student, teacher, response in triples
    ],
    pad_id=0,
    bucket=8,
    response_bucket=8,
  )


def compiled_step(rows: int, length: int, vocabulary: int):
  """(the compiled train step, its arguments)."""
  import jax
  import jax.numpy as jnp

  from configs import base
  from opsd_jax import train
  from opsd_jax.losses import objective as objectives
  from opsd_jax.losses import optimizer
  from opsd_jax.models import families, transformer

  model = families.from_hf(MODEL | {"vocab_size": vocabulary}, **RUN)
  config = base.get_config()
  config.loss.distill.scale = 1.0
  objective, tx = objectives.from_config(config), optimizer.from_config(config)
  params = transformer.init_params(model, jax.random.key(0))
  state = train.init_state(params, objective, tx)
  state = jax.tree.map(
    jnp.copy, state
  )  # the step donates them, and the teacher shares them
  batch = jax.tree.map(jnp.asarray, batch_of(rows, length, vocabulary))
  layout = jax.tree.map(lambda x: x.sharding, state)
  step = train.make_train_step(train.Models(model), lambda values: objective, tx)
  step = train.jit_step(step, layout)
  return step.lower(state, batch).compile(), state, batch


def point(rows: int, length: int, vocabulary: int) -> dict:
  """Seconds and temporary bytes of a step of these sizes."""
  import jax

  step, state, batch = compiled_step(rows, length, vocabulary)

  def one():
    nonlocal state
    state, *_ = jax.block_until_ready(step(state, batch))

  (seconds,) = lines.seconds_of(one)
  memory = step.memory_analysis().temp_size_in_bytes
  return {"seconds": seconds, "temporary_bytes": memory}


def slope(sizes, seconds) -> float:
  """Slope of the least-squares line through the points on two logarithmic axes."""
  x, y = ([math.log(v) for v in values] for values in (sizes, seconds))

  def mean(values):
    return sum(values) / len(values)

  dx = [v - mean(x) for v in x]
  return sum(d * v for d, v in zip(dx, y, strict=True)) / sum(d * d for d in dx)


def prompt_ids(tokenizer) -> list[list[int]]:
  """Token ids of 4 prompts."""
  return [tokenizer.encode(f"A long story about the number {n}:") for n in range(4)]


def generate(model, prompts, new_tokens: int):
  """The Samples of all prompts, each of `new_tokens` tokens."""
  from opsd_jax.sampling import sampler, tokens

  return sampler.sample(
    model.config,
    model.params,
    prompts,
    tokens.row_keys(0, 0, "generate", list(map(str, prompts)), 1),
    tokens.SamplingParams(),
    max_new_tokens=new_tokens,
    eos_ids=(-1,),
    slots=4,
    bucket=BUCKET,
    steps=32,
  )


def forward_logp(model, prompt, response):
  """Log-prob in nats of every response token, by one forward pass."""
  import jax
  import jax.numpy as jnp

  from opsd_jax.models import transformer
  from opsd_jax.sampling import programs

  @jax.jit
  def logp_of(params, ids_1xL):
    h_1xLxD, _ = transformer.apply(model.config, params, ids_1xL)
    h_TxD = h_1xLxD[0, len(prompt) - 1 : -1]
    logits_TxV = programs.next_token_logits(model.config, params, h_TxD)
    y_T = ids_1xL[0, len(prompt) :, None]
    return jnp.take_along_axis(jax.nn.log_softmax(logits_TxV), y_T, 1)[:, 0]

  return logp_of(model.params, jnp.array([[*prompt, *response]]))


def cache_bytes(config, longest: int) -> int:
  """Bytes of the KV cache of 4 rows of `longest` tokens."""
  import jax

  from opsd_jax.models import kv_cache
  from opsd_jax.sampling.scheduler import bucket_for, size_ladder

  positions = bucket_for(size_ladder(BUCKET, config.max_positions), longest)
  cache = jax.eval_shape(lambda: kv_cache.init(config, 4, positions))
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))


def rollouts(source: str):
  """Yields (new tokens, their line); then prints the largest difference of the
  longest responses' log-probs from a forward pass."""
  import numpy as np

  from opsd_jax import api
  from opsd_jax.runtime import allocator

  allocator.keep_freed()
  model = api.load_model(source)
  prompts = prompt_ids(model.tokenizer)
  longest = max(map(len, prompts))
  for size in NEW_TOKENS:
    runs = []
    (seconds,) = lines.seconds_of(
      lambda: runs.append(generate(model, prompts, size)),  # noqa: B023
      times=3,
    )
    yield (
      size,
      {
        "seconds": seconds,
        "cache_bytes": cache_bytes(model.config, longest + size),
        "milliseconds_per_token": 1000 * seconds["median"] / (4 * size),
      },
    )
  samples = runs[-1]
  gaps = [
    np.abs(forward_logp(model, p, ids) - logp).max()
    for p, ids, logp in zip(prompts, samples.ids_RxT, samples.logp_RxT, strict=True)
  ]
  lines.say("forward", new_tokens=size, rows=4, most_logp_gap=float(max(gaps)))


def measure(axis: str, rows) -> None:
  """Prints a line for each size, and the slope."""
  sizes, medians = [], []
  for size, row in rows:
    lines.say("scaling", axis=axis, size=size, **row)
    sizes.append(size)
    medians.append(row["seconds"]["median"])
  lines.say(
    "slope",
    axis=axis,
    of_all=slope(sizes, medians),
    of_last_two=slope(sizes[-2:], medians[-2:]),
  )


def scaling(source: str) -> None:
  lines.machine(model=MODEL, base=BASE, source=source)
  for axis, sizes in SIZES.items():
    measure(axis, ((size, point(**BASE | {axis: size})) for size in sizes))
  measure("new tokens", rollouts(source))
