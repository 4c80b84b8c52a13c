"""Every backend against float64 mathematics; memory; real TPU compilation."""

import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from opsd_jax.models import attention
from opsd_jax.runtime import sharding_rules
from opsd_jax.runtime.mesh import make_mesh

# Many small programs: LLVM's optimiser would take most of the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
ROOT = pathlib.Path(__file__).parents[2]


def reference(q, k, v, dy, segments=None, parents=None):
  """(y, dq, dk, dv) of one row in float64, head by head; q: [L, H, C]."""
  y, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
  G = q.shape[1] // k.shape[1]
  seen = np.tri(len(q), dtype=bool)
  if segments is not None:
    own = segments[:, None] == segments[None]
    seen &= own if parents is None else own | (parents[:, None] == segments)
  for h in range(q.shape[1]):
    qh, kh, vh, dyh = q[:, h], k[:, h // G], v[:, h // G], dy[:, h]
    e = np.where(seen, np.exp(qh @ kh.T / np.sqrt(q.shape[2])), 0)
    p = e / e.sum(1, keepdims=True)
    dp = dyh @ vh.T
    dz = p * (dp - (p * dp).sum(1, keepdims=True)) / np.sqrt(q.shape[2])
    y[:, h], dq[:, h] = p @ vh, dz @ kh
    dk[:, h // G] += dz.T @ qh
    dv[:, h // G] += p.T @ dyh
  return y, dq, dk, dv


def inputs(L, H, K, C, lengths, seed=0):
  """(q, k, v, dy) in float64; padding is huge, and nothing pulls on it."""
  rng = np.random.default_rng(seed)
  real = np.arange(L) < np.array(lengths)[:, None]

  def draw(heads, padding):
    return np.where(
      real[..., None, None], rng.normal(size=(len(lengths), L, heads, C)), padding
    )

  return draw(H, 30.0), draw(K, 30.0), draw(K, 30.0), draw(H, 0.0)


def close(got, want, tolerance):
  np.testing.assert_allclose(
    np.asarray(got, np.float64), want, rtol=tolerance, atol=tolerance
  )


def check(f, L, H, K, C, lengths, tolerance, *segments, dtype="float32"):
  """f(q, k, v, *segments) and its gradients equal the reference on the rows
  without their padding, which is finite and gets no gradient."""
  *qkv, dy = inputs(L, H, K, C, lengths)

  @jit
  def value_and_gradients(q, k, v, dy):
    y, back = jax.vjp(lambda *x: f(*x, *segments), q, k, v)
    return y, *back(dy.astype(y.dtype))

  got = value_and_gradients(*(jnp.asarray(x, dtype) for x in (*qkv, dy)))
  assert all(x.dtype == dtype for x in got)
  assert got[0].shape == (len(lengths), L, H, C)
  assert np.isfinite(np.asarray(got[0], np.float32)).all()
  for b, n in enumerate(lengths):

    def row(x, b=b, n=n):
      return x[b, :n].astype(np.float64)

    of = (np.asarray(s)[b, :n] for s in segments)
    want = reference(*map(row, (*qkv, dy)), *of)
    for x, w in zip(got, want, strict=True):
      close(x[b, :n], w, tolerance)
    for x in got[1:]:
      close(x[b, n:], 0, 0)


def run(backend):
  return lambda q, k, v, segments=None, parents=None: attention.attend(
    q, k, v, backend=backend, segments_BxL=segments, parents_BxL=parents
  )


def packed(lengths, L):
  """Segments 1, 2, 3, ... of the given lengths in each row, then 0."""
  rows = [np.repeat(np.arange(1, len(n) + 1), n) for n in lengths]
  return jnp.stack([jnp.asarray(np.pad(r, (0, L - len(r))), jnp.int32) for r in rows])


@pytest.fixture
def small_chunks(monkeypatch):
  monkeypatch.setattr(attention, "CHUNK", 16)


@pytest.fixture
def interpreted(monkeypatch):
  monkeypatch.setattr(attention, "INTERPRET", True)


@pytest.mark.parametrize("backend", ["xla", "chunked"])
@pytest.mark.parametrize(
  "L, H, K, C",
  [(37, 4, 4, 8), (32, 4, 2, 16), (48, 8, 2, 5), (16, 4, 1, 8), (1, 2, 1, 4)],
)
def test_equals_the_reference(small_chunks, backend, L, H, K, C):
  """float32, to 1e-5: 3 uneven chunks, 2 and 3 even ones, one, one token."""
  check(run(backend), L, H, K, C, (L, L // 2 + 1), 1e-5)


@pytest.mark.parametrize("backend", ["xla", "chunked"])
def test_segments_see_themselves_only(small_chunks, backend):
  segments = packed([(9, 20, 8), (30,), (1, 1, 17)], 37)
  check(run(backend), 37, 4, 2, 8, (37, 30, 19), 1e-5, segments)


@pytest.mark.parametrize("backend", ["xla", "chunked"])
def test_responses_see_the_prompt_they_share(small_chunks, backend):
  segments = packed([(9, 20, 8), (12, 5, 5, 5, 3), (4, 4, 4, 4)], 37)
  parents = jnp.where(segments > 3, 4, 1) * (segments > 0)  # two prompts a row
  check(run(backend), 37, 4, 2, 8, (37, 30, 16), 1e-5, segments, parents)


def test_what_cannot_share_a_prompt_says_so():
  q = jnp.ones((1, 8, 2, 4))
  with pytest.raises(ValueError, match="'splash' cannot share.*'chunked'"):
    run("splash")(q, q, q, jnp.ones((1, 8), int), jnp.ones((1, 8), int))


@pytest.mark.parametrize("backend", ["xla", "chunked"])
def test_bfloat16_loses_rounding_only(small_chunks, backend):
  check(run(backend), 37, 4, 2, 16, (37, 20), 5e-2, dtype="bfloat16")


def temporary_bytes(backend, L, gradient):
  def shape(heads):
    return jax.ShapeDtypeStruct((1, L, heads, 16), jnp.float32)

  def f(*qkv):
    return attention.attend(*qkv, backend=backend).sum()

  f = jax.grad(f, (0, 1, 2)) if gradient else f
  compiled = jax.jit(f).lower(shape(4), shape(2), shape(2)).compile()
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("gradient", [False, True])
def test_memory_grows_with_the_length_not_its_square(gradient):
  """From 2,048 to 4,096 tokens: twice, where the dense one takes four times."""

  def growth(backend):
    return temporary_bytes(backend, 4096, gradient) / temporary_bytes(
      backend, 2048, gradient
    )

  assert 1.8 < growth("chunked") < 2.2
  assert 3.6 < growth("xla")


@pytest.mark.parametrize("L, length", [(37, 38), (38, 38), (1, 2)])
def test_cudnn_arguments(monkeypatch, L, length):
  """What JAX is asked for means the same to its other implementation; cuDNN
  has no gradient of odd lengths."""
  fused, asked = attention.fused, []

  def instead(q, k, v, implementation):
    asked.append((implementation, *(x.shape[1] for x in (q, k, v))))
    return fused(q, k, v, "xla")

  monkeypatch.setattr(attention, "fused", instead)
  real = (L, -(-L // 2))
  check(run("cudnn"), L, 8, 2, 16, real, 5e-2, dtype="bfloat16")
  assert asked == [("cudnn", length, length, length)]

  def exact(q, k, v):
    return fused(q, k, v, "xla")

  check(exact, L, 8, 2, 16, real, 1e-5)


def test_cudnn_refuses_what_it_would_get_wrong():
  q = jnp.zeros((1, 4, 2, 8))
  with pytest.raises(ValueError, match="got float32, expected bfloat16"):
    run("cudnn")(q, q, q)
  half, ids = q.astype("bfloat16"), jnp.zeros((1, 4), "int32")
  with pytest.raises(ValueError, match="does not see segments.*'chunked'"):
    run("cudnn")(half, half, half, ids)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("L, H, K, C", [(37, 4, 2, 64), (1030, 8, 8, 128)])
def test_cudnn_on_a_gpu(L, H, K, C):
  check(run("cudnn"), L, H, K, C, (L, L // 2), 5e-2, dtype="bfloat16")


@pytest.mark.parametrize(
  "L, H, K, C", [(600, 4, 2, 16), (256, 2, 2, 64), (100, 4, 1, 5)]
)
def test_splash_equals_the_reference(interpreted, L, H, K, C):
  """float32, to 5e-5: two padded blocks of 384, one of 256, one padded."""
  check(run("splash"), L, H, K, C, (L, L // 2), 5e-5)


def test_splash_segments(interpreted):
  segments = packed([(301, 290), (5, 390)], 600)
  check(run("splash"), 600, 4, 2, 16, (591, 395), 5e-5, segments)


@pytest.mark.parametrize("rows", [4, 3])
@pytest.mark.parametrize("K", [2, 1])
def test_splash_under_a_mesh(interpreted, rows, K):
  """Rows over data and fsdp, heads over tensor; whole where indivisible."""
  mesh = make_mesh(data=1, fsdp=2, tensor=2, devices=jax.devices()[:4])
  segments = packed([(50, 50)] * rows, 100)
  with jax.set_mesh(mesh):
    check(run("splash"), 100, 4, K, 8, (100,) * rows, 5e-5, segments)

    def x(heads):
      return jnp.ones((rows, 100, heads, 8))

    y = jax.jit(run("splash"))(x(4), x(K), x(K))
  whole = P(None if rows == 3 else ("data", "fsdp"), None, None if K == 1 else "tensor")
  assert y.sharding.is_equivalent_to(NamedSharding(mesh, whole), 4)


def test_splash_does_not_run_off_the_tpu_unasked():
  q = jnp.zeros((1, 128, 2, 8))
  with pytest.raises(ValueError, match="interpret"):
    run("splash")(q, q, q)


@pytest.mark.parametrize(
  "L, blocks",
  [
    (1, (1, 128)),
    (512, (1, 512)),
    (513, (2, 384)),
    (3072, (6, 512)),
    (4096, (4, 1024)),
    (4700, (5, 1024)),
    (8192, (8, 1024)),
  ],
)
def test_splash_blocks(L, blocks):
  assert attention.splash_blocks(L) == blocks


def compile_for_tpu(topology, data, fsdp, tensor, backends, packed=False, L=3072):
  """Temporary bytes a chip, by backend, of a gradient through scanned and
  rematerialised attention layers; prints them as JSON."""
  from jax.experimental import topologies

  chips = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
  mesh = make_mesh(data, fsdp, tensor, devices=chips)
  B, H, K, C, D, layers = data * fsdp, 32, 8, 128, 512, 2

  def layer(x_BxLxD, w, segments_BxL, backend):
    def heads(w):
      return jnp.einsum("bld,dhc->blhc", x_BxLxD, w)

    y = attention.attend(
      heads(w["q"]),
      heads(w["k"]),
      heads(w["v"]),
      backend=backend,
      segments_BxL=segments_BxL,
    )
    return x_BxLxD + jnp.einsum("blhc,dhc->bld", y, w["q"])

  def loss(w, x_BxLxD, segments_BxL, backend):
    body = jax.checkpoint(functools.partial(layer, backend=backend))

    def step(x, w):
      return (body(x, w, segments_BxL), None)

    return jnp.square(jax.lax.scan(step, x_BxLxD, w)[0]).astype("float32").sum()

  def of(spec, dtype, *shape):
    split = NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

  w = {
    name: of(P(None, "fsdp", "tensor"), "bfloat16", layers, D, n, C)
    for name, n in (("q", H), ("k", K), ("v", K))
  }
  x_BxLxD = of(P(sharding_rules.ROWS), "bfloat16", B, L, D)
  segments_BxL = of(P(sharding_rules.ROWS), "int32", B, L) if packed else None

  def temporary(backend):
    return (
      jax.jit(jax.value_and_grad(functools.partial(loss, backend=backend)))
      .lower(w, x_BxLxD, segments_BxL)
      .compile()
      .memory_analysis()
      .temp_size_in_bytes
    )

  with jax.set_mesh(mesh):
    found = {backend: temporary(backend) for backend in backends}
  print(json.dumps(found))


@pytest.mark.skipif(
  not importlib.util.find_spec("libtpu"), reason="needs libtpu (jax[tpu])"
)
@pytest.mark.parametrize("packed", [False, True])
def test_splash_compiles_for_a_tpu_pod(packed):
  """The real TPU compiler takes it, split over rows and heads: 3,072 tokens,
  32 heads to 8 keys of 128. In all it keeps less than a quarter of one L x L
  matrix for each of a chip's 16 heads, which the dense one makes."""
  command = (
    "from tests.models import attention_test as t;"
    f"t.compile_for_tpu('v5p:2x2x1', 1, 2, 2, ['splash'], {packed})"
  )
  env = {
    "PATH": os.environ["PATH"],
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    # No chip is touched, so another compilation need not be waited for.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  }
  done = subprocess.run(
    [sys.executable, "-c", command],
    cwd=ROOT,
    env=env,
    text=True,
    capture_output=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["splash"] < 16 * 3072**2 * 4 / 4


def resolved(name, platform, dtype="bfloat16", head_dim=128, **more):
  return attention.resolve(
    name, platform=platform, dtype=dtype, head_dim=head_dim, **more
  )


@pytest.mark.parametrize(
  "chosen, asked",
  [
    ("splash", ("auto", "tpu")),
    ("splash", ("auto", "tpu", "float32", 5, True)),
    ("chunked", ("auto", "tpu", "float16")),
    ("cudnn", ("auto", "gpu")),
    ("cudnn", ("auto", "cuda", "float16", 64)),
    ("cudnn", ("auto", "gpu", "bfloat16", 256, False, "9.0")),
    ("chunked", ("auto", "gpu", "bfloat16", 256, False, "8.9")),
    ("chunked", ("auto", "gpu", "bfloat16", 128, False, "7.5")),
    ("chunked", ("auto", "gpu", "bfloat16", 128, True)),
    ("chunked", ("auto", "gpu", "float32")),
    ("chunked", ("auto", "rocm")),
    ("chunked", ("auto", "cpu")),
    ("xla", ("xla", "tpu")),
    ("chunked", ("chunked", "gpu")),
  ],
)
def test_resolve(chosen, asked):
  rest = dict(zip(("packed", "capability"), asked[4:], strict=False))
  assert resolved(*asked[:4], **rest) == chosen


@pytest.mark.parametrize(
  "asked, says",
  [
    (("flash", "cpu"), "unknown attention 'flash', known: auto, xla, ch"),
    (("splash", "cpu"), "for TPUs, this is cpu.*one of auto, chunked, xla"),
    (("splash", "tpu", "float16"), "not float16.*one of auto, chunked"),
    (("cudnn", "tpu"), "this is tpu.*one of auto, splash, chunked, xla"),
    (("cudnn", "gpu", "float32"), "16, not float32.*auto, chunked, xla"),
    (("cudnn", "gpu", "bfloat16", 100), "head_dim 8, 16, ... 128, not 100"),
  ],
)
def test_a_backend_that_cannot_run_is_refused(asked, says):
  with pytest.raises(ValueError, match=says):
    resolved(*asked)


def test_an_unknown_backend_is_refused():
  q = jnp.zeros((1, 4, 2, 8))
  with pytest.raises(ValueError, match="unknown name 'auto', known: xla"):
    run("auto")(q, q, q)
