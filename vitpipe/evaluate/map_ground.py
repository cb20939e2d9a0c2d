"""Class rasters as maps: their pixels counted by class and stratum, and the ground that these cover, strip by strip."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from vitpipe.domains.geotiff.ground import to_equal_area
from vitpipe.errors import DataError
from vitpipe.opening import gdal_environment, open_tiff

MAP_UNREADABLE: Final = "MAP_UNREADABLE"
NOT_CLASSES: Final = "NOT_CLASSES"
OTHER_GRID: Final = "OTHER_GRID"
VALUES: Final = 256
"""Class values are 0..255."""
_LATTICE: Final = 64
"""Pixels between the points at which the ground is measured."""
_STRIP_BYTES: Final = 64 << 20
_LATTICE_M: Final = 10_000.0
"""At most so far apart: a coarse map of a pole would else be measured over cells of a thousand kilometres."""
_DEGREE_M: Final = 111_320.0
_HALF_WORLD_M: Final = 17_367_530.445161
_POLE_M: Final = 7_342_230.13649868
"""Where the antimeridian and the pole lie in EPSG:6933."""


@dataclass(frozen=True, slots=True)
class Strip:
    """Some rows of a class raster."""

    row: int
    values: NDArray[np.uint8]
    """(H, W)."""
    valid: NDArray[np.bool_]
    """(H, W)."""


class ClassRaster:
    """A GeoTIFF whose first band holds classes; use it inside :func:`open_classes`."""

    def __init__(self, path: Path, dataset: DatasetReader) -> None:
        self.path, self.dataset = path, dataset
        self.height, self.width = int(dataset.height), int(dataset.width)
        kind = np.dtype(dataset.dtypes[0])
        if kind.kind not in "iu":
            raise DataError(
                f"{NOT_CLASSES}: {path} holds {kind.name} values; a class raster holds whole numbers 0..255"
            )

    @property
    def strip_rows(self) -> int:
        """Rows that are read at once: a row of blocks, or what fits 64 MiB."""
        block = int(self.dataset.block_shapes[0][0])
        fits = max(_LATTICE, _STRIP_BYTES // (self.width * np.dtype(self.dataset.dtypes[0]).itemsize))
        rows: int = max(1, min(max(block, _LATTICE), fits, self.height))
        return rows

    def read(self, window: tuple[int, int, int, int]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Read values and valid mask of a window (row, col, height, width) that lies inside.

        Raises:
            DataError: the file is damaged, or a valid value is no class (0..255).
        """
        row, col, height, width = window
        place = Window(col, row, width, height)
        try:
            found = self.dataset.read(1, window=place)
            valid = np.ones(found.shape, dtype=bool)
            if self.dataset.nodata is not None:
                valid = np.asarray(found != self.dataset.nodata)
            elif MaskFlags.per_dataset in self.dataset.mask_flag_enums[0]:
                valid = self.dataset.read_masks(1, window=place) > 0
        except RasterioError as error:
            raise DataError(f"{MAP_UNREADABLE}: {self.path} cannot be read at row {row}: {error}") from error
        if found.dtype != np.uint8:
            wrong = valid & ((found < 0) | (found >= VALUES))
            if wrong.any():
                raise DataError(
                    f"{NOT_CLASSES}: {self.path} holds {found[wrong][0]}, but class values are 0..255; renumber the "
                    "classes, or set the nodata value if this one means no class"
                )
            found = np.where(valid, found, 0).astype(np.uint8)
        return found, valid

    def strips(self) -> Iterator[Strip]:
        """Give the raster from top to bottom."""
        step = self.strip_rows
        for row in range(0, self.height, step):
            yield Strip(row, *self.read((row, 0, min(step, self.height - row), self.width)))

    def same_grid(self, other: ClassRaster) -> bool:
        """Say whether the pixels of two rasters are the same ground."""
        ours, theirs = self.dataset.transform, other.dataset.transform
        near = 0.1 * math.hypot(ours.a, ours.d)
        # At both ends: a small difference of the pixel's size adds up over a scene.
        ends = ((0, 0), (self.width, self.height))
        return (
            (self.height, self.width) == (other.height, other.width)
            and self.dataset.crs == other.dataset.crs
            and all(math.dist(_placed(ours, *end), _placed(theirs, *end)) < near for end in ends)
        )


