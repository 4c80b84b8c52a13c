"""Useful and executed FLOPs of a planned experiment's programs.

Useful FLOPs are, for N parameters of the layers, 6N a token of a student's row (4N
where only an adapter trains) and 2N a token of a teacher's; the same with V x D
parameters of the unembedding at response tokens; and causal attention, 2 L^2 H C a
row and layer in the forward pass, twice that in the backward pass. The FLOPs of an
adapter are neglected. `run` is a compile.AbstractRun, `shape` a
compile.SamplerShape.
"""


def weights(model_config) -> tuple[int, int]:
  """(parameters of the layers' matrices, parameters of the unembedding)."""
  q, kv = (
    model_config.num_heads * model_config.head_dim,
    model_config.num_kv_heads * model_config.head_dim,
  )
  layer = model_config.width * (2 * q + 2 * kv + 3 * model_config.mlp_width)
  return model_config.num_layers * layer, model_config.vocab_size * model_config.width


def attention_flops(model_config, L: int) -> float:
  """FLOPs of causal attention for a row, forward: q k and p v, half of L^2 each."""
  return (
    2.0
    * model_config.num_layers
    * L**2
    * model_config.num_heads
    * model_config.head_dim
  )


def useful_flops(config, run) -> float:
  """Useful FLOPs of a train step."""
  (N, head), model_config = weights(run.model_config), run.model_config
  R, L = run.batch.views[0].ids_RxL.shape
  T, back = config.rollout.max_new_tokens, 4 if config.lora.rank else 6
  student = back * (N * L + head * T) + 3 * attention_flops(model_config, L)
  return R * (student + teacher_flops(config, run, True))


def teacher_flops(config, run, learning: bool) -> float:
  """FLOPs a row of the forward passes of all teachers that a step runs."""
  T, total = config.rollout.max_new_tokens, 0.0
  for view, who in run.objective.teachers(learning):
    model_config = run.external_config if who == "external" else run.model_config
    (N, head), L = weights(model_config), run.batch.views[view].ids_RxL.shape[1]
    total += 2 * head * T
    if (view, who) != (0, "live"):  # that is the student's forward pass, counted there
      total += 2 * N * L + attention_flops(model_config, L)
  return total


def score_flops(config, run) -> float:
  """FLOPs of the scoring step, which makes the statistics of all tokens."""
  (N, head), model_config = weights(run.model_config), run.model_config
  R, L = run.batch.views[0].ids_RxL.shape
  T = config.rollout.max_new_tokens
  student = 2 * (N * L + head * T) + attention_flops(model_config, L)
  return R * (student + teacher_flops(config, run, False))


def executed_flops(config, run) -> float:
  """Useful FLOPs of a train step, and those that are recomputed or masked.

  remat="full" recomputes the student's layers, "dots" its attention. Splash
  recomputes the scores in each of its two backward kernels (7 products where 4 are
  useful); the other backends also compute the masked half, "chunked" twice.
  """
  (N, _), model_config = weights(run.model_config), run.model_config
  R, L = run.batch.views[0].ids_RxL.shape
  # (forward, backward) costs in units of a useful forward pass of attention.
  forward, backward = {
    "splash": (1, 3.5),
    "cudnn": (1, 2.5),
    "xla": (2, 4),
    "chunked": (2, 6),
  }[model_config.attention]
  passes = forward + backward + (forward if model_config.remat != "none" else 0)
  again = (2 * N * L) * (model_config.remat == "full")
  again += (passes - 3) * attention_flops(model_config, L)
  for view, who in run.objective.teachers(True):
    if (view, who) != (0, "live"):
      other = run.external_config if who == "external" else model_config
      length = run.batch.views[view].ids_RxL.shape[1]
      again += (forward - 1) * attention_flops(other, length)
  return useful_flops(config, run) + R * again


def prefill_flops(run, shape) -> float:
  """FLOPs of one prefill, which computes no logits."""
  (N, _), model_config = weights(run.model_config), run.model_config
  return shape.prompts * (
    2 * N * shape.length + attention_flops(model_config, shape.length)
  )


def decode_flops(config, run, shape) -> float:
  """FLOPs of one decode call of rollout.host_sync_every tokens in every slot."""
  (N, head), model_config = weights(run.model_config), run.model_config
  attention_to_cache = (
    4.0
    * model_config.num_layers
    * model_config.num_heads
    * model_config.head_dim
    * shape.positions
  )
  tokens = shape.slots * config.rollout.host_sync_every
  return tokens * (2 * (N + head) + attention_to_cache)
