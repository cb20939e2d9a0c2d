"""Whole or not at all: files and folders are written beside their place and renamed into it.

A reader never sees half a file, and ``kill -9`` leaves at most a ``.partial-*`` that the next run sweeps.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vitpipe.errors import WorkspaceError

if TYPE_CHECKING:
    import pandas as pd

PARTIAL_PREFIX = ".partial-"

_ELSEWHERE = "name a folder that this user can write (`workspace` in the pipeline file, or `--out`)"
_AGAIN = "or set another `workspace`, and run the same command again"
_REMEDIES = {
    errno.ENOSPC: f"the disk is full; free some space, {_AGAIN}",
    errno.EDQUOT: f"the disk quota is used up; free some space, {_AGAIN}",
    errno.EFBIG: f"the file would grow past the largest size allowed; raise the limit (`ulimit -f`), {_AGAIN}",
    errno.EROFS: f"the file system is read-only; {_ELSEWHERE}",
    errno.EACCES: f"permission denied; {_ELSEWHERE}",
    errno.EPERM: f"not permitted; {_ELSEWHERE}",
}


@contextlib.contextmanager
def workspace_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write below `path` into a :class:`WorkspaceError` with a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        raise WorkspaceError(f"cannot write {path}: {_REMEDIES[error.errno]}") from error


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises:
        WorkspaceError: it cannot be made there, or a file stands in its place.
    """
    with workspace_errors(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            taken = next(place for place in (path, *path.parents) if place.exists())
            raise WorkspaceError(f"cannot make the folder {path}: {taken} is a file; {_ELSEWHERE}") from error
        except FileNotFoundError as error:
            # Below /proc, and through a link that leads nowhere.
            raise WorkspaceError(
                f"cannot make the folder {path}: the system has no such place; {_ELSEWHERE}"
            ) from error


def sync_directory(path: Path) -> None:
    """Make the names in a folder survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def write_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it is synced and renamed into place.

    Raises:
        WorkspaceError: the folder cannot be written or is full.
    """
    with workspace_errors(path):
        make_folder(path.parent)
        partial = path.parent / f"{PARTIAL_PREFIX}{uuid.uuid4().hex[:8]}-{path.name}"
        try:
            yield partial
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())
            partial.replace(path)
            sync_directory(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; on success it is renamed into place.

    When the place is taken at the end (another writer was first), the new copy is dropped: content-addressed folders
    of one name hold the same bytes.
    """
    with workspace_errors(path):
        make_folder(path.parent)
        partial = path.parent / f"{PARTIAL_PREFIX}{uuid.uuid4().hex[:8]}-{path.name}"
        partial.mkdir()
        try:
            yield partial
            for name in sorted(partial.iterdir()):
                if name.is_file():
                    with name.open("rb") as stream:
                        os.fsync(stream.fileno())
            try:
                partial.rename(path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            sync_directory(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically, keys sorted, with a newline at the end."""
    with write_file(path) as partial:
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """Write a table atomically as Parquet (zstd), without its row index."""
    with write_file(path) as partial:
        table.to_parquet(partial, index=False, compression="zstd")


def sweep_partials(folder: Path) -> int:
    """Remove what a killed writer left below `folder` (one level); returns how many were removed.

    Call it only while holding the workspace lock: another writer's partial looks the same.
    """
    if not folder.is_dir():
        return 0
    stale = [entry for entry in folder.iterdir() if entry.name.startswith(PARTIAL_PREFIX)]
    for entry in stale:
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    return len(stale)


@contextlib.contextmanager
def file_lock(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold an exclusive lock on `path` (``flock``: the kernel frees it when the holder dies).

    The holder may remove `path`: who waited for it, or opened it just before, takes the lock on a new one.

    Raises:
        WorkspaceError: `wait` is false and another process holds it.
    """
    with contextlib.ExitStack() as stack:
        while True:
            with workspace_errors(path):
                make_folder(path.parent)
                stream = stack.enter_context(path.open("a"))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise WorkspaceError(
                    f"{path.parent} is in use by another run; wait for it to end, or set another `workspace`"
                ) from error
            if _is_there(path, stream.fileno()):
                break
            stack.close()
        yield


def _is_there(path: Path, descriptor: int) -> bool:
    """Tell whether a path still leads to the file that was opened."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
