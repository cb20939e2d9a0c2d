"""The manifest of a run: the labelled tiles with their classes, groups, splits and subgroup attributes.

A tile takes the label of its frame where there is one, else that of its source; labels that are drawn on the image are
asked for each tile. Its group is the label table's, else the one that the reader gave it (patient, block of ground).
Splits go by group and never change; see `vitpipe.partition`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from vitpipe.atomic import write_json, write_parquet
from vitpipe.config import PipelineConfig, TileRecipe
from vitpipe.digest import digest_bytes
from vitpipe.errors import ContractError, DataError, LabelError
from vitpipe.ground import tile_footprints
from vitpipe.ground.gap import SplitGap
from vitpipe.ground.gap_examples import Labelled, gap_of_tiles
from vitpipe.ingest import read_catalog
from vitpipe.labels.base import ATTRIBUTE_PREFIX, LabelSet
from vitpipe.manifest_notes import check_train, describe
from vitpipe.partition import partition, place_on_ground
from vitpipe.pixel_targets import PixelTargets
from vitpipe.records import BOX_COLUMN, WHOLE_SOURCE, Json, Source, Task, Window, box_mm
from vitpipe.resample import prepared_grid
from vitpipe.store import TileStore
from vitpipe.tile_labels import label_tiles
from vitpipe.tile_targets import make_targets, values_of
from vitpipe.tiling import tile_digest
from vitpipe.workspace import Workspace

TABLE_FILE: Final = "manifest.parquet"
RECORD_FILE: Final = "manifest.json"
_COLUMNS: Final = (
    "tile_id", "source_id", "group_id", "frame", "row", "col", "height", "width", "depth", BOX_COLUMN, "valid_fraction",
    "label", "split",
    "shard_id", "shard_row", "pixel_digest",
)  # fmt: skip
LABELLED_COLUMN: Final = "labelled_px"
"""Labelled pixels of a tile, in manifests of per-pixel tasks."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The labelled tiles of a run, and what holds for all of them."""

    table: pd.DataFrame
    """A row a labelled tile, sorted by `tile_id`: `tile_id, source_id, group_id, frame, row, col, height, width,
    depth, box_mm, valid_fraction, label, split, shard_id, shard_row, pixel_digest, attr_<name>...`; of tiles with a
    map also `x, y, distance_to_train_m`, see `vitpipe.partition`."""
    classes: tuple[str, ...]
    """Sorted; the order of a model's outputs."""
    multi_label: bool
    """Then `label` holds the positive classes joined by ``|``, empty for none."""
    channels: tuple[str, ...]
    units: str
    tile_size: int
    """Height and width of a tile in pixels."""
    tiles_folder: Path
    """The store, for `vitpipe.store.TileStore`."""
    digest: str
    """Of tiles, labels, groups, splits and tiling recipe; no path in it."""
    notes: tuple[str, ...]
    """Sentences for the user."""
    unlabelled: int
    """Tiles of the catalog's sources that have no label."""
    depth: int | None = None
    """Slices of a 3-D tile; None: tiles are 2-D."""
    task: Task = Task.CLASSIFICATION
    targets_folder: Path | None = None
    """Of a per-pixel task: for `vitpipe.pixel_targets.PixelTargets`. `label` is then the commonest class of a tile's
    labelled pixels (regression: ``value``), for the split and for counts, and the table has `labelled_px`, after
    `pixel_digest`."""
    target_units: str = ""
    """Of the values of a regression."""
    audit: Mapping[str, Json] = field(default_factory=dict)
    """What the splits have in common, see `vitpipe.partition`; empty in manifests from before it was measured."""

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """Channels, height, width; of volumes: channels, depth, height, width."""
        through = () if self.depth is None else (self.depth,)
        return len(self.channels), *through, self.tile_size, self.tile_size

    @property
    def tiles_make_maps(self) -> bool:
        """Whether the classes of tiles make a map: several tiles of one source, with a place on the ground."""
        of_tiles = self.task is Task.CLASSIFICATION and self.depth is None
        return of_tiles and "x" in self.table and bool(self.table["source_id"].duplicated().any())


