"""Chunked statistics against dense ones; what must be zero; peak memory."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import base
from opsd_jax import divergence, pertoken, teacher
from opsd_jax.structs import PerToken

sg = jax.lax.stop_gradient

B, T, V, D = 3, 5, 48, 8
KEYWORDS = {
  "jsd": [{"beta": b} for b in (0, 0.1, 0.5, 0.9, 1)],
  "alpha": [{"alpha": a} for a in (0.5, 2)],
}
EVERY = [
  (name, kw)
  for name in (*divergence.ALL, *divergence.TOKEN)
  for kw in KEYWORDS.get(name, [{}])
]
MAPPED = [
  *(
    {"support": support, "k": 5, "owner": owner}
    for support in ("top_k_tail", "top_k_renormalised")
    for owner in ("teacher", "student")
  ),
  {"clip": "signed", "tau": 0.02},
  {"clip": "generalized", "tau": 0.02},
  {"clip": "token_sum", "tau": 1.0},
]
CASES = [
  *EVERY,
  *(("forward_kl", mapped) for mapped in MAPPED),
  ("reverse_kl", {"clip": "generalized", "tau": 0.02}),
]

# Many small programs: LLVM's optimiser would take most of the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
MASK = np.arange(T) < np.array([5, 0, 3])[:, None]


def inputs(seed=0, V=V, members=1):
  """(h, W, ((weight, ht, Wt), ...), y, mask), the second row empty."""
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  teachers = tuple(
    (1 / members, draw(B, T, D), 0.5 * draw(V, D)) for _ in range(members)
  )
  y = jnp.asarray(rng.integers(0, V, (B, T)))
  return draw(B, T, D), 0.5 * draw(V, D), teachers, y, jnp.float32(MASK)


def dense(divergence, h, W, teachers, y, mask, *, temperature):
  """The same statistics with all of [B,T,V] at once."""

  def logits(h, W):
    return jnp.matmul(h, W.T, precision="highest")

  def log_softmax(z):
    return z - jax.nn.logsumexp(z, -1, keepdims=True)

  def at(logp):
    return jnp.take_along_axis(logp, y[..., None], -1)[..., 0]

  def entropy(logp):
    return -(jnp.exp(logp) * logp).sum(-1)

  z = logits(h, W)
  zt = sg(sum(weight * logits(ht, Wt) for weight, ht, Wt in teachers))
  logp, logq = log_softmax(z / temperature), log_softmax(zt / temperature)
  div, clipped = divergence(logp, logq, y)
  values = (
    div,
    at(logp),
    at(log_softmax(z)),
    at(logq),
    entropy(logp),
    entropy(logq),
    clipped,
  )
  return PerToken(*(mask * v for v in values))


def both(name, kw, *, temperature=1.3, chunk=4, show=lambda tok: tok):
  """(h, W, ...) -> ((loss, PerToken), gradients), chunked and dense; in the
  loss every token counts its own way."""
  w_BxT = jnp.cos(jnp.arange(B * T, dtype=jnp.float32)).reshape(B, T) + 2
  make = divergence.make(name, **kw)

  def chunked(*args):
    total, tok = pertoken.loss(
      weighted, make, *args, w_BxT, temperature=temperature, chunk=chunk
    )
    return total, show(tok)

  def whole(*args):
    tok = dense(make, *args, temperature=temperature)
    return (w_BxT * tok.div_BxT).sum(), show(tok)

  def gradients(f):
    return jit(jax.value_and_grad(f, (0, 1), has_aux=True))

  return gradients(chunked), gradients(whole)


def weighted(tok, w):
  return w * tok.div_BxT


def summed(of_tok, name, h, W, teachers, y, mask, *, temperature, chunk=4):
  """The sum of a function of each token's statistics."""
  total, _ = pertoken.loss(
    lambda tok, _: of_tok(tok),
    divergence.make(name),
    h,
    W,
    teachers,
    y,
    mask,
    (),
    temperature=temperature,
    chunk=chunk,
  )
  return total


def DIV(tok):
  return tok.div_BxT


