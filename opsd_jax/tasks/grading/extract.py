"""Reading an answer from a completion, as several verifiers do.

What stands between <think> and </think>, or other tags of thinking, is no part of the
reply; where the first </think> has no <think>, what stands before it is none either,
and after a <think> that does not close there is no reply.

Several boxes are several answers: "x = \\boxed{1} or x = \\boxed{2}" answers 1, 2,
and neither 1 nor 2. Only where the text between two boxes takes the first back (no,
wait, actually) or announces the final answer does the last one count alone. Empty
boxes, hashes and <answer></answer> count for nothing. A box that what stands beside it
makes doubtful (see around: -\\boxed{5}, "or 6"), or after which another answer is
stated, is no answer. A percent sign or unit that follows a box is read with it.
"""

import re

from opsd_jax.tasks.grading.around import NEAR, NEGATED, is_part, unit_after

# A minus is a sign where no word stands before it (not in 10-20); a comma separates
# thousands where three digits follow it (not in 12,34).
NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
BOX = re.compile(r"\\(?:boxed|fbox)\s*(?![a-zA-Z])")
BOX_OR_BRACE = re.compile(
  rf"(?P<box>{BOX.pattern})(?P<open>\{{)?|\\.|[{{}}]", re.DOTALL
)
THINKING = re.compile(
  r"[<◁]\s{0,9}(?P<close>/)?\s{0,9}(?:\w+:)?(?:think|thinking|thoughts?|reasoning|scratchpad"
  r"|reflection|analysis)\b[^<>▷]{0,99}[>▷]|\[(?P<closed>/)?THINK\]"
  r"|<\|(?:begin|(?P<ended>end))_of_thought\|>|<\|channel\|>analysis<\|message\|>"
  r"|(?P<message><\|end\|>|<\|channel\|>final<\|message\|>)",
  re.IGNORECASE,
)
ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
STATED = re.compile(
  r"(?i:\banswer\**(?:\s+(?:is|was|(?:sh|w)ould be|must be|will be|equals)\b"
  r"(?:\s+(?:therefore|thus|then|hence|simply|equal to)\b)*|['’]s\b|\s*[:=])\**:?\s*)"
)
RETRACTED = re.compile(
  r"(?i)\b(?:no,|wait|actually|instead|rather|correction|oops|sorry|mistake\w*|wrong"
  r"|incorrect)"
)
TAKEN_BACK = re.compile(  # after an answer; no other answer need follow
  r"(?i)(?:(?<![^.?!;:*\"\n])\s{0,9}|\b(?:no|oh|but),? )wait\b|\bwait(?=[,.!…-])"
  r"|\b(?:oops|correction|(?:scratch|strike) that|no, (?:that|it|this)|on (?:second thought|reflection)"
  r"|(?:i|we) meant|(?:i|we) (?:made|apologi[sz]e)|my (?:mistake|bad|apolog\w+)|sorry"
  r"|hold on|let me (?:correct|fix|redo|revise|reconsider|rephrase|recompute)"
  r"|actually,? (?:it|the|that|she|he|they|i|we)\b(?! is right| was right|'s right)"
  r"|(?:that|this|it|answer|result)(?: is| was|['’]s) (?:wrong|incorrect)"
  rf"|(?:that|this|it|answer|result)(?: is| was|['’]s| ca| can| could)(?:{NEGATED})"
  r" (?:be )?(?:quite )?(?:right|correct)|made a mistake)\b"
  r"|[.?!;:\n]\s{0,9}actually\b(?!,? (?:it|this|that) (?:is|was) right)"
  r"|(?<=[.?!;] )(?:no|nope)(?=[.!;:]|,(?! there| other| more)|$)"
)
DENIED_CLAIM = re.compile(
  r"(?i)\b(?:false|wrong|incorrect|not true|not the case|doubt|nobody \w+"
  r"|(?:no|do|did|wo|ca|is)(?:t|n['’]t) (?:think|believe|say|mean))"
  r" (?:that )?(?:the )?(?:final |correct )?$"
  r"|\b(?:if|suppos\w+|assum\w+|no way)(?: that)? the (?:final |correct )?$"
  r"|\b(?:many|some|people|others|students|one|you)\b[^.,:;!?\n]{0,30}"
  r"\b(?:think|say|believe|guess|claim)s?(?: that)? the (?:final |correct )?$"
  r"|\b(?:worst|least [a-z]+|wrong|incorrect) $"
)
FINAL = re.compile(r"(?i)\b(?:final|answer\**(?:\s+is\b|['’]s\b|\s*:))")
FURTHER = re.compile(
  r"(?i)\b(?:another|other|second|third|also|either|possible|or)\b|\bpart \(?(?:[b-h]|two|ii|2)\b"
  r"|\(\s*(?:[b-h]|ii|iii|iv)\s*\)|\bQ\d|\n\s{0,9}\d+[.)]\s"
)
SENTENCE = re.compile(
  r"(?<=[^\s\\])(?<!\bapprox)(?<!\bft)(?<!\bhr)(?<!\bhrs)(?<!\blb)(?<!\blbs)(?<!\boz)"
  r"[.!?](?=\s|$)(?!\s*=)|\n"
)  # where a sentence ends
VALUE = re.compile(r"-?[0-9](?:[0-9.,]*[0-9])?|\b[A-J]\b")
OTHER = re.compile(  # no 2 + 3
  rf"(?:{STATED.pattern}|####)"
  rf"[\s*$(\[\\{{]{{0,20}}((?>{VALUE.pattern}))(?!\s*(?:\\[a-z]|[-+*/^=<>]))"
)
FORMULA = re.compile(r"\\(?!text|math)[a-z]|[/^]")  # may equal another text
MOST_BOXES = 100  # of more, the last ones are read
EMPTY = re.compile(
  r"(?:\s|[{}$]|\\[ ,;:!]|\\(?:quad|text|phantom)(?![a-zA-Z])|\.\.\.)*"
)


