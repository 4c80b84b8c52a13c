"""A killed evaluation resumes to the same end; other settings are refused."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from configs import base, opsd
from opsd_jax import structs, tasks
from opsd_jax.evaluation import eval_sets, evaluated_model, harness, summary
from opsd_jax.models import families, lora
from opsd_jax.runtime import checkpoint, workdir
from opsd_jax.sampling.tokens import SamplingParams
from opsd_jax.structs import Example, Verdict
from tests.holding import held
from tests.models.transformer_test import assert_trees_equal

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = harness.EvalSettings(
  samples=2,
  sampling=SamplingParams(),
  max_new_tokens=6,
  stop=(),
  seed=0,
  template=None,
  confidence="logp",
  batch=3,
  slots=8,
  bins=4,
  resamples=50,
)


@pytest.fixture(scope="module")
def model():
  return evaluated_model.load_model("tiny", "float32")


class Killed(BaseException):
  pass


class Verifier:
  """Records its examples; raises at one call."""

  def __init__(self, dies_at=None):
    self.seen, self.calls, self.dies_at = [], 0, dies_at

  def __call__(self, examples, texts):
    self.calls += 1
    if self.calls == self.dies_at:
      raise Killed
    self.seen += [e.id for e in examples]
    return [Verdict(float(len(t) % 2), t[:1] if len(t) % 3 else None) for t in texts]


def make_set(verify, count=8, name="some"):
  examples = tuple(
    Example(str(i), f"What is {i} + {i}?", None, str(2 * i)) for i in range(count)
  )
  return eval_sets.EvalSet(name, examples, verify, {"source": "memory", "task": "none"})


def run(model, path, *verifiers, **changes):
  sets = [make_set(v, name=f"set{i}") for i, v in enumerate(verifiers)]
  return harness.evaluate(model, sets, path, SETTINGS._replace(**changes))


def contents(path):
  return {p.name: p.read_bytes() for p in path.iterdir() if p.suffix != ".png"}


def test_a_killed_evaluation_ends_as_an_uninterrupted_one(model, tmp_path):
  whole = run(model, tmp_path / "whole", Verifier(), Verifier())
  path = tmp_path / "killed"
  first, second = Verifier(), Verifier(dies_at=2)
  with pytest.raises(Killed):
    run(model, path, first, second)
  with (path / "set1.jsonl").open("a") as f:  # a batch torn in its writing
    f.write((tmp_path / "whole" / "set1.jsonl").read_text().split("\n")[3])
    f.write('\n{"id": "4", "repl')
  again = Verifier(), Verifier()
  assert run(model, path, *again) == whole
  assert contents(path) == contents(tmp_path / "whole")
  assert first.seen == [str(i) for i in range(8) for _ in range(2)]
  assert second.seen + again[1].seen == first.seen and not again[0].seen
  # and once more there is nothing to do
  third = Verifier()
  assert run(model, path, third, third) == whole and not third.calls


def test_every_completion_is_kept(model, tmp_path):
  summary = run(model, tmp_path, Verifier())
  lines = (tmp_path / "set0.jsonl").read_text().splitlines()
  problems = [json.loads(line) for line in lines]
  assert [p["id"] for p in problems] == [str(i) for i in range(8)]
  assert set(problems[0]) == {"id", "question", "answer", "completions"}
  for i, reply in enumerate(problems[5]["completions"]):
    assert (reply["sample"], reply["seed"]) == (i, 0)
    assert reply["truncated"] == (reply["tokens"] == 6)
    # a model of random weights is all but uniform over 320 tokens
    assert reply["logp"] / reply["tokens"] == pytest.approx(-5.77, abs=0.3)
    assert reply["score"] == len(reply["text"]) % 2
  texts = [r["text"] for p in problems for r in p["completions"]]
  assert len(set(texts)) == 16
  assert summary["sampling"] == {
    "samples": 2,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "max_new_tokens": 6,
    "stop": [],
    "seed": 0,
  }
  assert summary["model"] == {
    "source": "tiny",
    "dtype": "float32",
    "weights": model.about["weights"],
    "sizes": families.digest(model.model_config),
    "tokenizer": model.tokenizer.digest(),
  }
  correct = sum(r["score"] for p in problems for r in p["completions"])
  assert summary["sets"]["set0"]["avg@2"]["value"] == correct / 16
  assert (tmp_path / "set0_logp.png").stat().st_size > 1000


def test_a_seed_decides_the_completions_and_a_batch_does_not(model, tmp_path):
  def texts(path):
    return [
      r["text"]
      for line in (path / "set0.jsonl").read_text().splitlines()
      for r in json.loads(line)["completions"]
    ]

  for name, changes in (("a", {}), ("b", {"batch": 5}), ("c", {"seed": 1})):
    run(model, tmp_path / name, Verifier(), **changes)
  a, b, c = (texts(tmp_path / name) for name in "abc")
  assert a == b and not set(a) & set(c)


def test_other_settings_are_refused_and_other_summaries_are_not(model, tmp_path):
  run(model, tmp_path, Verifier())
  with pytest.raises(ValueError, match="temperature: 1.0 there, 0.5 now"):
    run(model, tmp_path, Verifier(), sampling=SamplingParams(0.5))
  with pytest.raises(ValueError, match="sets.set1.problems: None there, 8 now"):
    run(model, tmp_path, Verifier(), Verifier())
  other = make_set(Verifier(), name="set0")
  changed = other.examples[0].__class__("0", "Another?", None, "0")
  other = other._replace(examples=(changed, *other.examples[1:]))
  with pytest.raises(ValueError, match="set0.sha256"):
    harness.evaluate(model, [other], tmp_path, SETTINGS)
  verifier = Verifier()
  run(model, tmp_path, verifier, bins=7)
  assert not verifier.calls


def test_a_prompt_that_does_not_fit_is_counted(model, tmp_path):
  long = Example("long", "x" * 3000, None, "1")
  forged = Example("forged", "<|im_end|>", None, "1")
  good = make_set(Verifier(), 2)
  chosen = good._replace(examples=(long, forged, *good.examples))
  summary = harness.evaluate(model, [chosen], tmp_path, SETTINGS)
  assert summary["sets"]["some"]["problems"] == 2
  assert summary["sets"]["some"]["dropped"] == {
    "a prompt is longer than 2042 tokens": 1,
    "its text holds a control token": 1,
  }
  with pytest.raises(ValueError, match="no prompt is left"):
    chosen = good._replace(examples=(long,))
    harness.evaluate(model, [chosen], tmp_path / "none", SETTINGS)


def test_a_stated_confidence_is_requested_and_not_verified(
  model, tmp_path, monkeypatch
):
  prompts, verified = [], []

  def complete(*args, **keywords):
    prompts.extend(args[3])
    texts = ("It is 7.\nConfidence: 80%", "It is 8.")
    return [
      [structs.Completion(t, (5, 6), (-1.0, -2.0), False) for t in texts]
      for _ in args[3]
    ]

  def verify(examples, texts):
    verified.extend(texts)
    return [Verdict(float("7" in t), t) for t in texts]

  monkeypatch.setattr(harness.answering, "complete", complete)
  summary = run(model, tmp_path, verify, confidence="stated")
  assert "Confidence: N%" in model.tokenizer.decode(prompts[0])
  assert verified[:2] == ["It is 7.\n", "It is 8."]
  found = summary["sets"]["set0"]["calibration"]
  assert found["stated"]["without"] == 0.5 and found["stated"]["completions"] == 8
  assert found["stated"]["brier"]["value"] == pytest.approx(0.2**2)
  assert found["logp"]["without"] == 0


@pytest.mark.parametrize(
  "changes,words",
  [
    ({"samples": 0}, "samples is 0"),
    ({"sampling": SamplingParams(top_p=0.0)}, "top_p"),
    ({"sampling": SamplingParams(0.0)}, "set samples to 1"),
    ({"template": "no"}, "unknown"),
    ({"confidence": "felt"}, "logp, stated"),
    ({"stop": ("",)}, "stop is"),
  ],
)
def test_bad_settings_are_one_line(changes, words):
  with pytest.raises(ValueError, match=words) as e:
    harness.validate(SETTINGS._replace(**changes))
  assert "\n" not in str(e.value)


def test_one_of_model_and_run():
  for model, run in ((None, None), ("tiny", "runs/x")):
    with pytest.raises(ValueError, match="expected one of them"):
      evaluated_model.load(model, run, "float32")
  with pytest.raises(ValueError, match="dtype is 'float8', known: float32"):
    evaluated_model.load("tiny", None, "float8")
  with pytest.raises(ValueError, match="expected a directory and at least one"):
    harness.run_from_flags(
      SETTINGS,
      [],
      "w",
      model="tiny",
      run_dir=None,
      dtype="float32",
      template_args="",
      count=1,
      task_seed=None,
      task=DEFAULTS,
      compile_cache="",
      verify={},
    )


# ---------------------------------------------------------- a training run


def write_run(path, params, rank=0, task=None, data=None):
  config = opsd.get_config("tiny").to_dict()
  config["lora"]["rank"], config["task"]["seed"] = rank, 3
  config["task"] |= task or {}
  config["data"] |= data or {}
  workdir.write_config(ConfigDict(config), path)
  manager = checkpoint.open_manager(path / "checkpoints", keep=1)
  memory = {"of_all": jnp.zeros(3)}
  checkpoint.save(manager, structs.State(jnp.int32(2), params, memory, memory))
  manager.close()
  return path


@pytest.mark.parametrize("rank", [0, 4])
def test_a_run_is_evaluated_with_the_weights_that_it_trained(model, tmp_path, rank):
  tree = jax.tree.map(lambda x: x + 1, model.params)
  if rank:
    tree = lora.init(model.params, key=jax.random.key(0), targets="q_proj", rank=rank)
  path = write_run(tmp_path / "run", tree, rank)
  trained = evaluated_model.load_run(path)
  assert trained.about == {
    "source": "tiny",
    "dtype": "float32",
    "run": str(path),
    "step": 2,
    "weights": checkpoint.fingerprint(tree_of(model, tree, rank), trained.mesh),
    "sizes": families.digest(trained.model_config),
    "tokenizer": trained.tokenizer.digest(),
  }
  assert trained.about["weights"] != model.about["weights"]
  assert trained.template == "short" and trained.template_args == {}
  assert_trees_equal(trained.params, tree_of(model, tree, rank))


def tree_of(model, tree, rank):
  return lora.join(model.params, tree) if rank else tree


DEFAULTS = base.get_config().task  # 256 problems of seed 0


def test_a_run_is_evaluated_on_what_its_training_held_out(model, tmp_path):
  path, task = write_run(tmp_path / "run", model.params), "largest_number"
  assert eval_sets.held_out(path, DEFAULTS, task, None, None) == (8, 3)
  assert eval_sets.held_out(path, DEFAULTS, task, 5, None) == (5, 3)
  assert eval_sets.held_out(path, DEFAULTS, task, 9, 4) == (9, 4)  # of another seed
  assert eval_sets.held_out(path, DEFAULTS, "reasoning_gym:x", None, None) == (256, 3)
  assert eval_sets.held_out(None, DEFAULTS, task, None, None) == (256, 0)
  assert (
    eval_sets.held_out(None, DEFAULTS, task, 0, 1)
    == eval_sets.held_out(path, DEFAULTS, task, 0, 1)
    == (0, 1)
  )
  with pytest.raises(ValueError, match="9 problems of .* held out 8"):
    eval_sets.held_out(path, DEFAULTS, task, 9, None)


def test_an_evaluation_of_other_weights_is_refused(model, tmp_path):
  run(model, tmp_path / "a", Verifier())
  about = model.about | {"weights": "0"}
  with pytest.raises(ValueError, match="model.weights"):
    run(model._replace(about=about), tmp_path / "a", Verifier())


def test_the_problems_of_a_task_are_those_that_training_held_out():
  held_out = tasks.load(
    "largest_number", train_count=9, eval_count=8, seed=3, privileged_field="answer"
  ).eval
  chosen = eval_sets.open_set(
    eval_sets.parse("largest_number"), count=8, seed=3, open_verifier=lambda task: None
  )
  assert chosen.examples == held_out


def test_two_at_once_in_a_workdir_are_refused(model, tmp_path):
  with held(tmp_path / ".lock"):
    with pytest.raises(ValueError, match="another process is at work in"):
      run(model, tmp_path, verifier := Verifier())
  assert not verifier.calls and not (tmp_path / "settings.json").exists()
  run(model, tmp_path, verifier)  # the lock went with its process
  assert len(verifier.seen) == 8 * SETTINGS.samples


def test_questions_that_the_run_has_trained_on_are_counted(model, tmp_path):
  def file(name, *questions):
    rows = [{"problem": q, "solution": "So 2.", "answer": "2"} for q in questions]
    (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(tmp_path / name)

  # "b?" is an evaluation question of the run, so its training has dropped it
  train = file("train.jsonl", "What is that?", "b?", "c?")
  data = {"train": train, "eval": file("eval.jsonl", "b?", "d?")}
  path = write_run(tmp_path / "run", model.params, task={"name": "maths"}, data=data)
  path_of_set = file("asked.jsonl", "What  is\nThat?", "b?", "c?", "d?", "e?")
  config = base.get_config()

  def evaluate(name, **which):
    return harness.run_from_flags(
      SETTINGS,
      [f"asked={path_of_set}"],
      tmp_path / name,
      dtype="float32",
      template_args="",
      count=None,
      task_seed=None,
      task=DEFAULTS,
      compile_cache=config.compile_cache,
      verify=config.verify.to_dict(),
      **which,
    )["sets"]

  found = evaluate("a", model=None, run_dir=path)
  assert (found["asked"]["in_training"], found["asked"]["problems"]) == (2, 5)
  assert ["in", "training", "2"] in [
    line.split() for line in summary.table(found).splitlines()
  ]
  assert "in_training" not in evaluate("b", model="tiny", run_dir=None)["asked"]
  pathlib.Path(train).unlink()
  assert eval_sets.training_questions(path) is None


# ------------------------------------------------------------- command line


def command(*args):
  return subprocess.run(
    [sys.executable, "-m", "experiments.evaluate", *map(str, args)],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


def test_the_command_compares_a_run_with_itself(model, tmp_path):
  a = tmp_path / "opsd,seed=0"  # as a sweep names its cells
  run(model, a, Verifier())
  done = command("--resamples=100", "--compare", a, a)
  assert done.returncode == 0, done.stderr
  rows = [line.split("  ") for line in done.stdout.splitlines()]
  cells = {r[0]: r[-1].strip() for r in rows if len(r) > 1}
  assert cells["avg"] == cells["pass@2"]
  assert re.fullmatch(r"0\.000 \[-(0\.\d+), \1\] p=1", cells["avg"])
  assert "all settings are the same" in done.stdout


def test_the_command_ends_a_wrong_flag_in_one_line(tmp_path):
  done = command(
    "--model=tiny", "--set=a=absent.jsonl", "--set=b", f"--workdir={tmp_path / 'w'}"
  )
  [line] = done.stderr.splitlines()
  assert done.returncode == 1 and line.startswith("error: ")
  assert not (tmp_path / "w").exists()
