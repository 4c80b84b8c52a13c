"""config -> Run: the experiment's values checked, its model and data loaded."""

import dataclasses
import datetime
import functools
import pathlib
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from opsd_jax import problems, rules, spec, tasks
from opsd_jax.data import splits, unrelated
from opsd_jax.losses import controllers, optimizer
from opsd_jax.losses import objective as objectives
from opsd_jax.models import attention, families, lora, transformer, transforms
from opsd_jax.models import tokenizer as tokenizers
from opsd_jax.models.families import ModelConfig
from opsd_jax.models.weights import sources as weight_sources
from opsd_jax.rollouts import answering, contexts, host_memory
from opsd_jax.rollouts import sources as rollout_sources
from opsd_jax.rollouts.prompts import teacher_prompt
from opsd_jax.rollouts.shapes import Shapes
from opsd_jax.runtime import checkpoint, distributed, paths, sharding_rules
from opsd_jax.runtime import workdir as workdirs
from opsd_jax.runtime.mesh import check_heads, check_rows, make_mesh
from opsd_jax.sampling.tokens import SamplingParams, check
from opsd_jax.structs import Prompts

DTYPES = ("float32", "bfloat16", "float16")


class Run(NamedTuple):
  """What a config describes, loaded: everything but the training state."""

  mesh: Mesh
  model_config: ModelConfig
  params: Any  # the base: all weights as they are at the start
  trained: Callable  # base params -> what trains: the params, or a new adapter
  tokenizer: tokenizers.Tokenizer
  train: tuple[Prompts, ...]
  eval: tuple[Prompts, ...]
  verify: Callable  # (examples, texts) -> Verdicts
  removed_as_overlap: int  # training examples whose question evaluation has too
  dropped: dict[str, int]  # "use: reason" -> examples without a prompt
  counts: dict[str, int]  # statistics of the data sources, in words
  identity: dict  # what decides the run beside its config; see `identify`
  objective: objectives.Objective
  tx: optax.GradientTransformation
  teacher_prompt: Callable  # messages -> ids, rendered as for every teacher
  longest_row: int  # tokens of a prompt and its response at most
  longest_prompt: int  # tokens of what the model answers in training, at most
  external: Any  # weights of the external teacher, {} without one
  external_config: ModelConfig | None
  host_memory: host_memory.HostMemory | None  # None: no context reads one
  shapes: Shapes  # of the batches so far
  history: controllers.History  # of the steps so far

  @property
  def digest(self) -> str:
    """Of the prompts."""
    return self.identity["prompts"]

  @property
  def kept(self) -> dict:
    """What the host keeps from step to step, by the name it is saved under."""
    return {"memory": self.host_memory, "shapes": self.shapes, "history": self.history}


def validate(config: ConfigDict, with_problems: bool = True) -> None:
  """Raises ValueError for every mistake that shows before a model is loaded.

  `with_problems`: check that the sources of problems exist, too.
  """
  rules.check(config)
  optimizer.from_config(config)
  weight_sources.check(origin(config.model.source))
  if config.external.source:
    weight_sources.check(origin(config.external.source))
  task = tasks.open_task(config.task.name, config.task.privileged_field)
  if with_problems:
    data = config.data
    train = data.eval if data.test_time else data.train
    splits.check(train, data.eval, config.task.name, task)
  contexts.check(config.context.template, *contexts.names(config.context))
  spec.arguments(config.context.student_args)
  spec.arguments(config.context.teacher_args)
  check(sampling(config.rollout))
  check(SamplingParams(temperature=config.eval.temperature))
  answering.check_stop("rollout.stop", config.rollout.stop)
  answering.check_stop("eval.stop", config.eval.stop)
  unrelated.prompts(config.eval.drift_prompts)
  for name, known in (
    ("model.remat", transformer.REMAT),
    ("model.transform", transforms.ALL),
    ("model.dtype", DTYPES),
    ("model.param_dtype", DTYPES),
    ("external.dtype", DTYPES),
    ("model.attention", ("auto", *attention.ALL)),
  ):
    if (value := rules.field(config, name)) not in known:
      raise ValueError(f"{name} is {value!r}, known: {', '.join(known)}")
  lora.check(config.lora.targets)


def read_config(workdir: pathlib.Path) -> ConfigDict:
  """The config of the run that lives in `workdir`, validated."""
  try:
    config = workdirs.read(workdir)
    validate(config, with_problems=False)
  except (AttributeError, KeyError, TypeError) as e:
    path = workdir / workdirs.CONFIG
    raise ValueError(f"{path} was written by another version: {e}") from e
  return config


