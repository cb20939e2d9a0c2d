"""The map of one scene: strips, then files, then the folder; goes on where it was killed."""

from __future__ import annotations

import glob
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from vitpipe.atomic import PARTIAL_PREFIX, file_lock, make_folder, sweep_partials, sync_directory, write_json
from vitpipe.digest import digest
from vitpipe.domains.base import Raster
from vitpipe.errors import ContractError
from vitpipe.infer.mapping.cog import write_cogs
from vitpipe.infer.mapping.layers import Layers
from vitpipe.infer.mapping.stitching import MapPlan, MapRows, stitch
from vitpipe.infer.mapping.strips import StripStore
from vitpipe.infer.mapping.styles import write_styles
from vitpipe.infer.mapping.symmetry import PixelModel
from vitpipe.records import Grid, Json

_LOGGER = logging.getLogger(__name__)

Extra: TypeAlias = "Callable[[StripStore, Grid, Path], list[Path]]"

RECORD_FILE: Final = "map.json"
_LOCK: Final = "lock"
_KEY_DIGITS: Final = 12
"""Of the key, in the name of the folder in which a map is made."""
_SAY_SECONDS: Final = 15.0
"""A long map says so often where it is."""
_FORMAT: Final = 1
"""Counts up when the pixels of a map change for the same model and scene."""


@dataclass(frozen=True, slots=True)
class MapTask:
    """What is mapped, and where to."""

    folder: Path
    """The map's own; it is there when the map is whole."""
    made_of: Mapping[str, Json]
    """Whatever decides on the pixels: source, weights, calibration. Another one makes another map."""
    plan: MapPlan
    layers: Layers
    tags: Mapping[str, str] = field(default_factory=dict)
    """Kept in each file."""
    extras: Mapping[str, Extra] = field(default_factory=dict)
    """By name: write more files of the finished strips into a folder, such as vectors."""


@dataclass(frozen=True, slots=True)
class MapMade:
    """A map that is whole."""

    folder: Path
    files: tuple[str, ...]
    fresh: bool
    """It was made now, and not found."""


def make_map(raster: Raster, model: PixelModel, task: MapTask) -> MapMade:
    """Map a scene into a folder; what an earlier run of the same task left is used.

    Args:
        raster: an opened scene at the model's resolution, of one frame.
        model: see `vitpipe.infer.mapping.PixelModel`.
        task: the rest.

    Raises:
        ContractError: the model's output does not fit the layers.
        UnreadableSource: the pixels cannot be decoded.
        TransientError: the store does not answer.
        WorkspaceError: the folder cannot be written, or another run is making the same map.
    """
    if raster.grid.frames != 1 or task.plan.outputs != task.layers.outputs:
        raise ContractError(
            f"a map is of one frame and keeps {task.layers.outputs} outputs; the source has {raster.grid.frames} "
            f"frame(s) and the model gives {task.plan.outputs}"
        )
    return make_files(raster.grid, lambda row: stitch(raster, model, task.plan, first_row=row), task)


def make_files(grid: Grid, rows_from: Callable[[int], Iterator[MapRows]], task: MapTask) -> MapMade:
    """Write the files of a map, from rows of whatever origin.

    Args:
        grid: of the map.
        rows_from: gives all rows from a row on, as `vitpipe.infer.mapping.stitch` does.
        task: see :func:`make_map`.

    Raises:
        WorkspaceError: the folder cannot be written, or another run is making the same map.
    """
    key = _key(grid, task)
    make_folder(task.folder.parent)
    partial = task.folder.parent / f"{PARTIAL_PREFIX}{task.folder.name}-{key[:_KEY_DIGITS]}"
    # One for all that may be made there: a map of another model takes the place of this one.
    lock = task.folder.parent / f"{PARTIAL_PREFIX}{task.folder.name}.{_LOCK}"
    with file_lock(lock, wait=False):
        _sweep_others(partial, task.folder)
        found = _found(task.folder, key)
        if found is None:
            found = _make(grid, rows_from, task, partial, key)
        if partial.exists():
            shutil.rmtree(partial)
        # It is none of the files that a map leaves behind.
        lock.unlink()
    return found


def _make(grid: Grid, rows_from: Callable[[int], Iterator[MapRows]], task: MapTask, partial: Path, key: str) -> MapMade:
    strips, ready = partial / "strips", partial / "ready"
    make_folder(strips)
    sweep_partials(strips)
    store = StripStore(strips, grid.height, grid.width, task.layers)
    began = store.next_row
    if began:
        _LOGGER.info("map %s: goes on at row %d of %d", task.folder.name, began, grid.height)
    started = said = time.monotonic()
    for rows in rows_from(began):
        store.add(rows)
        now = time.monotonic()
        if now - said >= _SAY_SECONDS and began < store.next_row < grid.height:
            said = now
            left_s = (now - started) / (store.next_row - began) * (grid.height - store.next_row)
            _LOGGER.info(
                "map %s: %d of %d rows, about %.1f min left",
                task.folder.name,
                store.next_row,
                grid.height,
                left_s / 60,
            )
    # What was half written there by a run that was killed is written again.
    if ready.exists():
        shutil.rmtree(ready)
    make_folder(ready)
    written = write_cogs(store, grid, ready, task.tags)
    for file in task.layers.files:
        written += write_styles(file, ready)
    for extra in task.extras.values():
        written += extra(store, grid, ready)
    names = [path.name for path in written]
    write_json(ready / RECORD_FILE, {"key": key, "files": list(names)})
    if task.folder.exists():
        # A map of another model or of other options.
        shutil.rmtree(task.folder)
    ready.rename(task.folder)
    sync_directory(task.folder.parent)
    return MapMade(task.folder, tuple(names), fresh=True)


def _sweep_others(partial: Path, folder: Path) -> None:
    """Remove what killed runs with other options or models left of this map; whoever holds the lock is alone here."""
    for other in folder.parent.glob(f"{PARTIAL_PREFIX}{glob.escape(folder.name)}-{'[0-9a-f]' * _KEY_DIGITS}"):
        if other != partial:
            shutil.rmtree(other)


def _key(grid: Grid, task: MapTask) -> str:
    plan = task.plan
    values: dict[str, Json] = {
        "format": _FORMAT,
        "grid": grid.to_json(),
        "size": plan.size,
        "overlap": plan.overlap,
        "blend": plan.blend.value,
        "d4": plan.d4,
        "files": [file.name for file in task.layers.files],
        "names": [list(file.descriptions) for file in task.layers.files],
        "tags": dict(task.tags),
        "extras": [*sorted(task.extras)],
        "made_of": dict(task.made_of),
    }
    return digest(values)


def _found(folder: Path, key: str) -> MapMade | None:
    """Give the map that is there, if it is the one that is asked for."""
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        if record["key"] != key:
            return None
        names = tuple(str(name) for name in record["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not all((folder / name).exists() for name in names):
        return None
    return MapMade(folder, names, fresh=False)
