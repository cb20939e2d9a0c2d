"""Where a grid lies in longitude and latitude, as GeoJSON wants it (RFC 7946): split at the antimeridian, poles too."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import shapely
from numpy.typing import NDArray

from vitpipe.records import Grid, Json

_POINTS: Final = 21
"""Along each edge: straight lines of the CRS are none in longitude and latitude."""
_DECIMALS: Final = 7
_ROUND: Final = 360 - 1e-6


def footprint(grid: Grid) -> tuple[dict[str, Json], list[Json]] | None:
    """Give geometry and bounding box in WGS 84; None where the grid lies nowhere.

    West of a bounding box is larger than its east where it crosses the antimeridian (RFC 7946, 5.2).
    """
    if grid.transform is None or grid.crs is None:
        return None
    ring = _ring(grid)
    pole = _pole_inside(grid)
    if pole is not None:
        # Every meridian is inside: the ring is a line round the globe.
        edge = float(ring[:, 1].min() if pole > 0 else ring[:, 1].max())
        south, north = sorted((edge, pole))
        return _geometry(shapely.box(-180, south, 180, north)), [-180.0, south, 180.0, north]
    # Each longitude within half a turn of the one before.
    longitudes = np.degrees(np.unwrap(np.radians(ring[:, 0])))
    longitudes -= 360 * np.floor((longitudes.min() + 180) / 360)
    shape = shapely.make_valid(shapely.Polygon(np.stack([longitudes, ring[:, 1]], axis=1)))
    west, south, east, north = shape.bounds
    if east - west >= _ROUND:
        return _geometry(shapely.box(-180, south, 180, north)), _rounded([-180, south, 180, north])
    if east <= 180:
        return _geometry(shape), _rounded([west, south, east, north])
    inner = shapely.intersection(shape, shapely.box(-180, -90, 180, 90))
    outer = shapely.transform(
        shapely.intersection(shape, shapely.box(180, -90, 540, 90)), lambda points: points - np.array([360.0, 0.0])
    )
    both = shapely.union_all([inner, outer])
    return _geometry(both), _rounded([west, south, east - 360, north])


def _ring(grid: Grid) -> NDArray[np.float64]:
    """Give the outline (points, 2) in longitude and latitude."""
    from rasterio.warp import transform

    along = np.linspace(0, 1, _POINTS)[:-1]
    cols = np.concatenate([along, np.ones(len(along)), 1 - along, np.zeros(len(along))]) * grid.width
    rows = np.concatenate([np.zeros(len(along)), along, np.ones(len(along)), 1 - along]) * grid.height
    assert grid.transform is not None
    a, b, c, d, e, f = grid.transform
    found = transform(grid.crs, "OGC:CRS84", (a * cols + b * rows + c).tolist(), (d * cols + e * rows + f).tolist())
    return np.stack([np.asarray(found[0]), np.asarray(found[1])], axis=1)


def _pole_inside(grid: Grid) -> float | None:
    """Give the latitude of the pole that the grid holds, where its CRS knows one place of it."""
    from rasterio.crs import CRS
    from rasterio.errors import RasterioError
    from rasterio.transform import AffineTransformer
    from rasterio.warp import transform

    crs = CRS.from_user_input(grid.crs)
    if crs.is_geographic:
        return None
    for latitude in (90.0, -90.0):
        try:
            xs, ys = transform("OGC:CRS84", crs, [0.0, 120.0], [latitude, latitude])
        except RasterioError:
            continue
        # A cylindrical projection draws the pole as a line: two places.
        if not np.isfinite([*xs, *ys]).all() or abs(xs[0] - xs[1]) + abs(ys[0] - ys[1]) > 1:
            continue
        from affine import Affine

        row, col = AffineTransformer(Affine(*grid.transform or ())).rowcol(xs[0], ys[0], op=float)
        if 0 <= row <= grid.height and 0 <= col <= grid.width:
            return latitude
    return None


def _geometry(shape: Any) -> dict[str, Json]:  # noqa: ANN401 - shapely has no types
    found: dict[str, Json] = shapely.geometry.mapping(
        shapely.simplify(shapely.set_precision(shape, 10.0**-_DECIMALS), 0)
    )
    return {"type": found["type"], "coordinates": _lists(found["coordinates"])}


def _lists(value: Any) -> Json:  # noqa: ANN401 - nested tuples
    return [_lists(item) for item in value] if isinstance(value, tuple | list) else value


def _rounded(values: list[float]) -> list[Json]:
    return [round(float(value), _DECIMALS) for value in values]
