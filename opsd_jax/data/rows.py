"""Rows of a data file -> Examples, or the place and the fault of a bad row.

jsonl       {"problem": ..., "solution": ..., "answer": ..., "id": ...}
GSM8K       {"question": ..., "answer": "48/2 = <<48/2=24>>24 ...\n#### 72"}
MATH        {"problem": ..., "solution": "... so it is $\\boxed{\\frac12}$."}
AIME, AMC   {"problem": ..., "answer": 204}
"""

import collections
import dataclasses
import hashlib
import json
import math
import re
from typing import NamedTuple

from opsd_jax.data import columns as data_columns
from opsd_jax.data.columns import CONTEXT, MISSING, Columns, chat, clip, lookup
from opsd_jax.structs import Example
from opsd_jax.tasks import normalize_question
from opsd_jax.tasks.grading import algebra, answers, extract

MAX_LINE = 4_000_000  # bytes; a longer line means a damaged file
SHOWN = 5  # bad rows named in an error

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab, LF
SURROGATE = re.compile(r"[\ud800-\udfff]")
FINAL = re.compile(r"^####[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
CALCULATOR = re.compile(r"<<[^<>\n]*>>")
# What NuminaMath has in place of an answer, without spaces.
NO_ANSWERS = ("proof", "notfound")
CHATS_READ = (["user"], ["assistant"], ["user", "assistant"])


class Literal(float):
  """A number whose text is the file's own, digit by digit."""

  def __new__(cls, text):
    value = super().__new__(cls, text)
    value.text = text
    return value

  def __str__(self):
    return self.text


class Loaded(NamedTuple):
  """A source's examples, its bad rows, and what its good rows hold besides."""

  examples: tuple[Example, ...]
  dropped: dict[str, int]  # reason -> rows
  not_read: dict[str, int] = {}  # parts of a column that no field takes -> count


class Bad(ValueError):
  """A bad row: `reason`, by which such rows are counted, and its details."""

  def __init__(self, reason: str, details: str = ""):
    super().__init__(f"{reason}: {details}" if details else reason)
    self.reason = reason


# ------------------------------------------------------------------- lines


def read_jsonl(path, f):
  """Yields ("path:line", object or Bad) of every line that is not blank; `f` is the
  open file of this path."""
  for number, line in enumerate(lines(f), 1):
    try:
      row = parse(line)
    except Bad as e:
      row = e
    if row is not None:
      yield f"{path}:{number}", row


def lines(f):
  """Lines of bytes; a line longer than MAX_LINE is cut there."""
  while line := f.readline(MAX_LINE + 1):
    yield line
    while line and not line.endswith(b"\n"):
      line = f.readline(MAX_LINE + 1)


def parse(line: bytes) -> dict | None:
  """The object on a line, None on a blank one; raises Bad. A byte order mark at
  the beginning is no part of it."""
  if len(line) > MAX_LINE and not line.endswith(b"\n"):
    raise Bad(f"a line of more than {MAX_LINE:,} bytes")
  try:
    text = line.decode()
  except UnicodeDecodeError as e:
    raise Bad("bad UTF-8", f"byte {line[e.start]:#04x} at {e.start}") from e
  text = text.removeprefix("\ufeff").strip(" \t\r\n")
  if not text:
    return None
  try:
    row = DECODER.decode(text)
  except Bad:
    raise
  except (ValueError, RecursionError) as e:
    raise Bad("invalid JSON", str(e)) from e
  return check_object(row)


def check_object(row) -> dict:
  if not isinstance(row, dict):
    raise Bad("no object", f"a {type(row).__name__}, expected {{...}}")
  return row


def unique_keys(pairs) -> dict:
  row = dict(pairs)
  if len(row) < len(pairs):
    names = collections.Counter(name for name, _ in pairs)
    raise Bad("a key twice", clip(repr(names.most_common(1)[0][0])))
  return row


def no_constant(name: str):
  raise Bad("invalid JSON", f"{name} is no JSON")


DECODER = json.JSONDecoder(
  object_pairs_hook=unique_keys, parse_constant=no_constant, parse_float=Literal
)


# ------------------------------------------------------------------ fields


def read_text(row: dict, column: str, number: bool = False) -> str:
  """The text in a column, unchanged; raises Bad. `number`: numbers are text too."""
  return check_text(column, lookup(row, column), number)


def check_text(column: str, value, number: bool = False) -> str:
  """The value of a column if it is text; raises Bad."""
  if value is MISSING:
    raise Bad(f"column {column!r}: missing")
  is_number = type(value) is int or (isinstance(value, float) and math.isfinite(value))
  if number and is_number:
    value = str(value)
  if not isinstance(value, str):
    kind = "null" if value is None else f"a {type(value).__name__}"
    kind = "an empty list" if value == [] else kind
    raise Bad(f"column {column!r}: not text", f"{kind}, expected text")
  for fault, pattern in (("control character", CONTROL), ("lone surrogate", SURROGATE)):
    if found := pattern.search(value.replace("\r\n", "\n")):
      raise Bad(
        f"column {column!r}: {fault}", f"U+{ord(found[0]):04X} at {found.start()}"
      )
  if not value.strip():
    raise Bad(f"column {column!r}: empty")
  return value


def read_turns(column: str, turns) -> dict:
  """{role: text} of a chat of one question and at most one reply; raises Bad."""
  asked = [(role, text) for role, text in turns if role != "system"]
  if [role for role, _ in asked] not in CHATS_READ:
    roles = data_columns.list_names(role for role, _ in asked)
    raise Bad(
      f"column {column!r}: several turns",
      f"{roles}; expected user, or user and assistant",
    )
  return dict(asked)


def read_problem(row: dict, columns: Columns, not_read) -> str:
  """The question: a text, or the user's turn of a chat, of which the other turns are
  counted. OlympiadBench keeps the beginning of some apart."""
  column, value = columns.problem, lookup(row, columns.problem)
  if (turns := chat(value)) is not None:
    texts = read_turns(column, turns)
    not_read["system turns"] += any(role == "system" for role, _ in turns)
    not_read["replies"] += "assistant" in texts and columns.solution != column
    value = texts.get("user", MISSING)
  text = check_text(column, value)
  begin = row.get(CONTEXT) if "final_answer" in row and column == "question" else None
  has_begin = isinstance(begin, str) and begin.strip()
  return f"{read_text(row, CONTEXT)}\n\n{text}" if has_begin else text


def read_solution(row: dict, columns: Columns, not_read) -> str:
  """A text, the assistant's turn of a chat, or the first text of a list, whose
  others are counted."""
  column, value = columns.solution, lookup(row, columns.solution)
  if (turns := chat(value)) is not None:
    return check_text(column, read_turns(column, turns).get("assistant", MISSING))
  if isinstance(value, list) and value:
    not_read["further solutions"] += len(value) - 1
    value = value[0]
  return check_text(column, value)


def read_answer(row: dict, column: str) -> str | None:
  """A text, a number or a list of one; None for what NuminaMath has instead. Several
  answers may be parts or alternatives: raises Bad, as for what is no text."""
  value = lookup(row, column)
  if isinstance(value, list) and value:
    if any(v != value[0] for v in value):
      raise Bad(
        f"column {column!r}: several answers",
        f"{len(value)}, expected one; data.answer={column}.0 takes the first",
      )
    value = value[0]
  text = check_text(column, value, number=True).strip()
  return None if "".join(text.split()).casefold() in NO_ANSWERS else text


# ---------------------------------------------------------------- examples


def read_examples(source: str, rows, columns: Columns, skip_bad: int) -> Loaded:
  """Turns rows into Examples; repeated questions stay.

  Args:
    source: name of the source, for messages.
    rows: ("file:line", object or Bad) of every row.
    columns: the columns to read.
    skip_bad: bad rows that are dropped and counted by reason; more of them raise
      a ValueError that names the first.
  """
  rows, faults, examples = list(rows), [], []
  whole = [row for _, row in rows if not isinstance(row, Bad)]
  columns = data_columns.choose(source, whole, columns) if whole else columns
  worked = is_worked(whole, columns)
  dropped, not_read = collections.Counter(), collections.Counter()
  seen, repeats = {}, collections.Counter()
  for where, row in rows:
    try:
      if isinstance(row, Bad):
        raise row
      example = to_example(row, columns, worked, besides := collections.Counter())
      if columns.id is None:
        example = with_id(example, repeats)
      if (before := seen.setdefault(example.id, where)) != where:
        details = f"{clip(repr(example.id))} is at {before}"
        raise Bad(f"column {columns.id!r}: an id twice", details)
    except Bad as e:
      faults.append(f"{where}: {e}")
      dropped[e.reason] += 1
      continue
    examples.append(example)
    not_read.update(besides)
  if len(faults) > skip_bad:
    hidden = len(faults) - SHOWN
    shown = faults[:SHOWN] + ([f"and {hidden} more"] if hidden > 0 else [])
    raise ValueError(
      f"{source}: {len(faults)} bad rows of {len(rows)}, data.skip_bad allows"
      f" {skip_bad}:\n  " + "\n  ".join(shown)
    )
  if not examples:
    raise ValueError(f"{source} holds no problem and {len(faults)} bad rows")
  return Loaded(tuple(examples), dict(dropped), dict(+not_read))


def is_worked(rows, columns: Columns) -> bool:
  """Whether the answers are worked solutions that end in `#### answer`."""
  if columns.answer is None or columns.solution not in (None, columns.answer):
    return False
  answers = (lookup(row, columns.answer) for row in rows)
  return any(isinstance(a, str) and FINAL.search(a) for a in answers)


def to_example(row: dict, columns: Columns, worked: bool, not_read) -> Example:
  """A row as an Example, its id "" without a column for it; raises Bad."""
  question = read_problem(row, columns, not_read)
  solution = answer = None
  if worked:
    text = read_text(row, columns.answer)
    *_, last = [None, *FINAL.finditer(text)]
    if last is None:
      raise Bad(f"column {columns.answer!r}: no line '#### answer'")
    if not text[: last.start()].strip():
      raise Bad(f"column {columns.answer!r}: empty", "nothing before ####")
    solution, answer = CALCULATOR.sub("", text), last[1].strip()
  else:
    if columns.solution is not None:
      solution = read_solution(row, columns, not_read)
    if columns.answer is not None:
      answer = read_answer(row, columns.answer)
    else:
      answer = final_answer(solution)
  id = "" if columns.id is None else read_text(row, columns.id, number=True)
  rejected = None if columns.rejected is None else read_text(row, columns.rejected)
  return Example(id, question, solution, answer, rejected=rejected)


BETWEEN = re.compile(  # two boxes that answer together: "1 or x = 2"
  r"[\s$,;]*(?:(?:and|or)\b)?[\s$,;]*(?:[a-zA-Z]\s*=\s*)?\$*"
)
ANOTHER = re.compile(r"\banother\b|\bthe other\b")


def final_answer(solution: str) -> str | None:
  """The answer in a solution's last \\boxed{}, without a box in a last line
  `#### answer`; None without either, where the last box does not close, and where it is
  a part of the answer: -\\boxed{3}.

  Boxes that answer together are a list: "x = \\boxed{1} or x = \\boxed{2}" answers 1,
  2. A box of the same value, of a step or of another way to solve is none of them.
  """
  solution = extract.reply(solution)
  boxes = extract.boxes(solution)
  if boxes and boxes[-1][0] is None:
    return None
  filled = [box for box in boxes if not extract.EMPTY.fullmatch(box[0])]
  if not filled:
    last = FINAL.fullmatch(solution.rstrip().rpartition("\n")[2])
    return last[1].strip() if last and not boxes else None
  if extract.is_part(solution, *filled[-1][1:]):
    return None
  found = []
  for i, (content, start, _) in enumerate(filled):
    between = solution[filled[i - 1][2] : start] if i else ""
    if not (BETWEEN.fullmatch(between) or ANOTHER.search(between)):
      found = []
    found = [x for x in found if not answers.compare(content, x, algebra)]
    found.append(content.strip())
  return ", ".join(found)


def with_id(example: Example, repeats) -> Example:
  """The example with a hash of its question as id, whatever its file and line."""
  text = normalize_question(example.question)
  digest = hashlib.sha256(text.encode()).hexdigest()[:16]
  repeats[digest] += 1
  id = digest if repeats[digest] == 1 else f"{digest}-{repeats[digest]}"
  return dataclasses.replace(example, id=id)
