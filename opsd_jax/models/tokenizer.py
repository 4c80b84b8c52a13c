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


class ControlToken(ValueError):
  """A text contains a special token, which would end or forge a turn."""


class Tokenizer:
  """A tokenizer with the model's chat template and end-of-response ids."""

  def __init__(self, inner: PreTrainedTokenizerFast, end_ids=()):
    """`end_ids`: ids that end a response, beside the tokenizer's eos token."""
    self.inner = inner
    self.date = datetime.date.today()  # that chat templates are told
    self.end_of_turn_id = inner.eos_token_id
    self.eos_ids = tuple(dict.fromkeys((inner.eos_token_id, *end_ids)))
    self.pad_id = (
      inner.eos_token_id if inner.pad_token_id is None else inner.pad_token_id
    )
    self.vocab_size = len(inner)
    self.control = [t.content for t in inner.added_tokens_decoder.values() if t.special]

  def encode(self, text: str) -> list[int]:
    """The text's ids, without tokens around it."""
    return self.inner.encode(text, add_special_tokens=False)

  def decode(self, ids, skip_special: bool = True) -> str:
    """The text of ids; `skip_special` leaves special tokens out."""
    return self.inner.decode(
      list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
    )

  def render(self, messages, **template_args) -> str:
    """The chat as text, up to the beginning of the model's turn.

    Raises ValueError without a chat template, and ControlToken as
    `refuse_control`.
    """
    if not self.inner.chat_template:
      raise ValueError(
        "this tokenizer has no chat template: give the model directory a"
        " chat_template.jinja"
      )
    for message in messages:
      self.refuse_control(message["content"])
    midnight = datetime.datetime.combine(self.date, datetime.time())
    return self.inner.apply_chat_template(
      messages,
      tokenize=False,
      add_generation_prompt=True,
      strftime_now=midnight.strftime,
      **template_args,
    )

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
    if inner.chat_template:
      jinja = directory / "chat_template.jinja"
      jinja.write_text(inner.chat_template, newline="")


def load(path, date: datetime.date | None = None) -> Tokenizer:
  """The tokenizer of a resolved model source: a directory in Hugging Face
  format, a .gguf file, or `tiny` and `tiny_wide`. `date` is what chat templates
  that ask for it are told; None: today's."""
  tokenizer = read(path)
  tokenizer.date = date or tokenizer.date
  return tokenizer


def read(path) -> Tokenizer:
  if str(path) in ("tiny", "tiny_wide"):
    return byte_tokenizer()
  path = epath.Path(path)
  return from_directory(path) if path.is_dir() else from_gguf(path)


def from_directory(path: epath.Path) -> Tokenizer:
  """Reads tokenizer.json, tokenizer_config.json, chat_template.jinja and the end
  ids of generation_config.json; never code."""
  if not (path / "tokenizer.json").exists():
    raise ValueError(f"{path} has no tokenizer.json")

  def read(name):
    return paths.read_json(path / name) if (path / name).exists() else {}

  config = read("tokenizer_config.json")

  def token(value):
    return value["content"] if isinstance(value, dict) else value

  special = {
    name: token(config[name])
    for name in ("bos_token", "eos_token", "pad_token", "unk_token")
    if config.get(name)
  }
  if "eos_token" not in special:
    raise ValueError(f"{path / 'tokenizer_config.json'} names no eos_token")
  template, jinja = config.get("chat_template"), path / "chat_template.jinja"
  if jinja.exists():
    template = jinja.read_text()
  ends = read("generation_config.json").get("eos_token_id")
  if not isinstance(ends, list):
    ends = [] if ends is None else [ends]
  try:
    inner = PreTrainedTokenizerFast(
      tokenizer_object=tokenizers.Tokenizer.from_str(
        (path / "tokenizer.json").read_text()
      ),
      chat_template=template,
      **special,
    )
  except Exception as e:  # tokenizers raises nothing narrower
    raise ValueError(f"{path / 'tokenizer.json'} is not readable: {e}") from e
  return Tokenizer(inner, ends)


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
  tokens = get("tokens")
  inner = tokenizers.Tokenizer(
    models.BPE(
      vocab={t: i for i, t in enumerate(tokens)},
      merges=[tuple(m.split(" ")) for m in get("merges")],
      # Llama 3 keeps a word that is a token as that token, against its merges.
      ignore_merges=get("pre") == "llama-bpe",
    )
  )
  if get("pre") == "qwen2":
    inner.normalizer = normalizers.NFC()
  inner.pre_tokenizer, inner.decoder = PRE[get("pre")], decoders.ByteLevel()

  def added_tokens(token_type, special):
    return [
      AddedToken(t, special=special, normalized=False)
      for t, type_ in zip(tokens, get("token_type"), strict=True)
      if type_ == token_type
    ]

  inner.add_special_tokens(added_tokens(3, True))  # llama.cpp's CONTROL
  inner.add_tokens(added_tokens(4, False))  # USER_DEFINED, such as <think>

  def name(key):
    return None if get(key) is None else tokens[get(key)]

  return Tokenizer(
    PreTrainedTokenizerFast(
      tokenizer_object=inner,
      chat_template=meta.get("tokenizer.chat_template"),
      bos_token=name("bos_token_id"),
      eos_token=name("eos_token_id"),
      pad_token=name("padding_token_id"),
      unk_token=name("unknown_token_id"),
    )
  )


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
