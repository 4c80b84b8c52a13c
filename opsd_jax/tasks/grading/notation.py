"""One notation for answers in LaTeX, Unicode and plain text.

`clean` removes what only concerns an answer's looks and puts words in quotes; the
other functions take cleaned text.
"""

import re

RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne)(?![a-zA-Z])")
INEQUALITY = re.compile(r"[<>]|\\(?:le|ge|ne)(?![a-zA-Z])")

GLYPHS = str.maketrans(
  {
    "−": "-",
    "×": "\\times ",
    "÷": "\\div ",
    "·": "\\cdot ",
    "⋅": "\\cdot ",
    "π": "\\pi ",
    "√": "\\sqrt ",
    "°": "\\degree ",
    "∞": "\\infty ",
    "∪": "\\cup ",
    "∩": "\\cap ",
    "²": "^2 ",
    "³": "^3 ",
    "≤": "\\le ",
    "≥": "\\ge ",
    "½": "\\frac{1}{2}",
    "\u00a0": " ",
    "\u202f": " ",
    '"': "",
    "±": "\\pm ",
    "∈": "\\in ",
    "≠": "\\ne ",
  }
)

REWRITES = tuple(
  (re.compile(pattern), to)
  for pattern, to in (
    (
      r"\\text(?:bf|it|rm|sf|tt|normal)?(?![a-zA-Z])|\\m(?:athrm|box|athbf|athit"
      r"|athsf)(?![a-zA-Z])|\\operatorname(?![a-zA-Z])",
      r"\\text",
    ),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|limits)(?![a-zA-Z])", ""),
    (r"(?<=[0-9])(?:\{,\}|,\\!|\\,)\s*(?=[0-9]{3}(?![0-9]))", ""),
    (r"\{,\}", ","),
    (r"(?<!\\)\\[!()\[\]]", ""),
    (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-zA-Z])", " "),
    (r"_\s*\{\s*([0-9]+)\s*\}", r"_\1"),
    (r"\^\s*\{\s*([0-9])\s*\}", r"^\1"),
    (
      r"\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![a-zA-Z]))"
      r"|\\degree(?![a-zA-Z])",
      r"\\deg ",
    ),
    (r"\\\$\s*((?:[0-9]|,(?=[0-9]{3}))*\.?[0-9]+)", r'\1 "dollars" '),
    (r"\\\$|\$", ""),
    (r"\\%", "%"),
    (r"\\leq?(?![a-zA-Z])", r"\\le "),
    (r"\\geq?(?![a-zA-Z])", r"\\ge "),
    (r"\\neq?(?![a-zA-Z])", r"\\ne "),
    (r"(?<![a-zA-Z\\])sqrt\b", r"\\sqrt"),
    (r"(?<![a-zA-Z\\])pi\b", r"\\pi "),
    (r"(?<![a-zA-Z\\])(?:infinity|inf|oo)\b", r"\\infty "),
    (r"([0-9])\s+([0-9]+)/([0-9]+)(?![0-9])", r"\1\\frac{\2}{\3}"),
    (r"\\text\s*\{\s*([ie])\s*\}", r" \1 "),
    (r"\\text\s*\{([^{}]*)\}", r' "\1" '),
    (r"\\\\\s*\\end(?![a-zA-Z])", r"\\end"),
    (r"\s+", " "),
  )
)
JOINT = re.compile(r'"\s*,?\s*(?:and|or)\s*"')
END = re.compile(r"[\s.,;:]+$|^[\s,;:]+")


def clean(text: str) -> str:
  """An answer in the notation of this file; words stand in quotes."""
  text = text.translate(GLYPHS).strip().strip("*`")
  for pattern, to in REWRITES:
    text = pattern.sub(to, text)
  if not INEQUALITY.search(text):  # in "x > 3 and x < 5" the "and" is no comma
    text = " ".join(JOINT.sub(" , ", text).split())
  text = END.sub("", text)
  while text.startswith("{") and closing(text, 0) == len(text) - 1:
    text = text[1:-1].strip()
  return text


def folded(text: str) -> str:
  """Text without what people ignore when they compare it: case, spaces, quotes."""
  return squeezed(text.replace('"', " ").casefold()).strip(".,;: ")


def squeezed(text: str) -> str:
  """Text without spaces, except those between two words or numbers: "4 2" is not 42."""
  return re.sub(r"\s+(?=\W|$)|(?<=\W)\s+|^\s+", "", text)


def closing(text: str, start: int) -> int:
  """Index of the bracket that closes the one at `start`, -1 where none does; an
  interval may close with the other kind, as [0, 1) does."""
  depth = 0
  for i in range(start, len(text)):
    if text[i] in "([{":
      depth += 1
    elif text[i] in ")]}":
      depth -= 1
      if depth == 0:
        return i
  return -1


def split(text: str, mark: str) -> list[str]:
  """The parts of a text between those marks that are in no bracket."""
  parts, depth, start = [], 0, 0
  for i, character in enumerate(text):
    depth += (character in "([{") - (character in ")]}")
    if depth == 0 and text.startswith(mark, i):
      parts.append(text[start:i])
      start = i + len(mark)
  return [p.strip() for p in (*parts, text[start:])]


# ------------------------------------------------------------------ words

WORD = re.compile(r'"|(?<![a-zA-Z\\])[a-zA-Z]{3,}')
FUNCTIONS = frozenset(
  "sin cos tan sec csc cot log exp sinh cosh tanh arcsin arccos arctan gcd"
  " lcm min max mod".split()
)


def has_words(text: str) -> bool:
  """Whether a text holds words, which a computer algebra system would read as
  products of variables."""
  bare = re.sub(r"\\[a-zA-Z]+", " ", text)
  words = (match[0] for match in WORD.finditer(bare))
  is_one = re.fullmatch(r"[a-zA-Z]{2,}", text) is not None
  return is_one or any(word not in FUNCTIONS for word in words)
