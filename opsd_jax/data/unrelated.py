"""Prompts unrelated to any task, on which drift from the base is measured."""

import pathlib


def prompts(count: int) -> list[str]:
  """The first `count` shipped prompts."""
  path = pathlib.Path(__file__).with_name("unrelated_prompts.txt")
  lines = path.read_text().splitlines()
  if count > len(lines):
    raise ValueError(f"{count} unrelated prompts are requested, {len(lines)} exist")
  return lines[:count]
