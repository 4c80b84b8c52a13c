"""Formulas as trees: what answers write in LaTeX or plain text.

  parse("2x^2 + \\\\sin y")
    -> ("+", ("*", ("number", 2), ("^", ("letter", "x"), ("number", 2))), ...)

Read are numbers, letters (R is not r, x_1 is not x), sums, products, quotients,
powers, roots, factorials, binomials, absolute values and the FUNCTIONS. Everything
else raises Unknown, above all what looks like a product but is none: f(x),
f'(x), dy/dx, words. What two people may read differently raises Ambiguous: 1/2x,
x2, 2^3!, \\sin x/2, \\sin(x)^2.
"""

import re
from fractions import Fraction

from opsd_jax.tasks.grading.exact_numbers import Ambiguous, Unknown

LONGEST = 300  # characters of a formula
DEEPEST = 20  # levels of nested brackets

FUNCTIONS = frozenset(
  "sin cos tan sec csc cot arcsin arccos arctan sinh cosh tanh exp ln log".split()
)
ANGLES = frozenset("sin cos tan sec csc cot".split())
GREEK = frozenset(
  "alpha beta gamma delta epsilon varepsilon theta lambda mu rho sigma tau phi"
  " varphi psi omega".split()
)
TOKEN = re.compile(
  r"\s*(?:(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)|\\(?P<command>[a-zA-Z]+)"
  r"|(?P<letter>[a-zA-Z])|(?P<mark>[-+*/^_(){}\[\]|!]))"
)
PLAIN_FUNCTION = re.compile(
  rf"(?<![a-zA-Z\\])({'|'.join(sorted(FUNCTIONS, key=len, reverse=True))})(?![a-z])"
)
# Letters that name functions more often than factors, differentials and derivatives:
# f^{(3)} is no power.
NO_PRODUCT = re.compile(
  r"(?<![a-zA-Z\\])[fghFGH]\s*\(|\\frac\s*\{\s*d[^{}]*\}\s*\{\s*d\s*[a-zA-Z]"
  r"|(?<![a-zA-Z\\])d(?:\^[0-9]\s*)?[a-zA-Z]?\s*/\s*\(?\s*d[a-zA-Z]"
  r"|(?<=[\s)}])d[xytu]\s*$|[a-zA-Z]\s*\^\s*\{?\s*\(\s*[0-9]+\s*\)"
  r"|\\(?:var)?(?:phi|sigma|tau)\s*\(\s*[0-9]+\s*\)"
  r"|(?<![a-zA-Z\\])[PQ]\s*\(\s*[xyzn]\s*(?:[-+]\s*[0-9]+\s*)?\)"
)
WORD = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z]{4,}")
SUBSCRIPT = re.compile(r"\s*_\s*(?:([0-9a-zA-Z])|\{\s*([0-9a-zA-Z]+)\s*\})")
CLOSES = {"(": ")", "{": "}", "[": "]"}


def parse(text: str) -> tuple:
  """The tree of a cleaned answer; raises Unknown or Ambiguous."""
  if len(text) > LONGEST or NO_PRODUCT.search(text):
    raise Unknown("no formula")
  text = PLAIN_FUNCTION.sub(r"\\\1 ", text)
  if WORD.search(text):
    raise Unknown("words")
  parser = Parser(text)
  tree = parser.sum()
  if parser.peek()[0] != "end":
    raise Unknown(f"{text[parser.position :]!r} is left")
  return tree


def letters(tree) -> frozenset:
  """The letters of a formula, without e, i and pi."""
  if tree[0] == "letter":
    return frozenset((tree[1],))
  parts = [letters(part) for part in tree[1:] if isinstance(part, tuple)]
  return frozenset().union(*parts)


def is_plain(tree) -> bool:
  """Whether a number is written without a sum or product: 4! is, 2 + 3 is not."""
  if tree[0] in ("+", "*"):
    return False
  return all(is_plain(part) for part in tree[1:] if isinstance(part, tuple))


