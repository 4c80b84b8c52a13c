"""Weights straight into their layout: the same values, few bytes, no copy."""

import functools
import json
import math
import os
import pathlib
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from etils.epath import testing as epath_testing
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from opsd_jax import api
from opsd_jax.models import families, tokenizer
from opsd_jax.models.weights import assemble, hf, safetensors_file, sources
from opsd_jax.runtime import sharding_rules
from opsd_jax.runtime.mesh import make_mesh
from tests.models import transformer_test
from tests.models.transformer_test import RUN, assert_trees_equal, hf_config, load, make

MESHES = {
  "fsdp": {"fsdp": 4},
  "tensor": {"tensor": 4},
  "data": {"data": 4},
  "mixed": {"fsdp": 2, "tensor": 2},
  "replicas": {"data": 2, "fsdp": 2},
}


def mesh_of(**axes):
  devices = jax.devices()[: math.prod(axes.values())]
  return make_mesh(**axes, devices=devices)


def layout(**axes):
  return functools.partial(sharding_rules.tree_shardings, mesh=mesh_of(**axes))


def make_shards(path, family="qwen2", **changes):
  """A model directory in four safetensors files."""
  make(path, family, **changes)
  tensors = load_file(path / "model.safetensors")
  (path / "model.safetensors").unlink()
  names = sorted(tensors)
  where = {n: f"part-{i % 4}.safetensors" for i, n in enumerate(names)}
  for file in set(where.values()):
    part = {n: tensors[n] for n in names if where[n] == file}
    save_file(part, path / file)
  index = json.dumps({"weight_map": where})
  (path / "model.safetensors.index.json").write_text(index)
  return path


def read_with(path, shardings, **run):
  """(params, the reader that they were read with)."""
  config = families.from_hf(hf.read_config(path), **(RUN | run))
  reader = safetensors_file.Reader(hf.weight_files(path))
  params = hf.to_params(config, reader.shapes, reader.read, path, shardings)
  return params, reader


def size_of(path):
  return sum(p.stat().st_size for p in path.glob("*.safetensors"))


# The same values


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("axes", MESHES.values(), ids=MESHES)
def test_sharded_equals_plain_bit_for_bit(axes, scan, tmp_path):
  path, shardings = make_shards(tmp_path / "m"), layout(**axes)
  plain = load(path, scan_layers=scan)[1]
  config, split = load(path, shardings=shardings, scan_layers=scan)
  assert_trees_equal(plain, split)
  expected = shardings(jax.eval_shape(lambda: plain))
  jax.tree.map(
    lambda x, s: np.testing.assert_(x.sharding == s, x.sharding), split, expected
  )
  kernel = split["layers" if scan else "layers_0"]["attn"]["q_proj"]["kernel"]
  parts = {s.data.size for s in kernel.addressable_shards}
  split_in = axes.get("fsdp", 1) * axes.get("tensor", 1)
  assert parts == {kernel.size // split_in}


def test_plain_arrays_are_on_one_device_and_uncommitted(tmp_path):
  for x in jax.tree.leaves(load(make(tmp_path))[1]):
    assert isinstance(x, jax.Array) and len(x.devices()) == 1
    assert not x.committed  # so that they mix with arrays of any layout


def test_a_stack_split_over_its_layers(tmp_path):
  """Any grid will do, not only those of our table."""
  path, mesh = make(tmp_path, num_hidden_layers=4), mesh_of(fsdp=4)

  def by_layer(tree):
    return jax.tree.map(
      lambda x: NamedSharding(mesh, P("fsdp") if len(x.shape) > 2 else P()), tree
    )

  split, reader = read_with(path, by_layer, scan_layers=True)
  assert_trees_equal(split, load(path, scan_layers=True)[1])
  assert reader.bytes_read == size_of(path)


@pytest.mark.parametrize("scan", [False, True])
def test_bfloat16_is_rounded_in_the_same_way(scan, tmp_path):
  run = {"param_dtype": "bfloat16", "scan_layers": scan}
  path = make_shards(tmp_path / "m", "qwen3")
  split = load(path, shardings=layout(fsdp=4), **run)[1]
  plain = load(path, scan_layers=scan)[1]
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), plain)
  assert_trees_equal(split, rounded)