def prepare(config: ConfigDict, date: datetime.date | None = None) -> Run:
  """Loads model, tokenizer and problems of a validated config. `date` is what chat
  templates that ask for it are told; None: today's.

  The mesh and the problems are checked before weights are read. Raises ValueError
  where the devices cannot split the model or its rows, or too few problems fit.
  """
  mesh = make_run_mesh(config)
  verify, split = problems.read_problems(config)
  path = weight_sources.resolve(origin(config.model.source))
  fields = runtime_fields(config)
  model_config = read_model_config(config, path, fields, mesh)
  tokenizer = tokenizers.load(path, model_config.vocab_size, date)
  answering.check_chats(config, tokenizer)
  check_vocabulary(config, model_config)
  params = load_params(config.model.source, fields, model_config, mesh)
  jax.eval_shape(trained(config), params)  # raises where LoRA's targets match nothing
  row_len = longest_row(config, model_config)
  train, held_out, dropped = problems.tokenize(
    config, tokenizer, split, row_len, model_config.max_positions
  )
  external, external_config = load_external(
    config, mesh, model_config, tokenizer, row_len
  )
  is_privileged = config.rollout.source in rollout_sources.PRIVILEGED
  views_answered = 2 if is_privileged else 1
  return Run(
    mesh=mesh,
    model_config=model_config,
    params=params,
    trained=trained(config),
    tokenizer=tokenizer,
    train=train,
    eval=held_out,
    verify=verify,
    removed_as_overlap=split.removed_as_overlap,
    dropped=dropped,
    counts=split.counts,
    identity=problems.identify(
      config, tokenizer, train, held_out, {"base": params, "external": external}, mesh
    )
    | {"sizes": [families.digest(m) for m in (model_config, external_config) if m]},
    objective=objectives.from_config(config),
    tx=optimizer.from_config(config),
    teacher_prompt=teacher_prompt(config.context, tokenizer),
    longest_row=row_len,
    longest_prompt=max(len(ids) for p in train for ids in p.views[:views_answered]),
    external=external,
    external_config=external_config,
    host_memory=host_memory.HostMemory()
    if contexts.read_memory(config.context)
    else None,
    shapes=Shapes(),
    history=controllers.History(),
  )


# ------------------------------------------------------------------- devices


def make_run_mesh(config: ConfigDict) -> Mesh:
  """config.mesh over all devices; ValueError where it cannot split a batch."""
  mesh = make_mesh(**config.mesh)
  distributed.check_rows(mesh)
  check_rows(mesh, rows_per_step(config), config.batch.micro_batches)
  if config.rollout.prompts_per_step % distributed.count():
    raise ValueError(
      f"rollout.prompts_per_step is {config.rollout.prompts_per_step}, expected a"
      f" multiple of the {distributed.count()} processes"
    )
  return mesh


def rows_per_step(config: ConfigDict) -> int:
  """Rows of a batch at most: some sources make two of each response, as `teacher_view`
  does with 0 < alpha < 1."""
  responses = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
  source = config.rollout.source
  is_doubled = source in rollout_sources.TWO_ROWS or (
    source == "teacher_view" and 0 < config.routing.alpha < 1
  )
  return (1 + is_doubled) * responses


def longest_row(config: ConfigDict, model_config: ModelConfig) -> int:
  """Tokens of a row at most: batch.max_sequence_len, within the model's positions."""
  if config.batch.max_sequence_len > model_config.max_positions:
    raise ValueError(
      f"batch.max_sequence_len is {config.batch.max_sequence_len}, the model has"
      f" {model_config.max_positions} positions"
    )
  return config.batch.max_sequence_len or model_config.max_positions


def sampling(node: ConfigDict) -> SamplingParams:
  """The SamplingParams of a config node that has all of their fields."""
  return SamplingParams(**{name: node[name] for name in SamplingParams._fields})


# -------------------------------------------------------------------- models


def runtime_fields(config: ConfigDict) -> dict:
  """The fields of a ModelConfig that the experiment chooses, not the model."""
  names = ("dtype", "param_dtype", "scan_layers", "remat", "attention")
  fields = {name: config.model[name] for name in names}
  return fields | {"lora_alpha": config.lora.alpha}


def external_fields(config: ConfigDict) -> dict:
  """`runtime_fields` of the external model, which does not train."""
  dtype = config.external.dtype
  fields = {"dtype": dtype, "param_dtype": dtype, "remat": "none"}
  return runtime_fields(config) | fields


def read_model_config(
  config: ConfigDict, path: pathlib.Path, fields: dict, mesh: Mesh
) -> ModelConfig:
  """The ModelConfig of a resolved source, its attention backend resolved."""
  model_config = weight_sources.read_config(path, **fields)
  return resolve_attention(model_config, mesh, config.batch.pack_len > 0)