def assert_close(got, expected, tolerance=1e-5):
  """Every leaf within `tolerance` of its largest entry."""
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape and np.isfinite(a).all()
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize("name,kw", CASES, ids=str)
def test_chunked_equals_dense(name, kw):
  x = inputs()
  fs = both(name, kw, show=lambda tok: tok.div_BxT)
  got, expected = (f(*x) for f in fs)
  assert_close(got, expected)
  assert all(np.abs(g).max() > 1e-3 for g in expected[1])


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_any_chunk_size(chunk):
  chunked, whole = both("forward_kl", {}, chunk=chunk)
  assert_close(chunked(*inputs()), whole(*inputs()))


def test_a_vocabulary_that_nothing_divides():
  chunked, whole = both("reverse_kl", {})
  assert_close(chunked(*inputs(V=23)), whole(*inputs(V=23)))


def test_two_teachers_are_one_mixture():
  chunked, whole = both("forward_kl", {})
  x = inputs(members=2)
  assert_close(chunked(*x), whole(*x))


KL = both("forward_kl", {})
JSD = both("jsd", {"beta": 0.3}, temperature=0.7)


@given(seed=st.integers(0, 2**16))
def test_chunked_equals_dense_on_any_numbers(seed):
  assert_close(*(f(*inputs(seed)) for f in JSD))


def test_the_statistics_without_a_loss_are_the_same():
  h, W, teachers, y, mask = inputs(members=2)
  make = divergence.make("forward_kl")
  got = pertoken.compare(make, h, W, teachers, y, mask, temperature=1.3, chunk=4)
  assert_close(got, dense(make, h, W, teachers, y, mask, temperature=1.3))


def test_the_students_logp_carries_a_gradient_too():
  h, W, teachers, y, mask = inputs()

  def of(name, of_tok):
    return jit(
      jax.grad(
        lambda h, W: summed(of_tok, name, h, W, teachers, y, mask, temperature=1.3),
        (0, 1),
      )
    )(h, W)

  assert_close(of("forward_kl", lambda tok: -tok.logp_BxT), of("nll", DIV))


def test_a_loss_may_scale_and_add_like_any_other():
  h, W, teachers, y, mask = inputs()

  def of(h, W):
    return summed(DIV, "forward_kl", h, W, teachers, y, mask, temperature=1.3)

  once = jit(jax.grad(of, (0, 1)))(h, W)
  more = jit(jax.grad(lambda h, W: (of(h, W) - 1) ** 2 + of(h, W), (0, 1)))(h, W)
  scale = 2 * (of(h, W) - 1) + 1
  assert_close(more, jax.tree.map(lambda x: scale * x, once))


def test_nothing_flows_to_the_teacher_or_to_what_a_token_is_told():
  h, W, teachers, y, mask = inputs(members=2)

  def of(h, W, teachers, own):
    total, tok = pertoken.loss(
      lambda tok, own: own * sum(tok),
      divergence.make("forward_kl"),
      h,
      W,
      teachers,
      y,
      mask,
      own,
      temperature=1.0,
      chunk=4,
    )
    return total + sum(x.sum() for x in tok)  # all outputs

  dh, dW, *rest = jit(jax.grad(of, (0, 1, 2, 3)))(h, W, teachers, mask)
  assert np.abs(dh).max() > 0 and np.abs(dW).max() > 0
  assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(rest))


def test_the_students_own_weights_as_teacher_get_the_students_gradient_alone():
  h, W, _, y, mask = inputs()

  def of(W, Wt):
    return summed(
      DIV, "forward_kl", h, W, ((1.0, h[::-1], Wt),), y, mask, temperature=1.0
    )

  shared = jit(jax.grad(lambda W: of(W, W)))(W)
  assert_close(shared, jit(jax.grad(of))(W, W))


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e30])
def test_masked_tokens_are_zero_whatever_they_hold(junk):
  chunked, _ = KL
  h, W, ((weight, ht, Wt),), y, mask = inputs()
  real = mask[..., None] > 0

  def spoilt(h):
    return jnp.where(real, h, junk)

  def told(ht):
    return ((weight, ht, Wt),)

  clean = chunked(h, W, told(ht), y, mask)
  dirty = chunked(spoilt(h), W, told(spoilt(ht)), y, mask)
  for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
    np.testing.assert_array_equal(a, b)
  (_, tok), (dh, _) = dirty
  for x in (*tok, dh):
    assert (np.asarray(x)[~MASK] == 0).all()
    assert np.isfinite(x).all()


