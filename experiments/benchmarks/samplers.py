"""The sides of `bench sample`, which generate responses of forced lengths."""

import time
import types

from experiments.benchmarks.peers import Ends
from experiments.benchmarks.workers import Channel


def serve(channel, prompts, generate, compiles=lambda: 0, **about) -> None:
  """Times one call of generate(prompts, n, lengths, batch) for each order.

  Args:
    generate: returns the lengths of the n responses to each prompt.
    compiles: returns how many programs have been compiled so far.
    about: the side's versions and settings, its first answer.
  """
  channel.answer(**about)
  for order in channel.orders:
    before, began = compiles(), time.perf_counter()
    lengths = generate(
      prompts[: order["count"]], order["n"], order["lengths"], order["batch"]
    )
    seconds = time.perf_counter() - began
    if list(lengths) != order["lengths"]:
      raise RuntimeError(f"lengths are {lengths}, expected {order['lengths']}")
    channel.answer(seconds=seconds, compiles=compiles() - before)


def ours(channel: Channel, settings: dict) -> None:
  """Our sampler, with a budget a row; no token ends a row."""
  import jax
  import numpy as np

  from opsd_jax import api
  from opsd_jax.rollouts import answering
  from opsd_jax.runtime import allocator, monitoring
  from opsd_jax.sampling import tokens

  allocator.keep_freed()
  compiled = monitoring.compiles()
  model = api.load_model(settings["source"])
  tokenizer = types.SimpleNamespace(eos_ids=(), decode=model.tokenizer.decode)

  def generate(prompts, n, lengths, batch):
    completions = answering.complete(
      model.config,
      model.params,
      tokenizer,
      prompts,
      [str(i) for i in range(len(prompts))],
      seed=0,
      step=0,
      role="generate",
      sampling=tokens.SamplingParams(),
      n=n,
      max_new_tokens=np.asarray(lengths),
      slots=batch,
      host_sync_every=32,
      prompt_bucket=16,
    )
    return [len(c.ids) for group in completions for c in group]

  serve(
    channel,
    settings["prompts"],
    generate,
    lambda: compiled.count,
    jax=jax.__version__,
    dtype=model.config.dtype,
    weights=sum(x.size for x in jax.tree.leaves(model.params)),
  )


def transformers(channel: Channel, settings: dict) -> None:
  """transformers' `generate` on one batch after another, with its cache."""
  import torch
  import transformers

  device = "cuda" if settings["backend"] == "gpu" else "cpu"
  model = (
    transformers.AutoModelForCausalLM.from_pretrained(
      settings["directory"], dtype=torch.float32, local_files_only=True
    )
    .eval()
    .to(device)
  )
  end, pad = settings["end"], settings["pad"]

  def generate(prompts, n, lengths, batch):
    generated, count = [], max(1, batch // n)
    for i in range(0, len(prompts), count):
      part, limits = prompts[i : i + count], lengths[i * n : (i + count) * n]
      width = max(map(len, part))  # padded on the left
      ids = torch.tensor([[pad] * (width - len(p)) + p for p in part])
      real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part])
      config = transformers.GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=end,
        pad_token_id=pad,
        max_new_tokens=max(limits),
        use_cache=True,
        num_return_sequences=n,
        disable_compile=True,
      )
      with torch.no_grad():
        rows = model.generate(
          ids.to(device),
          attention_mask=real.to(device),
          generation_config=config,
          logits_processor=[Ends(limits, end)],
        )
      for row in rows[:, width:].tolist():
        generated.append(row.index(end) + 1)
    return generated

  serve(
    channel,
    settings["prompts"],
    generate,
    torch=torch.__version__,
    transformers=transformers.__version__,
    threads=torch.get_num_threads(),
    device=device,
    attention=model.config._attn_implementation,
  )


class Ids:
  """A tokenizer for Tunix, whose sampler takes texts: ids separated by spaces.

  Tunix recognises padding by its id, so `pad` must be in no prompt.
  """

  def __init__(self, pad: int):
    self.pad = pad

  def encode(self, text, **_):
    return [int(x) for x in text.split()]

  def decode(self, ids, **_):
    return " ".join(map(str, ids))

  def bos_id(self):
    return None

  def eos_id(self):
    return -1  # no token, so a batch decodes to its longest row

  def pad_id(self):
    return self.pad


def tunix_sampler(directory: str, pad: int, cache_size: int):
  """(Tunix's sampler on its Llama, its tokenizer), of a Hugging Face directory.

  Its rotary base is 10^6 whatever the config says: it computes as much as the other
  sides, but other numbers where a model has another base.
  """
  import json
  import pathlib

  import jax
  import jax.numpy as jnp
  from tunix.generate import sampler
  from tunix.models.llama3 import model as llama
  from tunix.models.llama3 import params

  c = json.loads(pathlib.Path(directory, "config.json").read_text())
  heads = c["num_attention_heads"]
  config = llama.ModelConfig(
    num_layers=c["num_hidden_layers"],
    vocab_size=c["vocab_size"],
    embed_dim=c["hidden_size"],
    hidden_dim=c["intermediate_size"],
    num_heads=heads,
    head_dim=c.get("head_dim") or c["hidden_size"] // heads,
    num_kv_heads=c["num_key_value_heads"],
    rope_theta=1_000_000,
    norm_eps=c["rms_norm_eps"],
    weight_tying=c["tie_word_embeddings"],
  )
  axis_types = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=axis_types)
  with mesh:
    model = params.create_model_from_safe_tensors(
      directory, config, mesh, dtype=jnp.float32
    )
  tokenizer = Ids(pad)
  cache = sampler.CacheConfig(
    cache_size=cache_size,
    num_layers=config.num_layers,
    num_kv_heads=config.num_kv_heads,
    head_dim=config.head_dim,
  )
  return sampler.Sampler(model, tokenizer, cache), tokenizer


def tunix(channel: Channel, settings: dict) -> None:
  """Tunix's own sampler, one batch after another."""
  import importlib.metadata
  import itertools

  import jax

  prompts = settings["prompts"]
  used, longest = {i for p in prompts for i in p}, max(map(len, prompts))
  pad = next(i for i in itertools.count() if i not in used)
  sample, tokenizer = tunix_sampler(settings["directory"], pad, longest + 128)
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: (
      event.endswith("backend_compile_duration") and compiled.append(event)
    )
  )

  def generate(prompts, n, lengths, batch):
    rows = [tokenizer.decode(p) for p in prompts for _ in range(n)]
    generated = []
    for i in range(0, len(rows), batch):
      limits = lengths[i : i + batch]
      outputs = sample(
        rows[i : i + batch],
        max_generation_steps=max(limits),
        max_prompt_length=longest,
        temperature=1.0,
        top_p=1.0,
        eos_tokens=[-1],
        seed=0,
      )
      generated += [
        min(len(x), limit) for x, limit in zip(outputs.tokens, limits, strict=True)
      ]
    return generated

  serve(
    channel,
    prompts,
    generate,
    lambda: len(compiled),
    jax=jax.__version__,
    tunix=importlib.metadata.version("google-tunix"),
  )


SIDES = {
  "sample_ours": ours,
  "sample_transformers": transformers,
  "sample_tunix": tunix,
}