def resolve_attention(
  model_config: ModelConfig, mesh: Mesh, packed: bool
) -> ModelConfig:
  """The ModelConfig with the attention backend that runs on these devices.

  `packed`: training rows hold several sequences. Raises ValueError where the mesh
  cannot split the model, or its attention cannot run.
  """
  check_heads(
    mesh, model_config.num_heads, model_config.num_kv_heads, model_config.mlp_width
  )
  device = mesh.devices.flat[0]
  backend = attention.resolve(
    model_config.attention,
    platform=device.platform,
    dtype=model_config.dtype,
    head_dim=model_config.head_dim,
    packed=packed,
    capability=getattr(device, "compute_capability", "8.0"),
  )
  return dataclasses.replace(model_config, attention=backend)


def load_params(source: str, fields: dict, model_config: ModelConfig, mesh: Mesh):
  """The weights of a source, each array in its layout on the mesh."""
  layout = functools.partial(sharding_rules.tree_shardings, mesh=mesh)
  if source.startswith(RUN):
    return run_params(run_dir(source), model_config, layout)
  _, params = weight_sources.load_model_weights(
    weight_sources.resolve(source),
    layout,
    **fields | {"attention": model_config.attention},
  )
  return params


RUN = "run:"  # a model source: the newest checkpoint of a run


def run_dir(source: str) -> pathlib.Path:
  return paths.open_workdir(source.removeprefix(RUN))


def origin(source: str) -> str:
  """The source whose sizes and tokenizer a model has: a run's are its model's."""
  while source.startswith(RUN):
    source = read_config(run_dir(source)).model.source
  return source


def run_params(workdir: pathlib.Path, model_config: ModelConfig, layout):
  """The weights at a run's newest checkpoint. Raises ValueError where they are an
  adapter, or not as this model is laid out."""
  if read_config(workdir).lora.rank:
    raise ValueError(
      f"the run {workdir} has trained an adapter: export it with experiments.export_hf,"
      " and give that directory"
    )
  _, params = checkpoint.restore_params(workdir / "checkpoints", layout)
  wanted = jax.eval_shape(
    lambda: transformer.init_params(model_config, jax.random.key(0))
  )
  sizes = [jax.tree.map(lambda x: x.shape, tree) for tree in (wanted, params)]
  if sizes[0] != sizes[1]:
    raise ValueError(
      f"the run {workdir} has its weights laid out otherwise: give the same"
      " model.scan_layers"
    )
  return jax.tree.map(lambda x: x.astype(model_config.param_dtype), params)


def load_external(
  config: ConfigDict,
  mesh: Mesh,
  model_config: ModelConfig,
  tokenizer: tokenizers.Tokenizer,
  row_len: int,
) -> tuple[Any, ModelConfig | None]:
  """(weights, ModelConfig) of the external teacher; ({}, None) without one.

  Raises ValueError where its tokens are not the student's, and where it cannot read
  rows of `row_len` tokens.
  """
  if not config.external.source:
    return {}, None
  path = weight_sources.resolve(origin(config.external.source))
  fields = external_fields(config)
  if tokenizers.load(path).inner.get_vocab() != tokenizer.inner.get_vocab():
    raise ValueError(
      f"external.source={config.external.source} has another tokenizer than"
      f" model.source={config.model.source}: their tokens cannot be compared"
    )
  external_config = read_model_config(config, path, fields, mesh)
  if external_config.vocab_size < model_config.vocab_size:
    raise ValueError(
      f"external.source has {external_config.vocab_size} vocabulary entries, fewer"
      f" than the student's {model_config.vocab_size}"
    )
  if external_config.max_positions < row_len:
    raise ValueError(
      f"external.source has {external_config.max_positions} positions, rows have up to"
      f" {row_len} tokens: set batch.max_sequence_len"
    )
  external = load_params(config.external.source, fields, external_config, mesh)
  return external, external_config


def trained(config: ConfigDict) -> Callable:
  """base params -> what trains: all of them, or a new LoRA adapter beside them."""
  if not config.lora.rank:
    return lambda params: params
  key = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(b"lora"))
  return functools.partial(
    lora.init, key=key, targets=config.lora.targets, rank=config.lora.rank
  )


def check_vocabulary(config: ConfigDict, model_config: ModelConfig) -> None:
  """Raises ValueError where a top-k support is larger than the vocabulary."""
  for name, node in objectives.active_terms(config).items():
    if node.kind != "distill" or node.divergence.support == "full":
      continue
    if node.divergence.k > model_config.vocab_size:
      raise ValueError(
        f"loss.{name}.divergence.k is {node.divergence.k}, the vocabulary has"
        f" {model_config.vocab_size}"
      )