def _placed(transform: Sequence[float], col: int, row: int) -> tuple[float, float]:
    a, b, c, d, e, f = transform[:6]
    return a * col + b * row + c, d * col + e * row + f


@contextlib.contextmanager
def open_classes(path: Path) -> Iterator[ClassRaster]:
    """Open a class raster by the GTiff driver alone.

    Raises:
        DataError: it is no GeoTIFF, or holds no classes.
    """
    with gdal_environment():
        try:
            dataset = open_tiff(path)
        except RasterioError as error:
            raise DataError(f"{MAP_UNREADABLE}: {path} is no readable GeoTIFF: {error}") from error
        with dataset:
            yield ClassRaster(path, dataset)


def pixel_areas(raster: ClassRaster, row: int, height: int) -> tuple[NDArray[np.float64], int] | None:
    """Measure the ground under pixels on the equal-area grid EPSG:6933.

    Pixels of a geographic CRS get smaller towards the poles, those of a projection vary with its scale: their number is
    no area.

    Args:
        raster: has a CRS, or None comes back.
        row: first row.
        height: rows; the ground is taken as even over 64 x 64 pixels or 10 km, in degrees over whole rows.

    Returns:
        Areas in m2 of one pixel, (rows of the lattice, columns of the lattice), and how many rows a lattice row holds.
    """
    crs, transform = raster.dataset.crs, raster.dataset.transform
    if crs is None:
        return None
    if crs.is_geographic and transform.b == 0 and transform.d == 0:
        edges = transform.f + transform.e * np.arange(row, row + height + 1)
        # The grid is cylindrical: x goes with longitude alone, wherever the raster lies.
        _, y = to_equal_area(crs, np.zeros(height + 1), np.clip(edges, -90, 90))
        x, _ = to_equal_area(crs, np.array([0.0, transform.a]), np.zeros(2))
        return np.abs(np.diff(y))[:, None] * abs(float(x[1] - x[0])), 1
    step = _lattice_step(raster)
    rows = np.unique(np.append(np.arange(row, row + height, step), row + height))
    cols = np.unique(np.append(np.arange(0, raster.width, step), raster.width))
    at_col, at_row = np.meshgrid(cols, rows)
    flat = at_col.ravel().astype(np.float64), at_row.ravel().astype(np.float64)
    xs = transform.a * flat[0] + transform.b * flat[1] + transform.c
    ys = transform.d * flat[0] + transform.e * flat[1] + transform.f
    points = _on_sphere(to_equal_area(crs, xs, ys)).reshape(*at_col.shape, 3)
    one, other = points[1:, 1:] - points[:-1, :-1], points[1:, :-1] - points[:-1, 1:]
    pixels = np.diff(rows)[:, None] * np.diff(cols)[None, :]
    areas = np.linalg.norm(np.cross(one, other), axis=-1) / 2
    # What lies on no ground (the corners of a geostationary disk) has no area.
    return np.nan_to_num(areas) / pixels, step


def _lattice_step(raster: ClassRaster) -> int:
    """Give the pixels between the points at which the ground is measured: 10 km at most, over which it is even."""
    crs, transform = raster.dataset.crs, raster.dataset.transform
    metres = _DEGREE_M if crs.is_geographic else float(crs.linear_units_factor[1])
    edge = max(math.hypot(transform.a, transform.d), math.hypot(transform.b, transform.e)) * metres
    return max(1, min(_LATTICE, int(_LATTICE_M / edge)))


