"""A model answers sets of problems, k times each; every reply is kept.

The workdir receives settings.json, <set>.jsonl with one problem a line, and of
summary.py summary.json and pictures. A batch of problems is answered and written
at a time: killed and started again, an evaluation goes on after the last whole
batch and ends with the same replies, since a reply's draws come of (seed, set,
problem, sample) and batches stay as they were.
"""

import functools
import hashlib
import json
import sys
from typing import Any, NamedTuple

import jax

from opsd_jax import setup, tasks
from opsd_jax.data import audit
from opsd_jax.evaluation import calibration, eval_sets, summary
from opsd_jax.evaluation.eval_sets import Set
from opsd_jax.models import lora, tokenizer
from opsd_jax.models.weights import sources as weight_sources
from opsd_jax.rollouts import contexts
from opsd_jax.rollouts import sources as rollout_sources
from opsd_jax.runtime import (
  allocator,
  checkpoint,
  distributed,
  metrics,
  monitoring,
  paths,
  sharding_rules,
)
from opsd_jax.runtime import workdir as workdirs
from opsd_jax.runtime.mesh import make_mesh
from opsd_jax.sampling.tokens import SamplingParams, check
from opsd_jax.tasks import pool

CONFIDENCE = ("logp", "stated")
BUCKET = 32  # tokens; prompts are padded to a multiple of it
STEPS = 32  # tokens decoded between two looks for ended replies


class EvaluatedModel(NamedTuple):
  """Who is examined: weights, and how it is spoken to."""

  mesh: Any
  model_config: Any
  params: Any
  tokenizer: Any
  template: str  # its training's, or upstream
  template_args: dict  # of the chat template
  about: dict  # source, run, step, dtype: for settings.json


class EvalSettings(NamedTuple):
  """How replies are sampled, and what is made of them."""

  samples: int
  sampling: SamplingParams
  max_new_tokens: int
  stop: tuple[str, ...]
  seed: int
  template: str | None  # how a question is worded; None: as EvaluatedModel.template
  confidence: str  # of CONFIDENCE: "stated" asks for it too
  batch: int  # problems answered between two writes
  slots: int  # replies decoded at once
  bins: int  # of calibration
  resamples: int  # of bootstrap and permutation


def validate(settings: EvalSettings) -> None:
  """Raises ValueError for what is known to be wrong before a model loads."""
  check(settings.sampling)
  if settings.template is not None:
    contexts.check(settings.template, "none")
  rollout_sources.check_stop("stop", settings.stop)
  for name in ("samples", "max_new_tokens", "batch", "slots", "bins", "resamples"):
    if (value := getattr(settings, name)) < 1:
      raise ValueError(f"{name} is {value}, expected at least 1")
  if settings.seed < 0:
    raise ValueError(f"seed is {settings.seed}, expected at least 0")
  if settings.confidence not in CONFIDENCE:
    raise ValueError(
      f"confidence is {settings.confidence!r}, known: {', '.join(CONFIDENCE)}"
    )
  if settings.sampling.temperature == 0 and settings.samples > 1:
    raise ValueError(
      f"samples is {settings.samples} at temperature 0, where all of a problem's"
      " replies are the same: set samples to 1"
    )


# ------------------------------------------------------------------- subject


def load(model: str | None, run_dir, dtype: str) -> EvaluatedModel:
  """`load_model` or `load_run`: one of the two is given."""
  if bool(model) == bool(run_dir):
    raise ValueError(f"model is {model!r} and run {run_dir!r}, expected one of them")
  return load_run(run_dir) if run_dir else load_model(model, dtype)


