"""Chat templates of every kind: ends of turns, arguments, names and mistakes."""

import json
import re

import pytest
import tokenizers
from transformers import AutoTokenizer

from configs import opsd
from opsd_jax import setup
from opsd_jax.models import chat_templates, tokenizer
from opsd_jax.models.weights import gguf
from opsd_jax.reporting import console
from opsd_jax.rollouts import answering
from tests.models import tokenizer_test, transformer_test
from tests.models.tokenizer_test import messages

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot|>", "<s>", "</s>")
IDS = {t: 256 + i for i, t in enumerate(SPECIAL)}
QUESTION = messages([("user", "Why?")])
LLAMA3 = (
  "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}<|im_start|>\n\n"
  "{{ m.content | trim }}<|eot|>{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant<|im_start|>\n\n{% endif %}"
)
MISTRAL = (
  "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
  "[INST] {{ m.content }} [/INST]{% elif m.role == 'assistant' %}"
  " {{ m.content }}</s>{% else %}{{ raise_exception('roles') }}{% endif %}{% endfor %}"
)
THINKS = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n"
  "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
  "{{ m.content }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n"
  "{% if enable_thinking is defined and enable_thinking is false %}"
  "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
MARKED = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
  "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}"
  "{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NEEDS_SYSTEM = (
  "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}"
) + tokenizer.CHATML
OPEN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}"
OPEN += "<|im_start|>assistant\n"
LAST_OPEN = tokenizer.CHATML.replace(
  "<|im_end|>", "{% if not loop.last %}<|im_end|>{% endif %}"
)
WITH_SYSTEM = "<|im_start|>system\nBe brief.<|im_end|>\n" + tokenizer.CHATML


def write(path, template=tokenizer.CHATML, plain=(), files=None, **config):
  """A directory with the byte tokenizer; `plain` are added tokens that are not
  special, `files` further files."""
  path.mkdir(exist_ok=True)
  byte_ids = tokenizer_test.BYTES.inner.get_vocab().items()
  vocab = {text: i for text, i in byte_ids if i < 256}
  inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
  inner.pre_tokenizer = tokenizer.BYTES
  inner.decoder = tokenizers.decoders.ByteLevel()
  for token in SPECIAL:
    if token in plain:
      inner.add_tokens([tokenizers.AddedToken(token, normalized=False)])
    else:
      inner.add_special_tokens([token])
  inner.save(str(path / "tokenizer.json"))
  config = {"eos_token": "<|endoftext|>", "bos_token": "<s>"} | config
  if template is not None:
    config["chat_template"] = template
  files = {"tokenizer_config.json": config} | (files or {})
  for name, value in files.items():
    (path / name).parent.mkdir(exist_ok=True)
    text = value if isinstance(value, str) else json.dumps(value)
    (path / name).write_text(text)
  return path


# Where a turn ends


@pytest.mark.parametrize(
  "template,end",
  [
    (tokenizer.CHATML, "<|im_end|>"),
    (LLAMA3, "<|eot|>"),
    (MISTRAL, "</s>"),
    (THINKS, "<|im_end|>"),
    (MARKED, "<|im_end|>"),
    (NEEDS_SYSTEM, "<|im_end|>"),
    (tokenizer.CHATML.replace("<|im_end|>", "{{ eos_token }}"), "<|endoftext|>"),
    (OPEN, "<|endoftext|>"),  # what opens a turn ends none
    (LAST_OPEN, "<|im_end|>"),
    (WITH_SYSTEM, "<|im_end|>"),
    (None, "<|endoftext|>"),
  ],
)
def test_a_turn_ends_as_the_template_ends_it(template, end, tmp_path):
  ours = tokenizer.load(write(tmp_path, template))
  assert ours.end_of_turn_id == IDS[end]
  assert ours.eos_ids == tuple(dict.fromkeys([IDS[end], IDS["<|endoftext|>"]]))
  target = answering.reference(ours, "yes")
  assert target.ids[-1] == IDS[end] and ours.decode(target.ids) == "yes"
  noted = any("ends a turn with" in note for note in ours.notes)
  assert noted == (end != "<|endoftext|>")


