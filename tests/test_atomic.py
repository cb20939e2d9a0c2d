"""Whole or not at all, and an operating system's refusal is a sentence."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import IO

import pytest

from vitpipe import atomic
from vitpipe.errors import WorkspaceError


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"

    def fail_halfway() -> None:
        with atomic.write_file(target) as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert list(target.parent.iterdir()) == []
    with atomic.write_file(target) as partial:
        partial.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_the_second_writer_of_a_folder_yields(tmp_path: Path) -> None:
    target = tmp_path / "shard"
    with atomic.write_folder(target) as first, atomic.write_folder(target) as second:
        (first / "x").write_text("1")
        (second / "x").write_text("1")
    assert [path.name for path in tmp_path.iterdir()] == ["shard"]
    assert (target / "x").read_text() == "1"


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / f"{atomic.PARTIAL_PREFIX}1-a").write_text("x")
    (tmp_path / f"{atomic.PARTIAL_PREFIX}2-b").mkdir()
    (tmp_path / "kept").write_text("x")
    assert atomic.sweep_partials(tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("code", "said"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "permission denied")]
)
def test_a_refusal_of_the_system_is_a_sentence(tmp_path: Path, code: int, said: str) -> None:
    with pytest.raises(WorkspaceError, match=said) as caught, atomic.workspace_errors(tmp_path):
        raise OSError(code, "refused")
    assert str(tmp_path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_another_error_of_the_system_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="other"), atomic.workspace_errors(tmp_path):
        raise OSError(errno.EIO, "other")


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    with (
        atomic.file_lock(tmp_path / "lock", wait=False),
        pytest.raises(WorkspaceError, match="in use by another run"),
        atomic.file_lock(tmp_path / "lock", wait=False),
    ):
        pytest.fail("the lock was taken twice")
    with atomic.file_lock(tmp_path / "lock", wait=False):
        assert (tmp_path / "lock").exists()


def test_a_lock_whose_file_went_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, inner, calls = tmp_path / "lock", fcntl.flock, []

    def flock(stream: IO[str], how: int) -> None:
        if not calls:
            # Its holder removes it and ends, just before.
            lock.unlink()
        calls.append(how)
        inner(stream, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        atomic.file_lock(lock, wait=False),
        pytest.raises(WorkspaceError, match="in use by another run"),
        atomic.file_lock(lock, wait=False),
    ):
        pytest.fail("the lock was taken twice")
    assert len(calls) == 3
