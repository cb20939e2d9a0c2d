"""A scene on a north-up grid of another CRS, warped strip by strip, never as a whole and never through a VRT.

A strip of output rows needs the source rows that its outline falls into; they are read once, in the order of the file,
and GDAL's warper (bilinear, antialiased where pixels become larger) fills the strip from them. The mask goes through
the same kernel, and a pixel is valid only where everything that weighs in it is: no nodata bleeds in, and the valid
area shrinks by at most the kernel's reach. Coordinates are interpolated by GDAL within 1/8 of a pixel of the exact ones
(its default), as they are when a whole scene is warped.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from vitpipe.config import TileRecipe
from vitpipe.domains.base import Raster
from vitpipe.errors import UnreadableSource
from vitpipe.processors import thread_count
from vitpipe.records import Grid, Window
from vitpipe.resample.plane import RowBuffer, to_dtype, working_dtype

_EDGE_POINTS: Final = 33
_STRIP_VALUES: Final = 1 << 23
_MOST_GROWTH: Final = 64
"""A grid with more times the source's pixels is no use: the CRS does not suit the place."""
_MOST_JUMP: Final = 0.5
"""Between two neighbouring points of an outline, as a share of its extent."""
_WHOLE_WEIGHT: Final = 0.999


def warped_grid(grid: Grid, recipe: TileRecipe, *, uri: str) -> Grid | None:
    """Give the grid of a scene in the recipe's CRS; None where it lies in that CRS already.

    Its pixels are square, as large as ``gsd_m`` (metres of the CRS, so on Web Mercator larger than on the ground away
    from the equator) or as the source's in the middle of the scene, and its edges are multiples of them: the grids of
    overlapping scenes share their pixels.

    Args:
        grid: of the source.
        recipe: with a `crs`.
        uri: the source, for errors.

    Raises:
        UnreadableSource: ``NO_CRS``: the source lies nowhere; ``BAD_TARGET_CRS``: the recipe's CRS is not known, is not
            projected, or does not hold the scene.
    """
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    assert recipe.crs is not None
    if grid.crs is None or grid.transform is None:
        reason = "the source has no transform with a CRS, so it cannot be brought to `tiles.crs`; leave that empty"
        raise UnreadableSource("NO_CRS", reason, uri)
    source = CRS.from_user_input(grid.crs)
    name = _utm(grid, uri) if recipe.crs == "utm" else recipe.crs
    try:
        target = CRS.from_user_input(name)
    except CRSError as error:
        raise UnreadableSource("BAD_TARGET_CRS", f"`tiles.crs: {name}` is no known CRS", uri) from error
    if not target.is_projected:
        reason = f"`tiles.crs: {name}` is not projected, so its pixels have no size in metres; take one that is, or utm"
        raise UnreadableSource("BAD_TARGET_CRS", reason, uri)
    if source == target and grid.transform[1] == grid.transform[3] == 0:
        return None
    rows, cols = _outline((0, grid.height), (0, grid.width))
    x, y = _moved(grid.crs, name, *_to_crs(grid.transform, rows, cols))
    (x0, x1, x2), (y0, y1, y2) = _moved(grid.crs, name, *_to_crs(grid.transform, *_centre_pixel(grid)))
    area = abs((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0))
    edge = recipe.gsd_m / float(target.units_factor[1]) if recipe.gsd_m is not None else _rounded(math.sqrt(area))
    if not (np.isfinite(x).all() and np.isfinite(y).all() and 0 < edge < math.inf):
        raise UnreadableSource("BAD_TARGET_CRS", f"the scene does not lie where `tiles.crs: {name}` is defined", uri)
    jumps = [np.abs(np.diff(axis.reshape(4, -1), axis=1)).max() / max(np.ptp(axis), edge) for axis in (x, y)]
    if max(jumps) > _MOST_JUMP:
        reason = f"the scene lies across an edge of `tiles.crs: {name}`, such as a pole or the antimeridian"
        raise UnreadableSource("BAD_TARGET_CRS", reason, uri)
    left, top = math.floor(float(x.min()) / edge), math.ceil(float(y.max()) / edge)
    width, height = math.ceil(float(x.max()) / edge) - left, top - math.floor(float(y.min()) / edge)
    if width * height > _MOST_GROWTH * grid.width * grid.height and recipe.gsd_m is None:
        reason = (
            f"`tiles.crs: {name}` stretches the scene to {height} x {width} pixels; take a CRS of the region, or utm"
        )
        raise UnreadableSource("BAD_TARGET_CRS", reason, uri)
    transform = (edge, 0.0, left * edge, 0.0, -edge, top * edge)
    return dataclasses.replace(grid, height=height, width=width, transform=transform, crs=name)


