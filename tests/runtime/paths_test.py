"""Locks of a workdir's files."""

import errno
import fcntl
import json

import pytest

from opsd_jax.runtime import paths
from tests.holding import held


def test_a_lock_is_one_process_s(tmp_path):
  path = tmp_path / "a" / ".lock"
  with held(path):
    with paths.locked(path) as is_ours:
      assert not is_ours
  with paths.locked(path) as is_ours:
    assert is_ours


def test_a_lock_is_refused_within_one_process_too(tmp_path):
  """And leaving the inner one leaves the outer."""
  path = tmp_path / ".lock"
  with paths.locked(path) as outer:
    for _ in range(2):
      with paths.locked(path) as inner:
        assert outer and not inner
  with paths.locked(path) as is_ours:
    assert is_ours


def test_json_holds_no_nan():
  text = paths.to_json({"a": float("nan"), "b": [1.0, float("-inf")], "c": (2, "x")})
  assert json.loads(text, parse_constant=pytest.fail) == {
    "a": None,
    "b": [1.0, None],
    "c": [2, "x"],
  }


@pytest.mark.parametrize("number", paths.NO_LOCKS)
def test_where_there_are_no_locks_everybody_has_it(tmp_path, monkeypatch, number):
  def refuse(f, how):
    raise OSError(number, "no locks")

  monkeypatch.setattr(fcntl, "flock", refuse)
  with paths.locked(tmp_path / ".lock") as is_ours:
    assert is_ours
  with paths.locked("gs://bucket/.lock") as is_ours:
    assert is_ours


def test_another_error_is_not_taken_for_a_lock(tmp_path, monkeypatch):
  def fail(f, how):
    raise OSError(errno.EIO, "the disk is broken")

  monkeypatch.setattr(fcntl, "flock", fail)
  with pytest.raises(OSError, match="broken"):
    with paths.locked(tmp_path / ".lock"):
      pass
