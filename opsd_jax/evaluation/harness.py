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
from opsd_jax.sampling.tokens import SamplingParams, check
from opsd_jax.tasks import pool

CONFIDENCE = ("logp", "stated")
BUCKET = 32  # tokens; prompts are padded to a multiple of it
STEPS = 32  # tokens decoded between two looks for ended replies


class Subject(NamedTuple):
  """Who is examined: weights, and how it is spoken to."""

  mesh: Any
  model_config: Any
  params: Any
  tokenizer: Any
  template: str  # its training's, or upstream
  template_args: dict  # of the chat template
  about: dict  # source, run, step, dtype: for settings.json


class How(NamedTuple):
  """How replies are sampled, and what is made of them."""

  samples: int
  sampling: SamplingParams
  max_new_tokens: int
  stop: tuple[str, ...]
  seed: int
  template: str | None  # how a question is worded; None: as Subject.template
  confidence: str  # of CONFIDENCE: "stated" asks for it too
  batch: int  # problems answered between two writes
  slots: int  # replies decoded at once
  bins: int  # of calibration
  resamples: int  # of bootstrap and permutation


def validate(how: How) -> None:
  """Raises ValueError for what is known to be wrong before a model loads."""
  check(how.sampling)
  if how.template is not None:
    contexts.check(how.template, "none")
  rollout_sources.check_stop("stop", how.stop)
  for name in ("samples", "max_new_tokens", "batch", "slots", "bins", "resamples"):
    if (value := getattr(how, name)) < 1:
      raise ValueError(f"{name} is {value}, expected at least 1")
  if how.seed < 0:
    raise ValueError(f"seed is {how.seed}, expected at least 0")
  if how.confidence not in CONFIDENCE:
    raise ValueError(
      f"confidence is {how.confidence!r}, known: {', '.join(CONFIDENCE)}"
    )
  if how.sampling.temperature == 0 and how.samples > 1:
    raise ValueError(
      f"samples is {how.samples} at temperature 0, where all of a problem's"
      " replies are the same: set samples to 1"
    )


# ------------------------------------------------------------------- subject


def load(model: str | None, run, dtype: str) -> Subject:
  """`load_model` or `load_run`: one of the two is given."""
  if bool(model) == bool(run):
    raise ValueError(f"model is {model!r} and run {run!r}, expected one of them")
  return load_run(run) if run else load_model(model, dtype)


def held_out(run, usual, source: str, count: int | None, seed: int | None):
  """(count, seed) of a task's problems, where they are not given: those that
  the run's training held out, of another task or without a run as `usual`, a
  config.task, says.

  Raises ValueError for more than training held out.
  """

  def given(value, otherwise):
    return otherwise if value is None else value

  if not run:
    return given(count, usual.eval_count), given(seed, usual.seed)
  own = setup.read_config(paths.open_workdir(run)).task
  seed = given(seed, own.seed)
  if (source, seed) != (own.name, own.seed):
    return given(count, usual.eval_count), seed
  if given(count, 0) > own.eval_count:
    raise ValueError(
      f"{count} problems of {source}: the training of {run} held out"
      f" {own.eval_count} (task.eval_count), and may have seen the others"
    )
  return given(count, own.eval_count), seed


def taught(run) -> set[str] | None:
  """The questions that a run trains on, as `tasks.same_text` writes them; None
  without a run, or where its data cannot be had."""
  if not run:
    return None
  config = setup.read_config(paths.open_workdir(run))
  try:
    problems = setup.problems_of(config)
  except ValueError as e:
    print(f"not known which questions {run} has trained on: {e}", flush=True)
    return None
  return {tasks.same_text(e.question) for e in problems.train}


def load_model(source: str, dtype: str) -> Subject:
  """A model as it is, from any source that config.model.source accepts."""
  weight_sources.check(source)
  if dtype not in setup.DTYPES:
    raise ValueError(f"dtype is {dtype!r}, known: {', '.join(setup.DTYPES)}")
  mesh = sharding_rules.make_mesh(fsdp=-1)
  path = weight_sources.resolve(source)
  run = dict(
    dtype=dtype,
    param_dtype=dtype,
    scan_layers=False,
    remat="none",
    attention="auto",
    lora_alpha=1.0,
  )
  return _subject(
    mesh,
    path,
    run,
    {"source": source, "dtype": dtype},
    lambda layout, run: weight_sources.load_model_weights(path, layout, **run)[1],
    "upstream",
    {},
  )


