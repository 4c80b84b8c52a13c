"""Chunked statistics against dense ones; what must be zero; peak memory."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import base, tip
from opsd_jax.losses import chunked as chunked_loss
from opsd_jax.losses import divergences, label_losses, objective, targets
from opsd_jax.structs import ResponseTokens
from tests.families import divergence_keywords

sg = jax.lax.stop_gradient

B, T, V, D = 3, 5, 48, 8
KEYWORDS = {
  "jsd": [{"beta": b} for b in (0, 0.1, 0.5, 0.9, 1)],
  "alpha": [{"alpha": a} for a in (0.5, 2)],
}
EVERY = [
  (name, kw)
  for name, f in {**divergences.ALL, **label_losses.TOKEN, **label_losses.LABEL}.items()
  for kw in KEYWORDS.get(name, [divergence_keywords(f)])
]
MAPPED = [
  *(
    {"support": support, "k": 5, "support_from": support_from}
    for support in ("top_k_tail", "top_k_renormalised")
    for support_from in ("teacher", "student")
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
ONE, TWO = ((1, "teacher"),), ((1, "live"), (1, "teacher"))


def inputs(seed=0, V=V, teachers=ONE):
  """(h, W, {(view, weights): (ht, Wt)}, tokens), the second row empty; every token
  counts in its own way."""
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  made = {pair: (draw(B, T, D), 0.5 * draw(V, D)) for pair in teachers}
  y = jnp.asarray(rng.integers(0, V, (B, T)))
  w_BxT = jnp.cos(jnp.arange(B * T, dtype=jnp.float32)).reshape(B, T) + 2
  weights = {"distill": w_BxT, "nll": w_BxT}
  tokens = ResponseTokens(y, jnp.float32(MASK), *[y] * 4, weights)
  return draw(B, T, D), 0.5 * draw(V, D), made, tokens


def objective_of(name="forward_kl", kw={}, *, target=None, **fields):  # noqa: B006
  """A config's objective: one divergence, or `nll`."""
  config = base.get_config()
  term = "nll" if name == "nll" else "distill"
  config.loss[term].scale = 1.0
  if term == "distill":
    config.loss.distill.divergence.update({"name": name, **kw})
  config.update_from_flattened_dict(fields)
  made = objective.from_config(config)
  return made if target is None else made._replace(targets={"teacher": target})


def chunked(o, chunk=4):
  """(h, W, teachers, tokens) -> (loss, TokenStats)."""
  of_logits = functools.partial(objective.of_logits, o, dict.fromkeys(o.terms, 1.0))
  return lambda *x: chunked_loss.loss(of_logits, *x, chunk=chunk)


def statistics(o, chunk=4):
  """(h, W, teachers, tokens) -> TokenStats, without a loss."""
  return lambda *x: chunked_loss.statistics(
    lambda *seen: objective.of_logits(o, {}, *seen)[1], *x, chunk=chunk
  )


def dense(name="forward_kl", kw={}, *, temperature=1.0, mix=lambda *zs: zs[0]):  # noqa: B006
  """(h, W, teachers, tokens) -> (loss, the same statistics as a dict), with all of
  [B,T,V] at once and written out anew."""

  def of(h, W, teachers, tokens):
    y, mask = tokens.y_BxT, tokens.mask_BxT

    def logits(h, W):
      return jnp.matmul(h, W.T, precision="highest")

    def log_softmax(z):
      return z - jax.nn.logsumexp(z, -1, keepdims=True)

    def at(logp):
      return jnp.take_along_axis(logp, y[..., None], -1)[..., 0]

    def entropy(logp):
      return -(jnp.exp(logp) * logp).sum(-1)

    z = logits(h, W)
    logp = log_softmax(z / temperature)
    stats = {"logp": at(logp), "raw_logp": at(log_softmax(z)), "entropy": entropy(logp)}
    if name == "nll":
      stats["nll"] = -at(logp)
    else:
      zt = sg(mix(*(logits(*teacher) for teacher in teachers.values())))
      logq = log_softmax(zt / temperature)
      stats["distill"], clipped = divergences.make(name, **kw)(logp, logq, y)
      stats["teacher_logp"], stats["teacher_entropy"] = at(logq), entropy(logq)
      if "clip" in kw:
        stats["clipped"] = clipped
    stats = {k: mask * v for k, v in stats.items()}
    term = "nll" if name == "nll" else "distill"
    return (tokens.weights[term] * stats[term]).sum(), stats

  return of


def flat(stats):
  """TokenStats as `dense` names them."""
  found = {
    "logp": stats.logp_BxT,
    "raw_logp": stats.raw_logp_BxT,
    "entropy": stats.entropy_BxT,
    **stats.values,
  }
  for x in stats.teacher_logp.values():
    found["teacher_logp"] = x
  for x in stats.teacher_entropy.values():
    found["teacher_entropy"] = x
  for x in stats.clipped.values():
    found["clipped"] = x
  return found


