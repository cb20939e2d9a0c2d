"""Where a grid lies in longitude and latitude, as GeoJSON wants it (RFC 7946): split at the antimeridian, poles too."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS

from vitpipe.domains.geotiff.ground import fitted_transform, warped_points
from vitpipe.records import Grid, Json

_POINTS: Final = 21
"""Along each edge: straight lines of the CRS are none in longitude and latitude."""
_CELLS: Final = 24
"""Along each edge, where corners of the grid lie on no ground."""
_DECIMALS: Final = 7
_ROUND: Final = 360 - 1e-6


def footprint(grid: Grid) -> tuple[dict[str, Json], list[Json]] | None:
    """Give geometry and bounding box in WGS 84; None where the grid lies nowhere.

    West of a bounding box is larger than its east where it crosses the antimeridian (RFC 7946, 5.2). Where the outline
    leaves the ground, as that of a geostationary disk does, it is put together from those of 24 x 24 cells that lie on
    the ground whole, and so a little small. Where control points alone tell the place, it is that of the transform that
    fits them best.
    """
    if grid.gcps:
        fitted = fitted_transform(grid.gcps, CRS.from_user_input(grid.gcp_crs))
        grid = dataclasses.replace(grid, transform=fitted, crs=grid.gcp_crs)
    if grid.transform is None or grid.crs is None:
        return None
    along = np.linspace(0, 1, _POINTS)[:-1]
    cols = np.concatenate([along, np.ones(len(along)), 1 - along, np.zeros(len(along))])
    rows = np.concatenate([np.zeros(len(along)), along, np.ones(len(along)), 1 - along])
    ring = _degrees(grid, cols, rows)
    if np.isnan(ring).any():
        shape = _cells_on_ground(grid)
        return None if shape is None else _placed(shape)
    pole = _pole_inside(grid)
    if pole is not None:
        # Every meridian is inside: the ring is a line round the globe.
        edge = float(ring[:, 1].min() if pole > 0 else ring[:, 1].max())
        south, north = sorted((edge, pole))
        return _geometry(shapely.box(-180, south, 180, north)), [-180.0, south, 180.0, north]
    # Each longitude within half a turn of the one before.
    longitudes = np.degrees(np.unwrap(np.radians(ring[:, 0])))
    longitudes -= 360 * np.floor((longitudes.min() + 180) / 360)
    return _placed(shapely.make_valid(shapely.Polygon(np.stack([longitudes, ring[:, 1]], axis=1))))


def _placed(shape: Any) -> tuple[dict[str, Json], list[Json]]:  # noqa: ANN401 - shapely has no types
    """Split a shape whose longitudes start in -180...180 and may go on beyond 180; gives its box too."""
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


def _degrees(grid: Grid, cols: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give points (N, 2) in longitude and latitude, from shares of width and height; NaN where there is no ground."""
    assert grid.transform is not None
    a, b, c, d, e, f = grid.transform
    cols, rows = cols * grid.width, rows * grid.height
    xs, ys = a * cols + b * rows + c, d * cols + e * rows + f
    return warped_points(CRS.from_user_input(grid.crs), CRS.from_user_input("OGC:CRS84"), xs, ys).T


def _cells_on_ground(grid: Grid) -> Any:  # noqa: ANN401 - shapely has no types
    """Join the cells of a lattice whose corners all lie on the ground; None where there are none."""
    places = np.linspace(0, 1, _CELLS + 1)
    cols, rows = (axis.ravel() for axis in np.meshgrid(places, places))
    points = _degrees(grid, cols, rows).reshape(_CELLS + 1, _CELLS + 1, 2)
    corners = [points[:-1, :-1], points[:-1, 1:], points[1:, 1:], points[1:, :-1], points[:-1, :-1]]
    cells = np.stack(corners, axis=2).reshape(-1, 5, 2)
    cells = cells[np.isfinite(cells).all(axis=(1, 2))]
    if not len(cells):
        return None
    # All within half a turn of one of them, so that the antimeridian does not part them.
    middle = cells[len(cells) // 2, 0, 0]
    cells[..., 0] -= 360 * np.round((cells[..., 0] - middle) / 360)
    cells[..., 0] -= 360 * np.floor((cells[..., 0].min() + 180) / 360)
    return shapely.union_all(shapely.make_valid(shapely.polygons(cells)), grid_size=10.0**-_DECIMALS)


def _pole_inside(grid: Grid) -> float | None:
    """Give the latitude of the pole that the grid holds, where its CRS knows one place of it."""
    crs = CRS.from_user_input(grid.crs)
    if crs.is_geographic:
        return None
    for latitude in (90.0, -90.0):
        xs, ys = warped_points(
            CRS.from_user_input("OGC:CRS84"), crs, np.array([0.0, 120.0]), np.array([latitude, latitude])
        )
        # A cylindrical projection draws the pole as a line: two places.
        if not np.isfinite([*xs, *ys]).all() or abs(xs[0] - xs[1]) + abs(ys[0] - ys[1]) > 1:
            continue
        from affine import Affine
        from rasterio.transform import AffineTransformer

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
