"""The step's invariances, its fixed point, its layouts; resuming a run."""

import contextlib
import functools
import hashlib
import inspect
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import types
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import opsd, sdpo
from opsd_jax import setup, train
from opsd_jax.losses import objective
from opsd_jax.models import families, transformer
from opsd_jax.rollouts import collate, collect
from opsd_jax.rollouts.prompts import build_prompts
from opsd_jax.runtime import checkpoint, sharding_rules, workdir
from opsd_jax.runtime.mesh import make_mesh
from opsd_jax.structs import Verdict
from opsd_jax.tasks import pool
from tests.holding import held

MODEL = families.tiny()


def rows(count=8, seed=0):
  rng = np.random.default_rng(seed)

  def draw(low, high):
    return tuple(rng.integers(5, 250, rng.integers(low, high)))

  return [collate.Row((draw(3, 9), draw(9, 20)), draw(1, 8)) for _ in range(count)]


def batch_of(rows, pad_id=0, bucket=8, response_bucket=8, **kw):
  return collate.collate(
    rows, pad_id=pad_id, bucket=bucket, response_bucket=response_bucket, **kw
  )


def params(seed=0, model=MODEL):
  return transformer.init_params(model, jax.random.key(seed))


def plain_sgd():
  """Parameters move by minus the gradient, so differences show gradients."""
  return optax.sgd(1.0)


def keeping():
  """Remembers the gradient as it is: parameters near 1, moved by it, would
  round it to 6e-8."""

  def zeros(tree):
    return jax.tree.map(jnp.zeros_like, tree)

  return optax.GradientTransformation(
    zeros, lambda grads, state, params=None: (zeros(grads), grads)
  )


def step_of(config, tx, micro_batches=1, model=MODEL, external=None):
  """The train step of a config."""
  return train.make_train_step(
    train.Models(model, external),
    functools.partial(objective.from_config, config),
    tx,
    micro_batches=micro_batches,
  )


def scored(config, state, batch, frozen, micro_batches, model, external):
  """The batch as training learns from it: scored where a weight needs it."""
  built = objective.from_config(config)
  if not built.is_scored:
    return batch
  at = functools.partial(objective.from_config, config)
  models = train.Models(model, external)
  score = train.make_score_step(models, at, micro_batches=micro_batches)
  score = jax.jit(score, static_argnames="kept_columns")
  kept = collect.kept_columns(built, jax.device_get(batch.tokens))
  batch, _, overflow = score(state, batch, frozen, {}, kept_columns=kept)
  assert overflow == 0
  return batch


def gradients(
  batch,
  config=None,
  micro_batches=1,
  mesh=None,
  model=MODEL,
  frozen=train.Frozen(),  # noqa: B008
  external=None,
  options=None,
):
  """(loss, gradient tree) of one step; `options` are the compiler's."""
  config = config or opsd.get_config("tiny")
  state = train.init_state(
    params(model=model), objective.from_config(config), keeping()
  )
  # A teacher that differs from the student, as after some training.
  memories = {
    role: () if m == () else params(seed=1, model=model)
    for role, m in state.memories.items()
  }
  state = state._replace(memories=memories)
  step = step_of(config, keeping(), micro_batches, model, external)
  with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
    if mesh is not None:
      state = jax.device_put(state, sharding_rules.tree_shardings(state, mesh))
      frozen = jax.device_put(frozen, sharding_rules.tree_shardings(frozen, mesh))
      batch = jax.device_put(batch, sharding_rules.rows_sharding(mesh))
    batch = scored(config, state, batch, frozen, micro_batches, model, external)
    new, loss, _, _ = jax.jit(step, compiler_options=options)(state, batch, frozen)
  return float(loss), jax.device_get(new.opt)


@functools.cache
def plain():
  """Of `rows` as they are."""
  return gradients(batch_of(rows()))


