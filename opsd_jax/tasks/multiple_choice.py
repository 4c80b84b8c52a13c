"""Multiple choice: one letter, however it is dressed."""

import re

from opsd_jax.structs import Verdict
from opsd_jax.tasks import judged
from opsd_jax.tasks.grading.extract import stated

DRESS = re.compile(
  r"\\(?:text|mathrm|mathbf|textbf|mathsf|textsf|mbox)(?:bf|rm)?(?![a-zA-Z])"
  r"|\\[()\[\]]|[*$`{}\"]"
)
HEAD = re.compile(
  r"\s*(?:(?:so|thus|hence|therefore|it is|it's)\b,?\s*)*"
  r"(?:the\s+)?(?:(?:correct|right|best)\s+)?"
  r"(?:(?:option|choice|letter)\b(?:\s+is\b|:)?)?\s*",
  re.IGNORECASE,
)
# A letter in brackets, or one that no word goes on with; "A dog" names none.
LETTER = re.compile(
  r"[(\['‘]\s*([A-Za-z])\s*[)\]'’]"
  r"|([A-Z])(?=$|[.):,;!\n]|\s*$|\s+(?:because|since|as|is (?:the )?(?:correct"
  r"|right|best|answer))\b)|([a-z])(?=\s*$|[.)](?:\s|$))"
)
# The same after "the answer is", where more can follow it: A (12), A = 12.
STATED_LETTER = re.compile(
  LETTER.pattern + r"|([A-Z])(?=\s*[-–—=(\\]|\s+(?:[0-9]|which\b|with\b))"
  r"|([B-HJ-Z])(?=\s)"
)
ANOTHER = re.compile(
  r"(?:\b(?:or|and|plus|as well as)\b|[,;/&+-]|^)\s*\(?[A-HJ-Z]\)?(?![A-Za-z'])"
)
DENIED = re.compile(
  r"(?:is|was)(?:n't|\s+(?:not|never|in(?:correct|valid)|wrong|false|un\w+"
  r"|ruled out))\b|can(?:no|')t\b|(?:does|do|would|could)(?:n't|\s+not)\b"
  r"|(?:can|could) be (?:ruled|eliminated|excluded)"
)
OPTION = re.compile(r"^\W*[A-Z][.):]\s", re.MULTILINE)  # of an echoed list


def verify(reference: str, text: str) -> Verdict:
  """Right when the reply names the reference's letter and no other."""
  found = letter(text)
  if found is None:
    return Verdict(0.0, None, "no letter in the reply")
  return Verdict(float(found == letter(reference)), found)


def letter(text: str) -> str | None:
  """The choice in what the reply states; else in its last line, or at the head
  of a reply ("B. ..."), where it stands alone or is called the right one. None
  where there is none, or two, or the options are only listed."""
  marked = stated(text)
  if marked is None and len(OPTION.findall(text)) > 1:
    return None
  lines = text.strip().splitlines()
  looked_at = lines[-1:] + lines[:1] if marked is None else [marked]
  pattern = LETTER if marked is None else STATED_LETTER
  for line in looked_at:
    line = DRESS.sub("", line).strip()
    match = pattern.match(line, HEAD.match(line).end())
    if match:
      rest = line[match.end() :].partition("\n")[0]
      if ANOTHER.match(rest.strip()) or DENIED.match(rest.strip()):
        return None
      return next(filter(None, match.groups())).upper()
  return None


task = judged.task("multiple_choice", verify)
