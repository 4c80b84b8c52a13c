"""Replies and references by kinds of difficulty, labelled by hand."""

import pathlib

import pytest

from tests.tasks.verify_only_test import score

FEWEST = 4  # rows of a kind


def kinds() -> dict:
  """{kind: [(task, reference, reply, verdict)]}."""
  found = {}
  lines = pathlib.Path(__file__).with_name("replies.tsv").read_text().splitlines()
  for line in lines[1:]:
    if line.startswith("#"):
      rows = found.setdefault(line.removeprefix("# "), [])
    else:
      task, reference, reply, verdict = line.split("\t")
      rows.append((task, reference, reply.replace("⏎", "\n"), verdict))
  return found


@pytest.mark.parametrize("kind", kinds())
def test_no_reply_of_a_kind_is_misread(kind):
  rows = kinds()[kind]
  verdicts = [verdict for *_, verdict in rows]
  assert len(rows) >= FEWEST and {"same", "different"} == set(verdicts)
  correct = [score(task, reference, reply) == 1 for task, reference, reply, _ in rows]
  wrong = [
    row
    for row, is_correct in zip(rows, correct, strict=True)
    if is_correct != (row[-1] == "same")
  ]
  assert not wrong
