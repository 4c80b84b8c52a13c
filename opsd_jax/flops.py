"""How many FLOPs a planned experiment's programs are worth, and execute.

Useful are, for N parameters of the layers, 6N a token of a student's row (4N
where only an adapter trains) and 2N of a teacher's; the same with V x D for the
unembedding at response tokens; and causal attention, 2 L^2 H C a row and layer
forward, twice that backward. An adapter's own few are left out. `s` is a
plan.Setup, `size` a plan.Sampling.
"""


def weights(c) -> tuple[int, int]:
  """(parameters of the layers' matrices, of the unembedding)."""
  q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
  layer = c.width * (2 * q + 2 * kv + 3 * c.mlp_width)
  return c.num_layers * layer, c.vocab_size * c.width


def attention_flops(c, L: int) -> float:
  """Causal attention of a row, forward: q k and p v, half of L^2 each."""
  return 2.0 * c.num_layers * L**2 * c.num_heads * c.head_dim


def useful_flops(config, s) -> float:
  """Of a step; see the head of this file."""
  (N, head), c = weights(s.model_config), s.model_config
  R, L = s.batch.student.ids_RxL.shape
  T, back = config.rollout.max_new_tokens, 4 if config.lora.rank else 6
  student = back * (N * L + head * T) + 3 * attention_flops(c, L)
  L = s.batch.teacher.ids_RxL.shape[1]
  teacher = 2 * (N * L + head * T) + attention_flops(c, L)
  return R * (student + members(s) * teacher)


def members(s) -> int:
  return len(s.objective.teacher.members((), ()))


def executed_flops(config, s) -> float:
  """Useful ones, and what is computed again.

  remat: the student's layers ("full"), its attention ("dots"). Splash makes the
  scores again in each of its two backward kernels (7 products where 4 are
  useful); the other backends compute the masked half too, "chunked" each chunk
  twice.
  """
  (N, _), c = weights(s.model_config), s.model_config
  R, L = s.batch.student.ids_RxL.shape
  told = s.batch.teacher.ids_RxL.shape[1]
  # In useful forward passes of attention.
  forward, backward = {
    "splash": (1, 3.5),
    "cudnn": (1, 2.5),
    "xla": (2, 4),
    "chunked": (2, 6),
  }[c.attention]
  passes = forward + backward + (forward if c.remat != "none" else 0)
  again = (2 * N * L) * (c.remat == "full")
  again += (passes - 3) * attention_flops(c, L)
  again += members(s) * (forward - 1) * attention_flops(c, told)
  return useful_flops(config, s) + R * again


def prefill_flops(s, size) -> float:
  """Of one call: no logits."""
  (N, _), c = weights(s.model_config), s.model_config
  return size.prompts * (2 * N * size.length + attention_flops(c, size.length))


def decode_flops(config, s, size) -> float:
  """Of one call: as many tokens as it may decode, in every slot."""
  (N, head), c = weights(s.model_config), s.model_config
  over_cache = 4.0 * c.num_layers * c.num_heads * c.head_dim * size.positions
  tokens = size.slots * config.rollout.decode_steps
  return tokens * (2 * (N + head) + over_cache)
