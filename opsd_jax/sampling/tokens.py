"""One token a row: from logits to an id and its log-probs, without a sort.

A token is sampled in two stages by Gumbel-max (argmax of log p + g, g standard
Gumbel, is a sample of p: Gumbel 1954): first a block of the vocabulary by its
mass, then a token of the block. That takes V / BLOCK + BLOCK random numbers a
token instead of V. Under other roundings of the logits a sample changes only when
two candidates nearly tie. Filters find their thresholds by bisection.
"""

import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ROLES = {
  name: number
  for number, name in enumerate(
    (
      "rollout",
      "evaluate",
      "generate",
      "guided",
      "external",
      "revision",
      "continuation",
    )
  )
}
BLOCK = 256  # vocabulary entries of a block


class SamplingParams(NamedTuple):
  """Parameters of sampling: scalars, or one value a sample index.

  temperature 0 is greedy. top_k 0, top_p 1 and min_p 0 are off. Applied in
  this order: temperature, top-k, top-p on what top-k left, min-p relative to
  the likeliest token. Candidates that tie with the last one kept are kept.
  """

  temperature: float | tuple = 1.0
  top_k: int | tuple = 0
  top_p: float | tuple = 1.0
  min_p: float | tuple = 0.0


def check(sampling: SamplingParams) -> SamplingParams:
  """Returns the parameters; ValueError for a value out of its range."""
  for name, low, high in (
    ("temperature", 0, np.inf),
    ("top_k", 0, np.inf),
    ("top_p", 0, 1),
    ("min_p", 0, 1),
  ):
    value = np.asarray(getattr(sampling, name), np.float64)
    bad = ~((value >= low) & (value <= high)) | (name == "top_p") & (value == 0)
    if bad.any():
      interval = f"{'(' if name == 'top_p' else '['}{low}, {high}]"
      raise ValueError(f"{name} is {getattr(sampling, name)}, expected {interval}")
  return sampling


def check_seed(name: str, seed: int) -> None:
  """Raises ValueError for a seed that is none: those beyond 32 bits would draw as
  others do."""
  if not 0 <= seed < 2**32:
    raise ValueError(f"{name} is {seed}, expected 0 to {2**32 - 1}")


def row_keys(seed: int, step: int, role: str, example_ids, n: int) -> jax.Array:
  """One key a row: fold_in(seed, step, role, example, sample index)."""
  check_seed("seed", seed)
  base = jax.random.fold_in(jax.random.key(seed), step)
  base = jax.random.fold_in(base, ROLES[role])
  hashes = np.array([zlib.crc32(i.encode()) for i in example_ids], np.uint32)
  fold = jax.vmap(jax.random.fold_in)
  keys = fold(jnp.broadcast_to(base, len(hashes) * n), np.repeat(hashes, n))
  return fold(keys, np.tile(np.arange(n, dtype=np.uint32), len(hashes)))


# ----------------------------------------------------------------- filters


def flip_negative(x_R):
  """Bits of floats, as int32 -> integers that sort as the floats do; its own
  inverse."""
  return jnp.where(x_R < 0, x_R ^ 0x7FFFFFFF, x_R)


def bisect_threshold(keeps_enough, top_R):
  """The largest float t of each row for which `keeps_enough(t_R)` is true.

  `keeps_enough` must be true of -inf, false of everything above top_R, and change
  once in between. Bisects the integers behind the floats: 32 steps for all rows.
  """

  def to_float(i_R):
    return jax.lax.bitcast_convert_type(flip_negative(i_R), jnp.float32)

  def to_integer(t_R):
    return flip_negative(jax.lax.bitcast_convert_type(t_R, jnp.int32))

  def bisect(_, bounds):
    low_R, high_R = bounds
    # (low + high) // 2, which would overflow.
    middle_R = (low_R & high_R) + ((low_R ^ high_R) >> 1)
    enough_R = keeps_enough(to_float(middle_R))
    return jnp.where(enough_R, middle_R, low_R), jnp.where(enough_R, high_R, middle_R)

  bounds = to_integer(jnp.full_like(top_R, -jnp.inf)), to_integer(top_R) + 1
  return to_float(jax.lax.fori_loop(0, 32, bisect, bounds)[0])


def filter_threshold(z_RxV, top_R, sampling: SamplingParams):
  """The smallest tempered logit of each row that the filters keep.

  top_R are the rows' largest logits. A filter that is off in all rows costs
  nothing.
  """
  off_R = jnp.full_like(top_R, -jnp.inf)

  def top_k_threshold():
    k_R = jnp.minimum(sampling.top_k, z_RxV.shape[1])

    def count(t_R):
      return (z_RxV >= t_R[:, None]).sum(-1)

    low_R = bisect_threshold(lambda t_R: count(t_R) >= k_R, top_R)
    return jnp.where(k_R > 0, low_R, off_R)

  low_R = jax.lax.cond((sampling.top_k > 0).any(), top_k_threshold, lambda: off_R)

  def nucleus_threshold():
    e_RxV = jnp.exp(z_RxV - top_R[:, None])
    e_RxV = jnp.where(z_RxV >= low_R[:, None], e_RxV, 0)
    wanted_R = sampling.top_p * e_RxV.sum(-1)

    def mass(t_R):
      return jnp.where(z_RxV >= t_R[:, None], e_RxV, 0).sum(-1)

    last_R = bisect_threshold(lambda t_R: mass(t_R) >= wanted_R, top_R)
    return jnp.where(sampling.top_p < 1, last_R, off_R)

  last_R = jax.lax.cond((sampling.top_p < 1).any(), nucleus_threshold, lambda: off_R)
  return jnp.maximum(jnp.maximum(low_R, last_R), top_R + jnp.log(sampling.min_p))


