"""config -> Run: what an experiment means, checked, loaded and tokenised."""

import dataclasses
import functools
import zlib
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from opsd_jax import rules, tasks
from opsd_jax.data import order, unrelated
from opsd_jax.data import sources as data_sources
from opsd_jax.losses import objective as objectives
from opsd_jax.losses import optimizer
from opsd_jax.models import attention, lora, tokenizer, transformer
from opsd_jax.models.weights import sources as weight_sources
from opsd_jax.rollouts import contexts, host_memory
from opsd_jax.rollouts import sources as rollout_sources
from opsd_jax.runtime import distributed, sharding_rules
from opsd_jax.runtime import workdir as workdirs
from opsd_jax.sampling.tokens import SamplingParams, check
from opsd_jax.structs import UNVERIFIED, Prompts
from opsd_jax.tasks import pool

REPLIES = ("{}", "\\boxed{{{}}}", "The answer is 0.")  # of `count_unverifiable`
AUDITED = 5000  # solutions that `count_contradicting_solutions` looks at
DTYPES = ("float32", "bfloat16", "float16")

REASONS = (contexts.Missing, tokenizer.ControlToken)  # not to ask a problem


class Run(NamedTuple):
  """What a config means, loaded: everything but the state."""

  mesh: Any
  model_config: Any
  params: Any  # the base: all weights as they are at the start
  trained: Any  # the base -> what trains of it: itself, or a new adapter
  tokenizer: Any
  train: tuple[Prompts, ...]
  eval: tuple[Prompts, ...]
  verify: Any  # (examples, texts) -> Verdicts
  removed_as_overlap: int
  dropped: dict[str, int]  # what cannot be asked, by reason
  counts: dict[str, int]  # of the problems as they were read
  digest: str  # of what `train` and `eval` hold
  objective: Any
  tx: Any
  teacher_prompt: Any  # messages -> ids, as every teacher's chat is rendered
  longest_row: int  # tokens of a prompt and its response at most
  external: Any  # another model's weights, {} without one
  external_config: Any
  host_memory: Any  # what contexts remember; None where none does


def validate(config, problems: bool = True) -> None:
  """Raises ValueError for everything that can be known to be wrong before a
  model is loaded. `problems`: the sources of problems must be there."""
  rules.check(config)
  optimizer.from_config(config)
  weight_sources.check(config.model.source)
  if config.external.source:
    weight_sources.check(config.external.source)
  task = tasks.open_task(config.task.name, config.task.privileged_field)
  if problems:
    d = config.data
    data_sources.check_both(d.train, d.eval, config.task.name, task)
  contexts.check(config.context.template, *contexts.names(config.context))
  check(sampling(config.rollout))
  check(SamplingParams(temperature=config.eval.temperature))
  rollout_sources.check_stop("rollout.stop", config.rollout.stop)
  rollout_sources.check_stop("eval.stop", config.eval.stop)
  unrelated.prompts(config.eval.drift_prompts)
  for name, known in (
    ("model.remat", transformer.REMAT),
    ("model.dtype", DTYPES),
    ("model.param_dtype", DTYPES),
    ("external.dtype", DTYPES),
    ("model.attention", ("auto", *attention.ALL)),
  ):
    if (value := rules.field(config, name)) not in known:
      raise ValueError(f"{name} is {value!r}, known: {', '.join(known)}")
  lora.check(config.lora.targets)


def rows_per_step(config) -> int:
  """Rows of a batch at most: a source may learn a completion twice, or sample as
  many again."""
  responses = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
  twice = config.rollout.source == "rescue" or (
    config.rollout.source == "teacher_view" and 0 < config.routing.alpha < 1
  )
  return (1 + twice) * responses


def sampling(c) -> SamplingParams:
  """Of a node of the config that has all of its fields."""
  return SamplingParams(**{name: c[name] for name in SamplingParams._fields})


