"""The order of training, gone on from wherever a run was interrupted."""

import contextlib
import itertools
import json
import types

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax import setup, train
from opsd_jax.data import order as data_order
from opsd_jax.rollouts import collect
from opsd_jax.runtime import checkpoint
from opsd_jax.structs import Completion, Example, Prompts, Rollout, State
from tests.data import files
from tests.data.files import tiny, write
from tests.runtime import distributed_test


def test_an_epoch_visits_every_problem_once():
  order = data_order.endless(range(10), 0)
  seen = data_order.draw(order, 40)
  epochs = [seen[i : i + 10] for i in range(0, 40, 10)]
  assert all(sorted(e) == list(range(10)) for e in epochs)
  assert len({tuple(e) for e in epochs}) == 4
  assert seen == data_order.draw(data_order.endless(range(10), 0), 40)
  # Not another seed's order an epoch later either.
  other = data_order.draw(data_order.endless(range(10), 1), 40)
  assert not any(other[i : i + 10] in epochs for i in range(0, 40, 10))


@given(st.integers(30, 60), st.lists(st.integers(0, 40), max_size=4))
def test_a_saved_state_goes_on_after_any_draws(count, draws):
  order = data_order.endless(range(count), 3)
  for n in draws:  # as many as a method likes
    data_order.draw(order, n)
  saved = json.loads(json.dumps(data_order.save(order, "digest")))
  other = data_order.endless(range(count), 3)
  data_order.restore(other, "digest", saved)
  assert data_order.draw(other, 40) == data_order.draw(order, 40)
  with pytest.raises(ValueError, match="content of data.train or data.eval"):
    data_order.restore(other, "another", saved)


def test_the_digest_sees_every_text():
  def asked(**kw):
    fields = {"id": "1", "question": "q", "solution": "s", "answer": "a"}
    return Prompts(Example(**fields | kw), ((),))

  made = [[asked()], [asked()] * 2]
  made += [[asked(**{n: "x"})] for n in ("id", "question", "solution", "answer")]
  assert len({data_order.digest(problems) for problems in made}) == 6
  a, b = made[0], made[1]
  assert data_order.digest(a, b) != data_order.digest(a + b[:1], b[1:])


# --------------------------------------------------------------------- runs


class Stopped(Exception):
  pass


def session(scratch, name: str, stop: int = 0) -> None:
  """A tiny run that is cut short when step `stop` draws, or its resumption.

  What a step learns from goes to a file, by id. Each step draws three problems
  more than it uses, as a method may. Left out is what takes time and has no
  part in this: the sampler (responses are the solutions) and evaluations.
  """
  plain, path = data_order.draw, scratch / f"{name}.{jax.process_index()}"
  steps = itertools.count(1)

  def draw(order, count):
    if next(steps) == stop:
      raise Stopped
    problems, _ = plain(order, count), plain(order, 3)
    return problems

  def collated(config, run, groups, step):
    with path.open("a") as f:
      f.write(json.dumps([r.prompts.example.id for g in groups for r in g]) + "\n")
    return as_it_was(config, run, groups, step)

  as_it_was = collect.make_batch
  blind = types.SimpleNamespace(
    evaluate_base=lambda *_: None, evaluate=lambda *_: None, samples_dir=scratch
  )
  config = tiny(scratch)
  config.rollout.source = "dataset"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(data_order, "draw", draw)
    patch.setattr(collect, "make_batch", collated)
    patch.setattr(train.in_training, "Evaluator", lambda *_, **__: blind)
    patch.setattr(train.console, "finish", lambda *_: {})
    with pytest.raises(Stopped) if stop else contextlib.nullcontext():
      train.train_and_evaluate(config, scratch / name)


