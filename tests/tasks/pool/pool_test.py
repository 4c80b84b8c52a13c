"""Completions that hang, exhaust or crash a worker; a pool that recovers."""

import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax import tasks
from opsd_jax.structs import Example
from opsd_jax.tasks.pool import Pool, codec
from opsd_jax.tasks.pool import pool as pools
from tests import hostile

# A task whose scorer evaluates a reply, and a reply that it takes for ever on.
SLOW = "reasoning_gym:simple_integration"
TOWER = "9**9**9**9"


def example(answer="7", metadata=None, id="0"):
  return Example(id, "what?", None, answer, metadata)


def pool(name="maths", *, count=1, timeout=0.5, memory_mb=1024):
  return Pool(name, "answer", workers=count, timeout=timeout, memory_mb=memory_mb)


def slow_examples(count):
  stream = tasks.open_task(SLOW, "answer").examples("train/0")
  return list(itertools.islice(stream, count))


def children(of=None) -> set[int]:
  """Processes whose parent is `of`, this one unless given."""
  found = set()
  for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      fields = path.read_text().rpartition(")")[2].split()
    except OSError:
      continue
    if int(fields[1]) == (of or os.getpid()):
      found.add(int(path.parent.name))
  return found


def is_gone(pid, within=10.0) -> bool:
  end = time.monotonic() + within
  while time.monotonic() < end:
    try:
      state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
      return True
    if state.split()[0] == "Z":  # nobody is left to collect it
      return True
    time.sleep(0.02)
  return False


# ------------------------------------------------------------ verifying


def test_verdicts_are_the_tasks_own_in_order():
  examples = [example(str(i)) for i in range(500)]
  texts = [f"#### {i - i % 2}" for i in range(500)]
  verify = tasks.open_task("gsm8k", "answer").verify
  expected = [verify(e, t) for e, t in zip(examples, texts, strict=True)]
  with pool("gsm8k", count=3) as p:
    assert p(examples, texts) == expected
    assert p([], []) == []
  assert sum(v.score for v in expected) == 250


