"""Multiple choice: one letter, whatever markup surrounds it and whatever its case.

Two letters are no answer, nor are two boxes with different letters, nor a letter that
the sentence only supposes, quotes or denies ("if the answer is B", "many think").
"""

import re
import unicodedata

from opsd_jax.structs import Verdict
from opsd_jax.tasks import verify_only
from opsd_jax.tasks.grading.around import WRONG
from opsd_jax.tasks.grading.extract import TAKEN_BACK, stated

DRESS = re.compile(
  r"\\(?:text|mathrm|mathbf|textbf|mathsf|textsf|mbox)(?:bf|rm)?(?![a-zA-Z])"
  r"|\\[()\[\]]|[*$`{}\"“”„]"
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
PERHAPS = r"(?:maybe|perhaps|possibly|alternatively|even)"
ANOTHER = re.compile(
  r"(?:\W*\b(?i:and/or|or|and|plus|as well as|(?:but|although|though|however),?)\b"
  rf"(?:\s+{PERHAPS}\b)?|\W*\b(?i:{PERHAPS}|no)\b,?"
  r"|\W?\s*[,;/&+|-]|^[–—]?)\s*"
  rf"(?:\(?(?:[A-HJ-Z]|I(?=\W*$))\)?(?![A-Za-z'])(?!\s+(?:is|was)\s+{WRONG})"
  r"|\(?[a-z]\))"
)
BRACKETED = re.compile(r"\(?(?<![A-Za-z])([A-Z])(?:\)|\.(?=\s+\S))")
ALTERNATIVE = re.compile(
  r"\b(?:could|may|might)(?: also)? be\s+\(?[A-Z]\b|\bvs\.?\s+\(?[A-Z]\b"
  r"|\([A-Z]\)\s+(?:also|too|could|may|might)\b"
)
CORRECTED = re.compile(
  r"\b(?:it['’]s|it is|so|but|say|choose)\s+\(?([B-HJ-Z]|I(?=\W*$))\b"
  rf"(?!\s+(?:is|was)\s+{WRONG})"
)
DENIED = re.compile(
  rf"[:(,-]+\s*{WRONG}\b|only if\b"
  r"|(?:is|was)(?:n't|\s+(?:not|never|in(?:correct|valid)|wrong|false|un\w+"
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
  if marked is None and (len(OPTION.findall(text)) > 1 or is_open(text)):
    return None
  lines = text.strip().splitlines()
  if marked is not None:
    candidates = [marked]
  elif len(lines) > 1 and re.search(r"\b[B-HJ-Z]\b", lines[-1]):
    candidates = lines[-1:]  # it names a letter: the first line is not the last word
  else:
    candidates = lines[-1:] + lines[:1]
  pattern = LETTER if marked is None else STATED_LETTER
  for line in candidates:
    line = DRESS.sub("", unicodedata.normalize("NFKC", line)).strip()
    match = pattern.match(line, HEAD.match(line).end())
    if match:
      chosen = next(filter(None, match.groups())).upper()
      rest = line[match.end() :].partition("\n")[0]
      return None if is_doubtful(chosen, rest) else chosen
  return None


def is_doubtful(chosen: str, rest: str) -> bool:
  """Whether the rest of the line names another letter or denies the chosen one."""
  return bool(
    ALTERNATIVE.search(rest)
    or ANOTHER.match(rest.strip())
    or DENIED.match(rest.strip())
    or {*CORRECTED.findall(rest)} - {chosen}
  )


def is_open(text: str) -> bool:
  """Whether letters in brackets differ, or what follows a letter takes it back."""
  return len({*BRACKETED.findall(text)}) > 1 or bool(TAKEN_BACK.search(text))


task = verify_only.task("multiple_choice", verify)
