"""Scenes that were fetched, on the disk: ``<item>/<item>_<asset>.tif`` and ``<item>/item.json``.

Which are in use, `vitpipe.arrivals` says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from vitpipe.arrivals import read_values, size_of
from vitpipe.atomic import write_json
from vitpipe.opening import ITEM_NAME
from vitpipe.stac.items import WantedScene

COMMIT_NAME: Final = ".scene.json"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a scene."""

    identity: str
    """See :attr:`vitpipe.stac.items.WantedFile.identity`."""
    bytes: int
    validator: str


@dataclass(frozen=True, slots=True)
class SceneCommit:
    """What a scene was complete with."""

    files: Mapping[str, StoredFile]
    """By name below the scene's folder."""
    updated: str


def read_commit(folder: Path) -> SceneCommit | None:
    """Read a scene's commit file; None where there is none that this release understands."""
    values = read_values(folder / COMMIT_NAME, _VERSION)
    if values is None:
        return None
    return SceneCommit({name: StoredFile(**item) for name, item in values["files"].items()}, values["updated"])


def write_commit(folder: Path, commit: SceneCommit) -> None:
    """Write a scene's commit file, last of all its files."""
    files = {name: asdict(item) for name, item in sorted(commit.files.items())}
    write_json(folder / COMMIT_NAME, {"version": _VERSION, "updated": commit.updated, "files": files})


def write_item(folder: Path, item: Mapping[str, Any]) -> None:
    """Write the item beside its files, unless the same one is there: its time of change says that it changed."""
    path = folder / ITEM_NAME
    try:
        if json.loads(path.read_text(encoding="utf-8")) == item:
            return
    except (FileNotFoundError, ValueError):
        pass
    write_json(path, item)


def is_current(folder: Path, commit: SceneCommit | None, scene: WantedScene) -> bool:
    """Say whether a scene is complete with just the files that are wanted, as the catalog describes them now."""
    if commit is None or commit.updated != scene.updated:
        return False
    wanted = {file.name: file.identity for file in scene.files}
    there = {name: item.identity for name, item in commit.files.items()}
    return wanted == there and all(size_of(folder / name) == item.bytes for name, item in commit.files.items())


def set_aside(folder: Path, scene: WantedScene) -> None:
    """Remove files of a scene that are not wanted any more, and halves of such."""
    wanted = {file.name for file in scene.files}
    for path in sorted(folder.iterdir()):
        name = path.name.removeprefix(".partial-").removesuffix(".json")
        if path.name not in (COMMIT_NAME, ITEM_NAME) and path.name not in wanted and name not in wanted:
            path.unlink()
