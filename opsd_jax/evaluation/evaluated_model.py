"""The model that an evaluation loads: any source, or a run's newest checkpoint."""

import functools
from typing import Any, NamedTuple

from opsd_jax import setup, spec
from opsd_jax.models import families, lora, tokenizer, transforms
from opsd_jax.models.weights import sources as weight_sources
from opsd_jax.runtime import checkpoint, distributed, paths, sharding_rules
from opsd_jax.runtime import workdir as workdirs
from opsd_jax.runtime.mesh import make_mesh


class EvaluatedModel(NamedTuple):
  """Weights on their devices, and how prompts are worded for them."""

  mesh: Any
  model_config: Any
  params: Any
  tokenizer: Any
  template: str  # the run's own, else "upstream"
  template_args: dict  # of the chat template
  about: dict  # source, run, step, dtype: for settings.json


def load(
  model: str | None, run_dir, dtype: str, template_args: str = "", date=None
) -> EvaluatedModel:
  """`load_model` or `load_run`: exactly one of the two is given.

  Args:
    template_args: arguments of the chat template, beside or instead of the run's.
    date: what templates that ask for it are told; None: today's, or the run's.
  """
  if bool(model) == bool(run_dir):
    raise ValueError(f"model is {model!r} and run {run_dir!r}, expected one of them")
  args = spec.arguments(template_args)
  loaded = load_run(run_dir, date) if run_dir else load_model(model, dtype, date)
  loaded.tokenizer.check_arguments(args)
  return loaded._replace(template_args=loaded.template_args | args)


def load_model(source: str, dtype: str, date=None) -> EvaluatedModel:
  """A model as it is, from any source that config.model.source accepts."""
  weight_sources.check(source)
  if dtype not in setup.DTYPES:
    raise ValueError(f"dtype is {dtype!r}, known: {', '.join(setup.DTYPES)}")
  path = weight_sources.resolve(source)
  runtime = dict(
    dtype=dtype,
    param_dtype=dtype,
    scan_layers=False,
    remat="none",
    attention="auto",
    lora_alpha=1.0,
  )

  def load_params(layout, runtime):
    return weight_sources.load_model_weights(path, layout, **runtime)[1]

  return _evaluated_model(
    make_mesh(fsdp=-1),
    path,
    runtime,
    load_params,
    template="upstream",
    template_args={},
    about={"source": source, "dtype": dtype},
    date=date,
  )


def load_run(workdir, date=None) -> EvaluatedModel:
  """The newest checkpoint of a training run; with LoRA, joined with its base."""
  workdir = paths.open_workdir(workdir)
  config = setup.read_config(workdir)
  path = weight_sources.resolve(setup.origin(config.model.source))
  about = {"source": config.model.source, "dtype": config.model.dtype}
  about["run"] = str(workdir)
  mesh = make_mesh(**config.mesh)

  def load_params(layout, runtime):
    about["step"], params = checkpoint.restore_params(workdir / "checkpoints", layout)
    if config.lora.rank:
      base_config = weight_sources.read_config(path, **runtime)
      base = setup.load_params(config.model.source, runtime, base_config, mesh)
      workdirs.check_base(workdir, checkpoint.fingerprint(base, mesh))
      params = lora.join(base, params)
    return transforms.apply(config.model.transform, params)

  date = date or workdirs.date_of(workdir)
  return _evaluated_model(
    mesh,
    path,
    setup.runtime_fields(config),
    load_params,
    template=config.context.template,
    template_args=spec.arguments(config.context.student_args),
    about=about,
    date=date,
  )


def _evaluated_model(
  mesh, path, runtime, load_params, *, template, template_args, about, date
) -> EvaluatedModel:
  """`load_params`: (layout, runtime fields) -> params."""
  distributed.check_rows(mesh)
  model_config = setup.resolve_attention(
    weight_sources.read_config(path, **runtime), mesh, False
  )
  model_tokenizer = tokenizer.load(path, model_config.vocab_size, date)
  if template_args:
    model_tokenizer.check_arguments(template_args)
  layout = functools.partial(sharding_rules.tree_shardings, mesh=mesh)
  params = load_params(layout, runtime | {"attention": model_config.attention})
  about["weights"] = checkpoint.fingerprint(params, mesh)
  about["sizes"] = families.digest(model_config)
  about["tokenizer"] = model_tokenizer.digest()
  return EvaluatedModel(
    mesh, model_config, params, model_tokenizer, template, template_args, about
  )