def prepare(config) -> Run:
  """Loads model, tokenizer and problems; drops what does not fit, counted."""
  mesh = sharding_rules.make_mesh(**config.mesh)
  distributed.check_rows(mesh)
  sharding_rules.check_rows(mesh, rows_per_step(config), config.batch.micro_batches)
  if config.rollout.prompts_per_step % distributed.count():
    raise ValueError(
      f"rollout.prompts_per_step is {config.rollout.prompts_per_step}, expected a multiple of"
      f" the {distributed.count()} processes"
    )
  verify, problems = read_problems(config)
  path = weight_sources.resolve(config.model.source)
  tok = tokenizer.load(path)
  runtime = runtime_fields(config)
  model_config = resolve_attention(
    weight_sources.read_config(path, **runtime), mesh, config.batch.pack_len > 0
  )
  _, params = weight_sources.load_model_weights(
    path,
    functools.partial(sharding_rules.tree_shardings, mesh=mesh),
    **runtime | {"attention": model_config.attention},
  )
  jax.eval_shape(trained(config), params)  # do its targets exist?
  check_vocabulary(config, model_config)
  positions, dropped = longest_row(config, model_config), problems.dropped
  train = build_prompts(
    config.context,
    tok,
    problems.train,
    positions - config.rollout.max_new_tokens,
    dropped,
    "training",
    references=positions if config.rollout.source == "dataset" else 0,
  )
  held_out = build_prompts(
    config.context,
    tok,
    problems.eval,
    model_config.max_positions - config.eval.max_new_tokens,
    dropped,
    "evaluation",
  )
  if len(train) < config.rollout.prompts_per_step or not held_out:
    raise ValueError(
      f"{len(train)} problems are left to train on, expected at least"
      f" rollout.prompts_per_step = {config.rollout.prompts_per_step}, and {len(held_out)} to"
      f" evaluate on; removed as overlap: {problems.removed_as_overlap};"
      f" dropped: {dropped or 'none'}"
    )
  digest = order.digest(train, held_out)
  if len(set(distributed.gather(digest))) > 1:
    raise ValueError(
      "the processes read different problems: give each the same content of"
      f" data.train={config.data.train} and data.eval={config.data.eval}"
    )
  external, external_config = load_external(config, mesh, model_config, tok)
  return Run(
    mesh,
    model_config,
    params,
    trained(config),
    tok,
    train,
    held_out,
    verify,
    problems.removed_as_overlap,
    dropped,
    problems.counts,
    digest,
    objectives.from_config(config),
    optimizer.from_config(config),
    teacher_prompt(config, tok),
    positions,
    external,
    external_config,
    host_memory.HostMemory() if remembers(config) else None,
  )


def remembers(config) -> bool:
  return any(n in contexts.READ_MEMORY for n in contexts.names(config.context))


def check_vocabulary(config, model_config) -> None:
  """Raises ValueError where a top-k support asks for more than there is."""
  for name, node in objectives.active_terms(config).items():
    if node.kind != "distill" or node.divergence.support == "full":
      continue
    if node.divergence.k > model_config.vocab_size:
      raise ValueError(
        f"loss.{name}.divergence.k is {node.divergence.k}, the vocabulary has"
        f" {model_config.vocab_size}"
      )


def teacher_prompt(config, tok):
  """messages -> ids, with the teachers' chat-template arguments."""
  args = {k: v for k, v in config.context.teacher_args.items() if v is not None}
  return lambda messages: tuple(tok.chat_ids(messages, **args))


def external_fields(config) -> dict:
  """The fields of the external model's ModelConfig that are not its own."""
  dtype = config.external.dtype
  fields = runtime_fields(config)
  return fields | {"dtype": dtype, "param_dtype": dtype, "remat": "none"}


