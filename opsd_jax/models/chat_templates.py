"""Chat templates: which one a model has, what it reads, how it ends a turn."""

import contextlib
import datetime
import functools
import itertools

import jinja2
import jinja2.defaults
import jinja2.ext
import jinja2.meta
import jinja2.sandbox
from transformers.utils import chat_template_utils

USER, ANSWER = "Question", "Answer"  # words of the chats that probe a template
# Names of every template that are no arguments of it.
NO_ARGUMENTS = (
  "messages",
  "add_generation_prompt",
  "raise_exception",
  "strftime_now",
  *jinja2.defaults.DEFAULT_NAMESPACE,
)


def read(path, config: dict) -> str | dict | None:
  """The chat template of a directory, as transformers reads it: chat_template.jinja
  and additional_chat_templates/*.jinja, else that of `config` (its
  tokenizer_config.json). Named templates are a dict, in which `default` is used.
  """
  files = {"default": path / "chat_template.jinja"}
  folder = path / "additional_chat_templates"
  if folder.exists():
    found = sorted(f for f in folder.iterdir() if f.name.endswith(".jinja"))
    files |= {f.name.removesuffix(".jinja"): f for f in found}
  templates = {name: read_text(f) for name, f in files.items() if f.exists()}
  if not templates:
    templates = config.get("chat_template")
  if isinstance(templates, list):
    templates = by_name(path, templates)
  if isinstance(templates, dict) and "default" not in templates:
    raise ValueError(
      f"{path} names the chat templates {', '.join(templates) or 'none'}, expected one"
      " of them to be default: write the one to use to chat_template.jinja"
    )
  if isinstance(templates, dict) and len(templates) == 1:
    templates = templates["default"]
  values = templates.values() if isinstance(templates, dict) else [templates or ""]
  if not all(isinstance(value, str) for value in values):
    raise ValueError(f"{path / 'tokenizer_config.json'}: chat_template is no text")
  return templates or None


def by_name(path, templates: list) -> dict:
  """{name: template} of the list in a tokenizer_config.json."""
  try:
    return {row["name"]: row["template"] for row in templates}
  except (TypeError, KeyError) as e:
    raise ValueError(
      f"{path / 'tokenizer_config.json'}: chat_template is a list, expected each"
      " entry to have a name and a template"
    ) from e


def read_text(path) -> str:
  try:
    return path.read_text(encoding="utf-8")
  except UnicodeDecodeError as e:
    raise ValueError(f"{path} is not readable, expected UTF-8: {e}") from e


class Generation(jinja2.ext.Extension):
  """The block {% generation %}, which marks what a model writes."""

  tags = {"generation"}

  def parse(self, parser):
    next(parser.stream)
    return parser.parse_statements(["name:endgeneration"], drop_needle=True)


PARSER = jinja2.sandbox.ImmutableSandboxedEnvironment(
  extensions=[Generation, jinja2.ext.loopcontrols]
)


@functools.cache
def arguments(template: str) -> frozenset[str]:
  """The names that a template reads; ValueError where it cannot be parsed."""
  try:
    names = jinja2.meta.find_undeclared_variables(PARSER.parse(template))
  except jinja2.TemplateError as e:
    raise ValueError(f"the chat template cannot be parsed: {e.message}") from e
  return frozenset(names).difference(NO_ARGUMENTS)


def check_arguments(template: str, names) -> None:
  """Raises ValueError unless a template reads each of these arguments."""
  known = arguments(template)
  if unread := sorted(set(names) - known):
    raise ValueError(
      f"the chat template does not read {', '.join(unread)}, which is set; it reads"
      f" {', '.join(sorted(known)) or 'no argument'}"
    )


@contextlib.contextmanager
def day(date: datetime.date):
  """What templates' `strftime_now` tells within the block."""

  # transformers reads the clock for it, and takes no function from its callers.
  class Day(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
      return cls(date.year, date.month, date.day, tzinfo=tz)

  clock = chat_template_utils.datetime
  chat_template_utils.datetime = Day
  try:
    yield
  finally:
    chat_template_utils.datetime = clock


def render(inner, messages, prompt: bool = True, **template_args) -> str:
  """A chat as text, with `prompt` up to the beginning of the model's turn; ValueError
  where the template fails."""
  if template_args.get("tools") is False:  # templates iterate over it
    template_args["tools"] = None
  try:
    return inner.apply_chat_template(
      messages, tokenize=False, add_generation_prompt=prompt, **template_args
    )
  except Exception as e:  # a template is a program, and raises what it likes
    words = " ".join(str(e).split())
    raise ValueError(
      f"the chat template cannot be rendered: {type(e).__name__}: {words}"
    ) from e


class Probe:
  """What two short chats say of a tokenizer's template."""

  def __init__(self, inner):
    """Raises ValueError where a user's message cannot be rendered, or a prompt lacks
    what opens the model's turn."""
    self.inner = inner
    arguments(inner.get_chat_template())
    user = {"role": "user", "content": USER}
    try:
      chat = [user]
      prompt = render(inner, chat)
    except ValueError as e:
      chat = [{"role": "system", "content": "System"}, user]
      try:  # some templates want a system's message
        prompt = render(inner, chat)
      except ValueError:
        raise e from None
    self.has_user = USER in prompt
    answered = [*chat, {"role": "assistant", "content": ANSWER}]
    self.before, self.after = self.around(answered)
    # Some templates leave a last answer open.
    self.between = self.around([*answered, user])[1]
    if self.before and prompt == render(inner, chat, prompt=False):
      self.check_opening(prompt)

  def around(self, chat) -> tuple[str, str]:
    """(text before the answer, text after it); empty where it is not rendered."""
    try:
      before, _, after = render(self.inner, chat, prompt=False).rpartition(ANSWER)
    except ValueError:  # some take questions alone
      return "", ""
    return (before, after) if before else ("", "")

  def check_opening(self, prompt: str) -> None:
    """Raises ValueError where a prompt without a generation prompt ends before the
    text that opens the model's turn."""
    opening = self.before.removeprefix(prompt).strip()
    if self.before.startswith(prompt) and opening:
      raise ValueError(
        f"the chat template has no generation prompt: prompts end before {opening!r},"
        " which opens the model's turn; write it, inside"
        " {% if add_generation_prompt %}...{% endif %}, at the template's end"
      )

  def end_id(self) -> int | None:
    """The first special token after an answer and before another turn opens."""
    # Naive: the end that a file names. Many name that of a text, not of a turn.
    added = self.inner.added_tokens_decoder
    bos, eos = self.inner.bos_token_id, self.inner.eos_token_id

    def ids(text):
      return self.inner.encode(text, add_special_tokens=False)

    def is_token(i):  # some add tokens of spaces
      return i in added and added[i].content.strip()

    start = ids(self.before.partition(USER)[0])
    if start[:1] == [bos] and any(map(is_token, start[1:2])):
      start = start[1:]  # before what opens the turn
    opening = next((i for i in start if is_token(i) and i != eos), None)
    for text in (self.after, self.between):
      ends = list(itertools.takewhile(lambda i: i != opening, ids(text)))
      ends = [i for i in ends if is_token(i) and (i != bos or i == eos)]
      # Other added tokens where none is special: some files mark none.
      ends.sort(key=lambda i: not added[i].special)
      if ends:
        return ends[0]
    return None
