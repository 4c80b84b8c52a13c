"""The study's table and picture, from runs written by hand."""

import json

import pytest

from experiments.largest_number import compare
from opsd_jax.sweeps import run as sweep


def write_run(directory, *, source="student", correct=(1, 1, 0, 1)):
  """A finished run of two steps, as train_and_evaluate leaves it."""
  (directory / "samples").mkdir(parents=True)
  scores = dict(drift=0.1, tokens=9.0, truncated=0.0, sampled_accuracy=0.5)

  def evaluation(step, accuracy):
    return {
      "step": step,
      "eval/accuracy": accuracy,
      "eval/teacher_accuracy": 1.0,
      "eval/teacher_sampled_accuracy": 0.4,
      **{f"eval/{k}": v for k, v in scores.items()},
    }

  rows = [
    evaluation(0, 0.25),
    {
      "step": 1,
      "response_tokens": 70,
      "time/rollout": 40,
      "time/step": 20.2,
      "loss": 2.0,
    },
    {"step": 2, "response_tokens": 50, "time/rollout": 30, "loss": 1.0},
    evaluation(2, sum(correct) / 4),
  ]

  def lines(found):
    return "".join(json.dumps(x) + "\n" for x in found)

  (directory / "metrics.jsonl").write_text(lines(rows))
  samples = lines({"score": s} for s in correct)
  (directory / "samples" / "eval_000002.jsonl").write_text(samples)
  (directory / "samples" / "eval_000000.jsonl").write_text(samples)
  config = {"rollout": {"source": source}}
  (directory / "config.json").write_text(json.dumps(config))
  (directory / "summary.json").write_text(json.dumps({"seconds": 90.2}))
  return directory


def test_a_run_is_gathered_with_the_tokens_that_it_generated(tmp_path):
  run = compare.gather("OPSD", 1, write_run(tmp_path / "a"))
  assert (run["correct"], run["generated_tokens"]) == ("1101", 120)
  assert [e["step"] for e in run["evals"]] == [0, 2]
  assert (run["seconds"], run["teacher"], run["seed"]) == (90, 1.0, 1)
  assert (run["loss"], run["teacher_sampled"]) == (1.0, 0.4)
  of_dataset = write_run(tmp_path / "b", source="dataset")
  assert compare.gather("SFT on the reference", 0, of_dataset)["generated_tokens"] == 0


def test_the_interval_is_over_problems_not_over_seeds(tmp_path):
  """With the same problems correct in all seeds, more seeds narrow nothing."""
  once = compare.gather("GRPO", 0, write_run(tmp_path / "a"))
  value, low, high = compare.interval([once])
  assert (value, compare.interval([once] * 3)) == (0.75, (0.75, low, high))
  assert 0 <= low < 0.75 < high <= 1


def test_the_table_has_a_row_a_method_and_the_base(tmp_path):
  runs = [
    compare.gather("OPSD", 0, write_run(tmp_path / "a")),
    compare.gather("OPSD", 1, write_run(tmp_path / "b", correct=(1, 1, 1, 1))),
    compare.gather("GRPO", 0, write_run(tmp_path / "c", correct=(0, 0, 0, 1))),
  ]
  _, _, base, grpo, opsd = compare.table(runs).splitlines()
  assert base.startswith("| base | 0.250 [0.046, 0.699] |")
  assert grpo.startswith("| GRPO | 0.250 [")
  assert "| 0.250 | -0.500 [" in grpo  # of seed 0 alone: 1101 against 0001
  assert opsd.startswith("| OPSD | 0.875 [")
  assert "| 0.750 1.000 |  | 0.500 | 0.00 | 0.100 | 120 | 1.5 |" in opsd
  compare.draw(runs, tmp_path / "a.png")
  assert (tmp_path / "a.png").stat().st_size > 10_000
  elsewhere = runs[1] | {"device": "a GPU", "seconds": 7}  # no core's minutes
  assert compare.table([runs[0], elsewhere]).endswith("| 120 | 1.5 |")
  assert compare.table([elsewhere]).endswith("| 120 |  |")


