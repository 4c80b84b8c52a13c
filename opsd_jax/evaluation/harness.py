"""A model answers sets of problems, k times each; every completion is kept.

The workdir receives settings.json, <set>.jsonl with one problem a line, and from
summary.py summary.json and pictures. Problems are answered and written in batches.
An evaluation that was killed and is started again resumes after the last complete
batch and ends with the same completions: their random numbers come from (seed, set,
problem, sample), and batches hold the same problems.
"""

import hashlib
import json
import sys
from typing import NamedTuple

import jax

from opsd_jax import tasks
from opsd_jax.data import audit
from opsd_jax.evaluation import calibration, eval_sets, evaluated_model, summary
from opsd_jax.evaluation.eval_sets import EvalSet
from opsd_jax.evaluation.evaluated_model import EvaluatedModel
from opsd_jax.models import tokenizer
from opsd_jax.reporting import self_checks
from opsd_jax.rollouts import answering, contexts
from opsd_jax.runtime import allocator, distributed, metrics, monitoring, paths
from opsd_jax.runtime import workdir as workdirs
from opsd_jax.sampling.tokens import SamplingParams, check, check_seed
from opsd_jax.tasks import pool

CONFIDENCE = ("logp", "stated")
BUCKET = 32  # tokens; prompts are padded to a multiple of it
STEPS = 32  # decode steps between host checks for finished rows


class EvalSettings(NamedTuple):
  """How completions are sampled, and how they are summarised."""

  samples: int  # completions of a problem
  sampling: SamplingParams
  max_new_tokens: int
  stop: tuple[str, ...]  # texts that end a completion
  seed: int
  template: str | None  # wording of a question; None: EvaluatedModel.template
  confidence: str  # of CONFIDENCE: "stated" asks the model for its confidence
  batch: int  # problems answered between two writes
  slots: int  # completions decoded at once
  bins: int  # of calibration
  resamples: int  # of bootstrap and permutation


def validate(settings: EvalSettings) -> None:
  """Raises ValueError for settings that are wrong for every model."""
  check(settings.sampling)
  if settings.template is not None:
    contexts.check(settings.template, "none")
  answering.check_stop("stop", settings.stop)
  for name in ("samples", "max_new_tokens", "batch", "slots", "bins", "resamples"):
    if (value := getattr(settings, name)) < 1:
      raise ValueError(f"{name} is {value}, expected at least 1")
  check_seed("seed", settings.seed)
  if settings.confidence not in CONFIDENCE:
    raise ValueError(
      f"confidence is {settings.confidence!r}, known: {', '.join(CONFIDENCE)}"
    )
  if settings.sampling.temperature == 0 and settings.samples > 1:
    raise ValueError(
      f"samples is {settings.samples} at temperature 0, where all completions of a"
      " problem are the same: set samples to 1"
    )


# --------------------------------------------------------------- answering


def build_prompts(model: EvaluatedModel, settings: EvalSettings, eval_set: EvalSet):
  """([(example, prompt ids)], {reason: how many were dropped}); dropped are prompts
  that do not fit the model's positions or hold a control token."""
  positions = model.model_config.max_positions
  max_prompt_len = positions - settings.max_new_tokens
  if max_prompt_len < 1:
    raise ValueError(
      f"max_new_tokens is {settings.max_new_tokens}, which leaves no position for a"
      f" prompt: the model has {positions}"
    )
  prompts, dropped = [], {}
  for example in eval_set.examples:
    messages = contexts.student_messages(settings.template, example)
    if settings.confidence == "stated":
      messages[-1]["content"] += f"\n\n{calibration.REQUEST}"
    reason = None
    try:
      ids = model.tokenizer.chat_ids(messages, **model.template_args)
      if len(ids) > max_prompt_len:
        reason = f"a prompt is longer than {max_prompt_len} tokens"
    except tokenizer.ControlToken:
      reason = "its text holds a control token"
    if reason:
      dropped[reason] = dropped.get(reason, 0) + 1
    else:
      prompts.append((example, tuple(ids)))
  if not prompts:
    raise ValueError(f"set {eval_set.name}: no prompt is left; dropped: {dropped}")
  return prompts, dropped