def filtered(z_RxV, top_R, sampling: SamplingParams):
  """The tempered logits, -inf where filtered out."""
  low_R = filter_threshold(z_RxV, top_R, sampling)
  return jnp.where(z_RxV >= low_R[:, None], z_RxV, -jnp.inf)


# -------------------------------------------------------------------- draw


def in_blocks(z_RxV):
  """z_RxNxM: N blocks of M = BLOCK entries, the last one padded with -inf."""
  R, V = z_RxV.shape
  padding = -V % BLOCK
  if padding:
    z_RxV = jnp.pad(z_RxV, ((0, 0), (0, padding)), constant_values=-jnp.inf)
  return z_RxV.reshape(R, -1, BLOCK)


def select(x_RxV, i_R):
  """x_R: entry i_R of each row."""
  return jnp.take_along_axis(x_RxV, i_R[:, None], 1)[:, 0]


def block_sums(z_RxV, top_R):
  """s_RxN: the sum of exp(z - top) over each block."""
  return jnp.exp(in_blocks(z_RxV) - top_R[:, None, None]).sum(-1)


def sample_from_blocks(z_RxV, s_RxN, keys_R):
  """ids_R sampled from softmax(z); never an id whose z is -inf.

  s_RxN are the block sums of exp(z), up to a factor a row.
  """
  N = s_RxN.shape[1]

  def gumbel(key):
    return jax.random.gumbel(key, (N + BLOCK,), mode="high")

  g_RxG = jax.vmap(gumbel)(keys_R)
  n_R = (jnp.log(s_RxN) + g_RxG[:, :N]).argmax(-1)
  z_RxM = jnp.take_along_axis(in_blocks(z_RxV), n_R[:, None, None], 1)[:, 0]
  return n_R * BLOCK + (z_RxM + g_RxG[:, N:]).argmax(-1)


def draw(
  logits_RxV: jax.Array, keys_R: jax.Array, t_R: jax.Array, sampling: SamplingParams
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Samples token t of every row. What no row needs is not computed.

  Args:
    logits_RxV: float32.
    keys_R: the rows' keys.
    t_R: int32, index of the token in its response.
    sampling: an array of R for each parameter.

  Returns:
    ids_R; logp_R, nats under the model at temperature 1; sampled_R, nats under the
    tempered and filtered distribution, 0 where greedy.
  """
  V, top_R = logits_RxV.shape[1], logits_RxV.max(-1)
  s_RxN = block_sums(logits_RxV, top_R)
  logsumexp_R = top_R + jnp.log(s_RxN.sum(-1))
  keys_R = jax.vmap(jax.random.fold_in)(keys_R, t_R)
  greedy_R = sampling.temperature == 0
  temperature_R = jnp.where(greedy_R, 1.0, sampling.temperature)

  def likeliest():
    is_top = logits_RxV == top_R[:, None]
    return jnp.where(is_top, jnp.arange(V), V - 1).min(-1).astype(jnp.int32)

  def nothing():
    return jnp.zeros(len(top_R), jnp.int32), jnp.zeros_like(top_R)

  def plain():
    y_R = sample_from_blocks(logits_RxV, s_RxN, keys_R)
    return y_R, select(logits_RxV, y_R) - logsumexp_R

  def tempered(keep=lambda z_RxV, top_R, _: z_RxV):
    high_R = top_R / temperature_R
    z_RxV = keep(logits_RxV / temperature_R[:, None], high_R, sampling)
    s_RxN = block_sums(z_RxV, high_R)
    y_R = sample_from_blocks(z_RxV, s_RxN, keys_R)
    return y_R, select(z_RxV, y_R) - high_R - jnp.log(s_RxN.sum(-1))

  whole_R = (sampling.top_k == 0) & (sampling.top_p >= 1) & (sampling.min_p == 0)
  needs_R = jnp.where(whole_R, jnp.where(temperature_R == 1, 1, 2), 3)
  y_R, sampled_R = jax.lax.switch(
    jnp.where(greedy_R, 0, needs_R).max(),
    (nothing, plain, tempered, lambda: tempered(filtered)),
  )
  first_R = jax.lax.cond(greedy_R.any(), likeliest, lambda: y_R)
  y_R = jnp.where(greedy_R, first_R, y_R)
  logp_R = select(logits_RxV, y_R) - logsumexp_R
  return y_R, logp_R, jnp.where(greedy_R, 0.0, sampled_R)