@pytest.mark.parametrize("block", [64, 1000])
def test_blocks_do_not_show(block, tmp_path, monkeypatch):
  path, shardings = make(tmp_path), layout(fsdp=2, tensor=2)
  expected = load(path)[1]
  monkeypatch.setattr(assemble, "BLOCK", block)
  assert_trees_equal(load(path, shardings=shardings)[1], expected)


def test_tiny_and_gguf_are_laid_out_too(tmp_path):
  config = families.from_hf(hf_config(), **RUN)
  tensors = transformer_test.random_tensors(config)
  file = transformer_test.write_gguf(tmp_path / "m.gguf", config, tensors)
  for path in (pathlib.Path("tiny"), file):
    plain, split = load(path)[1], load(path, shardings=layout(fsdp=4))[1]
    assert_trees_equal(plain, split)
    kernel = split["layers_1"]["mlp"]["up_proj"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4


# Few bytes


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("axes", [None, *MESHES.values()], ids=[None, *MESHES])
def test_every_byte_is_read_once(axes, scan, tmp_path):
  path = make_shards(tmp_path / "m")
  shardings = axes and layout(**axes)
  _, reader = read_with(path, shardings, scan_layers=scan)
  assert reader.bytes_read == size_of(path)


class Half:
  """A layout as a process sees it that holds the first of two halves."""

  def __init__(self, whole):
    self.whole = whole

  def addressable_devices_indices_map(self, shape):
    devices = sorted(self.whole.device_set, key=lambda d: d.id)
    every = self.whole.devices_indices_map(shape)
    return {d: every[d] for d in devices[: len(devices) // 2]}


def test_columns_are_read_alone_and_nearly_whole_rows_whole(tmp_path):
  values = np.arange(80, dtype=np.float32).reshape(8, 10)
  save_file({"x": values}, tmp_path / "m.safetensors")
  reader = safetensors_file.Reader([tmp_path / "m.safetensors"])
  for columns, width in ((slice(1, 4), 3), (slice(2, 9), 7), (slice(1, 9), 10)):
    before = reader.bytes_read
    got = reader.read("x", slice(2, 7), columns)
    np.testing.assert_array_equal(got, values[2:7, columns])
    assert reader.bytes_read - before == 5 * width * 4


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("spec", [P("fsdp"), P(None, "fsdp")])
def test_a_process_reads_its_own_half(spec, transposed, tmp_path, monkeypatch):
  values = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
  save_file({"x": values}, tmp_path / "m.safetensors")
  reader = safetensors_file.Reader([tmp_path / "m.safetensors"])
  ours = values.T if transposed else values
  leaf = assemble.Leaf(("x",), ours.shape, False, transposed)
  parts = []
  monkeypatch.setattr(
    jax,
    "make_array_from_callback",
    lambda shape, layout, f: parts.extend(
      (index, f(index))
      for index in layout.addressable_devices_indices_map(shape).values()
    ),
  )
  monkeypatch.setattr(jax, "block_until_ready", lambda x: x)
  before = reader.bytes_read
  half = Half(NamedSharding(mesh_of(fsdp=4), spec))
  assemble.array(leaf, np.float32, half, reader.read)
  assert reader.bytes_read - before == values.nbytes // 2 and len(parts) == 2
  for index, part in parts:
    np.testing.assert_array_equal(part, ours[index])


WORKER = """
import json, os, pathlib, sys
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
port, process, path = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process))
from opsd_jax.models import tokenizer
from opsd_jax.models.weights import export, sources
from tests.models.weights.loading_test import RUN, layout, read_with
params, reader = read_with(pathlib.Path(path), layout(fsdp=8))
export.export(
    pathlib.Path(path).with_name("out"),
    sources.read_config(pathlib.Path(path), **RUN), params,
    tokenizer.load("tiny"), card="",
)
total = jax.jit(lambda p: jax.tree.map(lambda x: x.sum(), p))(params)
print("RESULT" + json.dumps([
    reader.bytes_read, [float(x) for x in jax.tree.leaves(total)],
    str(params["embed"]["embedding"].addressable_shards[0].data.shape),
]))
"""


def free_port():
  import socket

  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def test_two_processes_read_half_each_and_write_one_model(tmp_path):
  path = make_shards(
    tmp_path / "m", vocab_size=320, hidden_size=128, intermediate_size=512
  )
  plain = load(path)[1]
  port = str(free_port())
  workers = [
    subprocess.Popen(
      [sys.executable, "-c", WORKER, port, str(i), str(path)],
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    for i in range(2)
  ]
  results = []
  for worker in workers:
    out, _ = worker.communicate(timeout=120)
    assert worker.returncode == 0
    results.append(json.loads(out.split("RESULT")[1].splitlines()[0]))
  for count, sums, shape in results:
    assert 0.45 * size_of(path) < count <= 0.6 * size_of(path)
    expected = [float(x.sum()) for x in jax.tree.leaves(plain)]
    np.testing.assert_allclose(sums, expected, rtol=1e-4, atol=1e-3)
    assert shape == "(320, 16)"
  assert_trees_equal(load(tmp_path / "out")[1], plain)


GROWTH = """
import os, pathlib, sys
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
import jax
from tests.models.weights.loading_test import layout, read_with, size_of

def kib(key):
  lines = open("/proc/self/status").read().splitlines()
  return next(int(l.split()[1]) for l in lines if l.startswith(key))

path, shardings = pathlib.Path(sys.argv[1]), layout(fsdp=8)
jax.block_until_ready(jax.numpy.zeros(8) + 1)
before = kib("VmRSS")
params, reader = read_with(path, shardings, param_dtype="bfloat16")
print("RESULT", (kib("VmHWM") - before) * 1024 / size_of(path))
"""


@pytest.mark.skipif(
  not os.path.exists("/proc/self/status"), reason="memory is read off /proc"
)
def test_memory_grows_by_little_more_than_the_weights(tmp_path):
  """120 MB here; the values are zeros of a sparse file."""
  path = tmp_path / "m"
  path.mkdir()
  config_json = hf_config(
    vocab_size=20_000,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=2,
    num_attention_heads=8,
    head_dim=128,
  )
  (path / "config.json").write_text(json.dumps(config_json))
  table = hf.name_table(families.from_hf(config_json, **RUN))
  safetensors_file.write(
    path / "model.safetensors",
    {n: row[3] for n, row in table.items()},
    jnp.bfloat16,
    lambda n: np.ones(table[n][3], jnp.bfloat16),
  )
  done = subprocess.run(
    [sys.executable, "-c", GROWTH, path],
    text=True,
    capture_output=True,
    env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    check=True,
  )
  assert 0.9 < float(done.stdout.split("RESULT")[1]) <= 1.3


# Elsewhere


@pytest.fixture
def bucket(tmp_path):
  """gs:// paths are looked up below tmp_path -> the files opened there."""
  opened = []

  def there(path):
    return str(path).replace("gs://bucket", str(tmp_path))

  def read(_, path, mode):
    opened.append((str(path), mode))
    return open(there(path), mode)

  def at(original, path, **_):
    return original(there(path))

  with epath_testing.mock_epath(open=read, stat=at, isdir=at, exists=at):
    yield opened


def test_a_directory_in_a_bucket(tmp_path, bucket):
  path = make_shards(tmp_path / "m", vocab_size=320)
  inner = tokenizer.load("tiny").inner
  inner.save_pretrained(path)
  sources.check("gs://bucket/m")
  remote = sources.resolve("gs://bucket/m")
  assert_trees_equal(load(remote, shardings=layout(fsdp=4))[1], load(path)[1])
  _, reader = read_with(remote, layout(fsdp=4))
  assert reader.bytes_read == size_of(path)  # four devices, one read
  model = api.load_model("gs://bucket/m")
  assert model.tokenizer.encode("é 1") == tokenizer.load("tiny").encode("é 1")
  assert {str(p) for p, _ in bucket} >= {
    f"gs://bucket/m/part-{i}.safetensors" for i in range(4)
  }


def test_a_bucket_that_cannot_be_read_is_one_line(bucket):
  with pytest.raises(ValueError, match="gs://bucket/other is not a directory"):
    sources.resolve("gs://bucket/other")


def test_remote_columns_are_read_in_whole_rows(tmp_path, bucket):
  values = np.arange(80, dtype=np.float32).reshape(8, 10)
  save_file({"x": values}, tmp_path / "m.safetensors")
  path = epath.Path("gs://bucket/m.safetensors")
  reader = safetensors_file.Reader([path])
  before = reader.bytes_read
  got = reader.read("x", slice(2, 7), slice(1, 4))
  np.testing.assert_array_equal(got, values[2:7, 1:4])
  assert reader.bytes_read - before == 5 * 10 * 4


# Damaged files


def header_of(path):
  data = path.read_bytes()
  (count,) = struct.unpack("<Q", data[:8])
  return json.loads(data[8 : 8 + count]), data[8 + count :]


def write_raw(path, header, values):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + values)


def change(**fields):
  return lambda h: h["b"].update(fields)


@pytest.mark.parametrize(
  "spoil,words",
  [
    (change(data_offsets=[8, 24]), "b starts at byte"),  # overlaps a
    (change(data_offsets=[20, 36]), "b starts at byte"),  # a hole
    (change(data_offsets=[16, 28]), "has 12 bytes"),
    (change(data_offsets=[16, 2**60]), "bytes"),
    (change(data_offsets=[16]), "m.safetensors"),
    (change(data_offsets=["16", "32"]), "m.safetensors"),
    (change(shape=[2, 3]), "has 16 bytes"),
    (change(shape=[-4, -1]), "shape"),
    (change(shape=[True, 4]), "shape"),
    (change(shape=4), "m.safetensors"),
    (change(dtype="I32"), "b has dtype I32, expected F64"),
    (change(dtype=None), "dtype None"),
    (lambda h: h.pop("b"), "tensors end at"),
    (lambda h: h.pop("a"), "b starts at byte"),
    (lambda h: h.update(b=[]), "m.safetensors"),
    (lambda h: h["b"].pop("shape"), "shape"),
  ],
)
def test_a_wrong_header_is_refused_by_name(spoil, words, tmp_path):
  path = tmp_path / "m.safetensors"
  save_file({"a": np.ones(4, np.float32), "b": np.ones(4, np.float32)}, path)
  header, values = header_of(path)
  assert safetensors_file.Reader([path]).shapes == {"a": (4,), "b": (4,)}
  spoil(header)
  write_raw(path, header, values)
  with pytest.raises(ValueError, match="not a readable safetensors file") as e:
    safetensors_file.Reader([path])
  assert words in str(e.value) and str(path) in str(e.value)


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"\x00" * 7,
    struct.pack("<Q", 2**60) + b"{}",
    struct.pack("<Q", 2**63) + b"{}",
    struct.pack("<Q", 3) + b"{}",
    struct.pack("<Q", 2) + b"[]",
    struct.pack("<Q", 2) + b"\xff\xff",
    struct.pack("<Q", 4) + b"null",
    struct.pack("<Q", 2) + b"{}" + b"more",
  ],
)
def test_what_is_no_header_is_refused(data, tmp_path):
  (tmp_path / "m.safetensors").write_bytes(data)
  with pytest.raises(ValueError, match="not a readable safetensors file"):
    safetensors_file.Reader([tmp_path / "m.safetensors"])


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
  path = tmp_path_factory.mktemp("small") / "whole.safetensors"
  save_file({"a": np.ones(4, np.float32), "b": np.ones((2, 3))}, path)
  return path


@given(st.data())
def test_whatever_safetensors_refuses_we_refuse(small_file, data):
  damaged = bytearray(small_file.read_bytes())
  count = len(damaged) - 64  # the header
  for _ in range(data.draw(st.integers(1, 2))):
    at = data.draw(st.integers(0, count - 1))
    damaged[at] = data.draw(st.sampled_from(b'0123456789{}[],:"-ab \x00\xff'))
  path = small_file.with_name("damaged.safetensors")
  path.write_bytes(damaged)
  try:
    safe_open(path, "numpy")
  except Exception:
    with pytest.raises(ValueError, match="damaged.safetensors"):
      safetensors_file.Reader([path])


def test_a_tensor_in_two_files_is_named(tmp_path):
  paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
  for path in paths:
    save_file({"x": np.ones(2)}, path)
  with pytest.raises(ValueError, match="x is in two files"):
    safetensors_file.Reader(paths)


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
  path = tmp_path / "m.safetensors"
  save_file({"x": np.ones((4, 4))}, path)
  reader = safetensors_file.Reader([path])
  path.write_bytes(path.read_bytes()[:-8])
  with pytest.raises(ValueError, match="ended while it was read"):
    reader.read("x", slice(0, 4), slice(0, 4))


def test_what_is_written_safetensors_reads(tmp_path):
  rng = np.random.default_rng(0)
  values = {"a": rng.normal(size=(3, 5)), "b": rng.normal(size=7)}
  for dtype in safetensors_file.NAMES:
    cast = {n: v.astype(dtype) for n, v in values.items()}
    path = tmp_path / "m.safetensors"
    safetensors_file.write(path, {n: v.shape for n, v in cast.items()}, dtype, cast.get)
    there = load_file(path)
    assert there.keys() == cast.keys()
    for name, value in cast.items():
      assert there[name].dtype == dtype
      np.testing.assert_array_equal(there[name], value)
    assert safe_open(path, "numpy").metadata() == {"format": "pt"}


# Values that no model has


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=6), st.data())
def test_finite_is_read_off_the_bits(bits, data):
  for dtype in (np.float32, np.float16, jnp.bfloat16):
    size = np.dtype(dtype).itemsize
    x = (np.array(bits) >> 32 - 8 * size).astype(f"u{size}").view(dtype)
    assert assemble.is_finite(x) == np.isfinite(x.astype(np.float32)).all()
    assert assemble.is_finite(np.stack([x, x]).T[:, ::2]) == assemble.is_finite(x)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
  "name",
  [
    "model.embed_tokens.weight",
    "model.norm.weight",
    "model.layers.1.self_attn.k_proj.bias",
    "model.layers.1.mlp.down_proj.weight",
  ],
)
@pytest.mark.parametrize("run", [{}, {"scan_layers": True}, {"fsdp": 4}])
def test_a_weight_that_is_not_finite_is_refused_by_name(name, value, run, tmp_path):
  path = make(tmp_path, "qwen2")
  tensors = load_file(path / "model.safetensors")
  tensors[name].reshape(-1)[-3] = value
  save_file(tensors, path / "model.safetensors")
  axes = {k: run.pop(k) for k in ("fsdp",) if k in run}
  for param_dtype in ("float32", "bfloat16"):
    run = run | {"param_dtype": param_dtype}
    with pytest.raises(ValueError, match=f"{name} holds NaN or Inf") as error:
      load(path, shardings=layout(**axes) if axes else None, **run)
    assert str(path) in str(error.value)


