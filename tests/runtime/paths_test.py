"""Locks of a workdir's files."""

import errno
import fcntl

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


@pytest.mark.parametrize("number", paths.NO_LOCKS)
def test_where_there_are_no_locks_everybody_has_it(tmp_path, monkeypatch, number):
  def refuse(f, how):
    raise OSError(number, "no locks")

  monkeypatch.setattr(fcntl, "lockf", refuse)
  with paths.locked(tmp_path / ".lock") as is_ours:
    assert is_ours
  with paths.locked("gs://bucket/.lock") as is_ours:
    assert is_ours


def test_another_error_is_not_taken_for_a_lock(tmp_path, monkeypatch):
  def fail(f, how):
    raise OSError(errno.EIO, "the disk is broken")

  monkeypatch.setattr(fcntl, "lockf", fail)
  with pytest.raises(OSError, match="broken"):
    with paths.locked(tmp_path / ".lock"):
      pass
