"""One notation for answers in LaTeX, Unicode and plain text.

`clean` removes what only concerns an answer's looks and puts words in quotes; the
other functions take cleaned text.
"""

import re
import unicodedata

RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne)(?![a-zA-Z])")
INEQUALITY = re.compile(r"[<>]|\\(?:le|ge|ne)(?![a-zA-Z])")

SUPERSCRIPT = re.compile("[⁰¹²³⁴-⁹⁺⁻ⁿ]+")
SUBSCRIPT = re.compile("[₀-₉]+")
VULGAR = re.compile("[¼½¾⅐-⅞]")
DASHES = dict.fromkeys("−‐‑‒–—―－﹣", "-")
# Before NFKC, which would turn them into plain letters.
SETS = str.maketrans(
  {
    "ℝ": "\\mathbb{R}",
    "ℤ": "\\Z ",
    "ℕ": "\\N ",
    "ℚ": "\\Q ",
    "ℂ": "\\C ",
    "º": "\\degree ",
  }
)
GLYPHS = str.maketrans(
  DASHES
  | {
    "×": "\\times ",
    "÷": "\\div ",
    "·": "\\cdot ",
    "⋅": "\\cdot ",
    "√": "\\sqrt ",
    "°": "\\degree ",
    "∞": "\\infty ",
    "∪": "\\cup ",
    "∩": "\\cap ",
    "∖": "\\setminus ",
    "≤": "\\le ",
    "≥": "\\ge ",
    "⩽": "\\le ",
    "⩾": "\\ge ",
    "≦": "\\le ",
    "≧": "\\ge ",
    '"': "",
    "±": "\\pm ",
    "∈": "\\in ",
    "≠": "\\ne ",
    "∅": "\\emptyset ",
    "∠": "\\angle ",
    "′": "'",
    "’": "'",
    "⟨": "\\langle ",
    "⟩": "\\rangle ",
    "⁄": "/",
    "∕": "/",
  }
  | {
    letter: f"\\{name} "
    for letter, name in zip(
      "αβγδθλμπρσφωε",
      "alpha beta gamma delta theta lambda mu pi rho sigma phi omega epsilon".split(),
      strict=True,
    )
  }
)
CURRENCIES = {"€": "euros", "£": "sterling", "¥": "yen", "₹": "rupees", "¢": "cents"}

NUMBER = r"(?:[0-9]|,(?=[0-9]{3}))*\.?[0-9]+"


def rows(cases) -> str:
  """The rows of a system of equations as a list."""
  return cases[1].replace("\\\\", ", ")