def build_manifest(config: PipelineConfig, workspace: Workspace, labels: LabelSet) -> Manifest:
    """Join tiles, labels and splits; new groups get their split here, for good.

    Raises:
        DataError: there is no tile.
        LabelError: no tile has a label.
        SplitError: too few groups, or the train split holds one class only.
        LeakageError: a group, the same pixels, or the same ground, stand in two splits.
    """
    recipe_digest = tile_digest(config)
    folder = workspace.tiles(recipe_digest)
    store = TileStore(folder)
    sources = read_catalog(workspace)
    tiles = store.table()
    tiles = tiles[tiles["source_id"].isin({source.source_id for source in sources})]
    if tiles.empty:
        raise DataError(f"no tiles of the sources in the catalog are in {folder}; run `vitpipe tile` first")
    tiles = _with_boxes(_with_groups_of_today(tiles, sources), sources, config.tiles)
    if labels.regions is None:
        _check_frames(config.tiles, labels)
    if not (path := workspace.labels(labels.digest)).exists():
        write_parquet(path, labels.rows)

    joined, outside = _within_area(_join_labels(tiles, labels.rows), sources, labels, config.tiles)
    targets_folder, of_pixels = None, None
    if labels.regions is not None and labels.task is Task.CLASSIFICATION:
        joined["label"] = label_tiles(joined, sources, labels, config.tiles, (workspace, recipe_digest))
    elif labels.regions is not None:
        targets_folder, found = make_targets(joined, sources, labels, config.tiles, (workspace, recipe_digest))
        of_pixels = found.set_index("tile_id")
        joined["label"] = joined["tile_id"].map(of_pixels["label"]).astype("object")
    labelled = joined["label"].notna()
    table = joined[labelled].reset_index(drop=True)
    if table.empty:
        raise LabelError(
            f"none of the {len(tiles)} tile(s) has a label: the labelled sources gave no tile; lower "
            "`tiles.min_valid_fraction`, or label other sources"
        )
    values = None if of_pixels is None else values_of(of_pixels.loc[table["tile_id"]])
    grounded = place_on_ground(config, workspace, table, sources, multi_label=labels.multi_label, values=values)
    table["group_id"] = grounded.groups(table["group_id"])
    torn = _groups_torn_by_labels(table)
    table["group_id"] = table["label_group"].where(table["label_group"] != "", table["group_id"])
    attributes = _attributes(table, sources, labels.rows)
    columns = [name for name in _COLUMNS if name != "split"]
    if of_pixels is not None:
        table[LABELLED_COLUMN] = table["tile_id"].map(of_pixels["labelled_px"]).astype("int64")
        columns.append(LABELLED_COLUMN)
    table = pd.concat([table[columns], attributes], axis=1)
    parted = partition(config, workspace, table, sources, grounded=grounded, multi_label=labels.multi_label)
    # Before anything is left out: the same for every fold and buffer.
    gap = _gap(table, store, labels, targets_folder, config.split.seed) if parted.extra else None
    columns = [*_COLUMNS, *columns[len(_COLUMNS) - 1 :], *parted.extra, *attributes.columns]
    table = parted.table[columns].sort_values("tile_id", ignore_index=True)
    unlabelled = int((~labelled).sum())
    pixels = None if of_pixels is None else of_pixels["counts"].reindex(table["tile_id"])
    said = [gap.sentence()] if gap else []
    notes = (*labels.notes, *outside, *torn, *parted.notes, *said, *describe(table, labels, unlabelled, pixels))
    check_train(table, labels, pixels)
    return Manifest(
        table=table,
        classes=labels.classes,
        multi_label=labels.multi_label,
        channels=tuple(store.channels),
        units=store.units,
        tile_size=store.tile_size,
        tiles_folder=folder,
        digest=_manifest_digest(table, labels, recipe_digest),
        notes=notes,
        unlabelled=unlabelled,
        depth=store.depth,
        task=labels.task,
        targets_folder=targets_folder,
        target_units=labels.units,
        audit={**parted.audit, **({"gap": gap.to_json()} if gap else {})},
    )


def _gap(
    table: pd.DataFrame, store: TileStore, labels: LabelSet, targets_folder: Path | None, seed: int
) -> SplitGap | None:
    targets = None
    if targets_folder is not None:
        targets = PixelTargets(targets_folder, labels.task, (store.tile_size, store.tile_size))
    return gap_of_tiles(table.sort_values("tile_id"), store, Labelled(labels.task, labels.multi_label, targets), seed)


# -------------------------------------------------------------------------------------------------------------- joining


