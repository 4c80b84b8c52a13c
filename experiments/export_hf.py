"""Writes a trained model as a Hugging Face directory.

  python -m experiments.export_hf --workdir=runs/opsd --out=exported

The newest checkpoint's weights, or with LoRA the base's with the adapter
merged; `--adapter` writes the adapter alone, as peft reads it.
"""

import functools

from absl import flags

from experiments import cli

DTYPES = ["float32", "bfloat16", "float16"]
WORKDIR = flags.DEFINE_string("workdir", None, "where the run lives")
OUT = flags.DEFINE_string("out", None, "a directory that is new or empty")
ADAPTER = flags.DEFINE_bool("adapter", False, "the adapter alone, for peft")
DTYPE = flags.DEFINE_enum("dtype", None, DTYPES, "by default the run's own")


def main():
  # After the flags: a typo should not wait for jax.
  from configs import base
  from opsd_jax import setup
  from opsd_jax.models import tokenizer
  from opsd_jax.models.weights import export, sources
  from opsd_jax.reporting import model_card
  from opsd_jax.runtime import checkpoint, paths, sharding_rules
  from opsd_jax.runtime.mesh import make_mesh

  export.check_new(OUT.value)
  workdir = paths.open_workdir(WORKDIR.value)
  config = setup.read_config(workdir)
  rank = config.lora.rank
  if ADAPTER.value and not rank:
    raise ValueError(f"{workdir} trained all weights: leave --adapter away")
  mesh = make_mesh(fsdp=-1)
  layout = functools.partial(sharding_rules.tree_shardings, mesh=mesh)
  step, params = checkpoint.restore_params(workdir / "checkpoints", layout)
  there = workdir / "summary.json"
  summary = paths.read_json(there) if there.exists() else None
  ours, usual = (paths.flat(c.to_dict()) for c in (config, base.get_config()))
  text = model_card.card(ours, usual, step=step, summary=summary, adapter=ADAPTER.value)
  path = sources.resolve(config.model.source)
  run = setup.runtime_fields(config) | {"attention": "xla"}  # nothing is run
  model_config = sources.read_config(path, **run)
  lora = {"adapter": params, "alpha": config.lora.alpha} if rank else {}
  if ADAPTER.value:
    lora |= {"base": config.model.source, "card": text}
    return export.export_adapter(OUT.value, model_config, **lora)
  if rank:
    _, params = sources.load_model_weights(path, layout, **run)
  export.export(
    OUT.value,
    model_config,
    params,
    tokenizer.load(path),
    card=text,
    dtype=DTYPE.value,
    **lora,
  )


if __name__ == "__main__":
  cli.start(main, ["workdir", "out"])
