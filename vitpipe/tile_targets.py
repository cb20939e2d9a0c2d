"""The targets of every pixel of the tiles, where labels lie on the image: an array a shard, made once.

``labels/<digest>/<shard_id>.npy`` holds the targets (`vitpipe.pixel_targets`), ``<shard_id>.parquet`` beside it a row
a tile that was asked: `tile_id, drawn, labelled_px, counts, mean` (labelled pixels a class; mean of continuous values).
The table is written last: a shard with it is not made again, unless what lies on one of its sources has changed. Shards
do not know each other, so several processes may make them at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitpipe.atomic import write_parquet
from vitpipe.config import TileRecipe
from vitpipe.digest import digest
from vitpipe.labels import LabelSet
from vitpipe.pixel_targets import IGNORE, targets_path, write_targets
from vitpipe.records import Source, Task, Window
from vitpipe.store import TileStore, read_contract
from vitpipe.tile_asking import drawn_on, open_labels
from vitpipe.workspace import Workspace

VALUE: Final = "value"
"""The label of every tile with continuous values."""


def make_targets(
    tiles: pd.DataFrame,
    sources: Sequence[Source],
    labels: LabelSet,
    recipe: TileRecipe,
    store: tuple[Workspace, str],
) -> tuple[Path, pd.DataFrame]:
    """Make the targets that are not there yet.

    Args:
        tiles: rows of the tile store, with ``shard_id`` and ``shard_row``.
        sources: the catalog.
        labels: per pixel; their `regions` are asked.
        recipe: how the tiles were cut.
        store: the workspace, and the digest of its tiles.

    Returns:
        The folder of the arrays, and a row a tile of a source with labels: `tile_id, label` (None where no pixel is
        labelled), `labelled_px, counts, mean`.
    """
    workspace, tiles_digest = store
    folder = workspace.targets(digest([labels.digest, tiles_digest]))
    said = tiles["source_id"].map(drawn_on(labels))
    drawn = tiles.assign(drawn=said)[said.notna()]
    known = {source.source_id: source for source in sources}
    tile_store = TileStore(workspace.tiles(tiles_digest))
    columns = {"tile_id": "str", "drawn": "str", "labelled_px": "int64", "counts": "object", "mean": "float64"}
    parts = [pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})]
    for shard_id, part in drawn.groupby("shard_id", sort=True):
        parts.append(_shard(folder, str(shard_id), part, (known, labels, recipe, tile_store)))
    table = pd.concat(parts, ignore_index=True)
    return folder, table.assign(label=_labels(table, labels))


def _labels(table: pd.DataFrame, labels: LabelSet) -> pd.Series:
    """Name the commonest class of each tile; of equal ones the class that sorts first."""
    there = table["labelled_px"] > 0
    if labels.task is Task.REGRESSION or table.empty:
        return pd.Series(VALUE, table.index, dtype="object").where(there, None)
    most = np.stack([np.asarray(counts) for counts in table["counts"]]).argmax(axis=1)
    return pd.Series(np.array(labels.classes, object)[most], table.index, dtype="object").where(there, None)


def values_of(table: pd.DataFrame) -> NDArray[np.float64]:
    """Give what tiles resemble each other in: the shares of the classes (N, K), or their mean values (N, 1).

    Args:
        table: rows of :func:`make_targets` of labelled tiles. Mean values come in their standard deviations.
    """
    counts = np.stack([np.asarray(found, np.float64) for found in table["counts"]])
    if counts.shape[1]:
        shares: NDArray[np.float64] = counts / counts.sum(axis=1, keepdims=True)
        return shares
    mean = table["mean"].to_numpy(np.float64)
    spread = float(mean.std())
    deviations: NDArray[np.float64] = (mean - mean.mean()) / (spread if spread > 0 else 1.0)
    return deviations[:, None]


_Given = tuple[dict[str, Source], LabelSet, TileRecipe, TileStore]


def _shard(folder: Path, shard_id: str, part: pd.DataFrame, given: _Given) -> pd.DataFrame:
    """Give the rows of a shard's tiles; what is made already is kept."""
    path = folder / f"{shard_id}.parquet"
    wanted = pd.MultiIndex.from_frame(part[["tile_id", "drawn"]])
    if path.exists() and targets_path(folder, shard_id).exists():
        kept = pd.read_parquet(path)
        if "mean" in kept and wanted.isin(pd.MultiIndex.from_frame(kept[["tile_id", "drawn"]])).all():
            return kept[kept["tile_id"].isin(part["tile_id"])]
    known, labels, recipe, store = given
    contract = read_contract(store.folder / shard_id)
    continuous = labels.task is Task.REGRESSION
    nothing, dtype = (np.nan, np.dtype("<f4")) if continuous else (IGNORE, np.dtype("u1"))
    targets = np.full((contract.tiles, *contract.tile_shape[1:]), nothing, dtype)
    for name, of_source in part.groupby("source_id", sort=True):
        ordered = of_source.sort_values(["frame", "row", "col"], kind="stable")
        _fill(targets, ordered, known[str(name)], (labels, recipe, store))
    write_targets(folder, shard_id, targets)
    rows = part["shard_row"].to_numpy(np.int64)
    classes = 0 if continuous else len(labels.classes)
    counts = [_counts(targets[row], classes) for row in rows]
    px = [int(np.count_nonzero(~np.isnan(targets[row]))) if continuous else int(found.sum())
          for row, found in zip(rows, counts, strict=True)]  # fmt: skip
    table = pd.DataFrame({"tile_id": part["tile_id"].to_numpy(), "drawn": part["drawn"].to_numpy()})
    mean = [float(np.nanmean(targets[row], dtype=np.float64)) if continuous and labelled else np.nan
            for row, labelled in zip(rows, px, strict=True)]  # fmt: skip
    table = table.assign(labelled_px=np.array(px, np.int64), counts=pd.Series(counts, dtype="object"), mean=mean)
    write_parquet(path, table)
    return table


def _fill(
    targets: NDArray[Any], part: pd.DataFrame, source: Source, given: tuple[LabelSet, TileRecipe, TileStore]
) -> None:
    """Fill in the targets of the tiles of one source, in the order of their rows."""
    labels, recipe, store = given
    nothing = np.nan if labels.task is Task.REGRESSION else IGNORE
    with open_labels(source, labels, recipe) as asker:
        for row in part.to_dict("records"):
            window = Window(*(int(row[name]) for name in Window._fields))
            depth, height, width = asker.inside(window)
            at = int(row["shard_row"])
            # A tile of one frame has no axis for it.
            place = targets[at].reshape((-1, *targets.shape[-2:]))
            place[:depth, :height, :width] = asker.targets(window)
            if float(row["valid_fraction"]) < 1:
                valid = store.mask(str(row["shard_id"]), at)
                place[~valid.reshape(place.shape)] = nothing


def _counts(targets: NDArray[Any], classes: int) -> NDArray[np.int64]:
    if not classes:
        return np.empty(0, np.int64)
    return np.bincount(targets.reshape(-1), minlength=IGNORE + 1)[:classes].astype(np.int64)
