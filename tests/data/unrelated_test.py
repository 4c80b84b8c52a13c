"""The prompts that drift is measured on."""

import re

import pytest

from opsd_jax import tasks
from opsd_jax.data import unrelated


def test_the_unrelated_prompts_are_64_different_ones():
  prompts = unrelated.prompts(64)
  assert len({tasks.normalize_question(p) for p in prompts}) == 64
  assert all(p == p.strip() and len(p) > 10 for p in prompts)
  assert unrelated.prompts(3) == prompts[:3]
  with pytest.raises(ValueError, match="65 unrelated prompts .* 64 exist"):
    unrelated.prompts(65)


def test_the_unrelated_prompts_are_not_about_the_task():
  related = re.compile(
    r"\d|\b(numbers?|integers?|digits?|largest|biggest|greatest|highest"
    r"|maximum|larger|bigger|sum|add|count)\b",
    re.IGNORECASE,
  )
  for prompt in unrelated.prompts(64):
    assert not related.search(prompt), prompt
