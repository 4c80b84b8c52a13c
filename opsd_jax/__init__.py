"""On-policy self-distillation of language models in JAX."""

import importlib

__all__ = (
  "Completion",
  "Model",
  "generate",
  "load_model",
  "score",
  "train_and_evaluate",
)


def __getattr__(name):  # PEP 562: importing a data module must not import jax
  if name not in __all__:
    raise AttributeError(f"opsd_jax has no {name!r}; it has {__all__}")
  module = "train" if name == "train_and_evaluate" else "api"
  return getattr(importlib.import_module(f"opsd_jax.{module}"), name)