def both(name, kw, *, temperature=1.3, chunk=4, **more):
  """x -> ((loss, statistics), gradients), chunked and dense."""
  o = objective_of(name, kw, **{"loss.temperature": temperature}, **more)

  def of_chunks(*x):
    total, stats = chunked(o, chunk)(*x)
    return total, flat(stats)

  def gradients(f):
    return jit(jax.value_and_grad(f, (0, 1), has_aux=True))

  return gradients(of_chunks), gradients(dense(name, kw, temperature=temperature))


def total(name="forward_kl", temperature=1.3):
  o = objective_of(name, **{"loss.temperature": temperature})
  return lambda *x: chunked(o)(*x)[0]


def assert_close(got, expected, tolerance=1e-5):
  """Every leaf within `tolerance` of its largest entry."""
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape and np.isfinite(a).all()
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize("name,kw", CASES, ids=str)
def test_chunked_equals_dense(name, kw):
  got, expected = (f(*inputs()) for f in both(name, kw))
  assert_close(got, expected)
  assert all(np.abs(g).max() > 1e-3 for g in expected[1])


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_any_chunk_size(chunk):
  of_chunks, whole = both("forward_kl", {}, chunk=chunk)
  assert_close(of_chunks(*inputs()), whole(*inputs()))


def test_a_vocabulary_that_nothing_divides():
  of_chunks, whole = both("reverse_kl", {})
  assert_close(of_chunks(*inputs(V=23)), whole(*inputs(V=23)))


def test_two_teachers_are_one_mixture():
  mixture = targets.anchored(view=1, weights="teacher", anchor_weight=0.25)
  o = objective_of(target=mixture)
  x = inputs(teachers=TWO)
  got = jit(jax.value_and_grad(lambda *x: chunked(o)(*x)[0], (0, 1)))(*x)
  of = dense(mix=lambda live, anchor: 0.75 * live + 0.25 * anchor)
  expected = jit(jax.value_and_grad(lambda *x: of(*x)[0], (0, 1)))(*x)
  assert_close(got, expected)


KL = both("forward_kl", {})
JSD = both("jsd", {"beta": 0.3}, temperature=0.7)


@given(seed=st.integers(0, 2**16))
def test_chunked_equals_dense_on_any_numbers(seed):
  assert_close(*(f(*inputs(seed)) for f in JSD))


def test_the_statistics_without_a_loss_are_the_same():
  o = objective_of(**{"loss.temperature": 1.3})
  got = flat(statistics(o)(*inputs()))
  assert_close(got, dense(temperature=1.3)(*inputs())[1])


def test_the_negative_log_likelihood():
  of_chunks, whole = both("nll", {})
  x = inputs(teachers=())
  assert_close(of_chunks(*x), whole(*x))


def test_terms_add_up_and_a_negative_scale_repels():
  x = inputs()

  def gradient(distill, nll):
    scales = {"loss.distill.scale": distill, "loss.nll.scale": nll}
    o = objective_of(**scales)
    return jit(jax.grad(lambda *x: chunked(o)(*x)[0], (0, 1)))(*x)

  pulled, both_terms = gradient(-2.0, 0.0), gradient(1.0, 0.5)
  one, other = gradient(1.0, 0.0), gradient(0.0, 0.5)
  assert_close(pulled, jax.tree.map(lambda g: -2 * g, one))
  assert_close(both_terms, jax.tree.map(jnp.add, one, other))


def test_a_loss_may_scale_and_add_like_any_other():
  h, W, *rest = inputs()
  of = total()
  once = jit(jax.grad(of, (0, 1)))(h, W, *rest)
  value = of(h, W, *rest)
  more = jit(
    jax.grad(lambda h, W: (of(h, W, *rest) - 1) ** 2 + of(h, W, *rest), (0, 1))
  )(h, W)
  assert_close(more, jax.tree.map(lambda x: (2 * (value - 1) + 1) * x, once))


def test_nothing_flows_to_the_teacher_or_to_what_a_token_is_given():
  h, W, teachers, tokens = inputs()

  def of(h, W, teachers, weights):
    loss, stats = chunked(objective_of())(
      h, W, teachers, tokens._replace(weights=weights)
    )
    return loss + sum(x.sum() for x in jax.tree.leaves(stats))  # all outputs

  dh, dW, *rest = jit(jax.grad(of, (0, 1, 2, 3)))(h, W, teachers, tokens.weights)
  assert np.abs(dh).max() > 0 and np.abs(dW).max() > 0
  assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(rest))