def consumed(scratch, name: str, index: int = 0) -> list[list[str]]:
  """What each step learnt from, by session."""
  lines = (scratch / f"{name}.{index}").read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
  """A directory in which an uninterrupted run has been."""
  scratch = tmp_path_factory.mktemp("runs")
  session(scratch, "whole")
  steps = consumed(scratch, "whole")
  assert len(steps) == 4 and len(steps[0]) == 8
  assert len(set(steps[0])) == 8 and set(steps[0]) != set(steps[1])
  return scratch


def test_an_interrupted_run_repeats_and_skips_nothing(scratch):
  whole = consumed(scratch, "whole")
  session(scratch, "cut", stop=4)
  assert consumed(scratch, "cut") == whole[:3]
  session(scratch, "cut")  # from the checkpoint after step 2, in mid-epoch
  assert consumed(scratch, "cut") == whole[:3] + whole[2:]


def test_other_content_than_the_checkpoints_is_refused(scratch):
  session(scratch, "other", stop=4)
  path = scratch / "p.jsonl"
  content = path.read_text()
  try:
    with pytest.MonkeyPatch.context() as patch:

      def changed(path):
        return write(path, *content.encode().splitlines()[1:])

      patch.setattr(files, "problems_file", changed)
      with pytest.raises(ValueError, match="prompts: .* there"):
        session(scratch, "other")
  finally:
    path.write_text(content)


SESSION = """
import pathlib, sys
from opsd_jax.runtime import distributed
port, index, scratch = sys.argv[1:]
distributed.start(f"127.0.0.1:{port}", 2, int(index))
from tests.data import order_test
order_test.session(pathlib.Path(scratch), "two", stop=4)
order_test.session(pathlib.Path(scratch), "two")
"""


def test_two_processes_repeat_and_skip_nothing(scratch):
  whole = consumed(scratch, "whole")
  port = str(distributed_test.free_port())
  ended = distributed_test.end(
    [
      distributed_test.launch(["-c", SESSION, port, str(i), str(scratch)], 4)
      for i in (0, 1)
    ]
  )
  assert [status for status, *_ in ended] == [0, 0], ended
  first, second = (consumed(scratch, "two", i) for i in (0, 1))
  assert {len(ids) for ids in first + second} == {4}
  together = [a + b for a, b in zip(first, second, strict=True)]
  assert together == whole[:3] + whole[2:]


def test_a_checkpoint_of_the_earlier_layout_is_refused(tmp_path):
  state = State(jnp.int32(3), {"w": jnp.ones(2)}, (), ())
  shapes = jax.eval_shape(lambda: state)
  layout = jax.tree.map(lambda x: x.sharding, state)
  manager = checkpoint.open_manager(tmp_path / "old", keep=1)
  manager.save(3, args=ocp.args.StandardSave(state._asdict()))
  manager.wait_until_finished()
  with pytest.raises(ValueError, match="no 'state': .* earlier version"):
    checkpoint.restore(manager, 3, shapes, layout)
  with pytest.raises(ValueError, match="no 'state'"):
    checkpoint.restore_params(tmp_path / "old", lambda s: layout.params)
  manager.close()
  manager = checkpoint.open_manager(tmp_path / "new", keep=1)
  checkpoint.save(manager, state)
  manager.wait_until_finished()
  assert int(checkpoint.restore(manager, 3, shapes, layout).step) == 3
  with pytest.raises(ValueError, match="no 'iterator'"):
    checkpoint.restore_iterator_state(manager, 3)
  manager.close()


def test_student_rows_never_hold_the_solution(tmp_path):
  run = setup.prepare(config := tiny(tmp_path))
  assert len(run.train) == 11
  reply = Completion("ok", tuple(run.tokenizer.encode("ok")), None, False)
  groups = [[Rollout(p, reply, p.views)] for p in run.train]
  batch = collect.make_batch(config, run, groups)

  def text(view):
    return run.tokenizer.decode(view.ids_RxL.reshape(-1), False)

  assert text(batch.views[0]).count("Which is larger") == 11
  assert "canary" not in text(batch.views[0])
  assert text(batch.views[1]).count("canary") == 11
