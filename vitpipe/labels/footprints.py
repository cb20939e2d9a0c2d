"""The ground of a scene in the CRS of its labels, across the 180th meridian and around the poles too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from shapely import affinity

from vitpipe.labels.places import Points, Rectangle, apply, lattice, move_points, outline

_LON_LAT: Final = 4326
_HALF_TURN, _TURN, _POLE = 180.0, 360.0, 90.0
_SLACK_DEG: Final = 1e-6
_AROUND_LATTICE: Final = 1 / 16
"""Of the extent of a lattice: the distance of its points."""


def footprints(
    height: int, width: int, transform: Sequence[float], crs: tuple[CRS, CRS], around_px: int = 0
) -> list[shapely.Polygon]:
    """Give the ground of a grid in another CRS; what crosses the 180th meridian is given on both its sides.

    Args:
        height: of the grid.
        width: of the grid.
        transform: a, b, c, d, e, f of the grid.
        crs: of the grid, and the one to give.
        around_px: pixels around the grid that are given too.

    Returns:
        Polygons that cover it. Around a pole, and across the 180th meridian of a projected CRS, they are boxes, thus
        larger.
    """
    wider = Affine(*transform[:6]) @ Affine.translation(-around_px, -around_px)
    shape = height + 2 * around_px, width + 2 * around_px
    points = outline(wider[:6], *shape, crs)
    if crs[0] != crs[1]:
        degrees = points if crs[1].is_geographic else outline(wider[:6], *shape, (crs[0], CRS.from_epsg(_LON_LAT)))
        there: Points = degrees[:, np.isfinite(degrees[0])]
        if there.shape[1] >= 4 and np.ptp(there[0]) > _HALF_TURN:
            return _across(there) if crs[1].is_geographic else _halves(wider, *shape, crs)
    there = points[:, np.isfinite(points[0])]
    return [_polygon(*there)] if there.shape[1] >= 4 else []


def beyond_half_turn(height: int, width: int, transform: Sequence[float], crs: CRS) -> tuple[float, float] | None:
    """Give the longitudes of a grid that counts them beyond half a turn, as grids of 0 to 360 degrees do; else None.

    Args:
        height: of the grid.
        width: of the grid.
        transform: a, b, c, d, e, f of the grid.
        crs: of the grid.
    """
    if not crs.is_geographic:
        return None
    a, b, c = transform[:3]
    corners = [c, c + a * width, c + b * height, c + a * width + b * height]
    return (min(corners), max(corners)) if max(map(abs, corners)) > _HALF_TURN + _SLACK_DEG else None


def in_every_turn(parts: Sequence[shapely.Polygon]) -> list[shapely.Polygon]:
    """Give parts in degrees also a turn to the west and to the east."""
    return [affinity.translate(part, turn) for part in parts for turn in (0.0, -_TURN, _TURN)]


def _across(points: Points) -> list[shapely.Polygon]:
    """Give the inside of an outline in degrees that meets the 180th meridian."""
    ring = np.unwrap(np.append(points[0], points[0, 0]), period=_TURN)
    if abs(ring[-1] - ring[0]) > _HALF_TURN:
        # It runs around a pole.
        south, north = points[1].min(), points[1].max()
        return [shapely.box(-_HALF_TURN, south, _HALF_TURN, _POLE) if south + north > 0 else
                shapely.box(-_HALF_TURN, -_POLE, _HALF_TURN, north)]  # fmt: skip
    return [_polygon(ring[:-1] + turn, points[1]) for turn in (0.0, -_TURN, _TURN)]


def _halves(transform: Affine, height: int, width: int, crs: tuple[CRS, CRS]) -> list[shapely.Polygon]:
    """Give what of a grid lies west and what east of Greenwich, as boxes: a map may have its edges between them."""
    points = apply(transform, *lattice(Rectangle(0, height, 0, width)))
    degrees, moved = move_points(points, crs[0], CRS.from_epsg(_LON_LAT)), move_points(points, *crs)
    found = []
    for half in (degrees[0] < 0, degrees[0] >= 0):
        part = moved[:, half & np.isfinite(moved[0])]
        if part.shape[1]:
            (left, bottom), (right, top) = part.min(axis=1), part.max(axis=1)
            margin = _AROUND_LATTICE * max(right - left, top - bottom)
            found.append(shapely.box(left - margin, bottom - margin, right + margin, top + margin))
    return found


def _polygon(x: NDArray[np.float64], y: NDArray[np.float64]) -> shapely.Geometry:
    return shapely.make_valid(shapely.Polygon(np.stack([x, y], axis=1)))