def test_the_students_own_weights_as_teacher_get_the_students_gradient_alone():
  h, W, _, tokens = inputs()
  of = total(temperature=1.0)

  def shared(W, Wt):
    return of(h, W, {ONE[0]: (h[::-1], Wt)}, tokens)

  assert_close(jit(jax.grad(lambda W: shared(W, W)))(W), jit(jax.grad(shared))(W, W))


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e30])
def test_masked_tokens_are_zero_whatever_they_hold(junk):
  of_chunks, _ = KL
  h, W, teachers, tokens = inputs()
  real = tokens.mask_BxT[..., None] > 0

  def spoilt(h):
    return jnp.where(real, h, junk)

  clean = of_chunks(h, W, teachers, tokens)
  told = {pair: (spoilt(ht), Wt) for pair, (ht, Wt) in teachers.items()}
  dirty = of_chunks(spoilt(h), W, told, tokens)
  for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
    np.testing.assert_array_equal(a, b)
  (_, stats), (dh, _) = dirty
  for x in (*stats.values(), dh):
    assert (np.asarray(x)[~MASK] == 0).all()
    assert np.isfinite(x).all()


@pytest.mark.parametrize("name", ["forward_kl", "nll"])
def test_a_temperature_scales_the_logits_and_the_gradient(name):
  h, W, teachers, tokens = inputs()
  (pair, (ht, Wt)), *_ = teachers.items()

  def grad(h, ht, temperature):
    def of(h):
      return total(name, temperature)(h, W, {pair: (ht, Wt)}, tokens)

    return jit(jax.value_and_grad(of))(h)

  value, gradient = grad(h, ht, 1.7)
  scaled_value, scaled_gradient = grad(h / 1.7, ht / 1.7, 1.0)
  assert_close((value, gradient), (scaled_value, scaled_gradient / 1.7))


# ------------------------------------------------------------- by hand

TEACHER, STUDENT = (0.7, 0.2, 0.1), (0.5, 0.3, 0.2)


def by_hand(p, teachers, o):
  """Statistics of distributions: states are log-probs, the unembedding is 1."""
  ys = (0, 1, 2)

  def row(p):
    return jnp.tile(jnp.log(jnp.array(p)), (1, len(ys), 1))

  y = jnp.array([ys])
  tokens = ResponseTokens(y, jnp.ones((1, len(ys))), *[y] * 4)
  made = {pair: (row(q), jnp.eye(3)) for pair, q in teachers.items()}
  return flat(statistics(o, 2)(row(p), jnp.eye(3), made, tokens))


def test_statistics_by_hand():
  stats = by_hand(STUDENT, {ONE[0]: TEACHER}, objective_of())

  def entropy(p):
    return -sum(x * math.log(x) for x in p)

  for name, expected in (
    ("distill", [0.085123] * 3),
    ("logp", np.log(STUDENT)),
    ("raw_logp", np.log(STUDENT)),
    ("teacher_logp", np.log(TEACHER)),
    ("entropy", [entropy(STUDENT)] * 3),
    ("teacher_entropy", [entropy(TEACHER)] * 3),
  ):
    np.testing.assert_allclose(stats[name][0], expected, atol=2e-6)
  assert "clipped" not in stats  # nothing clips


def test_a_temperature_by_hand():
  o = objective_of(**{"loss.temperature": 1.1})
  stats = by_hand(STUDENT, {ONE[0]: TEACHER}, o)
  np.testing.assert_allclose(stats["distill"][0], [0.073126] * 3, atol=2e-6)
  for name, expected in (
    ("logp", (0.48467, 0.30462, 0.21071)),
    ("teacher_logp", (0.67083, 0.21479, 0.11438)),
    ("raw_logp", STUDENT),  # the sampler's, at temperature 1
  ):
    np.testing.assert_allclose(jnp.exp(stats[name][0]), expected, atol=1e-5)


def test_a_targets_own_temperature_is_the_teachers_alone():
  o = objective_of(**{"loss.temperature": 1.1, "targets.teacher.temperature": 1.0})
  stats = by_hand(STUDENT, {ONE[0]: TEACHER}, o)
  np.testing.assert_allclose(jnp.exp(stats["teacher_logp"][0]), TEACHER, atol=1e-5)
  student = (0.48467, 0.30462, 0.21071)
  np.testing.assert_allclose(jnp.exp(stats["logp"][0]), student, atol=1e-5)


def test_an_anchored_teacher_is_the_mixture_in_log_space():
  # A quarter of the student (SDPO's a), three of where it started.
  mixture = targets.anchored(view=1, weights="teacher", anchor_weight=0.75)
  teachers = {TWO[0]: STUDENT, TWO[1]: TEACHER}
  stats = by_hand(STUDENT, teachers, objective_of(target=mixture))
  expected = (0.65413, 0.22498, 0.12088)
  np.testing.assert_allclose(jnp.exp(stats["teacher_logp"][0]), expected, atol=1e-5)


