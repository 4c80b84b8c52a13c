"""What stands beside a box: whether it changes the box's value or denies it.

A box is doubtful, and then no answer, where the formula goes on around it (2\\boxed{5},
(\\boxed{5}, 6), \\boxed{5}^2, \\boxed{5} = 6), where the words next to it name another
value (the root of \\boxed{5}, \\boxed{5} divided by 2), leave it out (all but \\boxed{5})
or deny it (\\boxed{5} fails), and where it is one of two. Only the text next to a box is
read: words further off belong to the working. A verb with "not" right behind a box
denies it, even where it may only describe it: "\\boxed{9} is not prime".
"""

import re

from opsd_jax.tasks.grading import formulas, number_words, units

WRONG = r"(?:wrong|incorrect|false|invalid|impossible|extraneous)"
NEGATED = r"(?:\s+not|n['’]t|not)"
TAG = re.compile(r"<[^<>\s]*>\s*$")
# A box that is only a part of the answer's formula: -\boxed{5}, \boxed{5}^2.
FUNCTION = (
  r"\\(?:ln|log|lg|exp|a?r?c?(?:sin|cos|tan)|sec|csc|cot|sqrt|det|gcd|lcm)(?![a-z])"
)
PART_BEFORE = re.compile(
  r"(?:(?<!-)-|[$=({][ ]*-[ ]*|\^|/|[\w}]_|[\w)}][ ]*>|<|[≠<>±√]|\d[.,:]?"
  r"|(?:\d|\)|\}|\b[a-z])[ ]*-[ ]+"
  rf"|{FUNCTION}[ ]*|\b(?:minus|negative|twice|double|triple|half(?: of)?|plus|times"
  r"|(?:more|less|fewer|greater) than)[ $]+"
  r"|\\(?:neq?|not\s*=|[lg]t|pm|pi|times|cdot|div)[ ]*|[\w)}][ ]*\+[ ]*|[\d)}][ ]*\*[ ]*"
  r"|\\(?!text|math|display|bm|bold|emph|under|color|large|rm|bf)[a-z]+\s*(?:\[[^][]*\])?"
  r"\s*(?:\{[^{}]*\}\s*)*\{\s*"
  r"|\\(?:[dtc]?frac|sqrt|d?binom)\s*(?:\{[^{}]*\}|\d)\s*(?:\{[^{}]*\}|\d)?[ ]*|[$=][ ]*[a-z])\Z",
  re.IGNORECASE,
)
OPERATIONS = (
  *formulas.GREEK,
  *"pi times cdot div pm mp sqrt choose over binom".split(),
)
PART_AFTER = re.compile(
  r"[.,:]\d|\((?=\w+[ ]*[-+*^/])|\)[ ]*\^|\d|[ ]\d+/\d|[ ]*(?:[½¼¾⅐-⅞⁰¹²³⁴-⁹×·÷π√]|-[ ]*[a-z][ ]*(?:\$|\\[)\]])"
  rf"|{FUNCTION})"
  r"|[ ]*(?:\^(?!\s*\{?\s*\\circ)|_(?=[\w{])|!\s*(?:\$|\\[)\]])|/\s*[\w\\({]"
  rf"|\\(?:{'|'.join(OPERATIONS)}|frac(?!\s*\{{\s*\\text))(?![a-z])"
  r"|\*(?=[\d(\\])|(?<=[ ])\*[ ]|\+\s*[\w\\(]|-\s*(?:\d|\\[a-z]))"
  r"|[a-z](?<![ghlms])(?![a-z])|[ ]+[a-z](?<![ghlms])[ ]*(?:\$|\\[)\]])",
  re.IGNORECASE,
)
UNIT_AFTER = re.compile(
  r"(?:[ $~*}]|\\[ ,;!])*(?:(?P<percent>\\?%|percent\b)|(?:\\(?:text|mathrm|mbox)\s*\{)?\s*"
  r"(?P<unit>[a-zA-Z]+)(?![a-zA-Z])\}?(?P<power>\s*\^\s*\{?[23]\}?)?(?!\s*(?:/|per\b)))"
)
NUMERIC = re.compile(r"\W*[0-9][0-9.,/]*|.*\\[dt]?frac.*[0-9}]")
NEAR = 99  # characters before and after a box that may change it
MINUS = str.maketrans("−–", "--")
COMPOUND = re.compile(
  rf"[ $}}]*(?:\\text\s*\{{\s*)?([a-z]+),?\s+(?:and\s+)?(?:\d+|{number_words.ANY.pattern})"
  r"[ $}]*([a-z]+)",
  re.IGNORECASE,
)
WORD_AFTER = re.compile(r"(?:[ $}~*]|\\[)\] ,])*(?:\\[a-z]+\s*\{\s*)?([a-zA-Z]+)")
SPACE_AFTER = re.compile(r"(?:\\[,;:! ]|~|\^\s*\{?\s*\\circ\s*\}?)+")
SMALL = r"(?:[^A-Za-z$\n()]|(?<![A-Za-z])[A-Za-z](?![A-Za-z]))*"  # no words
OPENS = re.compile(
  rf"(?:(?P<factor>\d)?(?:\\left)?(?<!\\)[(\[]|\\\{{)\s*(?P<first>{SMALL},)?\s*\Z"
)
CLOSES = re.compile(
  rf"\s*(?P<others>,{SMALL}?)?(?:\\right)?(?:(?<!\\)[)\]]|\\\}})(?P<power>\s*[\^!])?"
)
NUMBER = r"-?[0-9][0-9.,]*"
EQUATED = re.compile(rf"\s*=\s*({NUMBER})\s*(?:\$|\\[)\]])*(?:\.\s|\.?\Z)")
PLAIN_BOX = re.compile(rf"\\\w+\s*\{{?\s*({NUMBER})\s*\}}?")
# What names another value of the number behind it: the root of 9.
VALUE_OF = (
  r"(?:(?<!\ba )root|square|cube|reciprocal|inverse|opposite|negative|sine|cosine|tangent"
  r"|log(?:arithm)?(?:,? base \w+)?|factorial|half|third|quarter|(?:four|fif|six|seven"
  r"|eigh|nin|ten)th)s? of"
)
# What leaves the number behind it out: all but 9.
LEFT_OUT = (
  r"(?:(?:except|excluding|exclude|discard|reject|besides|avoid)(?:s|ed|ing)?(?: for)?"
  r"|(?:other|apart|different|far) (?:than|from)|(?:any|every)\w* (?:\w+ )?but|(?:all|none|nothing) but)"
)
MISTAKEN = (  # in the clause that holds the answer
  r"(?:(?:common|typical|easy|frequent) (?:mistake|error)|careless|wrong to|tempted"
  r"|(?:might|may|could) (?:guess|think|say|answer|expect))\b[^.,;:?!\n]*"
)
DOUBTFUL_BEFORE = re.compile(rf"(?i)\b(?:{VALUE_OF}|{LEFT_OUT}|{MISTAKEN})[*$\s]*$")
DOUBTFUL_AFTER = re.compile(
  r"(?i)[ $*)\]\\]*(?:"
  rf"(?:is|was|are|do|does|did|can|could|would)(?:{NEGATED})\b|fails?\b"
  r"|(?:is|was) (?:too|(?:an? )?(?:wrong|incorrect|false|mistake|error)|what (?:you|one|we))\b"
  r"|(?:is|can be|must be) (?:ruled out|excluded|rejected|discarded)"
  rf"|[(\[:;,—–-]+\s*{WRONG}\s*(?:[!.)\]]|$)"
  r"|,? but (?:also|(?:it|that|this|I|the (?:truth|answer)) (?:is|am|was))\b)"
)
DENIED_BEFORE = re.compile(
  r"(?i)(?:(?:\b(?:not|never|cannot)|n['’]t)(?:\s+be)?\s+(?:equal (?:to )?)?"
  r"|\b(?:instead of|rather than|neither|nor|reject|wrong to say|(?:wrong|incorrect) (?:answer|value|result)"
  r"(?: is| was| would be|:))\s*)[*$\\(\[\s]*$"
)
DENIED_AFTER = re.compile(
  r"(?i)[ $*)\]\\]*,?\s*(?:which |that |but (?:that |it |this )?)?"
  rf"(?:(?:is|was|would be|must be)\s+(?:{WRONG}"
  r"|not (?:right|correct|it\b|the (?:right |correct |final )?answer|valid|possible))"
  rf"|(?:is|was|ca|can|could|does)(?:{NEGATED})\s+(?:be\s+)?(?:right|correct|true|work|valid"
  r"|possible|satisfy|it\b|the (?:right |correct |final )?answer)"
  r"|must be (?:rejected|discarded))"
)
OR_BEFORE = re.compile(
  r"(?i)(?:(?<![-\w])([a-z])[ ]*=[ ]*[-\d.]+[ $]*\s+or\s+[$ ]*\1[ ]*=|\beither [$ ]*[-\d.]+[ $]*or)"
  r"[$ ]*$"
)
# 8 or \boxed{9}; but $13+15$ or $\boxed{28}$
OTHER_NUMBER_OR = re.compile(
  r"(?:^|[^-+*/0-9.,{}])\s?-?[0-9]+(?:\.[0-9]+)?[$ ]*\s+or[$\s]*$"
)
OR_AFTER = re.compile(
  r"(?i)(?:[ $}]|\\[)\] ,])*,?\s*(?:\\text\s*\{)?\s*or\b[ }$]*(?:[a-z][ ]*=[ ]*)?"
  r"(?:\$?[-\d]|\\d?frac|is it\b|(?:maybe|perhaps|possibly)\b|(?:more|less|fewer|greater|above|below|over|under)\b)"
)
CHANGED_AFTER = re.compile(  # 5 below zero, 5 divided by 2, 5 over three, 5 and a half
  r"(?i)[ $}*]*(?:below zero|to the (?:power|\w+th)"
  r"|and (?:a|one|two|three) (?:hal|third|quarter|fourth|fifth|sixth|eighth|tenth)\w*"
  r"|(?:over|times|plus|minus|choose|(?:divided|multiplied) by"
  r"|(?:less|more|fewer|greater) than)[ $]+(?:one|two|three|four"
  r"|five|six|seven|eight|nine|ten|\d+))\b"
)