def assert_same(got, expected, tolerance=1e-5):
  """Losses and gradients within `tolerance` of the largest gradient entry."""
  (loss_a, grads_a), (loss_b, grads_b) = got, expected
  largest = max(np.abs(g).max() for g in jax.tree.leaves(grads_b))
  assert largest > 1e-4
  # A divergence is made of log-probs of several nats, which float32 rounds at 5e-7.
  assert abs(loss_a - loss_b) <= tolerance * abs(loss_b) + 5e-7
  for a, b in zip(jax.tree.leaves(grads_a), jax.tree.leaves(grads_b), strict=True):
    assert np.abs(a - b).max() <= tolerance * largest


def test_same_views_and_the_same_weights_are_a_fixed_point(tmp_path):
  config = opsd.get_config("tiny")
  config.context.template = "plain"
  config.context.privileged = "none"
  config.teacher.name = "fixed"
  config.compile_cache = ""
  config.steps = 1
  train.train_and_evaluate(config, tmp_path)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  row = next(r for r in map(json.loads, lines) if "loss" in r)
  assert abs(row["loss"]) <= 1e-6
  assert row["grad_norm"] <= 1e-5
  assert row["response_tokens"] > 0


def test_a_different_teacher_is_not_a_fixed_point():
  loss, grads = gradients(batch_of(rows()))
  assert loss > 1e-3 and optax.tree.norm(grads) > 1e-3


@pytest.mark.parametrize(
  "micro_batches", [2, 4, pytest.param(8, marks=pytest.mark.slow)]
)
def test_micro_batches_are_invisible(micro_batches):
  split = batch_of(rows(), parts=micro_batches)
  assert_same(gradients(split, micro_batches=micro_batches), plain())


@pytest.mark.parametrize("name", ["uniform", "sequence_mean"])
def test_micro_batches_are_invisible_to_token_weights(name):
  config = opsd.get_config("tiny")
  config.loss.distill.token_weight.name = name
  assert_same(
    gradients(batch_of(rows(), parts=4), config, 4), gradients(batch_of(rows()), config)
  )


def groups(samples, seed=0):
  """Rows of 8 / samples prompts, each with some responses; one is empty."""
  rng = np.random.default_rng(seed)

  def draw(low, high):
    return tuple(rng.integers(5, 250, rng.integers(low, high)))

  made = []
  for _ in range(8 // samples):
    student, teacher = draw(3, 9), draw(9, 20)
    made += [collate.Row((student, teacher), draw(1, 8)) for _ in range(samples)]
  made[1] = made[1]._replace(response_ids=())
  return made


@functools.cache
def plain_groups(samples):
  batch = batch_of(groups(samples))
  assert len(batch.views[1].ids_RxL) == 8
  return gradients(batch)


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize(
  "pack_len", [32, pytest.param(64, marks=pytest.mark.slow), 1000]
)
@pytest.mark.parametrize("share", [False, True])
def test_packing_and_shared_prompts_are_invisible(samples, pack_len, share):
  packed = batch_of(groups(samples), pack_len=pack_len, share_prompts=share)
  assert len(packed.views[1].ids_RxL) < 8
  assert_same(gradients(packed), plain_groups(samples))


def test_packed_parts_in_micro_batches_on_four_devices():
  mesh = make_mesh(2, 2, devices=jax.devices()[:4])
  packed = batch_of(groups(2), pack_len=64, share_prompts=True, parts=8)
  assert_same(gradients(packed, mesh=mesh, micro_batches=2), plain_groups(2))


@pytest.mark.parametrize("chunk", [1, 7, 16, 4096])
def test_chunks_are_invisible(chunk):
  config = opsd.get_config("tiny")
  config.loss.chunk = chunk
  assert_same(gradients(batch_of(rows()), config), plain())


def test_padding_order_and_pad_id_are_invisible():
  assert_same(gradients(batch_of(rows(), bucket=64, response_bucket=32)), plain())
  assert_same(gradients(batch_of(rows()[::-1])), plain())
  # 9 occurs inside responses; 0 does not: neither may matter.
  assert any(9 in r.response_ids for r in rows(64))
  assert_same(gradients(batch_of(rows(64), pad_id=9)), gradients(batch_of(rows(64))))


def test_what_follows_the_response_is_invisible():
  batch = batch_of(rows(), bucket=64)
  ids = batch.views[0].ids_RxL.reshape(-1).copy()
  read = np.zeros(ids.shape, bool)
  for r, row in enumerate(rows()):
    size = len(row.prompts[0]) + len(row.response_ids) - 1
    read[r * 64 : r * 64 + size] = True
  ids[~read] = 77
  ids = ids.reshape(batch.views[0].ids_RxL.shape)
  assert (ids != batch.views[0].ids_RxL).any()
  views = batch.views[0]._replace(ids_RxL=ids), *batch.views[1:]
  noisy = batch._replace(views=views)
  assert_same(gradients(noisy), plain())


def test_an_empty_response_adds_nothing():
  empty = collate.Row(((5, 6), (5, 6, 7)), ())
  with_empty = batch_of([*rows(7), empty])
  assert_same(gradients(with_empty), gradients(batch_of(rows(8)[:7])))


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_micro_batches_on_four_devices_equal_one(micro_batches):
  """Layers one by one; sharding_test has every mesh, and scanned layers."""
  mesh = make_mesh(2, 2, devices=jax.devices()[:4])
  split = batch_of(rows(), parts=4 * micro_batches)
  assert_same(gradients(split, mesh=mesh, micro_batches=micro_batches), plain())


def test_fsdp_really_splits_the_weights():
  mesh = make_mesh(1, 4, devices=jax.devices()[:4])
  tree = jax.device_put(params(), sharding_rules.tree_shardings(params(), mesh))
  whole = sum(x.nbytes for x in jax.tree.leaves(tree))
  one = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))
  assert one < 0.3 * whole


