"""Prompts that have nothing to do with any task: what drift is measured on."""

import pathlib


def prompts(count: int) -> list[str]:
  """The first `count` of the shipped prompts that no task resembles."""
  path = pathlib.Path(__file__).with_name("unrelated_prompts.txt")
  lines = path.read_text().splitlines()
  if count > len(lines):
    raise ValueError(f"{count} unrelated prompts asked for, {len(lines)} exist")
  return lines[:count]
