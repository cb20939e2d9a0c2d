"""Where the pixels of one grid lie on another one: coordinates between CRS, and the windows that cover them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.warp import transform as warp_points

Points = NDArray[np.float64]

_AROUND = 17


class Rectangle(NamedTuple):
    """Pixels of a grid: `row` and `col` from, and up to but without, these."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def pixels(self) -> int:
        """How many pixels."""
        return max(0, self.bottom - self.top) * max(0, self.right - self.left)

    def halves(self) -> tuple[Rectangle, Rectangle]:
        """Cut it in two across its longer side."""
        if self.bottom - self.top >= self.right - self.left:
            middle = (self.top + self.bottom) // 2
            return self._replace(bottom=middle), self._replace(top=middle)
        middle = (self.left + self.right) // 2
        return self._replace(right=middle), self._replace(left=middle)

    def within(self, height: int, width: int) -> Rectangle:
        """Cut off what lies past the edges."""
        return Rectangle(max(self.top, 0), min(self.bottom, height), max(self.left, 0), min(self.right, width))


def crs_of(text: str) -> CRS:
    """Read a CRS as a source states it."""
    return CRS.from_user_input(text)


def move_points(points: Points, from_crs: CRS, to_crs: CRS) -> Points:
    """Transform points (2, N): x, y; NaN where a point lies on no ground of the other CRS."""
    if from_crs == to_crs or points.shape[1] == 0:
        return points
    try:
        moved = np.asarray(warp_points(from_crs, to_crs, points[0], points[1]), dtype=np.float64)
    except (CPLE_BaseError, RasterioError):
        # GDAL refuses all points for one bad one: halve until the bad ones stand alone.
        if points.shape[1] == 1:
            return np.full((2, 1), np.nan)
        half = points.shape[1] // 2
        parts = [move_points(part, from_crs, to_crs) for part in (points[:, :half], points[:, half:])]
        return np.hstack(parts)
    moved[:, ~np.isfinite(moved).all(axis=0)] = np.nan
    return moved


def apply(affine: Affine, cols: Points, rows: Points) -> Points:
    """Apply an affine to many points; (2, N)."""
    return np.stack(
        [affine.a * cols + affine.b * rows + affine.c, affine.d * cols + affine.e * rows + affine.f]
    ).astype(np.float64)


def lattice(part: Rectangle) -> tuple[Points, Points]:
    """Give columns and rows of points over a part of a grid, its edges among them; of one pixel its centre alone."""
    if part.pixels <= 1:
        return np.array([part.left + 0.5]), np.array([part.top + 0.5])
    cols, rows = np.meshgrid(np.linspace(part.left, part.right, _AROUND), np.linspace(part.top, part.bottom, _AROUND))
    return cols.ravel(), rows.ravel()


def outline(transform: Sequence[float], height: int, width: int, crs: tuple[CRS, CRS]) -> Points:
    """Give the outline of a grid as points (2, N) of another CRS, its edges dense enough to bend.

    Args:
        transform: a, b, c, d, e, f of the grid.
        height: of the grid.
        width: of the grid.
        crs: of the grid, and the one to give.
    """
    steps = np.linspace(0, 1, _AROUND * 2)[:-1]
    ones, zeros = np.ones_like(steps), np.zeros_like(steps)
    cols = np.concatenate([steps, ones, 1 - steps, zeros]) * width
    rows = np.concatenate([zeros, steps, ones, 1 - steps]) * height
    return move_points(apply(Affine(*transform[:6]), cols, rows), *crs)
