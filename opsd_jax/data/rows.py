"""Rows of a data file -> Examples, or the place and the fault of a bad row.

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
from opsd_jax.tasks.grading import algebra, answers, extract

MAX_LINE = 4_000_000  # bytes; a longer line means a damaged file
SHOWN = 5  # bad rows named in an error

# Column names of the public files, in any case. The first name of a field that at
# least half of the rows have, null not counted, is its column.
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
  """The column of each field: a name, "auto" for a usual one, "" for none."""

  problem: str = "auto"
  solution: str = "auto"
  answer: str = "auto"
  id: str = "auto"


class Literal(float):
  """A number whose text is the file's own, digit by digit."""

  def __new__(cls, text):
    value = super().__new__(cls, text)
    value.text = text
    return value

  def __str__(self):
    return self.text


class Loaded(NamedTuple):
  """A source's examples, and its bad rows."""

  examples: tuple[Example, ...]
  dropped: dict[str, int]  # reason -> rows


class Bad(ValueError):
  """A bad row: `reason`, by which such rows are counted, and its details."""

  def __init__(self, reason: str, details: str = ""):
    super().__init__(f"{reason}: {details}" if details else reason)
    self.reason = reason


# ------------------------------------------------------------------- lines


def read_jsonl(path):
  """Yields ("path:line", object or Bad) of every line that is not blank."""
  with path.open("rb") as f:
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
    row = json.loads(
      text,
      object_pairs_hook=unique_keys,
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


def unique_keys(pairs) -> dict:
  row = dict(pairs)
  if len(row) < len(pairs):
    names = collections.Counter(name for name, _ in pairs)
    raise Bad("a key twice", repr(names.most_common(1)[0][0]))
  return row


def no_constant(name: str):
  raise Bad("invalid JSON", f"{name} is no JSON")


# ----------------------------------------------------------------- columns


def choose(source: str, rows, columns: Columns) -> Columns:
  """The column of each field in these rows; None for a field without one.

  Raises ValueError where a named column, or the problem's, is missing; where a
  usual name stands in fewer than half of the rows, or in two cases; and where the
  problem shares its column with another field.
  """
  names = {name: None for row in rows for name in row}
  counts = collections.Counter(
    name for row in rows for name, value in row.items() if value is not None
  )
  message = f"{source} has the columns {', '.join(names) or 'none'}"

  def find(field, name):
    if name != "auto":
      if name and name not in names:
        raise ValueError(f"{message}, not {name!r}: set data.{field}")
      return name or None
    usual = [n for n in counts if n.casefold() in AUTO[field]]
    many = [n for n in usual if 2 * counts[n] >= len(rows)]
    # A file may lack ids: an id is then made from the question's text.
    if usual and not many and field != "id":
      raise ValueError(
        f"{source}: column {usual[0]!r} is in {counts[usual[0]]} of"
        f" {len(rows)} rows: set data.{field} to it, or to '' for none"
      )

    def preference(n):
      return AUTO[field].index(n.casefold())

    if len(many) > len({preference(n) for n in many}):
      raise ValueError(f"{message}, one in two cases: set data.{field}")
    return min(many, key=preference, default=None)

  found = Columns(*(find(f, n) for f, n in columns._asdict().items()))
  if found.problem is None:
    raise ValueError(f"{message}, none for the problem: set data.problem")
  if found.problem in found[1:]:
    raise ValueError(
      f"{source}: column {found.problem!r} is the problem and another field"
      " too: set data.problem, .solution, .answer or .id"
    )
  if found.solution is None and found.answer is None:
    raise ValueError(
      f"{message}, none for a solution or an answer: set data.solution or data.answer"
    )
  return found


def may_hold(name: str, columns: Columns) -> bool:
  """Whether `choose` may take a column of this name."""
  return name in columns or any(name.casefold() in n for n in AUTO.values())


def read_text(row: dict, column: str, number: bool = False) -> str:
  """The text in a column, unchanged; raises Bad. `number`: numbers are text too."""
  if column not in row:
    raise Bad(f"column {column!r}: missing")
  value = row[column]
  is_number = type(value) is int or (isinstance(value, float) and math.isfinite(value))
  if number and is_number:
    value = str(value)
  if not isinstance(value, str):
    kind = "null" if value is None else f"a {type(value).__name__}"
    raise Bad(f"column {column!r}: not text", f"{kind}, expected text")
  for fault, pattern in (("control character", CONTROL), ("lone surrogate", SURROGATE)):
    if found := pattern.search(value.replace("\r\n", "\n")):
      raise Bad(
        f"column {column!r}: {fault}", f"U+{ord(found[0]):04X} at {found.start()}"
      )
  if not value.strip():
    raise Bad(f"column {column!r}: empty")
  return value


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
  columns = choose(source, whole, columns) if whole else columns
  worked = is_worked(whole, columns)
  dropped, seen, repeats = collections.Counter(), {}, collections.Counter()
  for where, row in rows:
    try:
      if isinstance(row, Bad):
        raise row
      example = to_example(row, columns, worked)
      if columns.id is None:
        example = with_id(example, repeats)
      if (before := seen.setdefault(example.id, where)) != where:
        details = f"{example.id!r} is at {before}"
        raise Bad(f"column {columns.id!r}: an id twice", details)
    except Bad as e:
      faults.append(f"{where}: {e}")
      dropped[e.reason] += 1
      continue
    examples.append(example)
  if len(faults) > skip_bad:
    hidden = len(faults) - SHOWN
    shown = faults[:SHOWN] + ([f"and {hidden} more"] if hidden > 0 else [])
    raise ValueError(
      f"{source}: {len(faults)} bad rows of {len(rows)}, data.skip_bad allows"
      f" {skip_bad}:\n  " + "\n  ".join(shown)
    )
  if not examples:
    raise ValueError(f"{source} holds no problem and {len(faults)} bad rows")
  return Loaded(tuple(examples), dict(dropped))


def is_worked(rows, columns: Columns) -> bool:
  """Whether the answers are worked solutions that end in `#### answer`."""
  if columns.answer is None or columns.solution not in (None, columns.answer):
    return False
  answers = (row.get(columns.answer) for row in rows)
  return any(isinstance(a, str) and FINAL.search(a) for a in answers)


def to_example(row: dict, columns: Columns, worked: bool) -> Example:
  """A row as an Example, its id "" without a column for it; raises Bad."""
  question = read_text(row, columns.problem)
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
      solution = read_text(row, columns.solution)
    if columns.answer is not None:
      answer = read_text(row, columns.answer, number=True).strip()
    else:
      answer = final_answer(solution)
  id = "" if columns.id is None else read_text(row, columns.id, number=True)
  return Example(id, question, solution, answer)


BETWEEN = re.compile(  # two boxes that answer together: "1 or x = 2"
  r"[\s$,;]*(?:(?:and|or)\b)?[\s$,;]*(?:[a-zA-Z]\s*=\s*)?\$*"
)
ANOTHER = re.compile(r"\banother\b|\bthe other\b")


def final_answer(solution: str) -> str | None:
  """The answer in a solution's last \\boxed{}, without a box in a last line
  `#### answer`; None without either, and where the last box does not close.

  Boxes that answer together are a list: "x = \\boxed{1} or x = \\boxed{2}" answers 1,
  2. A box of the same value, of a step or of another way to solve is none of them.
  """
  boxes = extract.boxes(solution)
  if boxes and boxes[-1][0] is None:
    return None
  filled = [box for box in boxes if not extract.EMPTY.fullmatch(box[0])]
  if not filled:
    last = FINAL.fullmatch(solution.rstrip().rpartition("\n")[2])
    return last[1].strip() if last and not boxes else None
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
  return Example(id, example.question, example.solution, example.answer)
