"""Stop strings against a search token by token; completions with them."""

import types

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import base
from opsd_jax import api
from opsd_jax.evaluation import in_training
from opsd_jax.models import tokenizer
from opsd_jax.models.weights import sources as weight_sources
from opsd_jax.reporting import model_card
from opsd_jax.rollouts import answering
from opsd_jax.rollouts import sources as rollout_sources
from opsd_jax.runtime import distributed
from opsd_jax.runtime.mesh import make_mesh
from opsd_jax.sampling.tokens import SamplingParams
from opsd_jax.structs import Completion, Example, Prompts, Verdict

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
  stopped, seen, got = answering.stopper(TOK, strings), 0, None
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

  stopped, ids = (answering.stopper(Counting(), ("</answer>",)), TOK.encode("a" * 4096))
  for end in range(32, len(ids) + 1, 32):
    assert stopped(ids[:end], end - 32) is None
  assert sum(read) < 5 * len(ids)


def completions(stop, steps, max_new_tokens=24):
  model = api.load_model("tiny")
  prompts = [api.chat_ids(model, p) for p in ("a", "bc", "d")]
  return answering.complete(
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
    answering.check_stop("rollout.stop", bad)


def answer_of(step=3):
  model = api.load_model("tiny")
  config = base.get_config("tiny")
  config.rollout.slots, config.batch.prompt_bucket = 4, 64
  run = types.SimpleNamespace(
    model_config=model.config,
    tokenizer=model.tokenizer,
    longest_prompt=0,
    longest_row=512,
    external=model.params,
    external_config=model.config,
    mesh=make_mesh(1, 1, 1, devices=jax.devices()[:1]),
  )
  return answering.Answer(config, run, model.params, step)


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
  assert answering.split_stop("s", ("x", "<|im_start|>"), TOK) == ([256], ("x",))
  assert answering.split_stop("s", (), None) == ([], ())
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
      answering.check_chats(config, TOK)
    node.stop = ()


# ------------------------------------------------------- sources of several kinds


class Scripted:
  """An Answer whose completions are told."""

  def __init__(self, texts, draws=()):
    self.texts, self.calls, self.draws = iter(texts), [], dict(draws)

  def completion(self, text, truncated=False):
    return Completion(text, tuple(text.encode()), (-1.0,) * len(text), truncated)

  def __call__(self, prompts, names, n, role, weights="live", prefix_ids=()):
    self.calls.append((list(prompts), list(names), n, role, weights, list(prefix_ids)))
    return [[self.completion(next(self.texts)) for _ in range(n)] for _ in prompts]

  def given(self, text):
    return self.completion(text)._replace(logp=None)

  def joined(self, first, text, last):
    return self.given(first.text + text + last.text)

  def uniform(self, name):
    return self.draws[name]

  def prompt_after(self, group, i):
    return (99, i)

  def sentences(self, ids):
    return [slice(0, 1), slice(1, len(ids))]


PROBLEMS = [
  Prompts(
    Example(str(i), "q", f"solution {i}", "a", rejected=f"wrong {i}"), ((i,), (7,))
  )
  for i in range(2)
]


def verify(groups):
  return [
    [r._replace(verdict=Verdict(float("yes" in r.completion.text))) for r in group]
    for group in groups
  ]


def run_source(name, answer, n=1, **kw):
  groups = rollout_sources.ALL[name](PROBLEMS, [0, 0], answer, verify, n, **kw)
  return [[(r.role, r.completion.text) for r in group] for group in groups], groups


def test_pairs_are_the_reference_and_what_is_rejected():
  made, groups = run_source("pairs", Scripted([]))
  assert made[1] == [("dataset", "solution 1"), ("rejected", "wrong 1")]
  assert groups[0][1].views == PROBLEMS[0].views


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_mixed_is_the_dataset_at_0_and_the_student_at_1(share):
  answer = Scripted(["a", "b", "c", "d"], {"0": 0.2, "1": 0.7})
  made, _ = run_source("mixed", answer, 2, student_share=share)
  student, data = [("student", "a"), ("student", "b")], [("dataset", "solution 0")]
  assert made[0] == (student if share > 0.2 else data)
  assert made[1][0][0] == ("student" if share > 0.7 else "dataset")
  (call,) = answer.calls  # also where nobody answers: other processes may
  assert call[1] == [name for name, u in (("0", 0.2), ("1", 0.7)) if u < share]


def test_a_revision_is_learned_from_both_prompts_by_its_own_verdict():
  answer = Scripted(["no", "yes", "yes 2", "no 2"])
  made, groups = run_source("revised", answer)
  assert answer.calls[1][0] == [(99, 0), (99, 0)] and answer.calls[1][3] == "revision"
  assert made[0][0] == ("revision", "yes 2")
  role, text = made[0][1]
  assert role == "generation" and text.startswith("no\n\nThis attempt is not correct")
  assert text.endswith("yes 2") and "is correct. Say" in made[1][1][1]
  assert [r.verdict.score for g in groups for r in g] == [1, 1, 0, 0]
  first, second = groups[0]
  assert first.views[0] == (99, 0) and second.views == PROBLEMS[0].views
  assert second.is_copy and first.completion.logp is None


def test_a_stated_confidence_is_no_part_of_the_answer():
  _, groups = run_source("calibrated", Scripted(["no\nConfidence: yes"] * 4), 2)
  assert not any(r.verdict.score for g in groups for r in g)
  assert in_training.answer_text("4\nConfidence: 0.5").strip() == "4"
  assert in_training.answer_text("<think>a</think>4") == "<think>a</think>4"


def test_a_stated_confidence_becomes_the_rate_and_keeps_the_verdict():
  texts = ["yes\nConfidence: 0.5", "no\nConfidence: 0.9", "no", "no"]
  made, groups = run_source("calibrated", Scripted(texts), 2)
  assert made[0] == [
    ("student", "yes\nConfidence: 0.50"),
    ("student", "no\nConfidence: 0.50"),
  ]
  assert made[1][0][1] == "no\nConfidence: 0.00"
  assert [r.verdict.score for r in groups[0]] == [1, 0]
  same = ["yes\nConfidence: 0.50", "no\nConfidence: 0.50"] * 2
  _, groups = run_source("calibrated", Scripted(same), 2)
  assert groups[0][0].completion.logp is not None  # nothing to change: as sampled


def test_what_was_cut_off_is_continued_by_the_external_model():
  answer = Scripted(["abcd", "done", "ab and more"], {"0 0": 0.5})
  cut = answer.completion
  answer.completion = lambda text: cut(text, truncated=text == "abcd")
  made, groups = run_source("continued", answer)
  assert made == [[("external", "ab and more")], [("student", "done")]]
  assert answer.calls[1][3:] == ("continuation", "external", [tuple(b"ab")])
  assert groups[0][0].completion.logp is groups[1][0].completion.logp is None


def test_of_several_the_one_with_the_most_to_learn_is_imitated():
  """Sentences of 1 and 3 tokens; the teacher is sure of the second one of response 1."""
  answer = Scripted(["aaaa", "bbbb", "cccc", "dddd"])
  sure = {"b": (-3.0, -0.1, -0.1, -0.1), "c": (-0.1, -3.0, -3.0, -3.0)}

  def score(rollouts, view, weights):
    plain = (-3.0,) * 4
    letters = [r.completion.text[0] for r in rollouts]
    found = [sure.get(x, plain) if weights == "external" else plain for x in letters]
    return [np.array(x) for x in found]

  answer.score = score
  made, _ = run_source("most_taught", answer, 2, threshold=0.5)
  assert made == [[("external", "bbbb")], [("external", "cccc")]]


def test_scores_are_the_log_probs_of_sampling_and_a_prefix_is_gone_on_from():
  answer = answer_of()
  answer.run.external_config = answer.run.model_config
  problem = Prompts(Example("7", "q", "s", "a"), ((5, 6, 7),))
  rollouts = rollout_sources.student([problem], [0], answer, None, 3)[0]
  with jax.set_mesh(answer.run.mesh):
    scores = answer.score(rollouts, 0)
  for rollout, logp in zip(rollouts, scores, strict=True):
    np.testing.assert_allclose(logp, rollout.completion.logp, atol=1e-4)
  ((more,),) = answer([(5, 6, 7)], ["7"], 1, "continuation", prefix_ids=[(65, 66)])
  assert more.ids[:2] == (65, 66) and len(more.ids) <= answer.max_new_tokens
  assert more.logp is None and more.text.startswith(TOK.decode((65, 66)))
  assert answer.score([], 0) == []


def test_a_model_card_says_where_responses_came_from():
  assert set(model_card.RESPONSES) == set(rollout_sources.ALL)
