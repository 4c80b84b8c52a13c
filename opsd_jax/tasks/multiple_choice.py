"""Multiple choice: one letter, whatever markup surrounds it and whatever its case.

Two letters are no answer, nor are two boxes with different letters.
"""

import re

from opsd_jax.structs import Verdict
from opsd_jax.tasks import verify_only
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
# A letter in brackets, or one that is no word of a sentence: "A dog" names none.
LETTER = re.compile(
  r"[(\['‘]\s*([A-Za-z])\s*[)\]'’]"
  r"|([A-Z])(?=$|[.):,;!\n]|\s*$|\s+(?:because|since|as|is (?:the )?(?:correct"
  r"|right|best|answer))\b)|([a-z])(?=\s*$|[.)](?:\s|$))"
)
# After "the answer is" the choice's text may follow its letter: A (12), A = 12.
STATED_LETTER = re.compile(
  LETTER.pattern + r"|([A-Z])(?=\s*[-–—=(\\]|\s+(?:[0-9]|which\b|with\b))"
  r"|([B-HJ-Z])(?=\s)"
)
ANOTHER = re.compile(
  r"(?:\W*\b(?:or|and|plus|as well as)\b(?:\s+(?:maybe|perhaps|possibly|even)\b)?"
  r"|[,;/&+-]|^[–—]?)\s*\(?[A-HJ-Z]\)?(?![A-Za-z'])"
)
DENIED = re.compile(
  r"(?:is|was)(?:n't|\s+(?:not|never|in(?:correct|valid)|wrong|false|un\w+"
  r"|ruled out))\b|can(?:no|')t\b|(?:does|do|would|could)(?:n't|\s+not)\b"
  r"|(?:can|could) be (?:ruled|eliminated|excluded)"
)
OPTION = re.compile(
  r"^[^\w\n]*[A-Z][.):]\s", re.MULTILINE
)  # the options of the question, repeated


def verify(reference: str, text: str) -> Verdict:
  """Correct where the completion names the reference's letter and no other."""
  found = letter(text)
  if found is None:
    return Verdict(0.0, None, "no letter in the reply")
  return Verdict(float(found == letter(reference)), found)


def letter(text: str) -> str | None:
  """The chosen letter, from the completion's stated answer; else from its last line
  or its first ("B. ..."), where the letter stands alone or is called correct.

  None where no letter or two letters are named, or the options are only repeated.
  """
  marked = stated(text)
  if marked is None and len(OPTION.findall(text)) > 1:
    return None
  lines = text.strip().splitlines()
  candidates = lines[-1:] + lines[:1] if marked is None else [marked]
  pattern = LETTER if marked is None else STATED_LETTER
  for line in candidates:
    line = DRESS.sub("", line).strip()
    match = pattern.match(line, HEAD.match(line).end())
    if match:
      rest = line[match.end() :].partition("\n")[0]
      if ANOTHER.match(rest.strip()) or DENIED.match(rest.strip()):
        return None
      return next(filter(None, match.groups())).upper()
  return None


task = verify_only.task("multiple_choice", verify)