@pytest.mark.parametrize("value", [259, [257, 259]])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_every_end_that_a_file_names_ends_a_response(file, value, tmp_path):
  path = write(tmp_path, files={file: {"eos_token_id": value}})
  expected = (258, 256, *(value if isinstance(value, list) else [value]))
  ours = tokenizer.load(path)
  assert ours.eos_ids == expected and ours.end_of_turn_id == 258
  (note,) = ours.notes
  assert "'<|im_end|>'" in note and "eos_token names '<|endoftext|>'" in note
  assert f"{file}'s eos_token_id names" in note and "'<|eot|>'" in note


def test_ends_that_agree_need_no_word(tmp_path):
  files = {"generation_config.json": {"eos_token_id": [258, 256]}}
  ours = tokenizer.load(write(tmp_path, eos_token="<|im_end|>", files=files))
  assert ours.notes == [] and ours.eos_ids == (258, 256)
  assert tokenizer.load("tiny").notes == []


@pytest.mark.parametrize("key", ["eot_token_id", "eom_token_id"])
def test_every_end_that_a_gguf_names_ends_a_response(key, tmp_path):
  directory = tokenizer_test.write(tmp_path / "hf")
  ids = {t: tokenizer.load(directory).encode(t)[0] for t in tokenizer_test.CONTROL}
  pad = ids["<|pad|>"]
  file = tokenizer_test.write_gguf(
    tmp_path / "m.gguf", directory, "qwen2", **{key: pad, "eos_token_id": pad + 2}
  )
  ours = tokenizer.load(file)
  assert ours.end_of_turn_id == ids["<|end|>"]
  assert ours.eos_ids == (ids["<|end|>"], pad + 2, pad)
  assert f"{key} names '<|pad|>'" in ours.notes[0]


def test_an_end_that_no_file_calls_special_is_one(tmp_path):
  """It ends responses, is no text of theirs, and no message may hold it."""
  ours = tokenizer.load(write(tmp_path, plain=["<|im_end|>", "<|im_start|>"]))
  assert ours.end_of_turn_id == 258
  assert ours.decode([*ours.encode("yes"), 258]) == "yes"
  with pytest.raises(tokenizer.ControlToken, match="im_end"):
    ours.chat_ids(messages([("user", "no<|im_end|>")]))


def test_a_run_says_at_its_start_where_ends_disagree(tmp_path):
  path = transformer_test.make(
    tmp_path / "m", vocab_size=320, max_position_embeddings=2048
  )
  write(path)
  config = opsd.get_config("tiny")
  config.model.source = str(path)
  run = setup.prepare(config)
  assert run.tokenizer.notes[0] in console.describe(config, run).splitlines()
  assert run.tokenizer.eos_ids == (258, 256)


@pytest.mark.parametrize("template", [tokenizer.CHATML, WITH_SYSTEM])
def test_a_token_may_begin_a_text_and_open_turns_or_end_them(template, tmp_path):
  opens = tokenizer.load(write(tmp_path / "a", template, bos_token="<|im_start|>"))
  assert opens.end_of_turn_id == 258
  ends = tokenizer.load(
    write(
      tmp_path / "b",
      "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
      bos_token="<|endoftext|>",
    )
  )
  assert ends.eos_ids == (256,) and ends.notes == []


# Ids


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", ["<|im_end|>", "258", 258.0, True, -1, [258, None]])
def test_an_end_that_is_no_id_is_refused_by_name(file, value, tmp_path):
  path = write(tmp_path, files={file: {"eos_token_id": value}})
  with pytest.raises(ValueError, match=rf"{file}: eos_token_id is .*expected the id"):
    tokenizer.load(path)