def test_a_gguf_weight_that_is_not_finite_is_refused_by_name(tmp_path):
  config = families.from_hf(hf_config(), **RUN)
  tensors = transformer_test.random_tensors(config)
  tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
  file = transformer_test.write_gguf(tmp_path / "m.gguf", config, tensors)
  with pytest.raises(ValueError, match="layers.1.mlp.up_proj.weight holds NaN or Inf"):
    load(file)


@pytest.mark.parametrize(
  "size,dtype", [(1e5, "float16"), (-3.4e38, "bfloat16"), (-7e4, "float16")]
)
def test_a_weight_too_large_for_its_dtype_is_refused_by_name(size, dtype, tmp_path):
  path, name = make(tmp_path), "model.layers.0.mlp.up_proj.weight"
  tensors = load_file(path / "model.safetensors")
  tensors[name][5, 6] = size
  save_file(tensors, path / "model.safetensors")
  load(path)
  with pytest.raises(ValueError, match=f"{name} holds a weight of size .*{dtype}"):
    load(path, param_dtype=dtype)


# Files that say two things


def tie(path, spoil):
  """A tied model whose file also holds an unembedding, spoiled or the same."""
  config_json = hf_config(tie_word_embeddings=True)
  tensors = transformer_test.random_tensors(families.from_hf(config_json, **RUN))
  head = tensors["model.embed_tokens.weight"].copy()
  tensors["lm_head.weight"] = spoil(head)
  return transformer_test.write_directory(path, config_json, tensors)