def load_external(config, mesh, model_config, tok):
  """(weights, sizes) of the other model that targets read, frozen and laid out by
  the same rules; ({}, None) where there is none.

  Raises ValueError where its tokens are not the student's.
  """
  if not config.external.source:
    return {}, None
  path, fields = weight_sources.resolve(config.external.source), external_fields(config)
  other = tokenizer.load(path)
  if other.inner.get_vocab() != tok.inner.get_vocab():
    raise ValueError(
      f"external.source={config.external.source} has another tokenizer than"
      f" model.source={config.model.source}: their tokens cannot be compared"
    )
  sizes = resolve_attention(
    weight_sources.read_config(path, **fields), mesh, config.batch.pack_len > 0
  )
  if sizes.vocab_size < model_config.vocab_size:
    raise ValueError(
      f"external.source has {sizes.vocab_size} vocabulary entries, fewer than the"
      f" student's {model_config.vocab_size}"
    )
  _, params = weight_sources.load_model_weights(
    path,
    functools.partial(sharding_rules.tree_shardings, mesh=mesh),
    **fields | {"attention": sizes.attention},
  )
  return params, sizes


def problems_of(config) -> data_sources.Split:
  """What a run of this config trains and evaluates on."""
  c, d = config.task, config.data
  problems = data_sources.both(
    d.train,
    d.eval,
    data_sources.Columns(d.problem, d.solution, d.answer, d.id),
    skip_bad=d.skip_bad,
    train_limit=d.train_limit,
    eval_limit=d.eval_limit,
    rewarded=objectives.learns_from_rewards(config),
    task={
      "name": c.name,
      "train_count": c.train_count,
      "eval_count": c.eval_count,
      "seed": c.seed,
      "privileged_field": c.privileged_field,
    },
  )
  if not d.test_time:
    return problems
  return problems._replace(train=problems.eval[: c.train_count])


def read_problems(config):
  """(verify, `problems_of`); every answer that replies will be compared with
  can be judged.

  How many answers the task finds wrong, read as a reply, is counted, and how
  many solutions tell the teacher of another answer.
  """
  c, d = config.task, config.data
  verify = pool.shared(c.name, c.privileged_field, **config.verify)
  problems = problems_of(config)
  counts = dict(problems.counts)
  if d.eval != data_sources.TASK:
    wrong = count_unverifiable(verify, problems.eval, c.name, d.eval)
    counts["evaluation answers not verified"] = wrong
  if d.train != data_sources.TASK and objectives.learns_from_rewards(config):
    wrong = count_unverifiable(verify, problems.train, c.name, d.train)
    counts["training answers not verified"] = wrong
  if d.train != data_sources.TASK and c.name != "exact":  # which reads whole replies
    wrong = count_contradicting_solutions(verify, problems.train)
    name = f"of {AUDITED:,} training solutions at most, with another answer"
    counts[name] = wrong
  return verify, problems._replace(counts=counts)


def count_unverifiable(verify, examples, task: str, source: str) -> int:
  """How many answers the task finds wrong, read as a reply, bare and in a box;
  ValueError where these are all, or where it cannot judge a problem."""
  answered = [e for e in examples if e.answer is not None]
  replies = [form.format(e.answer) for form in REPLIES for e in answered]
  asked = answered * len(REPLIES)
  verdicts = verify(asked, replies)
  for e, v in zip(asked, verdicts, strict=True):
    if v.feedback.startswith(f"{UNVERIFIED}: "):
      raise ValueError(
        f"task {task} cannot judge problem {e.id} of {source}, whose answer is"
        f" {e.answer!r} ({v.feedback}): choose another"
      )
  scores = [v.score for v in verdicts]
  bare, boxed, _ = (
    scores[i:][: len(answered)] for i in (0, len(answered), 2 * len(answered))
  )
  wrong = sum(max(both) < 1 for both in zip(bare, boxed, strict=True))
  if answered and wrong == len(answered):
    raise ValueError(
      f"task {task} finds none of the {wrong} answers of {source} right, read"
      f" as a reply, {answered[0].answer!r} the first: choose another"
    )
  return wrong


def count_contradicting_solutions(verify, examples) -> int:
  """How many of the first AUDITED solutions, read as a reply, end in another
  answer than their row's; one that states none is not among them."""
  answered = [e for e in examples if e.answer is not None and e.solution]
  answered = answered[:AUDITED]
  verdicts = verify(answered, [e.solution for e in answered])
  return sum(v.answer is not None and v.score < 1 for v in verdicts)


