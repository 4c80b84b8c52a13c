"""Reading a reply: what every verifier needs."""

import re

# A sign counts where no word stands before it (not in 10-20); commas where
# three digits follow each of them (not in 12,34).
NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
BOX = re.compile(r"\\(?:boxed|fbox)\s*(?![a-zA-Z])")
STATED = re.compile(r"(?i)answer\**(?:\s+(?:is|should be|must be)|\s*:)\**:?\s*")


def last_number(text: str) -> str | None:
  """The last number, thousands separators removed: "1,234.5" -> "1234.5"."""
  numbers = NUMBER.findall(text)
  return numbers[-1].replace(",", "") if numbers else None


def last_boxed(text: str) -> str | None:
  """What the last \\boxed{...} holds, braces of any depth balanced; "" where it
  does not close, None without one. \\boxed 5 holds 5."""
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
  """After the last `####`; None without one, or where a box or an "answer is"
  follows: then it was the heading of a section."""
  _, hashes, after = text.rpartition("####")
  is_heading = BOX.search(after) or STATED.search(after)
  return after if hashes and not is_heading else None


def stated(text: str) -> str | None:
  """`after_hashes`, or in the last \\boxed{}, or after the last "answer is" or
  "answer:"; None without any."""
  if (after := after_hashes(text)) is not None:
    return after
  if (boxed := last_boxed(text)) is not None:
    return boxed
  *_, after = STATED.split(text)
  return after if after != text else None