def _join_labels(tiles: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Add `label` (None: unlabelled), `label_group` and `label_row`, the place of the label row (-1: none)."""
    whole = rows["frame"].to_numpy() == WHOLE_SOURCE
    place = np.full(len(tiles), -1)
    whole_rows, frame_rows = np.flatnonzero(whole), np.flatnonzero(~whole)
    found = pd.Index(rows["source_id"].iloc[whole_rows]).get_indexer(pd.Index(tiles["source_id"]))
    if len(whole_rows):
        place = np.where(found >= 0, whole_rows[found], place)
    if len(frame_rows):
        keys = pd.MultiIndex.from_frame(rows.iloc[frame_rows][["source_id", "frame"]])
        found = keys.get_indexer(pd.MultiIndex.from_frame(tiles[["source_id", "frame"]]))
        # The label of a frame comes before that of its source.
        place = np.where(found >= 0, frame_rows[found], place)
    result = tiles.reset_index(drop=True)
    result["label_row"] = place
    chosen = rows[["label", "group_id"]].iloc[place].reset_index(drop=True)
    result["label"] = chosen["label"].where(result["label_row"] >= 0, None)
    result["label_group"] = chosen["group_id"].where(result["label_row"] >= 0, "")
    return result


def _within_area(
    joined: pd.DataFrame, sources: Sequence[Source], labels: LabelSet, recipe: TileRecipe
) -> tuple[pd.DataFrame, list[str]]:
    """Take the labels of tiles whose centre lies outside the area of interest, if there is one.

    Raises:
        LabelError: none is left.
    """
    if labels.aoi is None:
        return joined, []
    ground = tile_footprints(joined, sources, recipe)
    inside = np.zeros(len(joined), bool) if ground is None else ground.inside(labels.aoi)
    before = joined["label"].notna()
    outside = int((before & ~inside).sum())
    if outside and outside == int(before.sum()):
        raise LabelError(
            f"none of the {outside} labelled tile(s) has its centre in the area of interest; check `labels.aoi` and "
            "its CRS, or remove it"
        )
    said = [f"{outside} labelled tile(s) have their centre outside `labels.aoi`: not used"] if outside else []
    return joined.assign(label=joined["label"].where(inside, None)), said


def _with_groups_of_today(tiles: pd.DataFrame, sources: Sequence[Source]) -> pd.DataFrame:
    """Take the group from the catalog where a source has one: a patient's pseudonym changes with the key, tiles stay.

    A source that lies on several blocks of ground keeps the groups of its tiles.
    """
    one_group = tiles.groupby("source_id")["group_id"].nunique() == 1
    groups = {source.source_id: source.group_id for source in sources if source.grid.transform is None}
    current = tiles["source_id"].map({name: group for name, group in groups.items() if one_group.get(name, False)})
    return tiles.assign(group_id=current.where(current.notna(), tiles["group_id"]))


def _check_frames(recipe: TileRecipe, labels: LabelSet) -> None:
    """Refuse labels of single frames where a tile's frame is not the source's frame of this number.

    Raises:
        LabelError: the tiles are 3-D, resampled along the stack or turned, and labels name frames.
    """
    frames = int((labels.rows["frame"] != WHOLE_SOURCE).sum())
    if frames and recipe.moves_frames:
        keys = [key for key in ("depth", "slice_spacing_mm", "orientation") if getattr(recipe, key) is not None]
        raise LabelError(
            f"{frames} label row(s) name single frames, but with {' and '.join(f'`tiles.{key}`' for key in keys)} a "
            "tile's slices are not the frames of the file; label whole series (`key: series_uid`), or cut 2-D tiles "
            "without these keys"
        )


def _with_boxes(tiles: pd.DataFrame, sources: Sequence[Source], recipe: TileRecipe) -> pd.DataFrame:
    """Work out the boxes in the patient that tiles from before they were stored lack."""
    placed = {source.source_id: source for source in sources if source.grid.affine is not None}
    lacking = tiles[BOX_COLUMN].isna() & tiles["source_id"].isin(list(placed))
    if not lacking.any():
        return tiles
    rows = tiles.loc[lacking, ["source_id", *Window._fields]]
    grids = {
        name: prepared_grid(placed[name].grid, recipe, uri=placed[name].uri) for name in rows["source_id"].unique()
    }
    boxes = tiles[BOX_COLUMN].copy()
    boxes[lacking] = pd.Series(
        [box_mm(grids[name], Window(*places)) for name, *places in rows.itertuples(index=False)], index=rows.index
    )
    return tiles.assign(**{BOX_COLUMN: boxes})


def _groups_torn_by_labels(table: pd.DataFrame) -> list[str]:
    """Say when the group column tears apart what the reader holds together: a patient could then straddle splits."""
    pairs = table[["group_id", "label_group"]].drop_duplicates()
    torn = pairs.loc[pairs["group_id"].duplicated(), "group_id"].nunique()
    if not torn:
        return []
    return [
        f"the group column divides {torn} group(s) that the reader holds together (patient or block of ground); they "
        "may now stand in several splits"
    ]


def _attributes(table: pd.DataFrame, sources: Sequence[Source], rows: pd.DataFrame) -> pd.DataFrame:
    """Give the subgroup columns of each tile: the source's, and over them those of the label table."""
    ids = pd.Index([source.source_id for source in sources])
    names = sorted({name for source in sources for name in source.attributes})
    place = ids.get_indexer(pd.Index(table["source_id"]))
    columns: dict[str, pd.Series] = {}
    for name in names:
        values = pd.Series([source.attributes.get(name) for source in sources], dtype="object")
        columns[ATTRIBUTE_PREFIX + name] = values.iloc[place].reset_index(drop=True)
    label_row = table["label_row"].to_numpy()
    for name in rows.columns:
        if name.startswith(ATTRIBUTE_PREFIX):
            values = rows[name].astype("object").iloc[label_row].reset_index(drop=True)
            if name in columns:
                values = values.where(values.notna(), columns[name])
            columns[name] = values
    return pd.DataFrame({name: _one_kind(columns[name]) for name in sorted(columns)}, index=table.index)


def _one_kind(values: pd.Series) -> pd.Series:
    """Give numbers as float64, anything else, or a mixture, as text; missing stays missing."""
    given = values[values.notna()]
    if len(given) and given.map(lambda value: isinstance(value, int | float) and not isinstance(value, bool)).all():
        return values.astype("float64")
    text = given.map(lambda value: f"{value:g}" if isinstance(value, float) else str(value))
    return text.reindex(values.index).astype("str")


# --------------------------------------------------------------------------------------------------------------- digest


def _manifest_digest(table: pd.DataFrame, labels: LabelSet, recipe_digest: str) -> str:
    said = [] if labels.task is Task.CLASSIFICATION else [str(labels.task), labels.digest]
    head = json.dumps([recipe_digest, list(labels.classes), labels.multi_label, *said])
    columns = ("tile_id", "label", "split", "pixel_digest")
    texts = ["\n".join(("", name, *table[name])) for name in columns]
    # Which tiles belong together, not what the groups are called: the same under another pseudonym key.
    texts.append("\n".join(("", "group", *pd.factorize(table["group_id"])[0].astype(str))))
    return digest_bytes(head.encode(), *(text.encode("utf-8") for text in texts))


# --------------------------------------------------------------------------------------------------- tables on the disk


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write ``manifest.parquet``, then ``manifest.json``, whose existence is the commit.

    The store is written as a path relative to `folder`: a workspace may be moved as a whole.
    """
    write_parquet(folder / TABLE_FILE, manifest.table)
    write_json(
        folder / RECORD_FILE,
        {
            "classes": list(manifest.classes),
            "multi_label": manifest.multi_label,
            "channels": list(manifest.channels),
            "units": manifest.units,
            "tile_size": manifest.tile_size,
            "depth": manifest.depth,
            "tiles_folder": _relative(manifest.tiles_folder, folder),
            "digest": manifest.digest,
            "notes": list(manifest.notes),
            "unlabelled": manifest.unlabelled,
            "task": str(manifest.task),
            "targets_folder": _relative(manifest.targets_folder, folder),
            "target_units": manifest.target_units,
            "audit": dict(manifest.audit),
        },
    )


def _relative(path: Path | None, folder: Path) -> str | None:
    return None if path is None else os.path.relpath(path.resolve(), folder.resolve())


def read_manifest(folder: Path) -> Manifest:
    """Read what :func:`write_manifest` wrote.

    Raises:
        ContractError: there is no whole manifest in `folder`.
    """
    record, table = folder / RECORD_FILE, folder / TABLE_FILE
    if not record.is_file() or not table.is_file():
        raise ContractError(f"{folder} holds no whole manifest ({TABLE_FILE} and {RECORD_FILE}); prepare the run again")
    values = json.loads(record.read_text(encoding="utf-8"))
    return Manifest(
        table=pd.read_parquet(table),
        classes=tuple(values["classes"]),
        multi_label=values["multi_label"],
        channels=tuple(values["channels"]),
        units=values["units"],
        tile_size=values["tile_size"],
        tiles_folder=(folder.resolve() / values["tiles_folder"]).resolve(),
        digest=values["digest"],
        notes=tuple(values["notes"]),
        unlabelled=values["unlabelled"],
        depth=values.get("depth"),
        task=Task(values.get("task", Task.CLASSIFICATION)),
        targets_folder=(folder.resolve() / targets).resolve() if (targets := values.get("targets_folder")) else None,
        target_units=values.get("target_units", ""),
        audit=values.get("audit", {}),
    )