class WarpedRaster:
    """A raster on the grid of :func:`warped_grid`; it is a :class:`vitpipe.domains.base.Raster` itself.

    Reads that go downwards decode each row of blocks once, where rows of the source and of the grid run the same way to
    within some degrees; what is held is the band of source rows under one strip.

    Args:
        raster: an opened scene.
        grid: of :func:`warped_grid`.
        threads: how many warp side by side, see :func:`vitpipe.processors.thread_count`; the pixels are the same.
    """

    def __init__(self, raster: Raster, grid: Grid, *, threads: int | None = None) -> None:
        self._raster = raster
        self.grid = grid
        self.channels = raster.channels
        self.dtype = raster.dtype
        # Any rows: strips begin where tiles do, since GDAL's interpolated coordinates, and so the pixels, depend on it.
        self.block_rows = 1
        self._threads = thread_count(threads)
        self._work: np.dtype[np.floating] = working_dtype(raster.dtype)
        source = raster.grid
        rows, cols = self._in_source(*_centre_pixel(grid))
        area = abs((cols[1] - cols[0]) * (rows[2] - rows[0]) - (cols[2] - cols[0]) * (rows[1] - rows[0]))
        self._scale = 1 / max(math.sqrt(area), 1.0)
        """Output pixels a source pixel in the middle of the scene, at most 1: how far the kernel reaches."""

        def read(frame: int, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
            return raster.read(Window(frame, start, 0, stop - start, source.width))

        self._lines = RowBuffer(read, height=source.height, block_rows=raster.block_rows)

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a window of the grid.

        Returns:
            Pixels (channels, height, width) in the source's dtype and units, integers rounded, and the mask
            (height, width). What the source does not cover is zero and not valid.

        Raises:
            UnreadableSource: the pixels cannot be decoded.
            TransientError: the store does not answer.
        """
        pixels = np.zeros((len(self.channels), window.height, window.width), self.dtype)
        valid = np.zeros((window.height, window.width), np.bool_)
        bottom = min(window.row + window.height, self.grid.height)
        width = min(window.col + window.width, self.grid.width) - window.col
        step = max(1, _STRIP_VALUES // (len(self.channels) * max(width, 1)))
        for start in range(window.row, bottom, step):
            stop = min(start + step, bottom)
            values, mask = self._strip(window.frame, (start, stop), (window.col, window.col + width))
            place = slice(start - window.row, stop - window.row)
            pixels[:, place, :width], valid[place, :width] = values, mask
        return pixels, valid

    def groups(self, windows: Sequence[Window]) -> list[str]:
        """Give the group of each window, as the source gives it for the ground under its centre."""
        if not windows:
            return []
        asked = np.array([window[1:5] for window in windows], dtype=np.float64)
        rows = (asked[:, 0] + np.minimum(asked[:, 0] + asked[:, 2], self.grid.height)) / 2
        cols = (asked[:, 1] + np.minimum(asked[:, 1] + asked[:, 3], self.grid.width)) / 2
        found = self._in_source(rows, cols)
        rows, cols = (np.nan_to_num(axis) for axis in found)
        height, width = self._raster.grid.height, self._raster.grid.width
        return self._raster.groups([
            Window(window.frame, int(row), int(col), 1, 1)
            for window, row, col in zip(windows, rows.clip(0, height - 1), cols.clip(0, width - 1), strict=True)
        ])  # fmt: skip

    def _in_source(self, rows: NDArray[np.float64], cols: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Give source rows and columns of edges of the grid; not finite where there are none."""
        source = self._raster.grid
        assert self.grid.transform is not None
        assert self.grid.crs is not None
        assert source.transform is not None
        assert source.crs is not None
        xs, ys = _moved(self.grid.crs, source.crs, *_to_crs(self.grid.transform, rows, cols))
        a, b, c, d, e, f = tuple(~Affine(*source.transform))[:6]
        return d * xs + e * ys + f, a * xs + b * ys + c

    def _strip(
        self, frame: int, rows: tuple[int, int], cols: tuple[int, int]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Warp rows and columns (first, after the last) of the grid."""
        from rasterio.enums import Resampling
        from rasterio.warp import reproject

        shape = len(self.channels), rows[1] - rows[0], cols[1] - cols[0]
        spans = self._needed(rows, cols)
        if spans is None:
            return np.zeros(shape, self.dtype), np.zeros(shape[1:], np.bool_)
        (top, bottom), (left, right) = spans
        pixels, mask = self._lines.rows(frame, top, bottom)
        stored = np.concatenate([pixels[:, :, left:right], mask[np.newaxis, :, left:right]]).astype(self._work)
        warped = np.zeros((shape[0] + 1, *shape[1:]), self._work)
        source = self._raster.grid
        assert source.transform is not None
        assert self.grid.transform is not None
        reproject(
            stored,
            warped,
            src_transform=Affine(*source.transform) @ Affine.translation(left, top),
            src_crs=source.crs,
            dst_transform=Affine(*self.grid.transform) @ Affine.translation(cols[0], rows[0]),
            dst_crs=self.grid.crs,
            resampling=Resampling.bilinear,
            num_threads=self._threads,
            # GDAL would guess it from the size of each strip, so that strips of a turned scene were smoothed unlike.
            XSCALE=self._scale,
            YSCALE=self._scale,
        )
        valid = warped[-1] >= _WHOLE_WEIGHT
        values = to_dtype(warped[:-1], self.dtype)
        np.copyto(values, np.zeros((), self.dtype), where=~valid)
        return values, valid

    def _needed(self, rows: tuple[int, int], cols: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """Give the source rows and columns that a part of the grid is filled from; None where there are none."""
        found = self._in_source(*_outline(rows, cols))
        height, width = rows[1] - rows[0], cols[1] - cols[0]
        spans = []
        for axis, size in zip(found, (self._raster.grid.height, self._raster.grid.width), strict=True):
            finite = axis[np.isfinite(axis)]
            if not finite.size:
                return None
            low, high = float(finite.min()), float(finite.max())
            # The kernel reaches one pixel of the larger kind; one more for the interpolated coordinates.
            reach = 3 + 2 * (high - low) / min(height, width)
            first, last = max(0, math.floor(low - reach)), min(size, math.ceil(high + reach))
            if first >= last:
                return None
            spans.append((first, last))
        return spans[0], spans[1]


def _outline(rows: tuple[int, int], cols: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give rows and columns of points along the edges of a rectangle: a smooth map has its extremes there."""
    down, along = np.linspace(*rows, _EDGE_POINTS), np.linspace(*cols, _EDGE_POINTS)
    top, left = np.full(_EDGE_POINTS, float(rows[0])), np.full(_EDGE_POINTS, float(cols[0]))
    bottom, right = np.full(_EDGE_POINTS, float(rows[1])), np.full(_EDGE_POINTS, float(cols[1]))
    return np.concatenate([top, down, bottom, down]), np.concatenate([along, right, along, left])


def _centre_pixel(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give three corners of the middle pixel."""
    row, col = grid.height / 2, grid.width / 2
    return np.array([row, row, row + 1]), np.array([col, col + 1, col])


def _to_crs(
    transform: tuple[float, ...], rows: NDArray[np.float64], cols: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b, c, d, e, f = transform
    return a * cols + b * rows + c, d * cols + e * rows + f


def _moved(
    source: str, target: str, xs: NDArray[np.float64], ys: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Transform points; not finite where they cannot be."""
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError
    from rasterio.warp import transform

    try:
        moved = transform(source, target, xs, ys)
    except (CPLE_BaseError, RasterioError):
        # GDAL refuses all points for one bad one: halve until the bad ones stand alone.
        if len(xs) == 1:
            return np.array([math.nan]), np.array([math.nan])
        half = len(xs) // 2
        parts = _moved(source, target, xs[:half], ys[:half]), _moved(source, target, xs[half:], ys[half:])
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    return np.asarray(moved[0], dtype=np.float64), np.asarray(moved[1], dtype=np.float64)


def _rounded(edge: float) -> float:
    """Round a pixel's edge to three digits, so that scenes of one sensor have one size of pixels."""
    return float(f"{edge:.3g}") if math.isfinite(edge) else edge


def _utm(grid: Grid, uri: str) -> str:
    """Name the UTM zone (WGS 84) of the middle of a scene; zones are six degrees wide, Norway's exceptions left out."""
    assert grid.crs is not None
    assert grid.transform is not None
    rows, cols = _centre_pixel(grid)
    longitude, latitude = (
        float(axis[0]) for axis in _moved(grid.crs, "OGC:CRS84", *_to_crs(grid.transform, rows, cols))
    )
    if not (math.isfinite(longitude) and -80 <= latitude <= 84):
        raise UnreadableSource("BAD_TARGET_CRS", "`tiles.crs: utm` has no zone where the scene lies", uri)
    zone = int((longitude + 180) // 6) % 60 + 1
    return f"EPSG:{(32600 if latitude >= 0 else 32700) + zone}"
