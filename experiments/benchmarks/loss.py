"""`bench divergence`: time and memory of the loss over the vocabulary.

Measured are its value and its gradient with respect to the student's hidden states
and unembedding, in our chunks and densely (the logits of all tokens at once, and
autodiff through them).
"""

import functools

from experiments.benchmarks import lines

VOCABULARY, WIDTH, CHUNK = 151_936, 1024, 64  # Qwen3-0.6B's
TOKENS = 256  # timed
MANY = 2048  # only compiled, for the memory of the program
NAMES = ("forward_kl", "reverse_kl", "jsd")


def divergence_of(name: str):
  """The divergence function of a name."""
  from opsd_jax.losses import divergences

  return divergences.make(name, **({"beta": 0.5} if name == "jsd" else {}))


def chunked(name, h_NxD, W_VxD, ht_NxD, Wt_VxD, y_N):
  """The mean divergence, computed like training does."""
  import jax.numpy as jnp

  from configs import base
  from opsd_jax.losses import chunked, objective
  from opsd_jax.structs import ResponseTokens

  config = base.get_config()
  config.loss.distill.scale = 1.0
  config.loss.distill.divergence.name = name
  built = objective.from_config(config)
  y = y_N[None]
  tokens = ResponseTokens(y, jnp.ones((1, len(y_N))), *[y] * 4)
  of_logits = functools.partial(objective.of_logits, built, {"distill": len(y_N)})
  teachers = {(1, "teacher"): (ht_NxD[None], Wt_VxD)}
  return chunked.loss(of_logits, h_NxD[None], W_VxD, teachers, tokens, chunk=CHUNK)[0]


def dense(name, h_NxD, W_VxD, ht_NxD, Wt_VxD, y_N):
  """The mean divergence from the logits of all tokens, with float32 products."""
  import jax
  import jax.numpy as jnp

  def logits(h, W):
    return jnp.matmul(h, W.T, precision="highest")

  logp_NxV = jax.nn.log_softmax(logits(h_NxD, W_VxD))
  logq_NxV = jax.nn.log_softmax(logits(ht_NxD, Wt_VxD))
  return divergence_of(name)(logp_NxV, logq_NxV, y_N)[0].mean()


def inputs(tokens: int, V: int = VOCABULARY, D: int = WIDTH):
  """Random hidden states and unembeddings of student and teacher, and the tokens."""
  import jax

  keys = jax.random.split(jax.random.key(0), 5)

  def normal(key, *shape):
    return jax.random.normal(key, shape) / D**0.25

  y_N = jax.random.randint(keys[4], (tokens,), 0, V)
  return (
    normal(keys[0], tokens, D),
    normal(keys[1], V, D),
    normal(keys[2], tokens, D),
    normal(keys[3], V, D),
    y_N,
  )


def gradient(function, name: str):
  """The compiled value and gradient of `chunked` or `dense`."""
  import jax

  f = functools.partial(function, name)
  return jax.jit(jax.value_and_grad(f, argnums=(0, 1)))


def divergence() -> None:
  """Prints seconds and temporary bytes of each divergence, chunked and dense."""
  import jax

  lines.machine(vocabulary=VOCABULARY, width=WIDTH, chunk=CHUNK, dtype="float32")
  args = inputs(TOKENS)
  many = jax.eval_shape(functools.partial(inputs, MANY))
  for name in NAMES:
    in_chunks, densely = gradient(chunked, name), gradient(dense, name)

    def run(f):
      return jax.block_until_ready(f(*args))

    (a, _), (b, _) = run(in_chunks), run(densely)
    if abs(a - b) > 1e-4 * abs(b):
      raise RuntimeError(f"{name} is {a} in chunks but {b} densely")
    seconds = lines.seconds_of(lambda: run(in_chunks), lambda: run(densely))  # noqa: B023
    for side, f, s in zip(
      ("chunked", "dense"), (in_chunks, densely), seconds, strict=True
    ):
      temporary = [
        f.lower(*x).compile().memory_analysis().temp_size_in_bytes for x in (args, many)
      ]
      lines.say(
        "divergence",
        name=name,
        side=side,
        tokens=TOKENS,
        seconds=s,
        temporary_bytes=temporary[0],
        temporary_bytes_of={MANY: temporary[1]},
      )