FRACTION = r"\s*\\frac\s*(?:\{[0-9]+\}|[0-9])\s*(?:\{[0-9]+\}|[0-9])"
REWRITES = tuple(
  (re.compile(pattern, re.DOTALL), to)
  for pattern, to in (
    # Looks.
    (r"\\(?:boxed|fbox)\s*(?=\{)", ""),
    (r"\\(?:text)?color\s*(?:\[[^\]{}]*\])?\s*\{[^{}]*\}", " "),
    (r"\\(?:therefore|checkmark)(?![a-zA-Z])|^\s*=", " "),
    (r"\\(?:tag\*?|label|[hv]?phantom|[hv]space\*?)\s*\{[^{}]*\}", " "),
    (r"\\\\\s*\[\s*-?[0-9.]+\s*(?:\\?[a-z]+)\s*\]", r"\\\\ "),
    (
      r"\\(?:tiny|small|large|Large|LARGE|huge|Huge|normalsize|bf|it|rm|sf|tt"
      r"|ensuremath|mathstrut|strut)(?![a-zA-Z])",
      " ",
    ),
    (
      r"\\text(?:bf|it|rm|sf|tt|normal|up|sl)?(?![a-zA-Z])|\\m(?:athrm|box|athbf|athit"
      r"|athsf|athtt|athnormal)(?![a-zA-Z])|\\(?:boldsymbol|bm|emph|operatorname)"
      r"(?![a-zA-Z])",
      r"\\text",
    ),
    (r"=\s*\\underline\s*(?=\{[^{}]*\}\s*$)", "= "),
    (r"\.{2,}|\\[cl]?dots(?![a-zA-Z])", r"\\ldots "),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
    (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\.?", ""),
    (r"\\(?:displaystyle|textstyle|scriptstyle|limits)(?![a-zA-Z])", " "),
    (r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}", r"\\frac{\1}{\2}"),
    (r"\{([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\}", r"\\binom{\1}{\2}"),
    (r"(^|=)\s*\(([0-9A-F]+)\)\s*_", r"\1\2_"),
    (r"(?<=[0-9])\s+x\s+(?=10\s*\^)", r"\\times "),
    (r"^\s*([-+]?[0-9][^=<>]*)=\s*([a-z])\s*$", r"\2 = \1"),
    (r"(?<=[0-9])(?:\{,\}|,\\!|\\,)\s*(?=[0-9]{3}(?![0-9]))", ""),
    (r"\{,\}", ","),
    (r"(?<!\\)\\[!()\[\]]", ""),
    (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![a-zA-Z])", " "),
    (r"_\s*\{\s*([0-9a-zA-Z])\s*\}", r"_\1 "),
    (r"\^\s*\{\s*([0-9])\s*\}", r"^\1 "),
    (
      r"\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![a-zA-Z]))"
      r"|\\degree(?![a-zA-Z])",
      r"\\deg ",
    ),
    (r"\^\s*\{((?:\s*\\prime\s*)+)\}|\^\s*(\\prime)(?![a-zA-Z])", r"\1\2"),
    (r"\\prime(?![a-zA-Z])\s*", "'"),
    (r"(?<=[0-9])\\?\$(?=[0-9])", r" \\ldots "),
    # Money; other dollar signs only begin and end mathematics.
    (rf"\\\$\s*({NUMBER}(?:{FRACTION})?)", r'\1 "dollars" '),
    (r"\\\$|\$", ""),
    (rf"([€£¥₹])\s*({NUMBER})", lambda m: f'{m[2]} "{CURRENCIES[m[1]]}" '),
    (r"(?<=[0-9])\s*([€£¥₹¢])", lambda m: f' "{CURRENCIES[m[1]]}" '),
    (r"\\%", "%"),
    # One command for each relation and set.
    (r"\\(?:leq?|leqslant|leqq)(?![a-zA-Z])|<=", r"\\le "),
    (r"\\(?:geq?|geqslant|geqq)(?![a-zA-Z])|>=", r"\\ge "),
    (r"\\neq?(?![a-zA-Z])|\\not\s*=", r"\\ne "),
    (r"\\lt(?![a-zA-Z])", "<"),
    (r"\\gt(?![a-zA-Z])", ">"),
    (r"\\[lr]?vert(?![a-zA-Z])|\\mid(?![a-zA-Z])", "|"),
    (
      r"\\(?:math(?:bb|cal)|Bbb)\s*(?:\{\s*R\s*\}|R(?![a-zA-Z]))|\\R(?![a-zA-Z])",
      r"\\reals ",
    ),
    (r"\\backslash(?![a-zA-Z])", r"\\setminus "),
    (r"(?<![a-zA-Z\\])sqrt\b", r"\\sqrt"),
    (r"(?<![a-zA-Z\\])pi\b", r"\\pi "),
    (r"(?<![a-zA-Z\\])(?:infinity|inf|oo)\b", r"\\infty "),
    (r"([0-9])\s+([0-9]+)/([0-9]+)(?![0-9])", r"\1\\frac{\2}{\3}"),
    # Words stand in quotes.
    (r"\\text\s*\{\s*([ie])\s*\}", r" \1 "),
    (r"\\text\s*\{([^{}]*)\}", r' "\1" '),
    (r'"[\s.,;:!]*"', " "),
    (r"\\\\\s*\\end(?![a-zA-Z])", r"\\end"),
    (r"^\s*\\begin\{cases\}([^&\"<>]*)\\end\{cases\}\s*$", rows),
    (r'(?<=[0-9}])\s*(?:"\s*per\s?cent\s*"|per\s?cent(?![a-zA-Z]))', "%"),
    (r"\s+", " "),
  )
)
BRACKETED = (  # a matrix whose brackets stand outside its environment
  (r"\(", r"\)", "pmatrix"),
  (r"\[", r"\]", "bmatrix"),
)
MATRICES = tuple(
  (
    re.compile(
      rf"{opening}\s*\\begin\{{(array|(?:small)?matrix)\}}(?:\s*\{{[lcr| ]*\}})?"
      rf"(.*)\\end\{{\1\}}\s*{end}",
      re.DOTALL,
    ),
    rf"\\begin{{{name}}}\2\\end{{{name}}}",
  )
  for opening, end, name in BRACKETED
)
JOINT = re.compile(r'"\s*,?\s*(?:and|or)\s*"')
GROUPED = re.compile(r"(?:\\underline\s*)?\{")
END = re.compile(r"[\s.,;:]+$|^[\s,;:]+")


def clean(text: str) -> str:
  """An answer in the notation of this file; words stand in quotes."""
  text = unstarred(ascii_notation(text).strip())
  for pattern, to in REWRITES:
    text = pattern.sub(to, text)
  text = without_head(text.strip())
  # In "x > 3 and x < 5" and in "x = 1 or y = 2" the word is no comma.
  if not INEQUALITY.search(text) and text.count("=") < 2:
    text = " ".join(JOINT.sub(" , ", text).split())
  text = END.sub("", text)
  while match := GROUPED.match(text):
    start = match.end() - 1
    if closing(text, start) != len(text) - 1:
      break
    text = END.sub("", text[start + 1 : -1])
  for pattern, to in MATRICES:
    if match := pattern.fullmatch(text):
      text = match.expand(to)
  return text


def unstarred(text: str) -> str:
  """Without the marks of bold and of code around it, and without a pair of single
  stars: **5** and *5* are 5, but *args is not args, nor z* z."""
  if match := re.match(r"\*{2,}|`+|\*(?=.*[^*]\*$)", text, re.DOTALL):
    start = match[0]
    text = text[len(start) :]
    text = text.removesuffix("*") if start == "*" else text
  return re.sub(r"(?:(?<![*`])\*{2,}|(?<!`)`+)$", "", text)


HEAD = (
  r"(?:(?:so|thus|hence|therefore),?\s+)?(?:(?:the|our|my)\s+)?(?:(?:final|correct)\s+)?"
  r"answer\s*(?:is|:|=)\s*:?\s*"
)
QUOTED_HEAD = re.compile(rf'"\s*{HEAD}"\s*', re.IGNORECASE)
OPEN_HEAD = re.compile(rf'(")?\s*{HEAD}', re.IGNORECASE)


def without_head(text: str) -> str:
  """Without "The answer is" before the answer."""
  if match := QUOTED_HEAD.match(text):
    return text[match.end() :]
  match = OPEN_HEAD.match(text)
  return (match[1] or "") + text[match.end() :] if match else text


def ascii_notation(text: str) -> str:
  """Unicode's digits, fractions, exponents and signs as TeX writes them."""
  if text.isascii():
    return text.replace('"', "")
  for pattern, to in ((SUPERSCRIPT, "^{"), (SUBSCRIPT, "_{")):
    text = pattern.sub(lambda m, to=to: to + compatible(m[0]) + "}", text)
  text = VULGAR.sub(vulgar, text)
  return compatible(text.translate(SETS)).translate(GLYPHS)


def compatible(text: str) -> str:
  return unicodedata.normalize("NFKC", text).translate(GLYPHS)


def vulgar(match) -> str:
  """½ -> \\frac{1}{2}"""
  above, below = unicodedata.normalize("NFKC", match[0]).split("\u2044")
  return f"\\frac{{{above}}}{{{below}}}"


QUOTED = re.compile(r'"([^"]*)"')
LOUD = frozenset("yes no true false none even odd never always neither both".split())


def folded(text: str, all_words: bool = False) -> str:
  """Text without what people ignore when they compare it: spaces, quotes and the case
  of words. Single letters and names in capitals keep their case: R is not r.

  Letters in a row outside quotes may be a product: Rxy is not rxy. They are a word
  where they look like one, or, with `all_words`, where there are three of them.
  """
  parts = QUOTED.split(text)  # every other part stood in quotes
  shortest = 3 if all_words else 5
  parts[::2] = [without_case(part, shortest) for part in parts[::2]]
  parts[1::2] = [f" {without_case(part, 2)} " for part in parts[1::2]]
  return squeezed("".join(parts)).strip(".,;: ")


def without_case(text: str, shortest: int) -> str:
  """Lower-cases words of at least so many letters; names in capitals stay."""

  def fold(match):
    word, low = match[0], match[0].lower()
    is_word = len(word) >= shortest and word[1:].islower() and set(low) & set("aeiouy")
    return low if is_word or low in LOUD else word

  return re.sub(r"(?<![a-zA-Z\\])[a-zA-Z]+", fold, text)


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
