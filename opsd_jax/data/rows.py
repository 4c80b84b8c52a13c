"""Rows of a data file -> Examples, or where and why a row is none.

jsonl       {"problem": ..., "solution": ..., "answer": ..., "id": ...}
GSM8K       {"question": ..., "answer": "48/2 = <<48/2=24>>24 ...\n#### 72"}
MATH        {"problem": ..., "solution": "... so it is $\\boxed{\\frac12}$."}
AIME, AMC   {"problem": ..., "answer": 204}
"""

import collections
import hashlib
import json
import math
import re
from typing import NamedTuple

from opsd_jax.structs import Example
from opsd_jax.tasks import normalize_question
from opsd_jax.tasks.grading.extract import last_boxed

MAX_LINE = 4_000_000  # bytes; a longer one is no problem but a damaged file
SHOWN = 5  # bad rows named in an error

# What the public files call a column, in any case: the first here that half of
# the rows have, null not counted.
AUTO = {
  "problem": ("problem", "question", "prompt", "problem_statement"),
  "solution": (
    "solution",
    "answer_cot",
    "worked_solution",
    "ground_truth_solution",
    "reference_solution",
    "generated_solution",
    "deepseek_solution",
    "rationale",
  ),
  "answer": ("answer", "expected_answer", "final_answer", "ground_truth", "target"),
  "id": ("id", "unique_id", "problem_id", "question_id", "problem_idx", "uuid"),
}

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab, LF
SURROGATE = re.compile(r"[\ud800-\udfff]")
FINAL = re.compile(r"^####[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
CALCULATOR = re.compile(r"<<[^<>\n]*>>")


class Columns(NamedTuple):
  """Which column holds what: a name, "auto" for a usual one, "" for none."""

  problem: str = "auto"
  solution: str = "auto"
  answer: str = "auto"
  id: str = "auto"


class Literal(float):
  """A number that is shown as the file writes it: no digit of it is lost."""

  def __new__(cls, text):
    value = super().__new__(cls, text)
    value.text = text
    return value

  def __str__(self):
    return self.text


class Loaded(NamedTuple):
  """What a source holds, and what of it was left out: rows by reason."""

  examples: tuple[Example, ...]
  dropped: dict[str, int]


class Bad(ValueError):
  """Why a row is no example: `reason`, by which rows are counted, and more."""

  def __init__(self, reason: str, more: str = ""):
    super().__init__(f"{reason}: {more}" if more else reason)
    self.reason = reason


# ------------------------------------------------------------------- lines


def read_jsonl(path):
  """Yields ("path:line", object, or the Bad that says why there is none).

  Blank lines and a byte order mark are passed over.
  """
  with path.open("rb") as f:
    for number, line in enumerate(lines(f), 1):
      try:
        row = parse(line)
      except Bad as e:
        row = e
      if row is not None:
        yield f"{path}:{number}", row


def lines(f):
  """Lines of bytes; of one beyond MAX_LINE only the beginning is kept."""
  while line := f.readline(MAX_LINE + 1):
    yield line
    while line and not line.endswith(b"\n"):
      line = f.readline(MAX_LINE + 1)


def parse(line: bytes) -> dict | None:
  """The object on a line, None where it is blank; raises Bad."""
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
    row = json.loads(
      text,
      object_pairs_hook=without_repeats,
      parse_constant=no_constant,
      parse_float=Literal,
    )
  except Bad:
    raise
  except (ValueError, RecursionError) as e:
    raise Bad("invalid JSON", str(e)) from e
  if not isinstance(row, dict):
    raise Bad("no object", f"a {type(row).__name__}, expected {{...}}")
  return row


def without_repeats(pairs) -> dict:
  row = dict(pairs)
  if len(row) < len(pairs):
    names = collections.Counter(name for name, _ in pairs)
    raise Bad("a key twice", repr(names.most_common(1)[0][0]))
  return row


def no_constant(name: str):
  raise Bad("invalid JSON", f"{name} is no JSON")


# ----------------------------------------------------------------- columns


def choose(source: str, rows, columns: Columns) -> Columns:
  """The columns that these rows have; None where there is none.

  Raises ValueError where a named one, or any that holds problems, is missing;
  where few rows have a usual one, or one is there in two cases; and where the
  problem is in the column of something else.
  """
  names = {name: None for row in rows for name in row}
  counts = collections.Counter(
    name for row in rows for name, value in row.items() if value is not None
  )
  there = f"{source} has the columns {', '.join(names) or 'none'}"

  def find(field, name):
    if name != "auto":
      if name and name not in names:
        raise ValueError(f"{there}, not {name!r}: set data.{field}")
      return name or None
    usual = [n for n in counts if n.casefold() in AUTO[field]]
    many = [n for n in usual if 2 * counts[n] >= len(rows)]
    if usual and not many and field != "id":  # the text gives one
      raise ValueError(
        f"{source}: column {usual[0]!r} is in {counts[usual[0]]} of"
        f" {len(rows)} rows: set data.{field} to it, or to '' for none"
      )

    def place(n):
      return AUTO[field].index(n.casefold())

    if len(many) > len({place(n) for n in many}):
      raise ValueError(f"{there}, one in two cases: set data.{field}")
    return min(many, key=place, default=None)

  found = Columns(*(find(f, n) for f, n in columns._asdict().items()))
  if found.problem is None:
    raise ValueError(f"{there}, none for the problem: set data.problem")
  if found.problem in found[1:]:
    raise ValueError(
      f"{source}: column {found.problem!r} is the problem and another field"
      " too: set data.problem, .solution, .answer or .id"
    )
  if found.solution is None and found.answer is None:
    raise ValueError(
      f"{there}, none for a solution or an answer: set data.solution or data.answer"
    )
  return found


def may_hold(name: str, columns: Columns) -> bool:
  """Whether a column can be one of those looked for."""
  return name in columns or any(name.casefold() in n for n in AUTO.values())


def text_of(row: dict, column: str, number: bool = False) -> str:
  """The text in a column, as it is; raises Bad. `number`: one will do."""
  if column not in row:
    raise Bad(f"column {column!r}: missing")
  value = row[column]
  is_number = type(value) is int or (isinstance(value, float) and math.isfinite(value))
  if number and is_number:
    value = str(value)
  if not isinstance(value, str):
    kind = "null" if value is None else f"a {type(value).__name__}"
    raise Bad(f"column {column!r}: not text", f"{kind}, expected text")
  for what, pattern in (("control character", CONTROL), ("lone surrogate", SURROGATE)):
    if found := pattern.search(value.replace("\r\n", "\n")):
      raise Bad(
        f"column {column!r}: {what}", f"U+{ord(found[0]):04X} at {found.start()}"
      )
  if not value.strip():
    raise Bad(f"column {column!r}: empty")
  return value


# ---------------------------------------------------------------- examples


def examples_of(source: str, rows, columns: Columns, skip_bad: int) -> Loaded:
  """Every ("file:line", row) as an Example.

  Raises ValueError that names the first bad rows where there are more than
  `skip_bad`; as many are dropped and counted by reason. Repeated problems stay.
  """
  rows, faults, examples = list(rows), [], []
  whole = [row for _, row in rows if not isinstance(row, Bad)]
  at = choose(source, whole, columns) if whole else columns
  worked = is_worked(whole, at)
  dropped, seen, repeats = collections.Counter(), {}, collections.Counter()
  for where, row in rows:
    try:
      if isinstance(row, Bad):
        raise row
      example = example_of(row, at, worked)
      if at.id is None:
        example = with_id(example, repeats)
      if (before := seen.setdefault(example.id, where)) != where:
        more = f"{example.id!r} is at {before}"
        raise Bad(f"column {at.id!r}: an id twice", more)
    except Bad as e:
      faults.append(f"{where}: {e}")
      dropped[e.reason] += 1
      continue
    examples.append(example)
  if len(faults) > skip_bad:
    more = len(faults) - SHOWN
    shown = faults[:SHOWN] + ([f"and {more} more"] if more > 0 else [])
    raise ValueError(
      f"{source}: {len(faults)} bad rows of {len(rows)}, data.skip_bad allows"
      f" {skip_bad}:\n  " + "\n  ".join(shown)
    )
  if not examples:
    raise ValueError(f"{source} holds no problem, {len(faults)} bad rows")
  return Loaded(tuple(examples), dict(dropped))


def is_worked(rows, at: Columns) -> bool:
  """Whether the answers are worked solutions that end in `#### answer`."""
  if at.answer is None or at.solution not in (None, at.answer):
    return False
  answers = (row.get(at.answer) for row in rows)
  return any(isinstance(a, str) and FINAL.search(a) for a in answers)


def example_of(row: dict, at: Columns, worked: bool) -> Example:
  """A row as an Example, its id "" where it has none; raises Bad."""
  question = text_of(row, at.problem)
  solution = answer = None
  if worked:
    text = text_of(row, at.answer)
    *_, last = [None, *FINAL.finditer(text)]
    if last is None:
      raise Bad(f"column {at.answer!r}: no line '#### answer'")
    if not text[: last.start()].strip():
      raise Bad(f"column {at.answer!r}: empty", "nothing before ####")
    solution, answer = CALCULATOR.sub("", text), last[1].strip()
  else:
    if at.solution is not None:
      solution = text_of(row, at.solution)
    if at.answer is not None:
      answer = text_of(row, at.answer, number=True).strip()
    else:
      answer = closing(solution)
  id = "" if at.id is None else text_of(row, at.id, number=True)
  return Example(id, question, solution, answer)


def closing(solution: str) -> str | None:
  """The answer in a solution's last box, or without one in its last line, where
  that is `#### answer`; None without either."""
  if (boxed := last_boxed(solution)) is not None:
    return boxed.strip() or None
  last = FINAL.fullmatch(solution.rstrip().rpartition("\n")[2])
  return last[1].strip() if last else None


def with_id(example: Example, repeats) -> Example:
  """Its question's text decides the id, in whatever file or line it stands."""
  digest = hashlib.sha256(normalize_question(example.question).encode()).hexdigest()[
    :16
  ]
  repeats[digest] += 1
  id = digest if repeats[digest] == 1 else f"{digest}-{repeats[digest]}"
  return Example(id, example.question, example.solution, example.answer)
