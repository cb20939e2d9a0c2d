"""Boxes of longitude and latitude: which sources a label file may lie on, without asking each pair.

Every scene may have a label file of its own, so thousands meet thousands. A box is wider than what it stands for, never
narrower: what it finds is looked at exactly afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import shapely
from rasterio.crs import CRS

from vitpipe.labels.places import Points, crs_of, outline
from vitpipe.records import Source

Bounds = tuple[float, float, float, float]
"""West, south, east, north in degrees."""

EVERYWHERE: Final[Bounds] = (-180.0, -90.0, 180.0, 90.0)
_LON_LAT: Final = 4326
_HALF_TURN: Final = 180.0
_WIDER: Final = 0.02
"""Of its extent: an edge may bulge between the points of its outline."""
_LEAST_DEG: Final = 1e-6
_METRES_A_DEGREE: Final = 110_000.0
"""Of latitude, and no more than there are anywhere."""


def lon_lat_box(height: int, width: int, transform: Sequence[float], crs: str) -> Bounds:
    """Give the box of a grid; `EVERYWHERE` where it crosses the 180th meridian, holds a pole, or has no place in part.

    Args:
        height: of the grid.
        width: of the grid.
        transform: a, b, c, d, e, f of the grid.
        crs: of the grid.
    """
    return _around(outline(transform, height, width, (crs_of(crs), CRS.from_epsg(_LON_LAT))))


def _around(points: Points) -> Bounds:
    if not np.isfinite(points).all() or np.abs(points[0]).max() > _HALF_TURN or np.ptp(points[0]) > _HALF_TURN:
        return EVERYWHERE
    (west, south), (east, north) = points.min(axis=1), points.max(axis=1)
    margin_x, margin_y = _WIDER * (east - west) + _LEAST_DEG, _WIDER * (north - south) + _LEAST_DEG
    return float(west - margin_x), float(south - margin_y), float(east + margin_x), float(north + margin_y)


def wider_by(box: Bounds, buffer_m: float | None) -> Bounds:
    """Widen a box by metres."""
    if buffer_m is None or box == EVERYWHERE:
        return box
    up = buffer_m / _METRES_A_DEGREE
    farthest = max(abs(box[1] - up), abs(box[3] + up))
    aside = up / np.cos(np.radians(min(farthest, 90.0))) if farthest < 89 else np.inf
    found = (float(box[0] - aside), box[1] - up, float(box[2] + aside), box[3] + up)
    return found if found[0] >= -_HALF_TURN and found[2] <= _HALF_TURN else EVERYWHERE


class SourceBoxes:
    """Sources on the ground by their boxes.

    Args:
        sources: those without a place are never found.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = [item for item in sources if item.grid.transform is not None and item.grid.crs is not None]
        self.boxes: list[Bounds] = []
        """Of the sources that have a place: west, south, east, north in degrees."""
        for source in self._sources:
            grid = source.grid
            assert grid.transform is not None
            assert grid.crs is not None
            self.boxes.append(lon_lat_box(grid.height, grid.width, grid.transform, grid.crs))
        self._tree = shapely.STRtree([shapely.box(*box) for box in self.boxes])

    def near(self, box: Bounds) -> list[Source]:
        """Give the sources whose boxes meet a box, in their order."""
        return [self._sources[place] for place in np.sort(self._tree.query(shapely.box(*box)))]