@pytest.mark.parametrize("name", ["forward_kl", "nll"])
def test_a_temperature_scales_the_logits_and_the_gradient(name):
  h, W, ((weight, ht, Wt),), y, mask = inputs()

  def grad(h, ht, temperature):
    def of(h):
      return summed(
        DIV, name, h, W, ((weight, ht, Wt),), y, mask, temperature=temperature
      )

    return jit(jax.value_and_grad(of))(h)

  value, gradient = grad(h, ht, 1.7)
  scaled_value, scaled_gradient = grad(h / 1.7, ht / 1.7, 1.0)
  assert_close((value, gradient), (scaled_value, scaled_gradient / 1.7))


# ------------------------------------------------------------- by hand

TEACHER, STUDENT = (0.7, 0.2, 0.1), (0.5, 0.3, 0.2)


def by_hand(p, teachers, temperature=1.0, name="forward_kl", ys=(0, 1, 2)):
  """Statistics of distributions: states are log-probs, the unembedding is 1."""

  def row(p):
    return jnp.tile(jnp.log(jnp.array(p)), (1, len(ys), 1))

  return pertoken.compare(
    divergence.make(name),
    row(p),
    jnp.eye(3),
    tuple((weight, row(q), jnp.eye(3)) for weight, q in teachers),
    jnp.array([ys]),
    jnp.ones((1, len(ys))),
    temperature=temperature,
    chunk=2,
  )


def test_statistics_by_hand():
  tok = by_hand(STUDENT, [(1.0, TEACHER)])

  def entropy(p):
    return -sum(x * math.log(x) for x in p)

  for got, expected in (
    (tok.div_BxT, [0.085123] * 3),
    (tok.logp_BxT, np.log(STUDENT)),
    (tok.raw_logp_BxT, np.log(STUDENT)),
    (tok.teacher_logp_BxT, np.log(TEACHER)),
    (tok.entropy_BxT, [entropy(STUDENT)] * 3),
    (tok.teacher_entropy_BxT, [entropy(TEACHER)] * 3),
    (tok.clipped_BxT, [0] * 3),
  ):
    np.testing.assert_allclose(got[0], expected, atol=2e-6)


def test_a_temperature_by_hand():
  tok = by_hand(STUDENT, [(1.0, TEACHER)], temperature=1.1)
  np.testing.assert_allclose(tok.div_BxT[0], [0.073126] * 3, atol=2e-6)
  np.testing.assert_allclose(
    jnp.exp(tok.logp_BxT[0]), (0.48467, 0.30462, 0.21071), atol=1e-5
  )
  np.testing.assert_allclose(
    jnp.exp(tok.teacher_logp_BxT[0]), (0.67083, 0.21479, 0.11438), atol=1e-5
  )
  # The sampler is compared with what the model says at temperature 1.
  np.testing.assert_allclose(jnp.exp(tok.raw_logp_BxT[0]), STUDENT, atol=1e-6)


def test_an_anchored_teacher_is_the_mixture_in_log_space():
  # A quarter of the student (SDPO's a), three of where it started.
  members = teacher.anchored(pull=0.75).members(TEACHER, STUDENT)
  tok = by_hand(STUDENT, members)
  np.testing.assert_allclose(
    jnp.exp(tok.teacher_logp_BxT[0]), (0.65413, 0.22498, 0.12088), atol=1e-5
  )


def test_without_a_teacher_its_statistics_are_zero():
  tok = by_hand(STUDENT, [], name="nll")
  np.testing.assert_allclose(tok.div_BxT[0], -np.log(STUDENT), atol=1e-6)
  assert (tok.teacher_logp_BxT == 0).all()
  assert (tok.teacher_entropy_BxT == 0).all()