def test_threads_take_turns():
  with pool("gsm8k", count=2) as p:
    got = {}

    def ask(k):
      examples = [example(str(i)) for i in range(200)]
      got[k] = p(examples, [f"#### {i * k}" for i in range(200)])

    threads = [threading.Thread(target=ask, args=(k,)) for k in (1, 2, 3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
  assert [sum(v.score for v in got[k]) for k in (1, 2, 3)] == [200, 1, 1]


@pytest.mark.parametrize(
  "name", ["rearc", "graph_color", "knights_knaves", "gsm_symbolic"]
)
def test_metadata_that_json_has_no_words_for(name):
  task = tasks.open_task(f"reasoning_gym:{name}", "answer")
  e = next(e for e in task.examples("train/0") if not survives(e.metadata))
  texts = [e.answer or '{"1": 2}', "nothing"]
  with pool(f"reasoning_gym:{name}", timeout=20) as p:
    assert p([e, e], texts) == [task.verify(e, t) for t in texts]


def survives(value) -> bool:
  try:
    return json.loads(json.dumps(value)) == value
  except TypeError:
    return False


# -------------------------------------------------- hang, swell and crash


def test_hostile_answers_are_wrong_and_leave_nothing():
  before = children()
  assert len(hostile.ALL) >= 30
  texts = [f"so $\\boxed{{{text}}}$" for text in hostile.ALL.values()]
  with pool(count=2, timeout=2) as p:
    verdicts = p([example("x^2-1")] * len(texts), texts)
    assert not [n for n, v in zip(hostile.ALL, verdicts, strict=True) if v.score]
    assert (p.timeouts, p.crashes) == (0, 0)
    assert p([example("7")], ["\\boxed{7}"])[0].score == 1
    assert len(children() - before) == 2
  assert children() == before


def test_a_timeout_is_wrong_and_counted_and_the_others_are_verified():
  examples = slow_examples(40)  # batches of ten
  texts = [e.answer for e in examples]
  texts[2] = texts[4] = TOWER
  with pool(SLOW, timeout=3) as p:
    verdicts = p(examples, texts)
    assert (p.timeouts, p.crashes) == (2, 0)
  assert [i for i, v in enumerate(verdicts) if v.score != 1] == [2, 4]
  assert verdicts[2].feedback == "not verified within 3 s"
  assert verdicts[2].answer is None


def test_a_reply_that_swells_is_wrong():
  with pool("gsm8k") as p:
    p([example("7")], ["7"])
    path = pathlib.Path(f"/proc/{p.workers[0].process.pid}/status")
    size = int(re.search(r"VmSize:\s+(\d+) kB", path.read_text())[1]) // 1024
  text = "1 " * 200_000 + "7"
  for memory_mb, expected in ((size + 20, 0), (size + 200, 1)):
    with pool("gsm8k", timeout=20, memory_mb=memory_mb) as p:
      swollen, short = p([example("7")] * 2, [text, "7"])
      assert (swollen.score, short.score) == (expected, 1)
      assert (f"within {memory_mb} MiB" in swollen.feedback) == (not expected)
      assert (p.timeouts, p.crashes) == (0, 1 - expected)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker_is_replaced(sign):
  with pool("gsm8k", count=2) as p:

    def ask():
      return p([example("7")] * 50, ["#### 7"] * 50)

    ask()
    for worker in list(p.workers):
      os.kill(worker.process.pid, sign)
      assert is_gone(worker.process.pid)
    assert [v.score for v in ask()] == [1] * 50
    assert p.crashes == 0


def test_a_worker_killed_as_it_starts_is_replaced_but_not_for_ever(monkeypatch):
  with pool("gsm8k") as p:
    os.kill(p.workers[0].process.pid, signal.SIGKILL)
    assert p([example("7")], ["#### 7"])[0].score == 1
  monkeypatch.setattr(pools.Worker, "__init__", killed(pools.Worker.__init__))
  with pool("gsm8k") as p:
    with pytest.raises(RuntimeError, match="did not start .return code -9"):
      p([example("7")], ["#### 7"])


def killed(init):
  def made(worker, *how):
    init(worker, *how)
    os.kill(worker.process.pid, signal.SIGKILL)

  return made


def test_a_worker_killed_at_work_costs_one_reply():
  e, *_ = slow_examples(1)
  with pool(SLOW, timeout=30) as p:
    p([e], [e.answer])
    pid = p.workers[0].process.pid
    killer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
    killer.start()
    verdicts = p([e] * 3, [TOWER, e.answer, e.answer])
    killer.join()
    assert [v.score for v in verdicts] == [0, 1, 1]
    assert "died (return code -9)" in verdicts[0].feedback
    assert (p.timeouts, p.crashes) == (0, 1)


def test_a_stopped_worker_is_given_up(monkeypatch):
  monkeypatch.setattr(pools, "GRACE", 0.2)
  with pool("gsm8k") as p:
    p([example("7")], ["#### 7"])
    os.kill(p.workers[0].process.pid, signal.SIGSTOP)
    verdicts = p([example("7")] * 2, ["#### 7"] * 2)
    assert [v.score for v in verdicts] == [0, 1] and p.timeouts == 1
    # also when what it is sent does not fit into its pipe
    os.kill(p.workers[0].process.pid, signal.SIGSTOP)
    verdicts = p([example("7")], [" " * 400_000 + "#### 7"])
    assert verdicts[0].score == 0 and p.timeouts == 2


def test_a_very_long_reply_is_not_sent(monkeypatch):
  monkeypatch.setattr(pools, "LONGEST", 100)
  with pool("gsm8k") as p:
    long, short = p([example("7")] * 2, [" " * 94 + "#### 7 ", " #### 7"])
  assert (long.score, short.score) == (0, 1)
  assert long.feedback == ("not verified: 101 characters, the limit is 100")


# ------------------------------------------------------------- endings

SCRIPT = """
import sys
from opsd_jax import tasks
from opsd_jax.tasks.pool import Pool
example = next(iter(tasks.open_task("{task}", "answer").examples("train/0")))
pool = Pool("{task}", "answer", workers=2, timeout=9, memory_mb=1024)
ask = lambda text: pool([example] * 2, [text] * 2)
ask("7")
print(*(w.process.pid for w in pool.workers), flush=True)
{then}
"""


@pytest.mark.parametrize(
  "then,kill",
  [
    ("pass", False),
    ("raise SystemExit(1)", False),
    ("del pool; input()", False),
    ("input()", True),
    (f"ask({TOWER!r})", True),
  ],
)
def test_workers_end_with_their_parent(then, kill):
  root = str(pathlib.Path(__file__).parents[3])
  parent = subprocess.Popen(
    [sys.executable, "-c", SCRIPT.format(task=SLOW, then=then)],
    text=True,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    cwd=root,
    stderr=subprocess.DEVNULL,
  )
  pids = [int(pid) for pid in parent.stdout.readline().split()]
  assert len(pids) == 2
  if kill:
    time.sleep(0.2)
    parent.kill()
  assert all(map(is_gone, pids))
  parent.stdin.close()
  parent.stdout.close()
  parent.wait()


def test_a_closed_pool_says_so():
  before = children()
  p = pool("gsm8k")
  p.close()
  p.close()
  assert children() == before
  with pytest.raises(RuntimeError, match="closed"):
    p([example()], ["7"])


def test_a_pool_that_nobody_holds_goes():
  before = children()
  p = pool("gsm8k")
  del p
  assert children() == before


# ------------------------------------------------------------- refusals


@pytest.mark.parametrize(
  "name,how,words",
  [
    ("chess", {}, "largest_number"),
    ("gsm8k", {"count": 0}, "workers is 0"),
    ("gsm8k", {"timeout": 0}, "timeout is 0"),
    ("gsm8k", {"memory_mb": -1}, "memory_mb is -1"),
  ],
)
def test_a_pool_that_cannot_be(name, how, words):
  before = children()
  with pytest.raises(ValueError, match=words):
    pool(name, **how)
  assert children() == before


def test_too_little_memory_to_start_is_an_error_not_wrong_answers():
  with pool(memory_mb=20) as p:
    with pytest.raises(RuntimeError, match="did not start(.|\n)*MemoryError"):
      p([example("7")], ["\\boxed{7}"])


def test_a_bad_example_is_an_error_and_the_pool_goes_on():
  with pool("gsm8k") as p:
    with pytest.raises(ValueError, match="example 3 has no answer"):
      p([example(), example(None, id="3")], ["#### 7"] * 2)
    with pytest.raises(TypeError, match="metadata holds a object"):
      p([example(metadata={"a": object()})], ["#### 7"])
    with pytest.raises(ValueError, match="argument 2"):
      p([example()], ["#### 7", "#### 8"])
    assert p([example()], ["#### 7"])[0].score == 1


# ------------------------------------------------------ examples as JSON

keys = st.text(max_size=3) | st.integers() | st.tuples(st.integers(), st.none())
leaves = st.one_of(
  st.none(), st.booleans(), st.integers(), st.text(), st.floats(allow_nan=False)
)
values = st.recursive(
  leaves | st.frozensets(keys) | st.sets(keys),
  lambda v: (
    st.lists(v)
    | st.dictionaries(keys, v)
    | st.tuples(v, v)
    | st.dictionaries(st.just(codec.TAG), v)
  ),
  max_leaves=8,
)


def same(a, b) -> bool:
  """Equal, and of the same types all the way down."""
  if type(a) is not type(b):
    return False
  if isinstance(a, dict):
    return same(list(a.items()), list(b.items()))
  if isinstance(a, (list, tuple)):
    return len(a) == len(b) and all(map(same, a, b))
  return a == b


@given(values)
def test_metadata_comes_back_as_it_was(value):
  line = json.dumps(codec.encode(value))
  assert "\n" not in line
  assert same(codec.decode(json.loads(line)), value)


def test_every_task_of_reasoning_gym_can_be_sent():
  from reasoning_gym import factory

  from opsd_jax.tasks import reasoning_gym

  names = set(factory.DATASETS) - {"composite"}  # made of others, by settings
  assert len(names) > 90
  for name in names:
    entry = reasoning_gym.dataset(name, seed=1, size=1)[0]
    line = json.dumps(codec.encode(entry))
    assert codec.decode(json.loads(line)) == entry, name