class Parser:
  """Recursive-descent parser of one text; `position` is the next character."""

  def __init__(self, text: str):
    self.text, self.position, self.depth = text, 0, 0
    self.bars = 0  # absolute values that are open
    self.in_angle = False

  def peek(self) -> tuple[str, str]:
    """(kind, text) of the next token."""
    match = TOKEN.match(self.text, self.position)
    if match:
      return match.lastgroup, match[match.lastgroup]
    if self.text[self.position :].strip():
      raise Unknown(f"no formula: {self.text[self.position :]!r}")
    return "end", ""

  def take(self, *tokens: str) -> str | None:
    """Moves past the next token where it is one of these marks or commands."""
    kind, text = self.peek()
    if kind in ("mark", "command") and text in tokens:
      self.position = TOKEN.match(self.text, self.position).end()
      return text
    return None

  def sum(self) -> tuple:
    self.depth += 1
    if self.depth > DEEPEST:
      raise Unknown("too many brackets")
    sign = self.take("+", "-")
    total = self.product()
    if sign == "-":
      total = ("negative", total)
    while sign := self.take("+", "-"):
      term = self.product()
      total = ("+", total, ("negative", term) if sign == "-" else term)
    self.depth -= 1
    return total

  def product(self) -> tuple:
    total, slashed = self.factor(), False
    while True:
      if self.take("*", "cdot", "times"):
        total = ("*", total, self.signed())
      elif self.take("/", "div"):
        total, slashed = ("/", total, self.signed()), True
      elif self.ends():
        return total
      elif slashed:
        raise Ambiguous("a product after a slash")
      else:
        self.refuse_digits()
        total = ("*", total, self.factor())

  def ends(self) -> bool:
    kind, text = self.peek()
    if text == "|":
      return self.bars > 0
    return kind == "end" or text in ("+", "-", ")", "}", "]")

  def refuse_digits(self) -> None:
    """Raises Ambiguous where digits stand side by side with a factor: x2, 1{7}."""
    if re.match(r"[\s{]*[0-9.]", self.text[self.position :]):
      raise Ambiguous("a number after a factor")

  def signed(self) -> tuple:
    sign = self.take("+", "-")
    value = self.factor()
    return ("negative", value) if sign == "-" else value

  def factor(self) -> tuple:
    value = self.base()
    marks = 0
    while mark := self.take("!", "^", "deg"):
      marks += 1
      if marks > 1 and mark != "deg":
        raise Ambiguous("a power of a power, or a factorial of one")
      if mark == "!":
        value = ("!", value)
      elif mark == "^":
        value = ("^", value, self.exponent())
      elif self.in_angle:
        value = ("degrees", value)
      else:
        raise Unknown("degrees outside an angle")
    return value

  def exponent(self) -> tuple:
    if self.peek()[1] in ("{", "("):
      return self.base()
    return self.signed_atom()

  def signed_atom(self) -> tuple:
    sign = self.take("+", "-")
    value = self.base()
    return ("negative", value) if sign == "-" else value

  def base(self) -> tuple:
    kind, text = self.peek()
    if kind == "number":
      return self.number()
    if kind == "letter":
      return self.letter(text)
    if kind == "command":
      return self.command(text)
    if text in CLOSES:
      return self.group()
    if text == "|" and self.take("|"):
      self.bars += 1
      value = ("abs", self.sum())
      self.bars -= 1
      return self.closed("|", value)
    raise Unknown(f"no value at {self.text[self.position :]!r}")

  def closed(self, mark: str, value: tuple) -> tuple:
    if not self.take(mark):
      raise Unknown(f"a bracket without its {mark}")
    return value

  def group(self) -> tuple:
    opening = self.take("(", "{", "[")
    bars, self.bars = self.bars, 0
    value = self.sum()
    self.bars = bars
    return self.closed(CLOSES[opening], value)

  def number(self) -> tuple:
    match = TOKEN.match(self.text, self.position)
    self.position = match.end()
    value = Fraction(match["number"])
    fraction = re.compile(r"\s*\\frac\s*(?=[0-9{])").match(self.text, self.position)
    if not fraction or "." in match["number"]:
      return ("number", value)
    # A fraction of two numbers after an integer: a mixed number, or a product.
    ahead = Parser(self.text)
    ahead.position = self.position
    try:
      (_, p, q) = ahead.base()
    except (Unknown, Ambiguous):
      return ("number", value)
    if p[0] == q[0] == "number":
      if not 0 < p[1] < q[1] or not value.denominator == p[1].denominator == 1:
        raise Ambiguous("an improper fraction after an integer")
      self.position = ahead.position
      value += p[1] / q[1]
    return ("number", value)

  def letter(self, text: str) -> tuple:
    self.position = TOKEN.match(self.text, self.position).end()
    name = self.subscripted(text)
    return (name,) if name in ("e", "i") else ("letter", name)

  def subscripted(self, name: str) -> str:
    """The name with the index that follows it."""
    if match := SUBSCRIPT.match(self.text, self.position):
      self.position = match.end()
      return f"{name}_{match[1] or match[2]}"
    return name

  def command(self, text: str) -> tuple:
    self.take(text)
    if text in GREEK:
      return ("letter", self.subscripted(f"\\{text}"))
    if text == "pi":
      return ("pi",)
    if text == "frac":
      return ("/", self.argument(), self.argument())
    if text == "binom":
      return ("binom", self.argument(), self.argument())
    if text == "sqrt":
      index = self.group() if self.peek()[1] == "[" else ("number", Fraction(2))
      is_digits = self.peek()[0] == "number"
      return ("root", self.base() if is_digits else self.argument(), index)
    if text in FUNCTIONS:
      return self.call(text)
    raise Unknown(f"the command {text}")

  def argument(self) -> tuple:
    """The argument of a TeX command: a group, a command or one digit."""
    match = re.compile(r"\s*([0-9])").match(self.text, self.position)
    if match:
      self.position = match.end()
      return ("number", Fraction(match[1]))
    return self.base()

  def call(self, name: str) -> tuple:
    base = power = None
    if self.take("_"):
      if name != "log":
        raise Unknown("a base of another function")
      base = self.argument()
    if self.take("^"):
      power = self.exponent()
    outside, self.in_angle = self.in_angle, name in ANGLES
    argument = self.operand()
    self.in_angle = outside
    if power == ("negative", ("number", 1)):
      if name not in ("sin", "cos", "tan"):
        raise Ambiguous("a reciprocal or an inverse function")
      name, power = f"arc{name}", None
    tree = ("call", name, argument) + ((base,) if base else ())
    return ("^", tree, power) if power else tree

  def operand(self) -> tuple:
    """What a function is taken of: a group; else a product up to the next operator,
    function or bracket, as in \\sin 2\\pi x."""
    if self.peek()[1] in ("(", "{", "[", "|"):
      value = self.base()
      if self.peek()[1] in ("^", "!", "deg"):
        raise Ambiguous("a power of a function or of its argument")
      return value
    value = self.factor()
    while True:
      kind, text = self.peek()
      if kind == "letter" or (kind == "command" and text in GREEK | {"pi"}):
        value = ("*", value, self.factor())
      elif kind == "number" or text in ("(", "{", "[", "frac", "sqrt", "cdot", "times"):
        raise Ambiguous("a product after a function's argument")
      elif text in ("/", "div"):
        raise Ambiguous("a slash after a function's argument")
      else:
        return value
