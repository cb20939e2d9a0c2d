"""The labels of tiles where labels are drawn on the image: each tile asks what covers its pixels.

What was found is kept beside the label tables and used again for the same labels and tiles: a new label object costs
its own tiles and no pixel is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitpipe.atomic import write_parquet
from vitpipe.config import TileRecipe
from vitpipe.digest import digest
from vitpipe.labels import LabelSet
from vitpipe.labels.regions import RegionLabels, shares_of
from vitpipe.records import Source, Window
from vitpipe.store import TileStore
from vitpipe.tile_places import TilePlaces
from vitpipe.workspace import Workspace

_COLUMNS: Final = ("tile_id", "label")


def label_tiles(
    tiles: pd.DataFrame,
    sources: Sequence[Source],
    labels: LabelSet,
    recipe: TileRecipe,
    store: tuple[Workspace, str],
) -> pd.Series:
    """Give the label of each tile, None where it has none.

    Args:
        tiles: rows of the tile store, with ``shard_id`` and ``shard_row``.
        sources: the catalog.
        labels: their `regions` are asked.
        recipe: how the tiles were cut.
        store: the workspace, and the digest of its tiles.
    """
    regions = labels.regions
    assert regions is not None
    workspace, tiles_digest = store
    path = workspace.labels(digest([labels.digest, tiles_digest]))
    drawn = tiles[tiles["source_id"].isin(regions.sources)]
    known = pd.read_parquet(path) if path.exists() else pd.DataFrame(columns=list(_COLUMNS))
    fresh = drawn[~drawn["tile_id"].isin(known["tile_id"])]
    if len(fresh):
        found = _ask(fresh, sources, regions, recipe, TileStore(workspace.tiles(tiles_digest)))
        known = pd.concat([known, found], ignore_index=True).sort_values("tile_id", ignore_index=True)
        write_parquet(path, known)
    by_tile = pd.Series(known["label"].to_numpy(), index=pd.Index(known["tile_id"]), dtype="object")
    label = tiles["tile_id"].map(by_tile.where(by_tile.notna(), None)).astype("object")
    return label.where(label.notna(), None)


def _ask(
    tiles: pd.DataFrame, sources: Sequence[Source], regions: RegionLabels, recipe: TileRecipe, store: TileStore
) -> pd.DataFrame:
    known = {source.source_id: source for source in sources}
    parts: list[pd.DataFrame] = []
    for _, part in tiles.groupby(["source_id", "frame"], sort=True):
        source_id, frame = str(part["source_id"].iloc[0]), int(part["frame"].iloc[0])
        source = known[source_id]
        masks = regions.masks(source_id, frame, source.grid.height, source.grid.width)
        if masks:
            labels = _label_frame(part, masks, TilePlaces.of(source.grid, recipe, uri=source.uri), regions, store)
        else:
            labels = [regions.rule.label({})] * len(part)
        parts.append(pd.DataFrame({"tile_id": part["tile_id"].to_numpy(), "label": labels}))
    return pd.concat(parts, ignore_index=True)


def _label_frame(
    part: pd.DataFrame,
    masks: dict[str, NDArray[np.bool_]],
    places: TilePlaces,
    regions: RegionLabels,
    store: TileStore,
) -> list[str | None]:
    labels: list[str | None] = []
    valid = store.masks(part)
    for row, inside in zip(part.to_dict("records"), valid, strict=True):
        rows, cols = places.pixels(Window(*(int(row[name]) for name in Window._fields)))
        within = np.ix_(rows, cols)
        covered = {name: mask[within] for name, mask in masks.items()}
        labels.append(regions.rule.label(shares_of(covered, inside[: len(rows), : len(cols)])))
    return labels