def test_every_method_is_a_cell_that_can_run():
  for method in compare.METHODS:
    cells = compare.cells_of(method)
    assert [c.overrides["seed"] for c in cells] == [0, 1, 2]
    assert [c.error for c in cells] == [None] * 3
    assert {
      c.config.steps
      * c.config.rollout.prompts_per_step
      * c.config.rollout.samples_per_prompt
      for c in cells
    } == {640}  # responses


def test_interrupted_it_gathers_what_is_finished(tmp_path, monkeypatch, capsys):
  """Of no other than this config, and not what a kill has torn."""

  def interrupt(cells, workdir):
    raise KeyboardInterrupt

  for seed, cell in enumerate(compare.cells_of("GRPO")):
    there = write_run(tmp_path / cell.name)
    (there / "config.json").write_text(json.dumps(cell.config.to_dict()))
    if seed == 1:
      (there / "summary.json").write_text('{"seconds"')
  monkeypatch.setattr("opsd_jax.sweeps.run.run", interrupt)
  monkeypatch.setattr(compare, "HERE", tmp_path)
  compare.main([f"--workdir={tmp_path}"])
  runs = [json.loads(x) for x in (tmp_path / "methods.jsonl").open()]
  assert [(r["method"], r["seed"]) for r in runs] == [("GRPO", 0), ("GRPO", 2)]
  assert "] | 0.750 0.750 |" in capsys.readouterr().out


def test_a_cell_with_a_result_is_not_trained_again(tmp_path, monkeypatch):
  trained = []

  def run(cells, workdir):
    trained.extend(cell.name for cell in cells)
    return sweep.table(cells, workdir)

  monkeypatch.setattr("opsd_jax.sweeps.run.run", run)
  known = [{"method": "OPSD, JSD", "seed": 1}]
  compare.train("OPSD, JSD", tmp_path, known)
  first, _, last = compare.cells_of("OPSD, JSD")
  assert trained == [first.name, last.name]


def test_checkpoints_of_finished_cells_alone_are_dropped(tmp_path, monkeypatch):
  cells = compare.cells_of("OPSD")[:1] + compare.cells_of("RFT")[:1]
  for cell in cells:
    (tmp_path / cell.name / "checkpoints" / "20").mkdir(parents=True)
    config = json.dumps(cell.config.to_dict())
    (tmp_path / cell.name / "config.json").write_text(config)
  (tmp_path / cells[0].name / "summary.json").write_text('{"seconds": 1}')
  monkeypatch.setattr("opsd_jax.sweeps.run.run", lambda c, w: sweep.table(cells, w))
  compare.train("OPSD, JSD", tmp_path)
  kept = [(tmp_path / c.name / "checkpoints").exists() for c in cells]
  assert kept == [False, True]


def test_studies_of_two_machines_come_together(tmp_path):
  def of(method, *seeds):
    return [
      compare.gather(method, s, write_run(tmp_path / f"{method}{s}")) for s in seeds
    ]

  path = tmp_path / "methods.jsonl"
  compare.keep(path, of("OPSD", 0, 2))
  compare.keep(path, [])
  (newer,) = of("GRPO", 1)
  compare.keep(path, [newer | {"seconds": 1}])
  compare.keep(path, [newer])
  runs = [json.loads(x) for x in path.open()]
  found = [(r["method"], r["seed"], r["seconds"]) for r in runs]
  assert found == [("GRPO", 1, 90), ("OPSD", 0, 90), ("OPSD", 2, 90)]
  assert [r["teacher"] for r in runs] == [None, 1.0, 1.0]
  compare.draw(runs[:1], tmp_path / "a.png")  # no run has a teacher's accuracy


def test_a_method_that_is_none_is_refused():
  with pytest.raises(SystemExit, match="GRPO"):
    compare.main(["--only=grpo"])


def test_without_a_result_it_says_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setattr(compare, "HERE", tmp_path)
  with pytest.raises(SystemExit, match="give --workdir"):
    compare.main([])
