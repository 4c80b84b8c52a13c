"""Examples -> token ids of every view's prompt, before any rollout."""

from collections.abc import Callable, Sequence

from opsd_jax import spec
from opsd_jax.models.tokenizer import ControlToken, Tokenizer
from opsd_jax.rollouts import contexts
from opsd_jax.rollouts.answering import reference
from opsd_jax.structs import Example, Prompts

# Why an example cannot become a prompt; every other error ends the run.
REASONS = (contexts.Missing, ControlToken)


def prompt_limit(field: str, new_tokens: int, limit: int, limited_by: str) -> int:
  """Tokens of a prompt at most; ValueError where `new_tokens`, the value of `field`,
  leave it none of the `limit`."""
  if new_tokens >= limit:
    raise ValueError(
      f"{field} is {new_tokens}, expected less than {limit}, {limited_by}, so that a"
      " prompt fits too"
    )
  return limit - new_tokens


def build_prompts(
  context,
  tokenizer: Tokenizer,
  examples: Sequence[Example],
  max_prompt_len: int,
  dropped: dict[str, int],
  use: str,
  reference_row_len: int = 0,
  views_read: int = 1,
) -> tuple[Prompts, ...]:
  """The prompts of every view of every example that has them.

  An example without a student's prompt is dropped. One that only lacks a
  teacher's prompt is dropped from training; in evaluation it stays, with that
  view empty, so that evaluation does not depend on what the teacher reads.

  Args:
    context: config.context.
    tokenizer: renders the chats.
    examples: also the pool that the context `other` draws from.
    max_prompt_len: tokens of a prompt at most.
    dropped: counts of dropped examples by use and reason; added to.
    use: "training" or "evaluation".
    reference_row_len: unless 0, the response will be the reference solution, and
      prompt and response together have at most so many tokens in each of the
      first `views_read` views.
  """
  kinds, kept = contexts.names(context), []
  pool = contexts.Pool(examples)
  for example in examples:
    try:
      student_ids = chat_ids(
        tokenizer,
        contexts.student_messages(context.template, example),
        context.student_args,
        max_prompt_len,
      )
      views = [student_ids]
      for kind in kinds:
        try:
          views.append(
            teacher_ids(context, tokenizer, example, pool, kind, max_prompt_len)
          )
        except REASONS as e:
          if use == "training":
            raise
          count(dropped, f"{use}, of the teacher alone", e)
          views.append(())
      if reference_row_len:
        longest = max(map(len, views[:views_read]))
        check_reference(tokenizer, example, longest, reference_row_len)
    except REASONS as e:
      count(dropped, use, e)
      continue
    kept.append(Prompts(example, tuple(views)))
  return tuple(kept)


def chat_ids(
  tokenizer: Tokenizer, messages, template_args, max_prompt_len: int
) -> tuple[int, ...]:
  """Token ids of a chat; raises contexts.Missing where there are too many."""
  ids = tuple(tokenizer.chat_ids(messages, **spec.arguments(template_args)))
  if len(ids) > max_prompt_len:
    raise contexts.Missing(f"a prompt is longer than {max_prompt_len} tokens")
  return ids


def teacher_prompt(context, tokenizer: Tokenizer) -> Callable:
  """messages -> ids, with the chat-template arguments of teachers."""
  args = spec.arguments(context.teacher_args)
  return lambda messages: tuple(tokenizer.chat_ids(messages, **args))


def teacher_ids(
  context, tokenizer: Tokenizer, example, pool, kind: str, max_prompt_len: int
) -> tuple[int, ...]:
  """Token ids of one teacher view's prompt; () for a context that needs verified
  responses, whose prompt is made in every step."""
  if kind in contexts.AFTER:
    return ()
  messages = contexts.teacher_messages(context.template, kind, example, pool, context)
  return chat_ids(tokenizer, messages, context.teacher_args, max_prompt_len)


def check_reference(
  tokenizer: Tokenizer, example: Example, prompt_len: int, row_len: int
) -> None:
  """Raises contexts.Missing without a reference solution, or where prompt and
  solution together are longer than a row."""
  text = contexts.present(example.solution, "solution")
  if prompt_len + len(reference(tokenizer, text).ids) > row_len:
    raise contexts.Missing(f"a row is longer than {row_len} tokens")


def count(dropped: dict[str, int], use: str, error: Exception) -> None:
  is_missing = isinstance(error, contexts.Missing)
  reason = f"{use}: {error if is_missing else 'its text holds a control token'}"
  dropped[reason] = dropped.get(reason, 0) + 1
