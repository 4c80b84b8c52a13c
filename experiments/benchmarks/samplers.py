"""The sides of `bench sample`; each generates responses of forced lengths."""

import time
import types

from experiments.benchmarks.peers import Ends
from experiments.benchmarks.workers import Channel


def serve(channel, prompts, generate, compiles=lambda: 0, **about) -> None:
  """Times generate(prompts, n, lengths, batch), which returns the lengths it
  made, n a prompt; one an order."""
  channel.answer(**about)
  for order in channel.orders:
    asked = prompts[: order["count"]]
    before, began = compiles(), time.perf_counter()
    got = generate(asked, order["n"], order["lengths"], order["batch"])
    seconds = time.perf_counter() - began
    if list(got) != order["lengths"]:
      raise RuntimeError(f"lengths are {got}, expected {order['lengths']}")
    channel.answer(seconds=seconds, compiles=compiles() - before)


def ours(channel: Channel, settings: dict) -> None:
  """The sampler with a budget a row; no token ends one."""
  import jax
  import numpy as np

  from opsd_jax import api
  from opsd_jax.rollouts import sources
  from opsd_jax.runtime import allocator, monitoring
  from opsd_jax.sampling import tokens

  allocator.keep_freed()
  compiled = monitoring.compiles()
  model = api.load_model(settings["source"])
  tokenizer = types.SimpleNamespace(eos_ids=(), decode=model.tokenizer.decode)

  def generate(prompts, n, lengths, batch):
    completions = sources.complete(
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
  """`generate` on one batch after another, its cache on, padded on the left."""
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
    made, count = [], max(1, batch // n)
    for i in range(0, len(prompts), count):
      part, of_part = prompts[i : i + count], lengths[i * n : (i + count) * n]
      width = max(map(len, part))
      ids = torch.tensor([[pad] * (width - len(p)) + p for p in part])
      real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part])
      how = transformers.GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=end,
        pad_token_id=pad,
        max_new_tokens=max(of_part),
        use_cache=True,
        num_return_sequences=n,
        disable_compile=True,
      )
      with torch.no_grad():
        rows = model.generate(
          ids.to(device),
          attention_mask=real.to(device),
          generation_config=how,
          logits_processor=[Ends(of_part, end)],
        )
      for row in rows[:, width:].tolist():
        made.append(row.index(end) + 1)
    return made

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
  """A tokenizer for Tunix, whose sampler takes texts: ids with spaces between.

  It pads with an id that stands in no prompt, as padding is told by the id.
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
    return -1  # no token: a batch goes on to its longest row

  def pad_id(self):
    return self.pad


def tunix(channel: Channel, settings: dict) -> None:
  """Tunix's own sampler on its Llama.

  Its rotary base is 10^6 whatever the config says, so it computes as much as
  the others do, and other numbers where a model has another base.
  """
  import importlib.metadata
  import json
  import pathlib

  import jax
  import jax.numpy as jnp
  from tunix.generate import sampler
  from tunix.models.llama3 import model as llama
  from tunix.models.llama3 import params

  c = json.loads(pathlib.Path(settings["directory"], "config.json").read_text())
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
  mesh = jax.make_mesh(
    (1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  prompts = settings["prompts"]
  with mesh:
    model = params.create_model_from_safe_tensors(
      settings["directory"], config, mesh, dtype=jnp.float32
    )
  used = {i for p in prompts for i in p}
  tokenizer = Ids(next(i for i in range(c["vocab_size"]) if i not in used))
  width = max(map(len, prompts))
  cache = sampler.CacheConfig(
    cache_size=width + 128,
    num_layers=config.num_layers,
    num_kv_heads=config.num_kv_heads,
    head_dim=config.head_dim,
  )
  its = sampler.Sampler(model, tokenizer, cache)
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: (
      event.endswith("backend_compile_duration") and compiled.append(event)
    )
  )

  def generate(prompts, n, lengths, batch):
    rows = [tokenizer.decode(p) for p in prompts for _ in range(n)]
    made = []
    for i in range(0, len(rows), batch):
      part = lengths[i : i + batch]
      out = its(
        rows[i : i + batch],
        max_generation_steps=max(part),
        max_prompt_length=width,
        temperature=1.0,
        top_p=1.0,
        eos_tokens=[-1],
        seed=0,
      )
      made += [min(len(x), k) for x, k in zip(out.tokens, part, strict=True)]
    return made

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
