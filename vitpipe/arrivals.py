"""Folders that come over the network, one a study or scene: in use once they are whole, out of sight before that.

A folder is in use when its name begins with no dot and its commit file is there: it is written last. Whoever lists data
passes over names with a dot, so that half of one is never read: ``.<name>`` is arriving, or left out.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from vitpipe.atomic import file_lock, make_folder, write_file, write_json
from vitpipe.errors import ConfigError, TooManyRejected
from vitpipe.records import Rejected

FAILURES: Final = "fetch.json"
"""File in the workspace of what the last fetch could not get."""
FETCH_FAILED: Final = "FETCH_FAILED"
_OWNER: Final = ".fetched-by"
_LOCK: Final = ".lock"


def in_use(root: Path, name: str) -> Path:
    """Folder that whoever lists the data sees."""
    return root / name


def out_of_use(root: Path, name: str) -> Path:
    """Folder that is still arriving or left out."""
    return root / f".{name}"


def committed(root: Path, commit_name: str) -> Iterator[str]:
    """Name the folders in use, by their commit file; others that lie there are none of ours."""
    for folder in sorted(root.iterdir()):
        if not folder.name.startswith(".") and (folder / commit_name).is_file():
            yield folder.name


def leave_out(root: Path, commit_name: str, wanted: Collection[str]) -> int:
    """Put a dot before the folders that are not wanted now; gives their number."""
    names = [name for name in committed(root, commit_name) if name not in wanted]
    for name in names:
        in_use(root, name).rename(out_of_use(root, name))
    return len(names)


def read_values(path: Path, version: int) -> dict[str, Any] | None:
    """Read a commit file; None where there is none that this release understands."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return values if isinstance(values, dict) and values.get("version") == version else None


def size_of(path: Path) -> int:
    """Give the size of a file; -1 where there is none."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return -1


def fetching(root: Path) -> AbstractContextManager[None]:
    """Let one fetch at a time work in a folder: pipelines of one name, of workspaces of their own, may share it.

    Raises:
        WorkspaceError: another one does.
    """
    make_folder(root)
    return file_lock(root / _LOCK, wait=False)


def claim(root: Path, owner: str, commit_name: str, what: str) -> None:
    """Refuse a folder of another fetch or of a receiver: what this query does not find would be left out there.

    Args:
        root: the folder.
        owner: a text that only this pipeline has.
        commit_name: see :func:`committed`.
        what: lies there: ``studies`` or ``scenes``.

    Raises:
        ConfigError: it is not this pipeline's.
    """
    mark = root / _OWNER
    if mark.is_file():
        taken = mark.read_text(encoding="ascii").strip() != owner
    else:
        taken = next(committed(root, commit_name), None) is not None
        if not taken:
            with write_file(mark) as partial:
                partial.write_text(f"{owner}\n", encoding="ascii")
    if taken:
        raise ConfigError(
            f"{root} holds {what} that another pipeline fetched or received (or this one under another name or key); "
            f"give `source.path` a folder of its own, or remove {mark.name} and the {what} from it"
        )


def keep_failures(workspace: Path, root: Path, rejected: Sequence[Rejected]) -> None:
    """Note what a fetch into a folder could not get, for the quarantine table."""
    listed = {item.uri: [item.code, item.reason] for item in rejected}
    write_json(workspace / FAILURES, {"root": str(root), "rejected": listed})


def failures_of(workspace: Path, root: str) -> list[Rejected]:
    """Name what the last fetch into a folder could not get; none where nothing was fetched into it."""
    try:
        values = json.loads((workspace / FAILURES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    if values["root"] != root:
        return []
    listed: dict[str, str | list[str]] = values["rejected"]
    # Earlier releases wrote no code of a study's files: there was one.
    return [
        Rejected(name, FETCH_FAILED, found) if isinstance(found, str) else Rejected(name, found[0], found[1])
        for name, found in sorted(listed.items())
    ]


def check_share(largest: float, rejected: Sequence[Rejected], total: int, what: str) -> None:
    """Stop where too much could not be fetched.

    Args:
        largest: share that may be lacking.
        rejected: what is lacking.
        total: how many were wanted.
        what: they are, such as ``scenes``.

    Raises:
        TooManyRejected: more than that share is lacking.
    """
    if not total or len(rejected) / total <= largest:
        return
    first = min(rejected, key=lambda item: item.uri)
    raise TooManyRejected(
        f"{len(rejected)} of {total} {what} could not be fetched, more than `source.max_reject_share: {largest:g}` "
        f"allows; first {first.code} {first.uri}: {first.reason}. Repair it, or raise the share to go on without them"
    )