def test_without_a_target_there_are_no_statistics_of_one():
  stats = by_hand(STUDENT, {}, objective_of("nll"))
  np.testing.assert_allclose(stats["nll"][0], -np.log(STUDENT), atol=1e-6)
  assert "teacher_logp" not in stats


# ----------------------------------------------------------- precision


def half(x):
  return jax.tree.map(lambda a: a.astype(jnp.bfloat16), x)


def test_bfloat16_states_give_float32_statistics():
  h, W, teachers, tokens = inputs()
  of_chunks, whole = KL
  (_, stats), grads = of_chunks(half(h), half(W), half(teachers), tokens)
  assert all(x.dtype == jnp.float32 for x in stats.values())
  assert all(g.dtype == jnp.bfloat16 for g in grads)
  rounded = jax.tree.map(jnp.float32, (half(h), half(W), half(teachers)))
  (_, expected), full = whole(*rounded, tokens)
  assert_close(stats, expected)  # the inputs are rounded, nothing after them
  assert_close(jax.tree.map(jnp.float32, grads), full, 2**-8)


def test_a_bfloat16_unembedding_sums_its_gradient_in_float32():
  # 4096 equal tokens, one a chunk: bfloat16 sums of equal parts stall at 256.
  n = 4096
  h, W = jnp.ones((1, 1, D), jnp.bfloat16), half(inputs()[1])

  def of(W, n):
    y, ones = jnp.zeros((1, n), jnp.int32), jnp.ones((1, n))
    tokens = ResponseTokens(y, ones, *[y] * 4, {"nll": ones / n})
    h_1xnxD = jnp.broadcast_to(h, (1, n, D))
    return chunked(objective_of("nll"), 1)(h_1xnxD, W, {}, tokens)[0]

  many, one = (jnp.float32(jit(jax.grad(of), static_argnums=1)(W, k)) for k in (n, 1))
  assert_close(many, one, 2**-7)


# -------------------------------------------------------------- memory


def peak(of, V=151_936, width=1024, B=8, T=256):
  """XLA's account of one gradient of the loss; nothing is allocated."""

  def shape(*s, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(s, dtype)

  def mean(h, W, ht, Wt, y, mask):
    weights = {"distill": mask / mask.sum()}
    tokens = ResponseTokens(y, mask, *[y] * 4, weights)
    return of(h, W, {ONE[0]: (ht, Wt)}, tokens)[0]

  states, head = shape(B, T, width), shape(V, width)
  program = jax.jit(jax.grad(mean, (0, 1))).lower(
    states, head, states, head, shape(B, T, dtype=jnp.int32), shape(B, T)
  )
  return program.compile().memory_analysis()


@pytest.mark.parametrize(
  "name,kw", [("forward_kl", {}), ("reverse_kl", {}), ("jsd", {"beta": 0.5})]
)
def test_peak_memory_is_at_most_a_tenth_of_the_dense_version(name, kw):
  """2048 tokens of a 151,936 vocabulary and the config's own chunk.

  The head's gradient (V x D x 4 bytes, 622 MB) is an output of both programs
  and in neither's temporary memory: the sum over chunks grows in the output
  itself. Autodiff's sum would need a second V x D, for one chunk's share of it.
  """
  o = objective_of(name, kw)
  ours, whole = peak(chunked(o, o.chunk)), peak(dense(name, kw))
  head = 151_936 * 1024 * 4
  assert ours.output_size_in_bytes == whole.output_size_in_bytes >= head
  print(f"{name}: {ours.temp_size_in_bytes:,} of {whole.temp_size_in_bytes:,} bytes")
  assert whole.temp_size_in_bytes > 2048 * 151_936 * 4
  assert ours.temp_size_in_bytes <= whole.temp_size_in_bytes / 10
  assert ours.temp_size_in_bytes < head / 2  # no second gradient of it


def test_tip_saves_memory_with_the_chunk_that_it_picks():
  """A fifth of 2048 tokens, 448 columns with rounding: with as many tokens a chunk
  no more temporaries than all of them, with chunk x share at least 60% fewer."""
  config = tip.get_config()
  whole = objective.from_config(config)._replace(chunk=config.loss.chunk)
  config.loss.distill.token_weight.kept_share = 0.2
  fifth = objective.from_config(config)
  assert (whole.chunk, fifth.chunk) == (64, 12)
  everything = peak(chunked(whole, 64)).temp_size_in_bytes
  same_chunk = peak(chunked(fifth, 64), B=1, T=448).temp_size_in_bytes
  picked = peak(chunked(fifth, 12), B=1, T=448).temp_size_in_bytes
  print(f"{everything:,} bytes, {same_chunk:,} and {picked:,}")
  assert same_chunk <= everything and picked <= 0.4 * everything