BROKEN = [  # what reads the weights that are broken
  {},
  {"targets.teacher.name": "toward"},
  {"targets.teacher.name": "anchored"},
  {"loss.distill.divergence.name": "chi_square"},
  {"loss.distill.divergence.name": "alpha"},
  {"loss.distill.divergence.support": "top_k_tail", "loss.distill.divergence.k": 4},
  {"loss.distill.scale": 0.0, "loss.kl_penalty.scale": 1.0},
]


@pytest.mark.parametrize("fields", BROKEN, ids=str)
def test_a_step_that_is_not_finite_changes_nothing(fields):
  """Whatever the compiler makes of its bounds: a broken teacher is seen."""
  config = opsd.get_config("tiny")
  config.update_from_flattened_dict(fields)
  o = objective.from_config(config)
  state = train.init_state(params(), o, plain_sgd())
  poisoned = params()
  poisoned["final_norm"]["scale"] = poisoned["final_norm"]["scale"] * jnp.nan
  state = state._replace(memories=dict.fromkeys(o.memories, poisoned))
  step = jax.jit(step_of(config, plain_sgd()))
  new, loss, _, _ = step(state, batch_of(rows()))
  assert not np.isfinite(loss)
  assert int(new.step) == 1
  for a, b in zip(jax.tree.leaves(new.params), jax.tree.leaves(params()), strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_teacher_is_synced_in_a_step_that_is_not_finite_too():
  """With the student as it then is; an ema goes on following it."""
  for name, rate in (("synced", 1.0), ("ema", 0.25)):
    config = opsd.get_config("tiny")
    config.teacher.name = name
    if name == "synced":
      config.teacher.every = 1
    else:
      config.teacher.rate = rate
    broken = optax.sgd(jnp.nan)
    state = train.init_state(params(), objective.from_config(config), broken)
    behind = jax.tree.map(lambda x: x - 1, params())
    state = state._replace(memories={"teacher": behind})
    new, _, grad_norm, _ = jax.jit(step_of(config, broken))(state, batch_of(rows()))
    assert np.isnan(grad_norm)
    for a, b in zip(
      jax.tree.leaves(new.memories["teacher"]), jax.tree.leaves(params()), strict=True
    ):
      np.testing.assert_allclose(a, b - (1 - rate), atol=1e-6)


def test_an_update_that_is_not_finite_changes_nothing():
  config = opsd.get_config("tiny")
  broken = optax.sgd(jnp.nan)
  state = train.init_state(params(), objective.from_config(config), broken)
  state = state._replace(memories={"teacher": params(seed=1)})
  step = jax.jit(step_of(config, broken))
  new, loss, grad_norm, _ = step(state, batch_of(rows()))
  assert np.isfinite(loss) and np.isnan(grad_norm)
  for a, b in zip(jax.tree.leaves(new.params), jax.tree.leaves(params()), strict=True):
    np.testing.assert_array_equal(a, b)


def tiny(**overrides):
  config = opsd.get_config("tiny")
  config.compile_cache = ""
  config.steps, config.checkpoint.every = 6, 2
  config.log.tensorboard = False
  config.update_from_flattened_dict(overrides)
  return config


def final_params(workdir):
  """sha256 of the arrays in the newest checkpoint."""
  config = tiny()
  run = setup.prepare(config)
  with jax.set_mesh(run.mesh):
    manager = checkpoint.open_manager(workdir / "checkpoints", keep=1)
    assert manager.latest_step() == config.steps
    state, _ = train.start_or_resume(run, manager)
    manager.close()
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(state):
    digest.update(np.asarray(leaf).tobytes())
  return digest.hexdigest()


COMMAND = (
  sys.executable,
  "-m",
  "experiments.train",
  "--config=configs/opsd.py:tiny",
  "--config.steps=6",
  "--config.checkpoint.every=2",
  "--config.mesh.fsdp=1",
  "--config.log.tensorboard=False",
)


def launch(workdir):
  env = {"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}
  env |= {"XLA_FLAGS": os.environ["FAST_COMPILATION"]}
  env |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
  return subprocess.Popen(
    [
      *COMMAND,
      f"--workdir={workdir}",
      f"--config.compile_cache={workdir.parent / 'programs'}",
    ],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env=env,
  )


def test_killed_three_times_equals_uninterrupted(tmp_path):
  whole = launch(tmp_path / "whole")
  out = whole.communicate()[0]
  assert whole.returncode == 0, out
  metrics = (tmp_path / "whole" / "metrics.jsonl").read_text()
  killed = tmp_path / "killed"
  rng = random.Random(0)
  for step in sorted(rng.sample(range(1, 6), 3)):
    process = launch(killed)
    for _ in process.stdout:
      if f'"step": {step},' in _metrics(killed):
        break
    time.sleep(rng.random())
    process.send_signal(signal.SIGKILL)
    process.wait()
  last = launch(killed)
  out = last.communicate()[0]
  assert last.returncode == 0, out
  assert final_params(killed) == final_params(tmp_path / "whole")

  def keep(text):
    return [
      {
        k: v
        for k, v in json.loads(line).items()
        if not k.startswith(("time/", "memory/")) and k != "compiles"
      }
      for line in text.splitlines()
    ]

  assert keep(_metrics(killed)) == keep(metrics)


def _metrics(workdir: pathlib.Path) -> str:
  path = workdir / "metrics.jsonl"
  return path.read_text() if path.exists() else ""


def test_another_config_in_the_same_workdir_is_refused(tmp_path):
  workdir.write_config(tiny(), tmp_path)
  workdir.write_config(tiny(**{"eval.every": 3}), tmp_path)  # only looks
  with pytest.raises(ValueError, match="optimizer.learning_rate: .* there"):
    workdir.write_config(tiny(**{"optimizer.learning_rate": 1.0}), tmp_path)
  (tmp_path / "config.json").unlink()
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(ValueError, match="unknown config"):
    workdir.write_config(tiny(), tmp_path)


@pytest.mark.parametrize(
  "overrides,words",
  [
    ({"model.attention": "splash"}, "kernels are for TPUs, this is cpu"),
    ({"mesh.fsdp": 1, "mesh.tensor": 8}, r"2 key/value heads.*\[1, 2\]"),
    ({"rollout.prompts_per_step": 12}, r"12 rows .* a multiple of 8"),
    ({"batch.max_sequence_len": 4096}, "2048 positions"),
    ({"lora.rank": 4, "lora.targets": "query"}, "q_proj"),
  ],
)
def test_what_these_devices_or_this_model_cannot_do(overrides, words, tmp_path):
  with pytest.raises(ValueError, match=words):
    train.train_and_evaluate(tiny(**overrides), tmp_path)
  assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
  "field,limit,words",
  [
    ("eval.max_new_tokens", 2048, "the model's positions"),
    ("eval.drift_tokens", 2048, "the model's positions"),
    ("rollout.max_new_tokens", 2048, "batch.max_sequence_len or the model's positions"),
  ],
)
def test_new_tokens_that_leave_no_prompt_are_refused_by_name(field, limit, words):
  for beyond in (0, 1952):
    with pytest.raises(ValueError) as e:
      setup.prepare(tiny(**{field: limit + beyond}))
    assert str(e.value) == (
      f"{field} is {limit + beyond}, expected less than {limit}, {words}, so that a"
      " prompt fits too"
    )


def test_rows_longer_than_max_sequence_len_are_dropped_and_counted():
  shorter = setup.prepare(tiny(**{"batch.max_sequence_len": 223 + 8}))
  whole = setup.prepare(tiny())
  assert not whole.dropped

  def longest(run):
    return max(max(len(p.student_ids), len(p.teacher_ids)) for p in run.train)

  assert longest(whole) > longest(shorter)
  assert longest(shorter) == 223
  dropped = sum(n for r, n in shorter.dropped.items() if "training" in r)
  assert len(shorter.train) + dropped == len(whole.train)
  assert dropped > 0


def test_two_runs_at_once_in_a_workdir_are_refused(tmp_path):
  with held(tmp_path / ".lock"):
    with pytest.raises(ValueError, match="another process is at work in"):
      train.train_and_evaluate(opsd.get_config("tiny"), tmp_path)
  assert {p.name for p in tmp_path.iterdir()} == {".lock"}  # no config of ours


def test_a_run_that_could_not_start_does_not_claim_its_workdir(tmp_path):
  config = tiny(
    **{
      "loss.distill.divergence.support": "top_k_tail",
      "loss.distill.divergence.k": 10_000,
    }
  )
  with pytest.raises(ValueError, match="vocabulary"):
    train.train_and_evaluate(config, tmp_path)
  assert not (tmp_path / "config.json").exists()


def test_what_cannot_be_asked_is_dropped_and_counted():
  from opsd_jax.models import tokenizer
  from opsd_jax.structs import Example

  stats, c = tokenizer.load("tiny"), tiny().context

  def make(i, q, s):
    return Example(str(i), q, s, "1")

  examples = [
    make(0, "fine?", "Yes."),
    make(1, "x" * 600, "Yes."),
    make(2, "a <|im_end|> b", "Yes."),
    make(3, "no solution", None),
    make(4, "long solution", "y" * 300),
  ]
  dropped = {}
  kept = build_prompts(
    c, stats, examples, 500, dropped, "training", reference_row_len=320
  )
  assert [p.example.id for p in kept] == ["0"]
  assert sorted(dropped.values()) == [1, 1, 1, 1]
  assert all(reason.startswith("training: ") for reason in dropped)
  # what is evaluated does not hang on what the teacher can be told
  dropped = {}
  kept = build_prompts(c, stats, examples, 500, dropped, "evaluation")
  assert [p.example.id for p in kept] == ["0", "3", "4"]
  assert [bool(p.teacher_ids) for p in kept] == [True, False, True]
  assert dropped == {
    "evaluation: a prompt is longer than 500 tokens": 1,
    "evaluation: its text holds a control token": 1,
    "evaluation, of the teacher alone: no solution": 1,
  }


@pytest.mark.parametrize(
  "overrides,words",
  [
    ({"loss.distill.divergence.name": "kl"}, "forward_kl"),
    ({"teacher.name": "frozen"}, "fixed"),
    ({"model.source": "/no/such/model"}, "no/such/model"),
    ({"task.name": "chess"}, "largest_number"),
    ({"context.template": "long"}, "upstream"),
    ({"rollout.source": "replay"}, "student"),
    ({"rollout.top_p": 0.0}, "top_p"),
    ({"batch.micro_batches": 3}, "micro_batches"),
    ({"steps": 0}, "steps"),
    ({"seed": -1}, "seed"),
    ({"model.remat": "some"}, "dots"),
    ({"model.dtype": "float33"}, "bfloat16"),
    ({"optimizer.b1": 1.0}, "b1"),
    ({"eval.temperature": -1.0}, "temperature"),
    ({"eval.drift_prompts": 100}, "64 exist"),
    ({"model.attention": "flash"}, "splash"),
    ({"lora.rank": -1}, "lora.rank"),
    ({"lora.rank": 2, "lora.targets": "(q"}, "regular"),
    ({"lora.alpha": 0.0}, "lora.alpha"),
    ({"batch.max_sequence_len": 8}, "no prompt"),
    ({"batch.max_sequence_len": -1}, "max_sequence_len"),
    ({"optimizer.mu_dtype": "int8"}, "bfloat16"),
    ({"rollout.source": "dataset", "rollout.samples_per_prompt": 2}, "one response"),
  ],
)
def test_bad_configs_are_refused_before_loading(overrides, words):
  config = opsd.get_config("tiny")
  config.update_from_flattened_dict(overrides)
  with pytest.raises(ValueError, match=words):
    setup.validate(config)


# ------------------------------------------------------- what the README says


def test_five_frames_lie_between_the_command_and_the_loss(tmp_path, monkeypatch):
  """Of ours, both excluded; one micro-batch and one update."""
  from experiments import train as command

  class Found(Exception):
    pass

  def loss(*args, **kw):
    raise Found

  monkeypatch.setattr(train, "chunked", types.SimpleNamespace(loss=loss))
  with pytest.raises(Found) as error:
    command.main(tiny(), tmp_path)
  frames = [
    f.name for f in error.traceback if "opsd_jax" in str(f.path) or f.name == "main"
  ]
  between = frames[frames.index("main") + 1 : frames.index("loss_fn")]
  assert between == [
    "train_and_evaluate",
    "learn",
    "update",
    "train_step",
    "accumulate",
  ]


def test_the_step_and_its_loss_fit_on_a_screen():
  source = inspect.getsource(train.make_train_step)
  assert "def loss_fn(" in source and len(source.splitlines()) <= 60


def a_third_passes(*_, **__):
  """A verifier that finds a third of all responses right, by their text."""

  def verify(examples, texts):
    names = (f"{e.id} {t}".encode() for e, t in zip(examples, texts, strict=True))
    return [Verdict(float(zlib.crc32(name) % 3 == 0)) for name in names]

  return verify


@pytest.mark.parametrize("source", ["student", "rescue"])
def test_prompts_that_hang_on_verdicts_compile_few_shapes(
  source, tmp_path, monkeypatch
):
  """SDPO, and with a source that answers some problems again: at most 3 of steps 2
  to 12 compile anything."""
  monkeypatch.setattr(pool, "shared", a_third_passes)
  config = sdpo.get_config("tiny")
  config.compile_cache, config.log.tensorboard = "", False
  config.steps = config.eval.every = config.checkpoint.every = 12
  if source == "rescue":
    config.context.privileged, config.rollout.source = "solution", source
    config.rollout.samples_per_prompt = 2
  train.train_and_evaluate(config, tmp_path)
  rows = [json.loads(x) for x in (tmp_path / "metrics.jsonl").open()]
  rows = [r for r in rows if "loss" in r]
  assert 0.2 < np.mean([r["score"] for r in rows]) < 0.5
  if source == "student":
    assert 0.3 < np.mean([r["distill/weight"] for r in rows]) < 1
  compiled = [(r["step"], r["compiles"]) for r in rows[1:] if r["compiles"]]
  assert len(compiled) <= 3, compiled