def unit_after(content: str, text: str, stop: int) -> str:
  """A percent sign or a unit of the table that follows the box of a number: it is read
  as if it stood in the box. "" where none does, or where the box has its own."""
  match = UNIT_AFTER.match(text[stop : stop + NEAR])
  if not match or not NUMERIC.fullmatch(content[:NEAR].strip()):
    return ""
  if match["percent"]:
    return r"\%"
  word = match["unit"]
  is_unit = units.known(word) and word.casefold() not in ("in", "a", "person", "people")
  return rf" \text{{ {word}}}{match['power'] or ''}" if is_unit else ""


def is_part(text: str, start: int, stop: int) -> bool:
  """Whether what stands around a box changes its value or denies it."""
  before = TAG.sub("", text[max(0, start - NEAR) : start]).translate(MINUS)
  after = SPACE_AFTER.sub(" ", text[stop : stop + NEAR], count=1)
  word = WORD_AFTER.match(after)
  return bool(
    PART_BEFORE.search(before)
    or PART_AFTER.match(after)
    or is_denied(before, after)
    or is_item(before, after)
    or OR_BEFORE.search(before[-40:])
    or is_other_number(text[start:stop], before[-40:], after)
    or OR_AFTER.match(after)
    or CHANGED_AFTER.match(after)
    or is_compound(after)
    or (word and multiplies(word[1].casefold()))
  )


