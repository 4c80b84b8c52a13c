"""Data files that the tests of this folder read."""

import json

from configs import opsd
from opsd_jax.data import sources

GOOD = b'{"problem": "1 + 1?", "solution": "It is 2.", "answer": "2", "id": "a"}'


def write(path, *lines) -> str:
  path.write_bytes(b"\n".join(lines) + b"\n")
  return str(path)


def row(**fields) -> bytes:
  base = {"problem": "2 + 2?", "solution": "It is 4.", "answer": "4", "id": "b"}
  return json.dumps({**base, **fields}).encode()


def without(name) -> bytes:
  fields = {k: v for k, v in json.loads(row()).items() if k != name}
  return json.dumps(fields).encode()


def load(source, skip_bad=0, **columns):
  return sources.load(str(source), sources.Columns(**columns), skip_bad=skip_bad)


WORKED = "48/2 = <<48/2=24>>24 in May.\nSo 48+24 = <<48+24=72>>72.\n#### 1,072"

CANARY = "canary-{}-yranac"


def problems_file(path, count=11) -> str:
  """The tiny run draws 8 a step: 11 problems put every step in mid-epoch."""

  def problem(i):
    return {
      "problem": f"Which is larger, {i} or {i + 1}?",
      "answer": i + 1,
      "solution": CANARY.format(i),
    }

  return write(path, *(json.dumps(problem(i)).encode() for i in range(count)))


def tiny(scratch):
  config = opsd.get_config("tiny")
  config.data.train = problems_file(scratch / "p.jsonl")
  config.compile_cache = str(scratch / "programs")
  config.log.tensorboard = False
  return config
