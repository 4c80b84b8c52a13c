"""Which column of a file holds which field: known names, and paths into a row.

verl, DAPO     {"prompt": [{"role": "user", "content": ...}], "data_source": ...,
                "reward_model": {"ground_truth": "34"}}
OpenThoughts   {"conversations": [{"from": "user", "value": ...}, ...]}
OlympiadBench  {"question": ..., "solution": [..., ...], "final_answer": ["2"]}
NuminaMath     {"problem": ..., "solution": ..., "answer": "2"}, or "proof"
"""

import collections
from typing import NamedTuple

# Column names of the public files, in any case. The first name of a field that at
# least half of the rows have, null not counted, is its column.
AUTO = {
  "problem": (
    "problem",
    "question",
    "prompt",
    "problem_statement",
    "conversations",
    "messages",
  ),
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
  "answer": (
    "answer",
    "expected_answer",
    "final_answer",
    "ground_truth",
    "target",
    "reward_model.ground_truth",
  ),
  "id": ("id", "unique_id", "problem_id", "question_id", "problem_idx", "uuid"),
}
# Chats whose reply is the solution where no other column is.
CHATS = ("conversations", "messages")
CONTEXT = "context"  # of OlympiadBench: what its question begins with, or null

TURNS = (("role", "content"), ("from", "value"))  # the two keys of a chat's turn
ROLES = {"human": "user", "gpt": "assistant", "model": "assistant"}
MISSING = object()
LISTED, CLIPPED = 20, 80  # names, and characters of each, that an error shows


class Columns(NamedTuple):
  """The column of each field: a name or a path such as reward_model.ground_truth,
  "auto" for a usual one, "" for none."""

  problem: str = "auto"
  solution: str = "auto"
  answer: str = "auto"
  id: str = "auto"
  rejected: str = ""


def clip(text: str) -> str:
  """The text as an error shows it."""
  hidden = len(text) - CLIPPED
  return text if hidden <= 0 else f"{text[:CLIPPED]}... ({hidden:,} more characters)"


def list_names(names) -> str:
  """The names as an error lists them."""
  names = list(names)
  hidden = len(names) - LISTED
  shown = [clip(n) for n in names[:LISTED]]
  return ", ".join(shown + ([f"and {hidden:,} more"] if hidden > 0 else [])) or "none"


# -------------------------------------------------------------------- values


def lookup(row: dict, column: str):
  """The value in a column, MISSING where there is none.

  A name that is no key is a path: keys of objects and indices of lists, from 0,
  with dots between.
  """
  if column in row:
    return row[column]
  value = row
  for key in column.split("."):
    if isinstance(value, dict) and key in value:
      value = value[key]
    elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
      value = value[int(key)]
    else:
      return MISSING
  return value


def cells(row: dict) -> dict:
  """{column: value}, with the keys of a column's objects as columns too."""
  nested = {
    f"{name}.{key}": inner
    for name, value in row.items()
    if isinstance(value, dict)
    for key, inner in value.items()
  }
  return row | {name: inner for name, inner in nested.items() if name not in row}


def chat(value) -> list[tuple[str, object]] | None:
  """The (role, text) of a chat's turns; None for what is no chat."""
  if not isinstance(value, list) or not value:
    return None
  turns = []
  for turn in value:
    for who, text in TURNS:
      if isinstance(turn, dict) and isinstance(turn.get(who), str) and text in turn:
        role = turn[who].casefold()
        turns.append((ROLES.get(role, role), turn[text]))
        break
    else:
      return None
  return turns


# ------------------------------------------------------------------- choices


def choose(source: str, rows, columns: Columns) -> Columns:
  """The column of each field in these rows; None for a field without one.

  Raises ValueError where a named column, or the problem's, is missing; where a
  usual name stands in fewer than half of the rows, or in two cases; and where the
  problem shares its column with another field, but for a chat that ends in a
  solution.
  """
  names, counts = {}, collections.Counter()
  for row in rows:
    found = cells(row)
    names |= dict.fromkeys(found)
    counts.update(name for name, value in found.items() if value is not None)
  message = f"{source} has the columns {list_names(names)}"

  def find(field, name):
    if name != "auto":
      if name and all(lookup(row, name) is MISSING for row in rows):
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
  replies = has_replies(rows, found.problem)
  is_known = found.problem.casefold() in CHATS and columns.solution == "auto"
  if replies and is_known and found.solution is None:
    found = found._replace(solution=found.problem)
  check_apart(source, found, replies)
  if found.solution is None and found.answer is None:
    raise ValueError(
      f"{message}, none for a solution or an answer: set data.solution or data.answer"
    )
  return found


def has_replies(rows, column: str) -> bool:
  """Whether a column holds chats and some of them a turn of the assistant."""
  chats = (chat(lookup(row, column)) for row in rows)
  return any(role == "assistant" for turns in chats for role, _ in turns or ())


def check_apart(source: str, columns: Columns, replies: bool) -> None:
  """Raises ValueError where the problem shares its column with another field."""
  _, solution, answer, id, _ = columns
  if columns.problem in ((answer, id) if replies else (solution, answer, id)):
    raise ValueError(
      f"{source}: column {columns.problem!r} is the problem and another field"
      " too: set data.problem, .solution, .answer or .id"
    )


def may_hold(name: str, columns: Columns) -> bool:
  """Whether a top-level column of this name may be read."""
  usual = {n.partition(".")[0] for names in AUTO.values() for n in names}
  return (
    name.casefold() in usual | {CONTEXT}
    or name in columns
    or any(column.startswith(f"{name}.") for column in columns)
  )


def check_named(source: str, names, columns: Columns) -> None:
  """Raises ValueError where a column that the config names has no top-level column
  among `names`, which are all of the file's."""
  for field, column in columns._asdict().items():
    parts = column.split(".")
    heads = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
    if column not in ("auto", "") and not heads & set(names):
      raise ValueError(
        f"{source} has the columns {list_names(names)}, not {column!r}:"
        f" set data.{field}"
      )
