"""Text <-> token ids, and chat templates; on `tokenizers`, without torch."""

import datetime
import hashlib
import json
import os
import pathlib

import tokenizers
from etils import epath
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

# Else transformers warns at import that torch is missing, which is intended.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
from transformers import PreTrainedTokenizerFast  # noqa: E402

from opsd_jax.models import chat_templates  # noqa: E402
from opsd_jax.runtime import paths  # noqa: E402

CHATML = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
  "<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Pre-tokenizers: how text is split before byte pairs are merged.
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split_by(pattern: str):
  split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
  return pre_tokenizers.Sequence([split, BYTES])


QWEN2 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
  r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE = {  # tokenizer.ggml.pre -> pre-tokenizer
  "smollm": pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), GPT2]
  ),
  "gpt-2": GPT2,
  "qwen2": split_by(QWEN2),
  "llama-bpe": split_by(QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")),
}


# Keys of GGUF that name an end of a response, beside eos_token_id.
ENDS = ("eot_token_id", "eom_token_id")


class ControlToken(ValueError):
  """A text contains a special token, which would end or forge a turn."""


class Tokenizer:
  """A tokenizer with the model's chat template and end-of-response ids.

  `end_of_turn_id` is what the chat template writes after an answer, or the
  tokenizer's eos token where it writes none; references end with it. `eos_ids` all
  end a response. `notes` are lines to print at a start.
  """

  def __init__(self, inner: PreTrainedTokenizerFast, end_ids=()):
    """`end_ids`: ids that end a response, beside the template's end of turn and the
    tokenizer's eos token. Raises ValueError for a chat template that fails."""
    self.inner, self.notes = inner, []
    self.date = datetime.date.today()  # that chat templates are told
    self.end_of_turn_id = inner.eos_token_id
    if inner.chat_template:
      self.read_template()
    ends = (self.end_of_turn_id, inner.eos_token_id, *end_ids)
    self.eos_ids = tuple(dict.fromkeys(ends))
    self.pad_id = (
      inner.eos_token_id if inner.pad_token_id is None else inner.pad_token_id
    )
    self.vocab_size = len(inner)
    # An end of turn is one, whether its file calls it special or not.
    self.control = [
      token.content
      for i, token in inner.added_tokens_decoder.items()
      if token.special or i == self.end_of_turn_id
    ]

  def read_template(self) -> None:
    """Takes the end of turn from the chat template."""
    probe = chat_templates.Probe(self.inner)
    end_id = probe.end_id()
    if end_id is not None:
      self.end_of_turn_id = end_id
    elif probe.before:
      self.notes.append(
        "the chat template ends no turn with a special token: responses end with"
        f" {self.inner.eos_token!r}"
      )
    if not probe.has_user:
      self.notes.append("the chat template does not show the user's message")

  def note_other_ends(self, named: dict[str, list[int]]) -> None:
    """Notes who, of {name of a field: ids}, names other ends than the template."""

    def text(i):
      return repr(self.inner.decode([i]) or i)

    others = [
      f"{name} names {', '.join(map(text, ids))}"
      for name, ids in named.items()
      if ids and self.end_of_turn_id not in ids
    ]
    if others:
      end, whose = text(self.end_of_turn_id), "chat template"
      whose = whose if self.inner.chat_template else "tokenizer"
      self.notes.append(
        f"the {whose} ends a turn with {end}, {', '.join(others)}: each of them ends a"
        f" response, and references end with {end}"
      )

  def check_fits(self, vocab_size: int, source="") -> None:
    """Raises ValueError where an id is beyond a model's vocabulary."""
    ids = self.inner.get_vocab()
    named = set(self.eos_ids).difference(ids.values())
    ids |= {f"eos_token_id {i}": i for i in named}
    beyond = sorted((i, text) for text, i in ids.items() if i >= vocab_size)
    if beyond:
      last, more = beyond[-1][0], f" and {len(beyond) - 3} more"
      texts = ", ".join(repr(text) for _, text in beyond[:3])
      raise ValueError(
        f"{f'{source}: ' if source else ''}the tokenizer has token {last}, the model"
        f" {vocab_size} vocabulary entries; beyond them are"
        f" {texts}{more if len(beyond) > 3 else ''}: the tokenizer belongs to another model, or its embedding"
        " must be resized"
      )

  def encode(self, text: str) -> list[int]:
    """The text's ids, without tokens around it."""
    return self.inner.encode(text, add_special_tokens=False)

  def decode(self, ids, skip_special: bool = True) -> str:
    """The text of ids; `skip_special` leaves special tokens and a last end out."""
    ids = list(ids)
    if skip_special and ids and ids[-1] in self.eos_ids:
      ids.pop()
    return self.inner.decode(
      ids, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
    )

  def render(self, messages, **template_args) -> str:
    """The chat as text, up to the beginning of the model's turn.

    Raises ValueError without a chat template, or where it fails or does not read an
    argument, and ControlToken as `refuse_control`.
    """
    self.check_arguments(template_args)
    for message in messages:
      self.refuse_control(message["content"])
    with chat_templates.day(self.date):
      return chat_templates.render(self.inner, messages, **template_args)

  def check_arguments(self, names) -> None:
    """Raises ValueError unless there is a chat template that reads these arguments."""
    if not self.inner.chat_template:
      raise ValueError(
        "this tokenizer has no chat template: give the model directory a"
        " chat_template.jinja"
      )
    if names:
      chat_templates.check_arguments(self.inner.get_chat_template(), names)

  def digest(self) -> str:
    """A hash of what it makes of a text and of a chat."""
    inner = self.inner
    what = inner.backend_tokenizer.to_str(), inner.chat_template, self.eos_ids
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]

  def refuse_control(self, text: str) -> None:
    """Raises ControlToken where a text contains a special token."""
    for token in self.control:
      if token in text:
        raise ControlToken(
          f"a message contains the control token {token!r}: {text[:80]!r}"
        )

  def chat_ids(self, messages, **template_args) -> list[int]:
    """Token ids of the rendered chat."""
    return self.encode(self.render(messages, **template_args))

  def save(self, directory: pathlib.Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja, as
    `load` and transformers read them."""
    inner = self.inner
    inner.backend_tokenizer.save(str(directory / "tokenizer.json"))
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    config = {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "clean_up_tokenization_spaces": False,
    } | {n: getattr(inner, n) for n in names if getattr(inner, n) is not None}
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (directory / "tokenizer_config.json").write_text(text + "\n")
    # chat_template.jinja, and a file for each further template that has a name.
    inner.save_chat_templates(str(directory), {}, None, True)


def load(
  path, vocab_size: int | None = None, date: datetime.date | None = None
) -> Tokenizer:
  """The tokenizer of a resolved model source: a directory in Hugging Face
  format, a .gguf file, or `tiny` and `tiny_wide`.

  Args:
    path: the source.
    vocab_size: of the model; ValueError where the tokenizer has ids beyond it.
    date: what chat templates that ask for it are told; None: today's.
  """
  tokenizer = read(path)
  tokenizer.date = date or tokenizer.date
  if vocab_size is not None:
    tokenizer.check_fits(vocab_size, path)
  return tokenizer


def read(path) -> Tokenizer:
  if str(path) in ("tiny", "tiny_wide"):
    return byte_tokenizer()
  path = epath.Path(path)
  return from_directory(path) if path.is_dir() else from_gguf(path)


def make(path, inner, named: dict) -> Tokenizer:
  """A Tokenizer of {name of a field: the ends that it gives}; ValueError, naming the
  file, for a template that fails."""
  try:
    tokenizer = Tokenizer(inner, [i for ids in named.values() for i in ids])
  except ValueError as e:
    raise ValueError(f"{path}: {e}") from e
  tokenizer.note_other_ends({"eos_token": [inner.eos_token_id]} | named)
  return tokenizer


def end_ids(value, name: str) -> list[int]:
  """The ids in a field eos_token_id: one, several, or None."""
  ids = value if isinstance(value, list) else [] if value is None else [value]
  for i in ids:
    if type(i) is not int or i < 0:
      raise ValueError(f"{name} is {i!r}, expected the id of a token, or a list of ids")
  return ids


def from_directory(path: epath.Path) -> Tokenizer:
  """Reads tokenizer.json, tokenizer_config.json, the chat template and the ends that
  config.json and generation_config.json name; never code."""
  if not (path / "tokenizer.json").exists():
    raise ValueError(f"{path} has no tokenizer.json")

  def read(name):
    return paths.read_object(path / name) if (path / name).exists() else {}

  config = read("tokenizer_config.json")

  def token(name):
    value = config[name]
    value = value.get("content") if isinstance(value, dict) else value
    if not isinstance(value, str):
      raise ValueError(
        f"{path / 'tokenizer_config.json'}: {name} is {value!r}, no text"
      )
    return value

  special = {
    name: token(name)
    for name in ("bos_token", "eos_token", "pad_token", "unk_token")
    if config.get(name)
  }
  if "eos_token" not in special:
    raise ValueError(f"{path / 'tokenizer_config.json'} names no eos_token")
  try:
    plain = tokenizers.Tokenizer.from_str((path / "tokenizer.json").read_text())
  except Exception as e:  # tokenizers raises nothing narrower
    raise ValueError(f"{path / 'tokenizer.json'} is not readable: {e}") from e
  if plain.token_to_id(special["eos_token"]) is None:
    raise ValueError(
      f"{path / 'tokenizer_config.json'}: eos_token {special['eos_token']!r} is not in"
      " tokenizer.json"
    )
  inner = PreTrainedTokenizerFast(
    tokenizer_object=plain, chat_template=chat_templates.read(path, config), **special
  )
  named = {
    f"{file}'s eos_token_id": end_ids(
      read(file).get("eos_token_id"), f"{path / file}: eos_token_id"
    )
    for file in ("config.json", "generation_config.json")
  }
  return make(path, inner, named)


def from_gguf(path: pathlib.Path) -> Tokenizer:
  """Byte-level BPE rebuilt from a GGUF file's metadata."""
  # Deferred: it imports jax, which tokenizers of other formats do not need.
  from opsd_jax.models.weights import gguf

  meta = gguf.metadata(gguf.open_file(path))

  def get(name):
    return meta.get(f"tokenizer.ggml.{name}")

  if get("model") != "gpt2" or get("pre") not in PRE:
    raise ValueError(
      f"{path}: tokenizer {get('model')!r} with pre-tokenizer {get('pre')!r} is not"
      f" supported, expected gpt2 with one of {', '.join(PRE)}; use the model in"
      " Hugging Face format"
    )
  for key in ("tokens", "token_type", "merges", "eos_token_id"):
    if get(key) is None:
      raise ValueError(f"{path} does not give tokenizer.ggml.{key}")
  try:
    inner = rebuild(get("pre"), get("tokens"), get("token_type"), get("merges"))
  except Exception as e:  # tokenizers raises nothing narrower
    raise ValueError(f"{path}: its tokenizer cannot be rebuilt: {e}") from e

  def name(key):
    i = get(key)
    is_one = isinstance(i, int) and 0 <= i < len(get("tokens"))
    if i is not None and not is_one:
      raise ValueError(
        f"{path}: tokenizer.ggml.{key} is {i!r}, expected one of its"
        f" {len(get('tokens'))} tokens"
      )
    return None if i is None else get("tokens")[i]

  # Ends of a turn and of a message to a tool, beside that of a text.
  named = {key: get(key) for key in ENDS if name(key) is not None}
  inner = PreTrainedTokenizerFast(
    tokenizer_object=inner,
    chat_template=meta.get("tokenizer.chat_template"),
    bos_token=name("bos_token_id"),
    eos_token=name("eos_token_id"),
    pad_token=name("padding_token_id"),
    unk_token=name("unknown_token_id"),
  )
  return make(path, inner, {key: [i] for key, i in named.items()})


def rebuild(pre: str, tokens, token_types, merges) -> tokenizers.Tokenizer:
  """Byte-level BPE of a GGUF file's arrays; raises what tokenizers raises."""
  inner = tokenizers.Tokenizer(
    models.BPE(
      vocab={t: i for i, t in enumerate(tokens)},
      merges=[tuple(m.split(" ")) for m in merges],
      # Llama 3 keeps a word that is a token as that token, against its merges.
      ignore_merges=pre == "llama-bpe",
    )
  )
  if pre == "qwen2":
    inner.normalizer = normalizers.NFC()
  inner.pre_tokenizer, inner.decoder = PRE[pre], decoders.ByteLevel()

  def added_tokens(token_type, special):
    return [
      AddedToken(t, special=special, normalized=False)
      for t, type_ in zip(tokens, token_types, strict=True)
      if type_ == token_type
    ]

  inner.add_special_tokens(added_tokens(3, True))  # llama.cpp's CONTROL
  inner.add_tokens(added_tokens(4, False))  # USER_DEFINED, such as <think>
  return inner


def byte_tokenizer() -> Tokenizer:
  """One token a byte, and ChatML: for the tiny models with random weights."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  inner = tokenizers.Tokenizer(
    models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[])
  )
  inner.pre_tokenizer, inner.decoder = BYTES, decoders.ByteLevel()
  inner.add_special_tokens(["<|im_start|>", "<|im_end|>"])
  return Tokenizer(
    PreTrainedTokenizerFast(
      tokenizer_object=inner,
      chat_template=CHATML,
      eos_token="<|im_end|>",
      pad_token="<|im_end|>",
      additional_special_tokens=["<|im_start|>"],
    )
  )