# ----------------------------------------------------------- precision


def half(x):
  return jax.tree.map(lambda a: a.astype(jnp.bfloat16) if jnp.ndim(a) > 0 else a, x)


def test_bfloat16_states_give_float32_statistics():
  h, W, teachers, y, mask = inputs()
  chunked, whole = KL
  (_, tok), grads = chunked(half(h), half(W), half(teachers), y, mask)
  assert all(x.dtype == jnp.float32 for x in tok)
  assert all(g.dtype == jnp.bfloat16 for g in grads)
  rounded = jax.tree.map(jnp.float32, (half(h), half(W), half(teachers)))
  (_, expected), full = whole(*rounded, y, mask)
  assert_close(tok, expected)  # the inputs are rounded, nothing after them
  assert_close(jax.tree.map(jnp.float32, grads), full, 2**-8)


def test_a_bfloat16_unembedding_sums_its_gradient_in_float32():
  # 4096 equal tokens, one a chunk: bfloat16 sums of equal parts stall at 256.
  n = 4096
  h, W = jnp.ones((1, 1, D), jnp.bfloat16), half(inputs()[1])

  def of(W, n):
    return summed(
      lambda tok: tok.div_BxT / n,
      "nll",
      jnp.broadcast_to(h, (1, n, D)),
      W,
      (),
      jnp.zeros((1, n), jnp.int32),
      jnp.ones((1, n)),
      temperature=1.0,
      chunk=1,
    )

  many, one = (jnp.float32(jit(jax.grad(of), static_argnums=1)(W, k)) for k in (n, 1))
  assert_close(many, one, 2**-7)


# -------------------------------------------------------------- memory


def peak(mean, name, kw, V=151_936, width=1024, B=8, T=256):
  """XLA's account of one gradient of the loss; nothing is allocated."""

  def of(h, W, ht, Wt, y, mask):
    return mean(
      divergence.make(name, **kw), h, W, ((1.0, ht, Wt),), y, mask, temperature=1.0
    )

  def shape(*s, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(s, dtype)

  states, head = shape(B, T, width), shape(V, width)
  program = jax.jit(jax.grad(of, (0, 1))).lower(
    states, head, states, head, shape(B, T, dtype=jnp.int32), shape(B, T)
  )
  return program.compile().memory_analysis()


def chunked_mean(divergence, h, W, teachers, y, mask, *, temperature):
  chunk = base.get_config().loss.chunk
  total, _ = pertoken.loss(
    weighted,
    divergence,
    h,
    W,
    teachers,
    y,
    mask,
    mask / mask.sum(),
    temperature=temperature,
    chunk=chunk,
  )
  return total


def dense_mean(divergence, *args, temperature):
  mask = args[-1]
  tok = dense(divergence, *args, temperature=temperature)
  return (mask * tok.div_BxT).sum() / mask.sum()


@pytest.mark.parametrize(
  "name,kw", [("forward_kl", {}), ("reverse_kl", {}), ("jsd", {"beta": 0.5})]
)
def test_peak_memory_is_at_most_a_tenth_of_the_dense_version(name, kw):
  """2048 tokens of a 151,936 vocabulary and the config's own chunk.

  The head's gradient (V x D x 4 bytes, 622 MB) is an output of both programs
  and in neither's temporary memory: the sum over chunks grows in the output
  itself. Autodiff's sum would need a second V x D, for one chunk's share of it.
  """
  chunked, whole = peak(chunked_mean, name, kw), peak(dense_mean, name, kw)
  head = 151_936 * 1024 * 4
  assert chunked.output_size_in_bytes == whole.output_size_in_bytes >= head
  print(f"{name}: {chunked.temp_size_in_bytes:,} of {whole.temp_size_in_bytes:,} bytes")
  assert whole.temp_size_in_bytes > 2048 * 151_936 * 4
  assert chunked.temp_size_in_bytes <= whole.temp_size_in_bytes / 10
  assert chunked.temp_size_in_bytes < head / 2  # no second gradient of it
