"""Removes targets of pixels that no run needs any more: labels that change on a schedule would fill the disk."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Final

from vitpipe.atomic import PARTIAL_PREFIX, sweep_partials, workspace_errors
from vitpipe.digest import DIGEST_BYTES
from vitpipe.errors import ContractError
from vitpipe.evaluate.judged import METRICS_FILE
from vitpipe.manifest import RECORD_FILE, Manifest
from vitpipe.workspace import Workspace

_MIB = 1 << 20
_DIGEST: Final = re.compile(rf"[0-9a-f]{{{2 * DIGEST_BYTES}}}")
_ENDINGS: Final = (".npy", ".parquet")


def sweep_targets(workspace: Workspace, current: Manifest) -> list[str]:
    """Remove what a killed run left half-written, and the targets of earlier labels or tiles.

    Targets are kept for the run at hand, and for runs that are not judged yet. Once a run is judged its tables hold
    what was counted; should its labels come back, targets are made anew. The caller holds the workspace lock.

    Args:
        workspace: of the run.
        current: manifest of the run at hand.

    Returns:
        A sentence, if targets were removed.

    Raises:
        ContractError: the record of a run is broken, so nobody knows what it needs.
        WorkspaceError: a folder cannot be removed.
    """
    labels = workspace.root / "labels"
    if not labels.is_dir():
        return []
    sweep_partials(labels)
    folders = sorted(path for path in labels.iterdir() if _holds_targets(path))
    needed = _needed(workspace)
    if current.targets_folder is not None:
        needed.add(current.targets_folder.resolve())
    removed, size = 0, 0
    for folder in folders:
        sweep_partials(folder)
        if folder.resolve() in needed:
            continue
        size += sum(path.stat().st_size for path in folder.iterdir())
        with workspace_errors(folder):
            shutil.rmtree(folder)
        removed += 1
    if not removed:
        return []
    return [f"removed the targets of {removed} earlier setting(s) of labels or tiles ({size / _MIB:.1f} MiB)"]


def _holds_targets(path: Path) -> bool:
    """Tell targets from what else may lie there: where the workspace is the user's own folder, so do labels."""
    if path.is_symlink() or not path.is_dir() or not _DIGEST.fullmatch(path.name):
        return False
    return all(item.name.startswith(PARTIAL_PREFIX) or item.suffix in _ENDINGS for item in path.iterdir())


def _needed(workspace: Workspace) -> set[Path]:
    """Find the folders that runs learn from, or have yet to be judged on."""
    found = set()
    for record in sorted(workspace.runs.glob(f"*/{RECORD_FILE}")):
        if (record.parent / METRICS_FILE).is_file():
            continue
        try:
            targets = json.loads(record.read_text(encoding="utf-8")).get("targets_folder")
        except (ValueError, AttributeError) as error:
            raise ContractError(
                f"{record} is broken, so it is not known which targets its run needs; remove the folder "
                f"{record.parent}, or put the file back from a copy"
            ) from error
        if targets:
            found.add((record.parent / targets).resolve())
    return found