def load_run(workdir) -> Subject:
  """The newest checkpoint of a training run, with LoRA its base beside it."""
  workdir = paths.open_workdir(workdir)
  config = setup.read_config(workdir)
  mesh = sharding_rules.make_mesh(**config.mesh)
  path = weight_sources.resolve(config.model.source)
  about = {"source": config.model.source, "dtype": config.model.dtype}
  about["run"] = str(workdir)

  def load(layout, run):
    about["step"], params = checkpoint.restore_params(workdir / "checkpoints", layout)
    if config.lora.rank:
      _, base = weight_sources.load_model_weights(path, layout, **run)
      params = lora.join(base, params)
    return params

  args = config.context.student_args.to_dict()
  return _subject(
    mesh,
    path,
    setup.how_to_run(config),
    about,
    load,
    config.context.template,
    {k: v for k, v in args.items() if v is not None},
  )


def _subject(mesh, path, run, about, load, template, args) -> Subject:
  distributed.check_rows(mesh)
  model_config = setup.fit_to(weight_sources.read_config(path, **run), mesh, False)
  layout = functools.partial(sharding_rules.tree_shardings, mesh=mesh)
  params = load(layout, run | {"attention": model_config.attention})
  about["weights"] = checkpoint.fingerprint(params, mesh)
  return Subject(
    mesh, model_config, params, tokenizer.load(path), template, args, about
  )


# -------------------------------------------------------------------- answer


def ask(subject: Subject, how: How, set_: Set):
  """([(example, prompt ids)], dropped by reason): what fits the model."""
  positions = subject.model_config.max_positions
  room = positions - how.max_new_tokens
  if room < 1:
    raise ValueError(
      f"max_new_tokens is {how.max_new_tokens}, which leaves no prompt beside"
      f" it: the model has {positions} positions"
    )
  asked, dropped = [], {}
  for example in set_.examples:
    messages = contexts.student_messages(how.template, example)
    if how.confidence == "stated":
      messages[-1]["content"] += f"\n\n{calibration.ASK}"
    try:
      ids = subject.tokenizer.chat_ids(messages, **subject.template_args)
      reason = f"a prompt is longer than {room} tokens" * (len(ids) > room)
    except tokenizer.ControlToken:
      reason = "its text holds a control token"
    if reason:
      dropped[reason] = dropped.get(reason, 0) + 1
    else:
      asked.append((example, tuple(ids)))
  if not asked:
    raise ValueError(f"set {set_.name}: nothing to ask; dropped: {dropped}")
  return asked, dropped


def record(how: How, example, completions, texts, verdicts, sure) -> dict:
  """A problem and its replies, as a line of <set>.jsonl."""
  replies = [
    {
      "sample": i,
      "seed": how.seed,
      "text": c.text,
      "score": v.score,
      "answer": v.answer,
      "feedback": v.feedback,
      "tokens": len(c.ids),
      "truncated": c.truncated,
      "logp": sum(c.logp),
      "confidence": p,
    }
    for i, (c, v, p) in enumerate(zip(completions, verdicts, sure, strict=True))
  ]
  return {
    "id": example.id,
    "question": example.question,
    "answer": example.answer,
    "replies": replies,
  }


