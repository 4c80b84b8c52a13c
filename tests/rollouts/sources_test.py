"""Stop strings against a search token by token; completions with them."""

import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import base
from opsd_jax import api
from opsd_jax.models import tokenizer
from opsd_jax.models.weights import sources as weight_sources
from opsd_jax.rollouts import sources as rollout_sources
from opsd_jax.runtime import distributed
from opsd_jax.sampling.tokens import SamplingParams
from opsd_jax.structs import Completion, Example, Prompts

TOK = tokenizer.load(weight_sources.resolve("tiny"))
TEXT = st.text(st.sampled_from("abc\n é€"), max_size=30)


def first_end(ids, strings):
  """The fewest ids whose text holds one of the strings."""

  def holds(k):
    return any(s in TOK.decode(ids[:k]) for s in strings)

  return next((k for k in range(1, len(ids) + 1) if holds(k)), None)


@given(
  TEXT,
  st.lists(
    st.text(st.sampled_from("abc\n é€"), min_size=1, max_size=4), min_size=1, max_size=3
  ),
  st.lists(st.integers(1, 9), min_size=1, max_size=5),
  st.booleans(),
)
def test_stop_strings_are_found_wherever_chunks_end(text, strings, sizes, control):
  """A byte a token: strings and characters straddle tokens and chunks. Control
  tokens have no text, so a string may have them inside."""
  ids = TOK.encode(text)
  if control:
    ids = [y for i in ids for y in (i, TOK.end_of_turn_id)]
  stopped, seen, got = rollout_sources.stopper(TOK, strings), 0, None
  while seen < len(ids) and got is None:
    chunk = sizes[seen % len(sizes)]
    got = stopped(ids[: seen + chunk], seen)
    seen += chunk
  assert got == first_end(ids, strings)


def test_long_rows_are_not_read_again():
  """What is decoded grows with the row, not with its square."""
  read = []

  class Counting:
    def decode(self, ids):
      read.append(len(ids))
      return TOK.decode(ids)

  stopped, ids = (
    rollout_sources.stopper(Counting(), ("</answer>",)),
    TOK.encode("a" * 4096),
  )
  for end in range(32, len(ids) + 1, 32):
    assert stopped(ids[:end], end - 32) is None
  assert sum(read) < 5 * len(ids)


def completions(stop, steps, max_new_tokens=24):
  model = api.load_model("tiny")
  prompts = [api.chat_ids(model, p) for p in ("a", "bc", "d")]
  return rollout_sources.complete(
    model.config,
    model.params,
    model.tokenizer,
    prompts,
    ["0", "1", "2"],
    seed=0,
    step=0,
    role="generate",
    sampling=SamplingParams(),
    n=2,
    max_new_tokens=max_new_tokens,
    slots=4,
    host_sync_every=steps,
    prompt_bucket=64,
    stop=stop,
  )


def test_a_completion_ends_with_the_token_that_completes_a_stop_string():
  whole = [c for group in completions((), 7) for c in group]
  stop = whole[0].text[6:8], whole[3].text[9:12]
  cut = [c for group in completions(stop, 7) for c in group]
  ended = 0
  for c, w in zip(cut, whole, strict=True):
    size = first_end(w.ids, stop) or len(w.ids)
    assert c.ids == w.ids[:size] and len(c.logp) == len(c.sampled_logp) == size
    assert c.logp == pytest.approx(w.logp[:size], abs=1e-4)
    if size < len(w.ids):
      ended += 1
      assert not c.truncated and c.text.endswith(tuple(stop))
    else:
      assert c.truncated == w.truncated
  assert ended >= 2


@pytest.mark.parametrize("bad", ["</answer>", ("a", ""), (3,)])
def test_stop_strings_that_are_none_are_refused(bad):
  with pytest.raises(ValueError, match="rollout.stop is .*expected a tuple"):
    rollout_sources.check_stop("rollout.stop", bad)


def answer_of(step=3):
  model = api.load_model("tiny")
  config = base.get_config("tiny")
  config.rollout.slots, config.batch.prompt_bucket = 4, 64
  run = types.SimpleNamespace(
    model_config=model.config, tokenizer=model.tokenizer, longest_prompt=0
  )
  return rollout_sources.Answer(config, run, model.params, step)


def test_a_problem_asked_again_in_a_step_is_answered_with_other_draws():
  answer = answer_of()
  problem = Prompts(Example("7", "q", "s", "a"), ((5, 6, 7),))

  def ids(problems, before):
    groups = rollout_sources.student(problems, before, answer, None, 2)
    return [r.completion.ids for group in groups for r in group]

  first, again = (ids([problem], [times]) for times in (0, 1))
  assert ids([problem] * 2, [0, 1]) == first + again
  assert not set(first) & set(again)


def test_a_list_that_is_shorter_than_another_process_brings_is_filled_up(monkeypatch):
  """What fills it up is thrown away and changes no draw."""
  answer = answer_of()
  alone = answer([(5, 6, 7)], ["7"], 2, "rollout")
  monkeypatch.setattr(distributed, "maximum", lambda sizes: [3])
  assert answer([(5, 6, 7)], ["7"], 2, "rollout") == alone
  assert answer([], [], 2, "guided") == []


def test_the_old_log_prob_is_at_the_temperature_of_the_loss():
  answer = answer_of()
  completion = Completion("", (5,), (-1.0,), False, (-2.0,))
  assert answer.old_logp(completion) == (-1.0,)
  answer.temperature = 0.7
  assert answer.old_logp(completion) == (-2.0,)


# Special tokens as stops


def test_a_special_token_stops_where_it_is_sampled():
  """It has no text, so it is an end like the tokenizer's own."""
  assert rollout_sources.split_stop("s", ("x", "<|im_start|>"), TOK) == ([256], ("x",))
  assert rollout_sources.split_stop("s", (), None) == ([], ())
  (token,) = TOK.encode("<|im_start|>")
  for steps in (7, 64):
    whole = [c for g in completions((), steps, 200) for c in g]
    cut = [c for g in completions(("<|im_start|>",), steps, 200) for c in g]
    ended = 0
    for c, w in zip(cut, whole, strict=True):
      size = w.ids.index(token) + 1 if token in w.ids else len(w.ids)
      assert c.ids == w.ids[:size] and "im_start" not in c.text
      ended += size < len(w.ids) and not c.truncated
    assert ended


@pytest.mark.parametrize("stop", ["<|im_end|>\n", "a<|im_start|>", "<|im_end|>" * 2])
def test_a_stop_of_a_special_token_and_more_is_refused(stop):
  with pytest.raises(ValueError, match="holds the special token .*give the token alo"):
    completions(("a", stop), 3)
  config = base.get_config("tiny")
  for node, name in ((config.rollout, "rollout.stop"), (config.eval, "eval.stop")):
    node.stop = (stop,)
    with pytest.raises(ValueError, match=name):
      rollout_sources.check_chats(config, TOK)
    node.stop = ()