def held_out(run_dir, usual, source: str, count: int | None, seed: int | None):
  """(count, seed) of a task's problems, where they are not given: those that
  the run's training held out, of another task or without a run as `usual`, a
  config.task, says.

  Raises ValueError for more than training held out.
  """

  def given(value, otherwise):
    return otherwise if value is None else value

  if not run_dir:
    return given(count, usual.eval_count), given(seed, usual.seed)
  task = setup.read_config(paths.open_workdir(run_dir)).task
  seed = given(seed, task.seed)
  if (source, seed) != (task.name, task.seed):
    return given(count, usual.eval_count), seed
  if given(count, 0) > task.eval_count:
    raise ValueError(
      f"{count} problems of {source}: the training of {run_dir} held out"
      f" {task.eval_count} (task.eval_count), and may have seen the others"
    )
  return given(count, task.eval_count), seed


def training_questions(run_dir) -> set[str] | None:
  """The questions that a run trains on, as `tasks.normalize_question` writes them; None
  without a run, or where its data cannot be had."""
  if not run_dir:
    return None
  config = setup.read_config(paths.open_workdir(run_dir))
  try:
    problems = setup.load_split(config)
  except ValueError as e:
    print(f"not known which questions {run_dir} has trained on: {e}", flush=True)
    return None
  return {tasks.normalize_question(e.question) for e in problems.train}


def load_model(source: str, dtype: str) -> EvaluatedModel:
  """A model as it is, from any source that config.model.source accepts."""
  weight_sources.check(source)
  if dtype not in setup.DTYPES:
    raise ValueError(f"dtype is {dtype!r}, known: {', '.join(setup.DTYPES)}")
  mesh = make_mesh(fsdp=-1)
  path = weight_sources.resolve(source)
  runtime = dict(
    dtype=dtype,
    param_dtype=dtype,
    scan_layers=False,
    remat="none",
    attention="auto",
    lora_alpha=1.0,
  )
  return _evaluated_model(
    mesh,
    path,
    runtime,
    {"source": source, "dtype": dtype},
    lambda layout, runtime: weight_sources.load_model_weights(path, layout, **runtime)[
      1
    ],
    "upstream",
    {},
  )


def load_run(workdir) -> EvaluatedModel:
  """The newest checkpoint of a training run, with LoRA its base beside it."""
  workdir = paths.open_workdir(workdir)
  config = setup.read_config(workdir)
  mesh = make_mesh(**config.mesh)
  path = weight_sources.resolve(config.model.source)
  about = {"source": config.model.source, "dtype": config.model.dtype}
  about["run"] = str(workdir)

  def load(layout, runtime):
    about["step"], params = checkpoint.restore_params(workdir / "checkpoints", layout)
    if config.lora.rank:
      _, base = weight_sources.load_model_weights(path, layout, **runtime)
      params = lora.join(base, params)
    return params

  args = config.context.student_args.to_dict()
  return _evaluated_model(
    mesh,
    path,
    setup.runtime_fields(config),
    about,
    load,
    config.context.template,
    {k: v for k, v in args.items() if v is not None},
  )


def _evaluated_model(
  mesh, path, runtime, about, load, template, args
) -> EvaluatedModel:
  distributed.check_rows(mesh)
  model_config = setup.resolve_attention(
    weight_sources.read_config(path, **runtime), mesh, False
  )
  layout = functools.partial(sharding_rules.tree_shardings, mesh=mesh)
  params = load(layout, runtime | {"attention": model_config.attention})
  about["weights"] = checkpoint.fingerprint(params, mesh)
  return EvaluatedModel(
    mesh, model_config, params, tokenizer.load(path), template, args, about
  )


# -------------------------------------------------------------------- answer


def build_prompts(subject: EvaluatedModel, settings: EvalSettings, set_: Set):
  """([(example, prompt ids)], dropped by reason): what fits the model."""
  positions = subject.model_config.max_positions
  max_prompt_len = positions - settings.max_new_tokens
  if max_prompt_len < 1:
    raise ValueError(
      f"max_new_tokens is {settings.max_new_tokens}, which leaves no prompt beside"
      f" it: the model has {positions} positions"
    )
  asked, dropped = [], {}
  for example in set_.examples:
    messages = contexts.student_messages(settings.template, example)
    if settings.confidence == "stated":
      messages[-1]["content"] += f"\n\n{calibration.ASK}"
    try:
      ids = subject.tokenizer.chat_ids(messages, **subject.template_args)
      reason = f"a prompt is longer than {max_prompt_len} tokens" * (
        len(ids) > max_prompt_len
      )
    except tokenizer.ControlToken:
      reason = "its text holds a control token"
    if reason:
      dropped[reason] = dropped.get(reason, 0) + 1
    else:
      asked.append((example, tuple(ids)))
  if not asked:
    raise ValueError(f"set {set_.name}: nothing to ask; dropped: {dropped}")
  return asked, dropped


