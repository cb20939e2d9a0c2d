"""The ground that each tile covers: polygons on the equal-area grid of the blocks (EPSG:6933)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS

from vitpipe.config import TileRecipe
from vitpipe.domains.geotiff.ground import to_equal_area
from vitpipe.errors import UnreadableSource
from vitpipe.ground.equal_area import EQUAL_AREA, WORLD_M
from vitpipe.labels.base import Area
from vitpipe.records import Source
from vitpipe.resample import prepared_grid

_SEGMENT_M: Final = 1000.0
"""Edges are divided into pieces of about it: a straight line of the image is bent on the equal-area grid, over a
kilometre by some centimetres."""
_MOST_SEGMENTS: Final = 16

Geometries = NDArray[Any]
"""Of shapely geometries."""


@dataclass(frozen=True, slots=True)
class Footprints:
    """Where tiles lie, in the order of a table."""

    polygons: Geometries
    """(N,) of shapely polygons, EPSG:6933 metres; None where the tile lies on no known ground. A tile across the
    antimeridian reaches past the eastern edge of the map."""
    centres: NDArray[np.float64]
    """(N, 2) x, y in EPSG:6933 metres: the middle of the tile's part inside the scene; NaN where there is no ground."""

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which tiles lie on known ground, (N,)."""
        return np.isfinite(self.centres[:, 0])

    def inside(self, area: Area) -> NDArray[np.bool_]:
        """Tell which tiles have their centre in an area, (N,); those on no known ground have not."""
        known = self.known
        found = np.zeros(len(known), bool)
        found[known] = area.covers(self.centres[known], EQUAL_AREA)
        return found

    def distinct(self) -> Footprints:
        """Take one of the tiles that lie in the very same place, as those of one grid at several dates do."""
        number, _ = pd.factorize(shapely.to_wkb(self.polygons))
        return self.where(np.unique(number, return_index=True)[1])

    def where(self, chosen: NDArray[np.bool_] | NDArray[np.intp]) -> Footprints:
        """Take some of the tiles."""
        return Footprints(self.polygons[chosen], self.centres[chosen])


def tile_footprints(tiles: pd.DataFrame, sources: Sequence[Source], recipe: TileRecipe) -> Footprints | None:
    """Find the ground of tiles from their windows and the grids of their sources; no file is opened.

    Args:
        tiles: `source_id, row, col, height, width`, windows on the prepared grid (see `vitpipe.resample`).
        sources: the catalog.
        recipe: how the tiles were cut.

    Returns:
        None where no source has a map: photographs and DICOM.
    """
    placed = {source.source_id: source for source in sources if source.grid.transform and source.grid.crs}
    names = tiles["source_id"].unique()
    if not any(name in placed for name in names):
        return None
    number, uniques = pd.factorize(tiles["source_id"])
    grids = np.full((len(uniques), 8), np.nan)
    reference = np.full(len(uniques), "", dtype=object)
    for place, name in enumerate(uniques):
        if name not in placed:
            continue
        source = placed[name]
        try:
            grid = prepared_grid(source.grid, recipe, uri=source.uri)
        except UnreadableSource:
            continue  # It gave no tile by this recipe; the quarantine says why.
        assert grid.transform is not None
        grids[place] = (*grid.transform, grid.height, grid.width)
        reference[place] = grid.crs
    edges = _edges(tiles, grids[number, 6], grids[number, 7])
    polygons = np.full(len(tiles), None, dtype=object)
    centres = np.full((len(tiles), 2), np.nan)
    for crs in sorted(set(reference) - {""}):
        chosen = np.flatnonzero(reference[number] == crs)
        # All tiles of one CRS in one call: setting a transformation up costs a thousand points.
        polygons[chosen], centres[chosen] = _project(CRS.from_user_input(crs), grids[number[chosen]], edges[chosen])
    return Footprints(polygons, centres)


def _edges(tiles: pd.DataFrame, heights: NDArray[np.float64], widths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give (N, 4): top, left, bottom, right of each tile's part inside its scene, in pixels."""
    row, col, height, width = (tiles[name].to_numpy(dtype=np.float64) for name in ("row", "col", "height", "width"))
    return np.column_stack([row, col, np.minimum(row + height, heights), np.minimum(col + width, widths)])


def _project(
    crs: CRS, grids: NDArray[np.float64], edges: NDArray[np.float64]
) -> tuple[Geometries, NDArray[np.float64]]:
    """Give polygons (N,) and centres (N, 2) of tiles whose scenes share a CRS."""
    top, left, bottom, right = edges.T
    longest = _transform(
        crs, grids[:1], np.array([[left[0], right[0], left[0]]]), np.array([[top[0], top[0], bottom[0]]])
    )
    steps = np.nanmax(np.abs(np.diff(longest[0], axis=0)), initial=0.0)
    pieces = int(np.clip(np.ceil(steps / _SEGMENT_M), 1, _MOST_SEGMENTS))
    along = np.arange(pieces) / pieces
    ones = np.ones(pieces)
    # Clockwise on the image from the top left corner, each corner once.
    down = np.concatenate([0 * ones, along, ones, 1 - along])
    across = np.concatenate([along, ones, 1 - along, 0 * ones])
    rows = np.column_stack([top[:, None] + (bottom - top)[:, None] * down, (top + bottom) / 2])
    cols = np.column_stack([left[:, None] + (right - left)[:, None] * across, (left + right) / 2])
    points = _transform(crs, grids, cols, rows)
    crossing = np.ptp(points[..., 0], axis=1) > WORLD_M / 2
    west: NDArray[np.bool_] = crossing[:, None] & (points[..., 0] < 0)
    ring = points[:, :-1].copy()
    ring[..., 0] += np.where(west[:, :-1], WORLD_M, 0.0)
    # What still spans half the map lies around a pole, of which this map has no shape.
    whole = np.isfinite(points).all(axis=(1, 2)) & ~(np.ptp(ring[..., 0], axis=1) > WORLD_M / 2)
    polygons = np.full(len(edges), None, dtype=object)
    polygons[whole] = shapely.polygons(ring[whole])
    centres: NDArray[np.float64] = np.where(whole[:, None], points[:, -1], np.nan)
    return polygons, centres


def _transform(
    crs: CRS, grids: NDArray[np.float64], cols: NDArray[np.float64], rows: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Give (N, P, 2) EPSG:6933 of places (N, P) in pixels."""
    a, b, c, d, e, f = (grids[:, place, None] for place in range(6))
    xs, ys = a * cols + b * rows + c, d * cols + e * rows + f
    return to_equal_area(crs, xs.ravel(), ys.ravel()).T.reshape(*cols.shape, 2)