def _on_sphere(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Place points (2, N) of EPSG:6933 on the sphere of equal area, (N, 3) metres.

    There a cell over a pole or over the antimeridian is one as any other.
    """
    longitude = points[0] / _HALF_WORLD_M * np.pi
    up = points[1] / _POLE_M
    out = np.sqrt(np.maximum(0.0, 1.0 - up**2))
    radius = math.sqrt(_HALF_WORLD_M * _POLE_M / math.pi)
    return radius * np.column_stack([out * np.cos(longitude), out * np.sin(longitude), up])


def pixel_edge_m(raster: ClassRaster) -> float | None:
    """Give the edge in metres of a square as large as the middle pixel; None without a CRS."""
    found = pixel_areas(raster, raster.height // 2, 1)
    return None if found is None else math.sqrt(float(np.median(found[0])))


def count_classes(raster: ClassRaster, strata: ClassRaster | None = None) -> pd.DataFrame:
    """Count the pixels of every class and measure their ground; one pass, memory of a strip.

    Args:
        raster: the map.
        strata: another class raster on the same grid; only pixels valid in both count then.

    Returns:
        `value`, `stratum` (of `strata`, else equal to `value`), `pixels`, `area_m2` (NaN without a CRS), sorted.

    Raises:
        DataError: ``OTHER_GRID``, or a file is damaged or holds no classes.
    """
    if strata is not None and not raster.same_grid(strata):
        raise DataError(
            f"{OTHER_GRID}: {strata.path} ({strata.height} x {strata.width}) is not on the grid of {raster.path} "
            f"({raster.height} x {raster.width}); warp it to that grid (nearest neighbour) first"
        )
    pixels = np.zeros(VALUES**2 if strata is not None else VALUES, dtype=np.int64)
    areas = np.zeros(pixels.size)
    for strip in raster.strips():
        codes, valid = strip.values.astype(np.int32), strip.valid
        if strata is not None:
            others, known = strata.read((strip.row, 0, *strip.values.shape))
            codes, valid = codes + others.astype(np.int32) * VALUES, valid & known
        measured = pixel_areas(raster, strip.row, len(codes))
        counts, sizes = _counted(codes, valid, pixels.size, measured)
        pixels += counts
        areas += sizes
    there = np.flatnonzero(pixels)
    values = there % VALUES
    return pd.DataFrame(
        {
            "value": values,
            "stratum": there // VALUES if strata is not None else values,
            "pixels": pixels[there],
            "area_m2": areas[there] if raster.dataset.crs is not None else np.nan,
        }
    ).sort_values(["stratum", "value"], ignore_index=True)


def _counted(
    codes: NDArray[np.int32],
    valid: NDArray[np.bool_],
    size: int,
    measured: tuple[NDArray[np.float64], int] | None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Count codes, and sum the ground of each."""
    if measured is None:
        counts = np.bincount(codes[valid], minlength=size)
        return counts, np.zeros(size)
    ground, step = measured
    total, areas = np.zeros(size, dtype=np.int64), np.zeros(size)
    columns = np.arange(codes.shape[1], dtype=np.int64) // step if ground.shape[1] > 1 else None
    for number, of_cells in enumerate(ground):
        part, here = codes[number * step : (number + 1) * step], valid[number * step : (number + 1) * step]
        if columns is None:
            counts = np.bincount(part[here], minlength=size)
            areas += counts * of_cells[0]
            total += counts
            continue
        # Only the codes that are there: with strata there could be 65,536 a cell.
        present = np.flatnonzero(np.bincount(part[here], minlength=size))
        place = np.zeros(size, dtype=np.int64)
        place[present] = np.arange(present.size)
        cells = (place[part] + columns * present.size)[here]
        by_cell = np.bincount(cells, minlength=len(of_cells) * present.size).reshape(len(of_cells), present.size)
        total[present] += by_cell.sum(axis=0)
        areas[present] += of_cells @ by_cell
    return total, areas