def record(
  settings: EvalSettings, example, completions, texts, verdicts, confidences
) -> dict:
  """A problem and its replies, as a line of <set>.jsonl."""
  replies = [
    {
      "sample": i,
      "seed": settings.seed,
      "text": c.text,
      "score": v.score,
      "answer": v.answer,
      "feedback": v.feedback,
      "tokens": len(c.ids),
      "truncated": c.truncated,
      "logp": sum(c.logp),
      "confidence": p,
    }
    for i, (c, v, p) in enumerate(zip(completions, verdicts, confidences, strict=True))
  ]
  return {
    "id": example.id,
    "question": example.question,
    "answer": example.answer,
    "replies": replies,
  }


def answer(
  subject: EvaluatedModel, settings: EvalSettings, set_: Set, part
) -> list[dict]:
  """Answers and judges [(example, prompt ids)] -> one record each.

  Each process answers and verifies its share.
  """
  mine = distributed.local_shard(part)
  groups = rollout_sources.complete(
    subject.model_config,
    subject.params,
    subject.tokenizer,
    [ids for _, ids in mine],
    [f"{set_.name}/{e.id}" for e, _ in mine],
    seed=settings.seed,
    step=0,
    role="evaluate",
    sampling=settings.sampling,
    n=settings.samples,
    max_new_tokens=settings.max_new_tokens,
    slots=settings.slots,
    host_sync_every=STEPS,
    prompt_bucket=BUCKET,
    stop=settings.stop,
  )
  read = calibration.stated if settings.confidence == "stated" else _unread
  texts, confidences = zip(*(read(c.text) for g in groups for c in g), strict=True)
  examples = [e for e, _ in mine for _ in range(settings.samples)]
  verdicts = set_.verify(examples, texts)
  records = []
  for i, ((example, _), group) in enumerate(zip(mine, groups, strict=True)):
    of_example = slice(i * settings.samples, (i + 1) * settings.samples)
    records.append(
      record(
        settings, example, group, texts, verdicts[of_example], confidences[of_example]
      )
    )
  return distributed.gather_shards(records, len(part))


def _unread(text: str):
  return text, None


def whole_batches(path, batch: int, total: int) -> int:
  """How many problems of a file are done; drops what is not of a whole batch,
  so that the rest is answered in the batches that it would have been in."""
  if not path.exists():
    return 0
  lines = path.read_text().split("\n")
  done = len(lines) - 1  # after the last newline stands nothing, or a torn line
  if done < total:
    done -= done % batch
  if lines[done:] != [""]:
    paths.write_whole(path, "".join(f"{line}\n" for line in lines[:done]))
  return done


def append(path, records) -> None:
  text = "".join(json.dumps(r) + "\n" for r in records)
  if paths.is_remote(path):  # an object cannot be appended to
    text = (path.read_text() if path.exists() else "") + text
    paths.write_whole(path, text)
    return
  with path.open("a") as f:
    f.write(text)


