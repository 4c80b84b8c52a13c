"""Multiple choice: one letter, however it is dressed."""

import re

from opsd_jax.structs import Verdict
from opsd_jax.tasks import judged
from opsd_jax.tasks.reply import stated

DRESS = re.compile(
    r"\\(?:text|mathrm|mathbf|textbf|mbox)(?:bf|rm)?(?![a-zA-Z])|[*$`{}\"]"
)
HEAD = re.compile(r"\s*(?:option|choice|letter)?\s*", re.IGNORECASE)
# A letter in brackets, or one that no word goes on with; "A dog" names none.
LETTER = re.compile(
    r"\(\s*([A-Za-z])\s*\)"
    r"|([A-Z])(?=$|[.):,;\n]|\s*$|\s+(?:because|since|as)\b)"
    r"|([B-HJ-Z])(?=\s)|([a-z])(?=\s*$|[.)](?:\s|$))"
)
ANOTHER = re.compile(r"(?:\bor\b|\band\b|[,;/&])\s*\(?[A-Z]\)?(?![A-Za-z'])")
DENIED = re.compile(
    r"(?:is|was)(?:n't|\s+(?:not|never|in(?:correct|valid)|wrong|false|un\w+))\b"
    r"|can(?:no|')t\b"
)


def verify(reference: str, text: str) -> Verdict:
  """Right when the reply names the reference's letter and no other."""
  found = letter(text)
  if found is None:
    return Verdict(0.0, None, "no letter in the reply")
  return Verdict(float(found == letter(reference)), found)


def letter(text: str) -> str | None:
  """The choice in what the reply states, or in its last line, or at the head
  of a reply ("B. ...", but not "B seems right at first"); None where it names
  none, or two."""
  marked = stated(text)
  lines = text.strip().splitlines()
  for place, line in enumerate(lines[-1:] + lines[:1] if marked is None else [marked]):
    line = DRESS.sub("", line).strip()
    match = LETTER.match(line, HEAD.match(line).end())
    if match and not (place == 1 and match[3]):
      rest = line[match.end() :].partition("\n")[0]
      if ANOTHER.match(rest.strip()) or DENIED.match(rest.strip()):
        return None
      return next(filter(None, match.groups())).upper()
  return None


task = judged.task("multiple_choice", verify)