def spoil_last(head):
  head[-1, -1] += 0.5
  return head


@pytest.mark.parametrize(
  "spoil", [spoil_last, lambda head: head[:-1].copy(), lambda head: head[0].copy()]
)
def test_a_tied_model_with_another_unembedding_is_refused(spoil, tmp_path):
  path = tie(tmp_path, spoil)
  with pytest.raises(ValueError, match="lm_head.weight holds other values.*tie_word"):
    load(path)


def test_a_tied_model_with_its_embedding_again_is_read(tmp_path, monkeypatch):
  path = tie(tmp_path, lambda head: head)
  monkeypatch.setattr(assemble, "BLOCK", 4000)
  assert "lm_head" not in load(path)[1]
  # bfloat16 beside float32, the same numbers
  tensors = load_file(path / "model.safetensors")
  rounded = tensors["lm_head.weight"].astype(jnp.bfloat16)
  tensors["model.embed_tokens.weight"] = rounded.astype(np.float32)
  save_file(tensors | {"lm_head.weight": rounded}, path / "model.safetensors")
  assert "lm_head" not in load(path)[1]


@pytest.mark.torch
def test_transformers_leaves_another_unembedding_apart(tmp_path):
  """So it means the model that we read once config.json says so."""
  torch = pytest.importorskip("torch")
  from transformers import AutoModelForCausalLM

  path, ids = tie(tmp_path, spoil_last), transformer_test.some_ids()
  model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
  expected = transformer_test.torch_logits(torch, model.float().eval(), ids)
  config_json = json.loads((path / "config.json").read_text())
  config_json["tie_word_embeddings"] = False
  (path / "config.json").write_text(json.dumps(config_json))
  got = transformer_test.logits(*load(path), ids)
  assert np.abs(got - expected).max() <= 1e-4


@pytest.mark.torch
def test_one_file_beside_an_index_of_others_is_read_as_transformers_does(
  tmp_path, capsys
):
  torch = pytest.importorskip("torch")
  from transformers import AutoModelForCausalLM

  path = make_shards(tmp_path / "m")
  tensors = transformer_test.random_tensors(
    families.from_hf(hf_config("qwen2"), **RUN), seed=5
  )
  save_file(tensors, path / "model.safetensors")
  ids = transformer_test.some_ids()
  model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
  expected = transformer_test.torch_logits(torch, model.float().eval(), ids)
  got = transformer_test.logits(*load(path), ids)
  assert np.abs(got - expected).max() <= 1e-4
  assert "model.safetensors is read, not" in capsys.readouterr().out


@pytest.mark.parametrize(
  "content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 7}}']
)
def test_an_index_that_names_no_file_is_refused(content, tmp_path):
  (make(tmp_path) / "model.safetensors.index.json").write_text(content)
  with pytest.raises(ValueError, match="model.safetensors.index.json"):
    load(tmp_path)
