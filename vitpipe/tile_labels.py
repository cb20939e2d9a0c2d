"""The labels of tiles where labels are drawn on the image: each tile asks what covers its pixels.

What was found is kept beside the label tables and used again for the same labels and tiles: a new label object costs
its own tiles and no pixel is read.
"""

from __future__ import annotations

from collections import OrderedDict
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
from vitpipe.tile_places import TilePlaces, Voxels
from vitpipe.workspace import Workspace

_COLUMNS: Final = ("tile_id", "label")
_FRAMES_KEPT: Final = 8


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
    # What was kept may be of a source on which these labels are no longer drawn.
    return label.where(label.notna() & tiles["source_id"].isin(regions.sources), None)


def _ask(
    tiles: pd.DataFrame, sources: Sequence[Source], regions: RegionLabels, recipe: TileRecipe, store: TileStore
) -> pd.DataFrame:
    known = {source.source_id: source for source in sources}
    parts: list[pd.DataFrame] = []
    for name, part in tiles.groupby("source_id", sort=True):
        source = known[str(name)]
        places = TilePlaces.of(source.grid, recipe, uri=source.uri)
        labels = _label_source(part, _Frames(source, regions), places, store)
        parts.append(pd.DataFrame({"tile_id": part["tile_id"].to_numpy(), "label": labels}))
    return pd.concat(parts, ignore_index=True)


def _label_source(part: pd.DataFrame, frames: _Frames, places: TilePlaces, store: TileStore) -> list[str | None]:
    labels: list[str | None] = []
    for row in part.to_dict("records"):
        voxels = places.voxels(Window(*(int(row[name]) for name in Window._fields)))
        covered = frames.covered(voxels)
        shares: dict[str, float] = {}
        if covered:
            depth, height, width = (len(places_along) for places_along in voxels.tile)
            # A tile of one frame has no axis for it.
            inside = store.mask(str(row["shard_id"]), int(row["shard_row"]))
            inside = inside.reshape((-1, *inside.shape[-2:]))[:depth, :height, :width]
            shares = shares_of(covered, inside)
        labels.append(frames.regions.rule.label(shares))
    return labels


class _Frames:
    """What is drawn on the frames of one source; the masks used last are kept."""

    def __init__(self, source: Source, regions: RegionLabels) -> None:
        self.regions = regions
        self._source = source
        self._kept: OrderedDict[int, dict[str, NDArray[np.bool_]]] = OrderedDict()

    def covered(self, voxels: Voxels) -> dict[str, NDArray[np.bool_]]:
        """Give what each class covers of a tile (depth, rows, columns); nothing where nothing is drawn."""
        frames, rows, cols = voxels.of_source()
        masks = {int(frame): self._masks(int(frame), len(frames)) for frame in np.unique(frames)}
        names = sorted({name for found in masks.values() for name in found})
        empty = np.zeros((len(rows), len(cols)), bool)
        within = np.ix_(rows, cols)
        covered = {}
        for name in names:
            slabs = [masks[int(frame)][name][within] if name in masks[int(frame)] else empty for frame in frames]
            covered[name] = np.stack(slabs).transpose(voxels.axes)
        return covered

    def _masks(self, frame: int, wanted: int) -> dict[str, NDArray[np.bool_]]:
        if frame not in self._kept:
            while len(self._kept) >= max(wanted, _FRAMES_KEPT):
                self._kept.popitem(last=False)
            grid = self._source.grid
            self._kept[frame] = self.regions.masks(self._source.source_id, frame, grid.height, grid.width)
        self._kept.move_to_end(frame)
        return self._kept[frame]
