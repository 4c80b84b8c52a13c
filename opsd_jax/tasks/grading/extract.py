"""Reading an answer from a completion, as several verifiers do."""

import re

# A minus is a sign where no word stands before it (not in 10-20); a comma separates
# thousands where three digits follow it (not in 12,34).
NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
BOX = re.compile(r"\\(?:boxed|fbox)\s*(?![a-zA-Z])")
STATED = re.compile(r"(?i)answer\**(?:\s+(?:is|should be|must be)|\s*:)\**:?\s*")


def last_number(text: str) -> str | None:
  """The last number, thousands separators removed: "1,234.5" -> "1234.5"."""
  numbers = NUMBER.findall(text)
  return numbers[-1].replace(",", "") if numbers else None


def last_boxed(text: str) -> str | None:
  """The content of the last \\boxed{...}, nested braces included; "" where the box
  does not close, None without a box. \\boxed 5 holds 5."""
  boxes = list(BOX.finditer(text))
  if not boxes:
    return None
  after = text[boxes[-1].end() :]
  if not after.startswith("{"):
    return re.match(r"[^\s$]*", after)[0].rstrip(".,")
  depth = 0
  for brace in re.finditer(r"\\.|[{}]", after, re.DOTALL):
    depth += {"{": 1, "}": -1}.get(brace[0], 0)
    if depth == 0 and brace[0] == "}":
      return after[1 : brace.start()]
  return ""


def after_hashes(text: str) -> str | None:
  """The text after the last `####`; None without one, or where a box or an "answer
  is" follows: then the hashes were the heading of a section."""
  _, hashes, after = text.rpartition("####")
  is_heading = BOX.search(after) or STATED.search(after)
  return after if hashes and not is_heading else None


def stated(text: str) -> str | None:
  """The stated answer: `after_hashes`, or in the last \\boxed{}, or after the last
  "answer is" or "answer:"; None without any of them."""
  if (after := after_hashes(text)) is not None:
    return after
  if (boxed := last_boxed(text)) is not None:
    return boxed
  *_, after = STATED.split(text)
  return after if after != text else None
