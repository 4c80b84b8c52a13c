"""Writes a trained model as a Hugging Face directory.

  python -m experiments.export_hf --workdir=runs/opsd --out=exported

Written are the weights of the newest checkpoint; with LoRA the base with the adapter
merged, or with `--adapter` the adapter alone in peft's format.
"""

import functools

from absl import flags

from experiments import cli

DTYPES = ["float32", "bfloat16", "float16"]
WORKDIR = flags.DEFINE_string("workdir", None, "directory of the training run")
OUT = flags.DEFINE_string("out", None, "new or empty directory to write")
ADAPTER = flags.DEFINE_bool("adapter", False, "write the LoRA adapter alone, for peft")
DTYPE = flags.DEFINE_enum(
  "dtype", None, DTYPES, "dtype of the written weights; by default that of the run"
)


def main():
  # Imported after the flags are parsed: a typo should not wait for jax.
  from configs import base
  from opsd_jax import setup
  from opsd_jax.models import tokenizer
  from opsd_jax.models.weights import export, sources
  from opsd_jax.reporting import model_card
  from opsd_jax.runtime import checkpoint, paths, sharding_rules
  from opsd_jax.runtime import workdir as workdirs
  from opsd_jax.runtime.mesh import make_mesh

  export.check_new(OUT.value)
  workdir = paths.open_workdir(WORKDIR.value)
  config = setup.read_config(workdir)
  rank = config.lora.rank
  if ADAPTER.value and not rank:
    raise ValueError(
      f"{workdir} trained all weights and has no adapter: omit --adapter"
    )
  mesh = make_mesh(fsdp=-1)
  layout = functools.partial(sharding_rules.tree_shardings, mesh=mesh)
  step, params = checkpoint.restore_params(workdir / "checkpoints", layout)
  summary_path = workdir / "summary.json"
  summary = paths.read_json(summary_path) if summary_path.exists() else None
  flat, defaults = (paths.flat(c.to_dict()) for c in (config, base.get_config()))
  text = model_card.card(
    flat, defaults, step=step, summary=summary, adapter=ADAPTER.value
  )
  path = sources.resolve(setup.origin(config.model.source))
  runtime = setup.runtime_fields(config) | {"attention": "xla"}  # nothing is run
  model_config = sources.read_config(path, **runtime)
  lora = {"adapter": params, "alpha": config.lora.alpha} if rank else {}
  if ADAPTER.value:
    lora |= {"base": config.model.source, "card": text}
    return export.export_adapter(OUT.value, model_config, **lora)
  if rank:
    params = setup.load_params(config.model.source, runtime, model_config, mesh)
    workdirs.check_base(workdir, checkpoint.fingerprint(params, mesh))
  export.export(
    OUT.value,
    model_config,
    params,
    tokenizer.load(path),
    card=text,
    dtype=DTYPE.value,
    generation_config=sources.read_generation_config(path),
    **lora,
  )


if __name__ == "__main__":
  cli.start(main, ["workdir", "out"])