def reply(text: str) -> str:
  """The completion without what it thinks."""
  kept, start, is_open = [], 0, False
  for tag in THINKING.finditer(text):
    if not is_open:
      kept.append(text[start : tag.start()])
    closes = any(tag[name] for name in ("close", "closed", "ended", "message"))
    if closes and not is_open and not tag["message"]:
      kept = []
    is_open, start = not closes, tag.end()
  return "".join(kept) if is_open else "".join((*kept, text[start:]))


def last_number(text: str) -> str | None:
  """The last number, thousands separators removed: "1,234.5" -> "1234.5"."""
  numbers = NUMBER.findall(text)
  return numbers[-1].replace(",", "") if numbers else None


def boxes(text: str) -> list[tuple]:
  """(content, start, end) of every outermost \\boxed{...}, nested braces included; None
  for one that does not close. \\boxed 5 holds 5."""
  found, depth, inside = [], 0, None  # inside: (start, content's start, depth)
  for match in BOX_OR_BRACE.finditer(text):
    if match["box"] and inside is None:
      if match["open"]:
        inside = (match.start(), match.end(), depth)
      else:
        bare = re.match(r"[^\s$]*", text[match.end() : match.end() + 99])[0]
        end = match.end() + len(bare)
        found.append((bare.rstrip(".,"), match.start(), end))
    if match["open"] or match[0] == "{":
      depth += 1
    elif match[0] == "}":
      depth -= 1
      if inside and depth == inside[2]:
        found.append((text[inside[1] : match.start()], inside[0], match.end()))
        inside = None
  if inside:
    found.append((None, inside[0], len(text)))
  return found


def boxed(text: str) -> list[str] | None:
  """The contents of the boxes that answer together; None without a box that holds
  anything, [""] where the last box does not close or what follows takes it back."""
  found = boxes(text)
  if found and found[-1][0] is None:
    return [""]
  answers, end = [], None
  filled = [box for box in found if not EMPTY.fullmatch(box[0])]
  for content, start, stop in filled[-MOST_BOXES:]:
    between = "" if end is None else text[end:start]
    is_final = RETRACTED.search(between) or (
      FINAL.search(between) and not FURTHER.search(between)
    )
    content = (
      "" if is_part(text, start, stop) else content + unit_after(content, text, stop)
    )
    answers = [content] if is_final else [*answers, content]
    end = stop
  if end is None:
    return None
  if replaced(answers[-1], text[end:]):
    return None if TAKEN_BACK.search(text, end) and STATED.search(text, end) else [""]
  return [""] if "" in answers else [*dict.fromkeys(answers)]


def replaced(answer: str, after: str) -> bool:
  """Whether what follows an answer takes it back or states another one."""
  if TAKEN_BACK.search(after):
    return True
  others = [plain(match[1]) for match in OTHER.finditer(after)]
  numbers = [plain(value) for value in VALUE.findall(answer)]
  if not others or not numbers or FORMULA.search(answer):
    return False
  of_a_kind = others[-1][-1].isdigit() == numbers[-1][-1].isdigit()
  return of_a_kind and others[-1] not in numbers


def plain(value: str) -> str:
  """1,000. -> 1000"""
  return value.replace(",", "").rstrip(".")


def last_boxed(text: str) -> str | None:
  """The boxed answer, several of them as a list: "1, 2"; "" where the last box is
  empty or does not close, None without a box."""
  if (answers := boxed(text)) is not None:
    return ", ".join(answers)
  return "" if BOX.search(text) else None


def after_hashes(text: str) -> str | None:
  """The text after the last `####`; None without one, where nothing follows, or where
  a box or an "answer is" does, or what takes it back: then the hashes were the heading
  of a section. Of several, the last behind which no word comes first."""
  _, *parts = re.split("#{4,}", text)
  values = [p for p in parts if not re.match(r"\W*[A-Za-z]{2}", p)]
  hashes, after = bool(parts), (values or parts or [""])[-1]
  is_heading = BOX.search(after) or STATED.search(after) or TAKEN_BACK.search(after)
  return after if hashes and after.strip() and not is_heading else None


def in_words(text: str) -> str | None:
  """What the last <answer>...</answer> holds, else what follows the last "answer is"
  or "answer:"; None without either, or where what follows takes it back."""
  *_, opening, closing = [None, None, *ANSWER_TAG.finditer(text)]
  if opening and closing and not opening[1] and closing[1]:
    tagged = text[opening.end() : closing.start()].strip()
    if tagged and not replaced(tagged, text[closing.end() :]):
      return tagged
  *_, last = [None, *STATED.finditer(text)]
  if not last or DENIED_CLAIM.search(text[max(0, last.start() - NEAR) : last.start()]):
    return None
  after = text[last.end() :]
  if not after.strip() or TAKEN_BACK.search(after):
    return None
  return after


def stated(text: str) -> str | None:
  """The stated answer: `after_hashes`, or the boxed one, or the one in words; None
  without any of them."""
  if (after := after_hashes(text)) is not None:
    return after
  if (answers := boxed(text)) is not None:
    return ", ".join(answers)
  return in_words(text)
