"""Tokens in colours on a terminal, with numbers elsewhere."""

import sys

import pytest

from opsd_jax.reporting import console


def terminal(monkeypatch, is_one=True):
  monkeypatch.delenv("NO_COLOR", raising=False)
  monkeypatch.setattr(sys.stdout, "isatty", lambda: is_one)


def test_without_a_terminal_or_colours_a_token_shows_its_number(monkeypatch):
  terminal(monkeypatch, False)
  assert console.coloured(["a", "\n"], [0.0, 1.256]) == r"'a'(0.00) '\n'(1.26)"
  terminal(monkeypatch)
  monkeypatch.setenv("NO_COLOR", "1")
  assert console.coloured(["a"], [0.5]) == "'a'(0.50)"


@pytest.mark.parametrize(
  "kl,shade",
  [
    (0.0, 255),
    (-0.1, 255),
    (0.28, 255),
    (0.3, 229),
    (1.0, 215),
    (1.99, 196),
    (2.0, 196),
    (50.0, 196),
  ],
)
def test_on_a_terminal_a_token_goes_from_white_to_red(kl, shade, monkeypatch):
  terminal(monkeypatch)
  assert console.coloured(["tok"], [kl]) == f"\x1b[30;48;5;{shade}mtok\x1b[0m"