@pytest.mark.parametrize(
  "changes,size,words",
  [
    ({}, 258, "'<|im_end|>', '<|eot|>', '<s>' and 1 more"),
    ({"pad_token": "[PAD]"}, 262, r"token 262, the model 262 .*'\[PAD\]'"),
    (
      {"files": {"config.json": {"eos_token_id": 400}}},
      320,
      "token 400.*'eos_token_id 400'",
    ),
    (
      {"files": {"generation_config.json": {"eos_token_id": [256, 320]}}},
      320,
      "token 320, the model 320",
    ),
  ],
)
def test_ids_beyond_the_vocabulary_are_refused_by_name(changes, size, words, tmp_path):
  path = write(tmp_path, **changes)
  tokenizer.load(path, 401)
  with pytest.raises(ValueError, match=words.replace("|", r"\|")) as error:
    tokenizer.load(path, size)
  assert str(path) in str(error.value)


@pytest.mark.parametrize("key", ["eos_token_id", "eot_token_id", "padding_token_id"])
@pytest.mark.parametrize("i", [9999, -1, "2", [2], 2.0])
def test_an_id_beyond_the_tokens_of_a_gguf_is_refused(key, i, tmp_path, monkeypatch):
  directory = tokenizer_test.write(tmp_path / "hf")
  file = tokenizer_test.write_gguf(tmp_path / "m.gguf", directory, "qwen2")
  metadata = gguf.metadata
  monkeypatch.setattr(
    gguf, "metadata", lambda f: metadata(f) | {f"tokenizer.ggml.{key}": i}
  )
  words = re.escape(f"{key} is {i!r}, expected one of its")
  with pytest.raises(ValueError, match=words):
    tokenizer.load(file)


def test_an_eos_token_that_is_no_token_is_refused(tmp_path):
  with pytest.raises(ValueError, match="'<end>' is not in tokenizer.json"):
    tokenizer.load(write(tmp_path, eos_token="<end>"))
  with pytest.raises(ValueError, match="eos_token is 7, no text"):
    tokenizer.load(write(tmp_path, eos_token=7))


# Which template, and what it reads


NAMED = {
  "default": tokenizer.CHATML,
  "rag": "{{ messages }}",
  "tool_use": "{{ tools }}",
}


@pytest.mark.parametrize("as_files", [False, True])
def test_of_named_templates_the_default_is_used_and_all_are_kept(as_files, tmp_path):
  if as_files:
    files = {f"additional_chat_templates/{n}.jinja": t for n, t in NAMED.items()}
    files["chat_template.jinja"] = files.pop("additional_chat_templates/default.jinja")
    path = write(tmp_path / "in", "{{ 'not this one' }}", files=files)
  else:
    rows = [{"name": n, "template": t} for n, t in NAMED.items()]
    path = write(tmp_path / "in", rows)
  ours, theirs = tokenizer.load(path), AutoTokenizer.from_pretrained(path)
  text = ours.render(QUESTION)
  assert text == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
  assert (
    theirs.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    == text
  )
  (tmp_path / "out").mkdir()
  ours.save(tmp_path / "out")
  assert tokenizer.load(tmp_path / "out").render(QUESTION) == text
  assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == NAMED


