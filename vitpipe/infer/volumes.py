"""Masks of whole stacks: a model of pixels gives every pixel of a source its class, on the source's own frames."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitpipe import __version__
from vitpipe.atomic import write_json, write_parquet
from vitpipe.config import MapRecipe, TileRecipe
from vitpipe.digest import digest, digest_bytes
from vitpipe.errors import UnreadableSource
from vitpipe.infer.contract import ModelContract, RangeWatch
from vitpipe.infer.dicom_results import ResultKind, write_mask_result
from vitpipe.infer.dicom_results.findings import MaskFindings
from vitpipe.infer.mapping import MapPlan, StackFrame, stitch_stack
from vitpipe.infer.maps import as_cut, pixel_model
from vitpipe.infer.output import SOURCES_FILE, write_volume_summary
from vitpipe.infer.predictor import Predictor, relative_name
from vitpipe.infer.reading import place_of
from vitpipe.infer.versions import ModelIdentity
from vitpipe.ingest import read_catalog
from vitpipe.records import Grid, Json, Rejected, Source
from vitpipe.tile_places import TilePlaces
from vitpipe.workspace import Workspace

NO_CLASS: Final = 255
"""In an array of classes: the pixel is not valid. No model has so many."""
_MM3_A_ML: Final = 1000.0
_FORMAT: Final = 1
"""Counts up when the mask of a source changes for the same model and source."""


@dataclass(frozen=True, slots=True)
class StackMask:
    """What a model says of the pixels of a source."""

    classes: NDArray[np.uint8]
    """(frames, height, width) of the source: the number of the class from 0 on, `NO_CLASS` where nothing is said."""
    notes: tuple[str, ...]
    """Sentences for the user, without a path."""


@dataclass(frozen=True, slots=True)
class StackMade:
    """What came of a source."""

    row: dict[str, Json]
    """Of the table of sources: ``source_id, valid_px``, and of each class ``px_`` and ``volume_ml_``."""
    refused: Rejected | None
    """Why there is no DICOM object, where one was asked for."""
    notes: tuple[str, ...]
    fresh: bool
    """It was made now, and not found."""


def mask_stack(predictor: Predictor, source: Source, recipe: MapRecipe) -> StackMask:
    """Give every pixel of a source its class.

    Tiles overlap and are blended as those of a map are, those of several frames through the stack too. The class of a
    pixel of the source is that of the nearest pixel of the resampled stack. Beside the engine's layer of tiles one byte
    a pixel of the source is held.

    Args:
        predictor: a model of pixels, of classes.
        source: fits the model.
        recipe: overlap, augmentation.

    Raises:
        UnreadableSource: its pixels cannot be read, or the recipe asks for what it does not have.
        TransientError: the store does not answer.
    """
    contract, watch = predictor.contract, RangeWatch(predictor.contract)
    model = pixel_model(predictor, watch, uri=source.uri)
    with predictor.domain.open(source) as opened:
        raster = as_cut(opened, contract.tiles, uri=source.uri)
        frames = stitch_stack(raster, model, plan_of(predictor, recipe))
        # The threads that read must have ended before the source is closed.
        with contextlib.closing(frames):
            classes = on_source(frames, source.grid, contract.tiles, uri=source.uri)
    return StackMask(classes, tuple(watch.notes()))


def plan_of(predictor: Predictor, recipe: MapRecipe) -> MapPlan:
    """Say how a model's tiles cover a stack."""
    contract = predictor.contract
    return MapPlan(
        size=contract.tiles.size,
        outputs=contract.outputs,
        overlap=recipe.overlap,
        d4=recipe.tta == "d4",
        batch=predictor.tiles_at_once,
        depth=contract.tiles.depth,
    )


def on_source(frames: Iterator[StackFrame], grid: Grid, recipe: TileRecipe, *, uri: str) -> NDArray[np.uint8]:
    """Bring the most probable classes back to the frames of the source, turned and resampled as it was for the tiles.

    Args:
        frames: of the stack that tiles are cut from, in their order.
        grid: of the source.
        recipe: how tiles are cut.
        uri: the source, for errors.

    Returns:
        (frames, height, width): see `StackMask.classes`.
    """
    places = TilePlaces.of(grid, recipe, uri=uri)
    through, down, across = places.back()
    classes = np.full((grid.frames, grid.height, grid.width), NO_CLASS, np.uint8)
    turned = places.turned(classes)
    for item in frames:
        found = np.where(item.valid, item.values.argmax(axis=0).astype(np.uint8), np.uint8(NO_CLASS))
        hit = np.flatnonzero(through == item.frame)
        if len(hit):
            turned[hit] = found[np.ix_(down, across)]
    return classes


def findings_of_mask(classes: NDArray[np.uint8], grid: Grid, contract: ModelContract) -> MaskFindings:
    """Number the segments and measure them.

    Args:
        classes: see `StackMask.classes`.
        grid: of the source.
        contract: the model's.
    """
    numbers = np.zeros(NO_CLASS + 1, np.uint8)
    for number, name in enumerate(contract.segments, start=1):
        numbers[contract.classes.index(name)] = number
    labels = numbers[classes]
    counts = np.bincount(labels.reshape(-1), minlength=len(contract.segments) + 1)
    each = pixel_ml(grid)
    volumes = {} if each is None else {
        name: float(counts[number]) * each for number, name in enumerate(contract.segments, start=1)
    }  # fmt: skip
    return MaskFindings(contract.segments, labels, volumes, digest_bytes(labels.data))


