"""How many FLOPs a planned experiment's programs are worth, and execute.

Useful are, for N parameters of the layers, 6N a token of a student's row (4N
where only an adapter trains) and 2N of a teacher's; the same with V x D for the
unembedding at response tokens; and causal attention, 2 L^2 H C a row and layer
forward, twice that backward. An adapter's own few are left out. `s` is a
account.Setup, `size` a account.Sampling.
"""


def weights(model_config) -> tuple[int, int]:
  """(parameters of the layers' matrices, of the unembedding)."""
  q, kv = (
    model_config.num_heads * model_config.head_dim,
    model_config.num_kv_heads * model_config.head_dim,
  )
  layer = model_config.width * (2 * q + 2 * kv + 3 * model_config.mlp_width)
  return model_config.num_layers * layer, model_config.vocab_size * model_config.width


def attention_flops(model_config, L: int) -> float:
  """Causal attention of a row, forward: q k and p v, half of L^2 each."""
  return (
    2.0
    * model_config.num_layers
    * L**2
    * model_config.num_heads
    * model_config.head_dim
  )


def useful_flops(config, s) -> float:
  """Of a train step; see the head of this file."""
  (N, head), model_config = weights(s.model_config), s.model_config
  R, L = s.batch.views[0].ids_RxL.shape
  T, back = config.rollout.max_new_tokens, 4 if config.lora.rank else 6
  student = back * (N * L + head * T) + 3 * attention_flops(model_config, L)
  return R * (student + teacher_flops(config, s, True))


def teacher_flops(config, s, learning: bool) -> float:
  """Forward passes of every teacher that the step runs, a row."""
  T, total = config.rollout.max_new_tokens, 0.0
  for view, who in s.objective.teachers(learning):
    model_config = s.external_config if who == "external" else s.model_config
    (N, head), L = weights(model_config), s.batch.views[view].ids_RxL.shape[1]
    total += 2 * head * T
    if (view, who) != (0, "live"):  # the student's own pass
      total += 2 * N * L + attention_flops(model_config, L)
  return total


def score_flops(config, s) -> float:
  """Of the statistics that weights need which look at other tokens."""
  (N, head), model_config = weights(s.model_config), s.model_config
  R, L = s.batch.views[0].ids_RxL.shape
  T = config.rollout.max_new_tokens
  student = 2 * (N * L + head * T) + attention_flops(model_config, L)
  return R * (student + teacher_flops(config, s, False))


def executed_flops(config, s) -> float:
  """Useful ones, and what is computed again.

  remat: the student's layers ("full"), its attention ("dots"). Splash makes the
  scores again in each of its two backward kernels (7 products where 4 are
  useful); the other backends compute the masked half too, "chunked" each chunk
  twice.
  """
  (N, _), model_config = weights(s.model_config), s.model_config
  R, L = s.batch.views[0].ids_RxL.shape
  # In useful forward passes of attention.
  forward, backward = {
    "splash": (1, 3.5),
    "cudnn": (1, 2.5),
    "xla": (2, 4),
    "chunked": (2, 6),
  }[model_config.attention]
  passes = forward + backward + (forward if model_config.remat != "none" else 0)
  again = (2 * N * L) * (model_config.remat == "full")
  again += (passes - 3) * attention_flops(model_config, L)
  for view, who in s.objective.teachers(True):
    if (view, who) != (0, "live"):
      other = s.external_config if who == "external" else model_config
      length = s.batch.views[view].ids_RxL.shape[1]
      again += (forward - 1) * attention_flops(other, length)
  return useful_flops(config, s) + R * again


def prefill_flops(s, size) -> float:
  """Of one call: no logits."""
  (N, _), model_config = weights(s.model_config), s.model_config
  return size.prompts * (
    2 * N * size.length + attention_flops(model_config, size.length)
  )


def decode_flops(config, s, size) -> float:
  """Of one call: as many tokens as it may decode, in every slot."""
  (N, head), model_config = weights(s.model_config), s.model_config
  over_cache = (
    4.0
    * model_config.num_layers
    * model_config.num_heads
    * model_config.head_dim
    * size.positions
  )
  tokens = size.slots * config.rollout.host_sync_every
  return tokens * (2 * (N + head) + over_cache)