def record(settings: EvalSettings, example, completions, verdicts, confidences) -> dict:
  """A problem and its completions, as a line of <set>.jsonl."""
  return {
    "id": example.id,
    "question": example.question,
    "answer": example.answer,
    "completions": [
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
      for i, (c, v, p) in enumerate(
        zip(completions, verdicts, confidences, strict=True)
      )
    ],
  }


def answer(
  model: EvaluatedModel,
  settings: EvalSettings,
  eval_set: EvalSet,
  prompts,
  longest_prompt: int,
) -> list[dict]:
  """Answers and verifies [(example, prompt ids)] -> one record each.

  Each process answers and verifies its shard.
  """
  local = distributed.local_shard(prompts)
  groups = answering.complete(
    model.model_config,
    model.params,
    model.tokenizer,
    [ids for _, ids in local],
    [f"{eval_set.name}/{e.id}" for e, _ in local],
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
    longest_prompt=longest_prompt,
  )
  texts, confidences = [], []
  for completion in (c for group in groups for c in group):
    text, confidence = completion.text, None
    if settings.confidence == "stated":  # its statement is no part of the answer
      text, confidence = calibration.stated(text)
    texts.append(text)
    confidences.append(confidence)
  examples = [e for e, _ in local for _ in range(settings.samples)]
  verdicts = eval_set.verify(examples, texts)
  records = []
  for i, ((example, _), group) in enumerate(zip(local, groups, strict=True)):
    rows = slice(i * settings.samples, (i + 1) * settings.samples)
    records.append(record(settings, example, group, verdicts[rows], confidences[rows]))
  return distributed.gather_shards(records, len(prompts))


def complete_batches(path, batch: int, total: int) -> int:
  """How many problems of a file are done. Removes those of an incomplete batch, so
  that batches hold the same problems after a resumption."""
  if not path.exists():
    return 0
  lines = path.read_text().split("\n")
  done = len(lines) - 1  # the last newline is followed by nothing, or a torn line
  if done < total:
    done -= done % batch
  if lines[done:] != [""]:
    paths.write_whole(path, "".join(f"{line}\n" for line in lines[:done]))
  return done


def append(path, records) -> None:
  text = "".join(paths.to_json(r) + "\n" for r in records)
  if paths.is_remote(path):  # an object cannot be appended to
    text = (path.read_text() if path.exists() else "") + text
    paths.write_whole(path, text)
    return
  with path.open("a") as f:
    f.write(text)


def settings_file(model: EvaluatedModel, settings: EvalSettings, sets, prompts) -> dict:
  """The content of settings.json: everything that decides the completions, and
  under `summary` what only decides how they are summarised.

  `prompts` are `build_prompts` of each of the sets.
  """
  fields = settings._asdict()
  fields |= fields.pop("sampling")._asdict()  # one flat table in the file
  bins, resamples = fields.pop("bins"), fields.pop("resamples")
  outer = {k: fields.pop(k) for k in ("template", "confidence", "batch", "slots")}

  def digest(kept):
    return hashlib.sha256(
      json.dumps([(e.id, e.question, e.answer, ids) for e, ids in kept]).encode()
    ).hexdigest()

  return {
    "date": model.tokenizer.date.isoformat(),
    "model": model.about,
    **outer,
    "template_args": model.template_args,
    "sampling": fields | {"stop": list(settings.stop)},
    "sets": {
      s.name: s.about
      | {"problems": len(kept), "dropped": dropped, "sha256": digest(kept)}
      for s, (kept, dropped) in zip(sets, prompts, strict=True)
    },
    "summary": {"bins": bins, "resamples": resamples, "seed": settings.seed},
  }