def settings_of(subject: EvaluatedModel, settings: EvalSettings, chosen, asked) -> dict:
  """All that decides the replies, and under `summary` what is made of them."""
  fields = settings._asdict()
  fields |= fields.pop("sampling")._asdict()  # one flat table in the file
  bins, resamples = fields.pop("bins"), fields.pop("resamples")
  outer = {k: fields.pop(k) for k in ("template", "confidence", "batch", "slots")}

  def digest(part):
    return hashlib.sha256(
      json.dumps([(e.id, e.question, e.answer) for e, _ in part]).encode()
    ).hexdigest()

  return {
    "model": subject.about,
    **outer,
    "template_args": subject.template_args,
    "sampling": fields | {"stop": list(settings.stop)},
    "sets": {
      s.name: s.about
      | {"problems": len(part), "dropped": dropped, "sha256": digest(part)}
      for s, (part, dropped) in zip(chosen, asked, strict=True)
    },
    "summary": {"bins": bins, "resamples": resamples, "seed": settings.seed},
  }


def evaluate(subject: EvaluatedModel, chosen, workdir, settings: EvalSettings) -> dict:
  """Answers all sets, or what is left of them, and returns the summary.

  Raises ValueError for bad settings and for a workdir of other ones.
  """
  validate(settings)
  settings = settings._replace(template=settings.template or subject.template)
  names = [s.name for s in chosen]
  if not chosen or len(set(names)) < len(names):
    raise ValueError(f"sets are named {names}, expected one or more, each once")
  workdir = paths.open_workdir(workdir)
  asked = [build_prompts(subject, settings, s) for s in chosen]
  about = settings_of(subject, settings, chosen, asked)
  with (
    jax.set_mesh(subject.mesh),
    workdirs.exclusive(workdir),
    distributed.ending_with_others(),
  ):
    distributed.broadcast_from_first(lambda: workdirs.write_settings(about, workdir))
    for set_, (problems, _) in zip(chosen, asked, strict=True):
      answer_set(subject, settings, set_, problems, workdir / f"{set_.name}.jsonl")
  return distributed.broadcast_from_first(lambda: summary.summarise(workdir))


def answer_set(subject, settings: EvalSettings, set_: Set, problems, path) -> None:
  """Answers a set's problems that `path` does not hold yet, in batches."""
  total = len(problems)
  done = distributed.broadcast_from_first(
    lambda: whole_batches(path, settings.batch, total)
  )
  shown = distributed.is_first()
  with metrics.progress(total, done, set_.name, shown=shown, file=sys.stderr) as bar:
    for start in range(done, total, settings.batch):
      records = answer(
        subject, settings, set_, problems[start : start + settings.batch]
      )
      if distributed.is_first():
        append(path, records)
      bar.update(len(records))


def run_from_flags(
  settings: EvalSettings,
  sets_as_text,
  workdir,
  *,
  model,
  run_dir,
  dtype: str,
  count: int | None,
  task_seed: int | None,
  task,
  compile_cache: str,
  verify: dict,
) -> dict:
  """`evaluate` with everything by name: what experiments/evaluate.py does.

  `task` is a config.task, whose counts and seed stand for those not given;
  `verify` how replies are judged, as config.verify says it.
  What needs no model is checked before one is loaded.
  """
  validate(settings)
  if not workdir or not sets_as_text:
    raise ValueError(
      f"workdir is {workdir!r} and set {sets_as_text!r}, expected a directory"
      " and at least one name=file.jsonl or task"
    )
  allocator.keep_freed()
  monitoring.keep_compiled(compile_cache)

  def open_verifier(task):
    return pool.shared(task, "answer", **verify)

  chosen, trained = [], training_questions(run_dir)
  for spec in map(eval_sets.parse, sets_as_text):
    number, seed = count, None  # of a file
    if not spec.task:
      number, seed = held_out(run_dir, task, spec.source, count, task_seed)
    found = eval_sets.open_set(
      spec, count=number, seed=seed, open_verifier=open_verifier
    )
    if spec.task:
      found.about["not_verified"] = audit.count_unverifiable(
        found.verify, found.examples, spec.task, spec.source
      )
    if trained is not None:
      asked = [tasks.normalize_question(e.question) for e in found.examples]
      found.about["in_training"] = sum(text in trained for text in asked)
    chosen.append(found)
  return evaluate(load(model, run_dir, dtype), chosen, workdir, settings)