def answer(subject: Subject, how: How, set_: Set, part) -> list[dict]:
  """Answers and judges [(example, prompt ids)] -> one record each.

  Each process answers and verifies its share.
  """
  mine = distributed.share(part)
  groups = rollout_sources.complete(
    subject.model_config,
    subject.params,
    subject.tokenizer,
    [ids for _, ids in mine],
    [f"{set_.name}/{e.id}" for e, _ in mine],
    seed=how.seed,
    step=0,
    role="evaluate",
    sampling=how.sampling,
    n=how.samples,
    max_new_tokens=how.max_new_tokens,
    slots=how.slots,
    decode_steps=STEPS,
    prompt_bucket=BUCKET,
    stop=how.stop,
  )
  read = calibration.stated if how.confidence == "stated" else _unread
  texts, sure = zip(*(read(c.text) for g in groups for c in g), strict=True)
  examples = [e for e, _ in mine for _ in range(how.samples)]
  verdicts = set_.verify(examples, texts)
  records = []
  for i, ((example, _), group) in enumerate(zip(mine, groups, strict=True)):
    at = slice(i * how.samples, (i + 1) * how.samples)
    records.append(record(how, example, group, texts, verdicts[at], sure[at]))
  return distributed.gather_shares(records, len(part))


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


def settings_of(subject: Subject, how: How, chosen, asked) -> dict:
  """All that decides the replies, and under `summary` what is made of them."""
  fields = how._asdict()
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
    "sampling": fields | {"stop": list(how.stop)},
    "sets": {
      s.name: s.about
      | {"problems": len(part), "dropped": dropped, "sha256": digest(part)}
      for s, (part, dropped) in zip(chosen, asked, strict=True)
    },
    "summary": {"bins": bins, "resamples": resamples, "seed": how.seed},
  }


def evaluate(subject: Subject, chosen, workdir, how: How) -> dict:
  """Answers all sets, or what is left of them, and returns the summary.

  Raises ValueError for bad settings and for a workdir of other ones.
  """
  validate(how)
  how = how._replace(template=how.template or subject.template)
  names = [s.name for s in chosen]
  if not chosen or len(set(names)) < len(names):
    raise ValueError(f"sets are named {names}, expected one or more, each once")
  workdir = paths.open_workdir(workdir)
  asked = [ask(subject, how, s) for s in chosen]
  about = settings_of(subject, how, chosen, asked)
  with (
    jax.set_mesh(subject.mesh),
    workdirs.alone(workdir),
    distributed.ending_with_others(),
  ):
    distributed.from_first(lambda: workdirs.claim_evaluation(about, workdir))
    for set_, (problems, _) in zip(chosen, asked, strict=True):
      answer_set(subject, how, set_, problems, workdir / f"{set_.name}.jsonl")
  return distributed.from_first(lambda: summary.summarise(workdir))


def answer_set(subject, how: How, set_: Set, problems, path) -> None:
  """Answers a set's problems that `path` does not hold yet, in batches."""
  total = len(problems)
  done = distributed.from_first(lambda: whole_batches(path, how.batch, total))
  shown = distributed.is_first()
  with metrics.progress(total, done, set_.name, shown=shown, file=sys.stderr) as bar:
    for start in range(done, total, how.batch):
      records = answer(subject, how, set_, problems[start : start + how.batch])
      if distributed.is_first():
        append(path, records)
      bar.update(len(records))


def sit(
  how: How,
  sets_as_text,
  workdir,
  *,
  model,
  run,
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
  validate(how)
  if not workdir or not sets_as_text:
    raise ValueError(
      f"workdir is {workdir!r} and set {sets_as_text!r}, expected a directory"
      " and at least one name=file.jsonl or task"
    )
  allocator.keep_freed()
  monitoring.keep_compiled(compile_cache)

  def judge(task):
    return pool.shared(task, "answer", **verify)

  chosen, trained = [], taught(run)
  for spec in map(eval_sets.parse, sets_as_text):
    number, seed = count, None  # of a file
    if not spec.task:
      number, seed = held_out(run, task, spec.source, count, task_seed)
    found = eval_sets.open_set(spec, count=number, seed=seed, judge=judge)
    if spec.task:
      found.about["not_verified"] = setup.unverified(
        found.verify, found.examples, spec.task, spec.source
      )
    if trained is not None:
      asked = [tasks.same_text(e.question) for e in found.examples]
      found.about["in_training"] = sum(text in trained for text in asked)
    chosen.append(found)
  return evaluate(load(model, run, dtype), chosen, workdir, how)