def runtime_fields(config) -> dict:
  """The fields of a ModelConfig that are not the model's own."""
  fields = ("dtype", "param_dtype", "scan_layers", "remat", "attention")
  return {name: config.model[name] for name in fields} | {
    "lora_alpha": config.lora.alpha
  }


def resolve_attention(model_config, mesh, packed: bool):
  """The model as these devices run it: `auto` attention becomes a name.

  `packed`: training rows hold several sequences.

  Raises ValueError where the mesh cannot split it, or its attention cannot run.
  """
  c = model_config
  sharding_rules.check_heads(mesh, c.num_heads, c.num_kv_heads, c.mlp_width)
  device = mesh.devices.flat[0]
  backend = attention.resolve(
    c.attention,
    platform=device.platform,
    dtype=c.dtype,
    head_dim=c.head_dim,
    packed=packed,
    capability=getattr(device, "compute_capability", "8.0"),
  )
  return dataclasses.replace(c, attention=backend)


def trained(config):
  """The base -> what trains: all of it, or a new adapter beside it."""
  if not config.lora.rank:
    return lambda params: params
  key = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(b"lora"))
  return functools.partial(
    lora.init, key=key, targets=config.lora.targets, rank=config.lora.rank
  )


def longest_row(config, model_config) -> int:
  """Tokens of a row at most: batch.max_sequence_len within the model's positions."""
  if config.batch.max_sequence_len > model_config.max_positions:
    raise ValueError(
      f"batch.max_sequence_len is {config.batch.max_sequence_len}, the model has"
      f" {model_config.max_positions} positions"
    )
  return config.batch.max_sequence_len or model_config.max_positions


def build_prompts(
  c,
  tokenizer,
  examples,
  max_prompt_len: int,
  dropped: dict,
  use: str,
  references: int = 0,
) -> tuple[Prompts, ...]:
  """Both sides' prompts of every example; what cannot be asked is dropped and
  counted by use and reason. In evaluation that is what the student cannot be
  asked; what only the teacher cannot has no teacher's prompt.

  `c` is config.context, `max_prompt_len` the longest prompt. `references`, unless 0: the
  response will be the reference solution, in a row of at most so many tokens.
  """

  def args(a):
    return {k: v for k, v in a.items() if v is not None}

  def prompt(messages, template_args):
    ids = tuple(tokenizer.chat_ids(messages, **args(template_args)))
    if len(ids) > max_prompt_len:
      raise contexts.Missing(f"a prompt is longer than {max_prompt_len} tokens")
    return ids

  def teacher_view(example, kind):
    if kind in contexts.AFTER:
      return ()  # made once the responses are verified
    try:
      messages = contexts.teacher_messages(c.template, kind, example, examples)
      return prompt(messages, c.teacher_args)
    except REASONS as e:
      if use == "training":
        raise
      count(e, ", of the teacher alone")
      return ()

  def problem(example):
    question = contexts.student_messages(c.template, example)
    student = prompt(question, c.student_args)
    teachers = [teacher_view(example, kind) for kind in contexts.names(c)]
    if references:
      text = contexts.present(example.solution, "solution")
      size = len(rollout_sources.reference(tokenizer, text).ids)
      if len(student) + size > references:
        raise contexts.Missing(f"a row is longer than {references} tokens")
    return Prompts(example, (student, *teachers))

  def count(e, of=""):
    is_missing = isinstance(e, contexts.Missing)
    why = e if is_missing else "its text holds a control token"
    reason = f"{use}{of}: {why}"
    dropped[reason] = dropped.get(reason, 0) + 1

  problems = []
  for example in examples:
    try:
      problems.append(problem(example))
    except REASONS as e:
      count(e)
  return tuple(problems)


def read_config(workdir) -> ConfigDict:
  """The config of the run that lives in `workdir`, validated."""
  try:
    config = workdirs.read(workdir)
    validate(config, problems=False)
  except (AttributeError, KeyError, TypeError) as e:
    path = workdir / workdirs.CONFIG
    raise ValueError(f"{path} is of another version: {e}") from e
  return config