def evaluate(model: EvaluatedModel, sets, workdir, settings: EvalSettings) -> dict:
  """Answers all sets, or the rest of them, and returns the summary.

  Raises ValueError for bad settings, and for a workdir with other settings.
  """
  validate(settings)
  settings = settings._replace(template=settings.template or model.template)
  names = [s.name for s in sets]
  if not sets or len(set(names)) < len(names):
    raise ValueError(f"sets are named {names}, expected one or more, each once")
  workdir = paths.open_workdir(workdir)
  prompts = [build_prompts(model, settings, s) for s in sets]
  about = settings_file(model, settings, sets, prompts)
  with (
    jax.set_mesh(model.mesh),
    workdirs.exclusive(workdir),
    distributed.ending_with_others(),
  ):
    distributed.broadcast_from_first(lambda: workdirs.write_settings(about, workdir))
    for eval_set, (kept, _) in zip(sets, prompts, strict=True):
      answer_set(model, settings, eval_set, kept, workdir / f"{eval_set.name}.jsonl")
  found = distributed.broadcast_from_first(lambda: summary.summarise(workdir))
  for name, of_set in found["sets"].items():
    warning = self_checks.truncated(of_set["truncated"]["value"], "max_new_tokens")
    if warning and distributed.is_first():
      print(f"warning, {name}: {warning}", file=sys.stderr, flush=True)
  return found


def answer_set(model, settings: EvalSettings, eval_set: EvalSet, prompts, path) -> None:
  """Answers the problems of a set that `path` does not hold yet, in batches."""
  total = len(prompts)
  done = distributed.broadcast_from_first(
    lambda: complete_batches(path, settings.batch, total)
  )
  longest_prompt = max(len(ids) for _, ids in prompts)
  shown = distributed.is_first()
  with metrics.progress(
    total, done, eval_set.name, shown=shown, file=sys.stderr
  ) as bar:
    for start in range(done, total, settings.batch):
      batch = prompts[start : start + settings.batch]
      records = answer(model, settings, eval_set, batch, longest_prompt)
      if distributed.is_first():
        append(path, records)
      bar.update(len(records))


# ------------------------------------------------------------- command line


def run_from_flags(
  settings: EvalSettings,
  sets_as_text,
  workdir,
  *,
  model: str | None,
  run_dir,
  dtype: str,
  template_args: str,
  count: int | None,
  task_seed: int | None,
  task,
  compile_cache: str,
  verify: dict,
) -> dict:
  """`evaluate` with everything given as text, for experiments/evaluate.py.

  Settings and sets are checked before a model is loaded.

  Args:
    sets_as_text: --set flags, see `eval_sets.parse`.
    model, run_dir, dtype, template_args: see `evaluated_model.load`.
    count, task_seed: of a task's problems; None: see `eval_sets.held_out`.
    task: config.task, the defaults of count and task_seed.
    compile_cache: directory of compiled programs, "" for none.
    verify: config.verify, the limits of the verifier's processes.
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

  sets, trained = [], eval_sets.training_questions(run_dir)
  for spec in map(eval_sets.parse, sets_as_text):
    number, seed = count, None  # of a file
    if not spec.task:
      number, seed = eval_sets.held_out(run_dir, task, spec.source, count, task_seed)
    opened = eval_sets.open_set(
      spec, count=number, seed=seed, open_verifier=open_verifier
    )
    if spec.task:
      opened.about["unverifiable"] = audit.count_unverifiable(
        opened.verify, opened.examples, spec.task, spec.source
      )
    if trained is not None:
      questions = [tasks.normalize_question(e.question) for e in opened.examples]
      opened.about["in_training"] = sum(text in trained for text in questions)
    sets.append(opened)
  began_in = [paths.open_workdir(x) for x in (workdir, run_dir) if x]
  date = workdirs.date_of(*began_in)
  loaded = evaluated_model.load(model, run_dir, dtype, template_args, date)
  return evaluate(loaded, sets, workdir, settings)