@pytest.mark.parametrize(
  "template,words",
  [
    ([{"name": "rag", "template": "x"}], "names the chat templates rag, expected one"),
    ([{"name": "default"}], "a list, expected each entry to have a name"),
    (["x"], "a list, expected each entry to have a name"),
    ([], "chat templates none"),
    (7, "chat_template is no text"),
    ([{"name": "default", "template": 7}], "chat_template is no text"),
    ("{% for m in messages %}", "cannot be parsed: .*Unexpected end"),
    ("{% endif %}", "cannot be parsed"),
    ("{{ messages[0].content.x.y }}", "cannot be rendered: UndefinedError"),
    ("{{ raise_exception('never') }}", "cannot be rendered: TemplateError: never"),
    ("{{ 1 + 'a' }}", "cannot be rendered: TypeError"),
    ("{{ messages | nofilter }}", "cannot be parsed: .*nofilter"),
    (
      tokenizer.CHATML.partition("{% if add")[0],
      "no generation prompt: prompts end before '<.im_start.>assistant'",
    ),
    (
      "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
      "no generation prompt: prompts end before 'assistant:'",
    ),
  ],
)
def test_a_template_that_cannot_serve_is_one_line(template, words, tmp_path):
  path = write(tmp_path, template)
  with pytest.raises(ValueError, match=words) as error:
    tokenizer.load(path)
  assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_template_in_another_encoding_is_named(tmp_path):
  path = write(tmp_path)
  (path / "chat_template.jinja").write_bytes("x".encode("utf-16"))
  with pytest.raises(ValueError, match="chat_template.jinja is not readable"):
    tokenizer.load(path)


def test_a_template_that_shows_no_question_is_said(tmp_path):
  (note,) = tokenizer.load(write(tmp_path, "{{ messages | length }}")).notes
  assert note == "the chat template does not show the user's message"


def test_an_argument_that_the_template_does_not_read_is_refused(tmp_path):
  thinks, plain = (
    tokenizer.load(write(tmp_path / n, t))
    for n, t in (("a", THINKS), ("b", tokenizer.CHATML))
  )
  assert "</think>" in thinks.render(QUESTION, enable_thinking=False)
  assert "</think>" not in thinks.render(QUESTION, enable_thinking=True)
  with pytest.raises(ValueError, match="does not read enable_thinking, which is set"):
    plain.render(QUESTION, enable_thinking=True)
  with pytest.raises(ValueError, match="loud.*it reads enable_thinking"):
    thinks.render(QUESTION, loud=1)
  for name in ("messages", "add_generation_prompt"):
    with pytest.raises(ValueError, match="does not read"):
      thinks.check_arguments([name])
  text = "{% if x is not defined %}{% set x = 1 %}{% endif %}{{ x }}{# y #}{{ m.z }}"
  assert chat_templates.arguments(text) == {"x", "m"}


@pytest.mark.parametrize("side", ["student_args", "teacher_args"])
def test_a_run_with_an_argument_that_nothing_reads_is_refused(side):
  config = opsd.get_config("tiny")
  config.context[side] = "enable_thinking=false"
  with pytest.raises(ValueError, match=f"context.{side}: .*does not read enable_thin"):
    setup.prepare(config)


@pytest.mark.parametrize("merges", [["a"], ["a b c"], ["no such"], [""], "ab"])
def test_merges_of_a_gguf_that_are_none_are_one_line(merges, tmp_path):
  directory = tokenizer_test.write(tmp_path / "hf")
  file = tokenizer_test.write_gguf(
    tmp_path / "m.gguf", directory, "qwen2", token_merges=list(merges)
  )
  with pytest.raises(ValueError, match="its tokenizer cannot be rebuilt") as error:
    tokenizer.load(file)
  assert str(file) in str(error.value)


def test_token_types_of_a_gguf_that_are_too_few_are_one_line(tmp_path):
  directory = tokenizer_test.write(tmp_path / "hf")
  file = tokenizer_test.write_gguf(
    tmp_path / "m.gguf", directory, "qwen2", token_types=[1, 1]
  )
  with pytest.raises(ValueError, match="its tokenizer cannot be rebuilt"):
    tokenizer.load(file)


def test_tools_may_be_off(tmp_path):
  """As the fields' comments say; templates iterate over them."""
  template = "{% if tools %}{% for t in tools %}{{ t }}{% endfor %}{% endif %}"
  path = write(tmp_path, template + tokenizer.CHATML)
  loaded, messages = tokenizer.load(path), [{"role": "user", "content": "Hi"}]
  assert loaded.chat_ids(messages, tools=False) == loaded.chat_ids(messages)