def is_denied(before: str, after: str) -> bool:
  """Whether the words beside a value deny it, leave it out or take another of it."""
  return bool(
    DENIED_BEFORE.search(before[-40:])
    or DENIED_AFTER.match(after)
    or DOUBTFUL_BEFORE.search(before[-NEAR:])
    or DOUBTFUL_AFTER.match(after)
  )


def is_item(before: str, after: str) -> bool:
  """Whether a box is an item of a bracket, (\\boxed{5}, 6), or the bracket has a
  factor or a power."""
  opened, closed = OPENS.search(before), CLOSES.match(after)
  if not opened or not closed:
    return False
  return bool(
    opened["factor"] or opened["first"] or closed["others"] or closed["power"]
  )


def is_other_number(box: str, before: str, after: str) -> bool:
  """Whether the box of a number is one of two, 8 or \\boxed{9}, or equated to another:
  \\boxed{9} = 10."""
  if not (content := PLAIN_BOX.fullmatch(box)):
    return False
  if OTHER_NUMBER_OR.search(before):
    return True
  equated = EQUATED.match(after)
  return bool(equated) and equated[1].rstrip(".,") != content[1].rstrip(".,")


def is_compound(after: str) -> bool:
  """Whether a unit and another number of a unit follow: 5 feet 6 inches."""
  match = COMPOUND.match(after)
  return bool(match) and bool(units.known(match[1]) and units.known(match[2]))


def multiplies(word: str) -> bool:
  """Whether a word after a box changes its value; a percent change is asked for
  without its sign, and quarters and triples are counted."""
  is_counted = word in ("percent", "quarters", "triple", "triples")
  return units.multiplies(word) and not is_counted