def pixel_ml(grid: Grid) -> float | None:
    """Give the volume of a pixel in millilitres: spacing of rows, of columns, and of frames along their normal.

    None where frames have no regular step, as a single one has none.
    """
    if grid.spacing_mm is None or grid.spacing_mm[0] <= 0:
        return None
    between_frames, between_rows, between_cols = grid.spacing_mm
    return between_frames * between_rows * between_cols / _MM3_A_ML


def make_stack(
    predictor: Predictor,
    source: Source,
    record: Path,
    options: tuple[MapRecipe, ResultKind | None, Path],
    identity: ModelIdentity,
) -> StackMade:
    """Mask a source, and write what is asked for; what an earlier run left is used.

    Args:
        predictor: a model of pixels, of classes.
        source: fits the model.
        record: the file that says what was made of this source; written last.
        options: overlap and augmentation; the kind of DICOM object, if any; the folder of these.
        identity: the model.

    Raises:
        UnreadableSource: its pixels cannot be read, or the recipe asks for what it does not have.
        TransientError: the store does not answer.
        WorkspaceError: a folder cannot be written.
    """
    recipe, kind, folder = options
    key = digest(
        {
            "format": _FORMAT,
            "version": __version__,
            "source_id": source.source_id,
            "model": [identity.title, identity.sha256],
            "calibration": digest(predictor.calibration.to_json()),
            "tiles": predictor.contract.tiles.model_dump(mode="json"),
            "plan": [recipe.overlap, recipe.tta],
            "dicom": kind,
        }
    )
    if (found := _found(record, key, folder)) is not None:
        return found
    # A source that fails now has no row of an earlier model.
    record.unlink(missing_ok=True)
    mask = mask_stack(predictor, source, recipe)
    row = _row(mask.classes, source, predictor.contract)
    file: str | None = None
    refused: Rejected | None = None
    if kind is not None:
        findings = findings_of_mask(mask.classes, source.grid, predictor.contract)
        try:
            file = write_mask_result(kind, source, findings, identity, folder).relative_to(folder).as_posix()
        except UnreadableSource as error:
            refused = Rejected(source.uri, error.code, error.reason)
    said: dict[str, Json] = {"key": key, "row": row, "file": file, "notes": list(mask.notes)}
    said["refused"] = None if refused is None else [refused.uri, refused.code, refused.reason]
    write_json(record, said)
    return StackMade(row, refused, mask.notes, fresh=True)


def write_volumes(
    room: Workspace, place: str, folder: Path, rejected: Sequence[Rejected], notes: Sequence[str]
) -> Path:
    """Gather the records of the catalog's sources into a table, and write the summary, without a path.

    Args:
        room: of the records and of the catalog.
        place: what was predicted on: paths are relative to it.
        folder: for ``sources.parquet`` and the summary.
        rejected: files and sources that were not used, and why.
        notes: sentences for the user.

    Returns:
        The table.

    Raises:
        WorkspaceError: the folder cannot be written.
    """
    known = {source.source_id: source for source in read_catalog(room)}
    for stale in room.root.glob("*.json"):
        if stale.stem not in known:
            stale.unlink()
    said = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(room.root.glob("*.json"))]
    table = pd.DataFrame([item["row"] for item in said])
    root = place_of(place)
    table["path"] = [relative_name(known[source_id], root) for source_id in table["source_id"]]
    # A volume that is not known is NaN in all rows alike.
    table = table.astype({name: "float64" for name in table if str(name).startswith("volume_ml_")})
    write_parquet(folder / SOURCES_FILE, table)
    objects = sum(item["file"] is not None for item in said)
    write_volume_summary(folder, len(table), objects, rejected, notes)
    return folder / SOURCES_FILE


def _row(classes: NDArray[np.uint8], source: Source, contract: ModelContract) -> dict[str, Json]:
    counts = np.bincount(classes.reshape(-1), minlength=NO_CLASS + 1)
    each = pixel_ml(source.grid)
    row: dict[str, Json] = {"source_id": source.source_id, "valid_px": int(counts[:NO_CLASS].sum())}
    for number, name in enumerate(contract.classes):
        row[f"px_{name}"] = int(counts[number])
    for number, name in enumerate(contract.classes):
        row[f"volume_ml_{name}"] = None if each is None else float(counts[number]) * each
    return row


def _found(record: Path, key: str, folder: Path) -> StackMade | None:
    """Give what an earlier run made, if it is what is asked for."""
    try:
        said: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        if said["key"] != key or (said["file"] is not None and not (folder / said["file"]).exists()):
            return None
        refused = Rejected(*said["refused"]) if said["refused"] is not None else None
        return StackMade(said["row"], refused, tuple(said["notes"]), fresh=False)
    except (OSError, ValueError, KeyError, TypeError):
        return None
