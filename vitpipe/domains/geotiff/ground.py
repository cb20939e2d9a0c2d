"""Blocks of ground: cells of one global equal-area grid, so scenes that overlap share them, whatever their CRS.

The grid is EASE-Grid 2.0 global (EPSG:6933, Brodzik et al. 2012), in metres; block (i, j) holds
``i * block_m <= x < (i + 1) * block_m`` and likewise j for y.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.transform import from_gcps
from rasterio.warp import transform as warp_points

_EQUAL_AREA = 6933
_GEOCENTRIC = 4978
_DATE_LINE_M = 17_367_530.445161
"""x of 180 degrees east in EPSG:6933; x of 180 degrees west is its negative."""

_FLAT = 1e-6
"""Share of the extent of control points: what lies within is a line."""

Placing = tuple[float, float, float, float, float, float]
"""a, b, c, d, e, f of a transform."""


def crs_text(crs: CRS) -> str:
    """Name a CRS: ``EPSG:code`` if it surely is that one, else WKT 2."""
    code = crs.to_epsg(confidence_threshold=100)
    return f"EPSG:{code}" if code else str(crs.to_wkt(version="WKT2_2019"))


def to_equal_area(crs: CRS, xs: NDArray[np.float64], ys: NDArray[np.float64]) -> NDArray[np.float64]:
    """Transform points to EPSG:6933.

    Returns:
        (2, N) metres; NaN where a point lies on no ground, such as the corners of a geostationary disk. What lies on
        the date line is west of everything, whether its CRS calls it 180 degrees or -180.
    """
    points = warped_points(crs, CRS.from_epsg(_EQUAL_AREA), xs, ys)
    # One place must not have two names: a millimetre is far more than the error of the transformation.
    points[0, points[0] > _DATE_LINE_M - 1e-3] = -_DATE_LINE_M
    return points


def warped_points(crs: CRS, to: CRS, xs: NDArray[np.float64], ys: NDArray[np.float64]) -> NDArray[np.float64]:
    """Transform points between any two CRS.

    Returns:
        (2, N) in the units of `to`, x first; NaN where a point lies on no ground.
    """
    if len(xs) == 0:
        return np.empty((2, 0))
    try:
        points = np.asarray(warp_points(crs, to, xs, ys), dtype=np.float64)
    except (CPLE_BaseError, RasterioError):
        # GDAL refuses all points for one bad one: halve until the bad ones stand alone.
        if len(xs) == 1:
            return np.full((2, 1), np.nan)
        half = len(xs) // 2
        return np.hstack([warped_points(crs, to, xs[:half], ys[:half]), warped_points(crs, to, xs[half:], ys[half:])])
    points[:, ~np.isfinite(points).all(axis=0)] = np.nan
    return points


def fitted_transform(points: Sequence[Sequence[float]], crs: CRS) -> Placing | None:
    """Fit a transform to ground control points, by least squares as GDAL does.

    Args:
        points: (row, col, x, y) of each.
        crs: of x and y.

    Returns:
        a, b, c, d, e, f; longitudes may go on beyond 180 degrees. None where the points fix no plane: fewer than three
        of them, or all on one line. GDAL then leaves the numbers as they lie in memory.
    """
    rows, cols, xs, ys = np.array(points, dtype=np.float64).T
    if crs.is_geographic:
        # Longitudes may jump at the antimeridian.
        xs = xs - 360 * np.round((xs - xs[0]) / 360)
    for one, other in ((rows, cols), (xs, ys)):
        spread = np.stack([one - one.mean(), other - other.mean()])
        if not np.isfinite(spread).all() or np.linalg.matrix_rank(spread, tol=_FLAT * np.abs(spread).max()) < 2:
            return None
    fixed = [GroundControlPoint(*point) for point in np.stack([rows, cols, xs, ys], axis=1).tolist()]
    a, b, c, d, e, f = from_gcps(fixed)[:6]
    return a, b, c, d, e, f


def block_names(points: NDArray[np.float64], block_m: float, *, otherwise: str) -> list[str]:
    """Name the block of each point.

    Args:
        points: (2, N), EPSG:6933 metres; NaN: on no ground.
        block_m: edge of a block.
        otherwise: the name for points on no ground.
    """
    on_ground = np.isfinite(points[0]) & np.isfinite(points[1])
    blocks = np.floor(np.where(on_ground, points, 0.0) / block_m).astype(np.int64).T.tolist()
    return [
        f"ground-{x}-{y}" if ground else otherwise for (x, y), ground in zip(blocks, on_ground.tolist(), strict=True)
    ]


def gsd_m(crs: CRS, transform: Sequence[float], row: float, col: float) -> float | None:
    """Ground sampling distance at a pixel: the edge in metres of a square as large as its ground, to 3 digits.

    Measured in space, on the ellipsoid in geocentric coordinates (EPSG:4978), so that degrees, feet, the stretch of a
    map, the date line and the poles do not matter: a pixel is a parallelogram of the chords through its centre.

    Args:
        crs: of `transform`.
        transform: a, b, c, d, e, f.
        row: where to measure: the centre of the pixel, counted from the corner of the first one.
        col: where to measure.

    Returns:
        None where that is on no ground.
    """
    a, b, c, d, e, f = transform
    cols, rows = col + np.array([-0.5, 0.5, 0, 0]), row + np.array([0, 0, -0.5, 0.5])
    try:
        space = CRS.from_epsg(_GEOCENTRIC)
        points = np.array(warp_points(crs, space, a * cols + b * rows + c, d * cols + e * rows + f, np.zeros(4)))
    except (CPLE_BaseError, RasterioError):
        return None
    left, right, top, bottom = points.T
    area_m2 = float(np.linalg.norm(np.cross(right - left, bottom - top)))
    return float(f"{math.sqrt(area_m2):.3g}") if 0 < area_m2 < math.inf else None
