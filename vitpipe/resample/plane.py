"""Resampling to a stated pixel spacing, antialiased, aware of the mask, and in memory bounded by a strip of rows.

The filter is the triangle (bilinear) whose support grows with the reduction, as in PIL's ``Image.resize``: output pixel
``i`` has its centre at ``c = (i + 0.5) * scale`` source pixels and weighs source pixel ``j`` by
``max(0, 1 - |j + 0.5 - c| / max(scale, 1))``, normalised to one. It is separable, so a frame is ``Wr @ x @ Wc.T`` with
two banded matrices. With a mask ``m`` the value is ``(Wr @ (x m) @ Wc.T) / (Wr @ m @ Wc.T)``: what is not valid adds
nothing and takes nothing away.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from vitpipe.config import TileRecipe
from vitpipe.domains.base import Raster
from vitpipe.errors import UnreadableSource
from vitpipe.records import Grid, Window

Pixels: TypeAlias = "NDArray[Any]"
Floats: TypeAlias = "NDArray[np.floating]"
RowRead: TypeAlias = "Callable[[int, int, int], tuple[Pixels, Pixels]]"

LEAST_VALID_WEIGHT = 0.5
"""A resampled pixel is valid where valid pixels carry at least this share of its weight."""
WEIGHT_NOISE = 1e-5
_STRIP_VALUES = 1 << 22
"""Values in working precision that a strip may hold (16 MiB of float32)."""
_SAME_PX = 0.01
"""A grid that would move no pixel further than this is left as it is."""


class RowBuffer:
    """Gives rows of a frame in full width; as long as requests do not go back, no row is read twice.

    Args:
        read: gives pixels (channels, rows, width) and mask (rows, width) of ``(frame, start, stop)``.
        height: rows of a frame.
        block_rows: reads start and end at multiples of it.
    """

    def __init__(self, read: RowRead, *, height: int, block_rows: int) -> None:
        self._read = read
        self._height = height
        self._block_rows = max(1, block_rows)
        self._frame = -1
        self._start = self._stop = 0
        self._pixels: Pixels = np.empty((0, 0, 0))
        self._valid: Pixels = np.empty((0, 0))

    def rows(self, frame: int, start: int, stop: int) -> tuple[Pixels, Pixels]:
        """Give views of rows ``start`` to ``stop``; they hold until the next call."""
        if frame != self._frame or not self._start <= start < self._stop:
            self._frame = frame
            self._start = self._stop = start // self._block_rows * self._block_rows
        if stop > self._stop:
            aligned = min(-(-stop // self._block_rows) * self._block_rows, self._height)
            pixels, valid = self._read(frame, self._stop, aligned)
            self._carry(pixels, valid, start)
            self._stop = aligned
        span = slice(start - self._start, stop - self._start)
        return self._pixels[:, span], self._valid[span]

    def _carry(self, pixels: Pixels, valid: Pixels, start: int) -> None:
        """Keep the rows from `start` on that are already here, and put the new ones below them."""
        if start >= self._stop:
            self._start = self._stop
            self._pixels, self._valid = pixels, valid
            return
        kept = slice(start - self._start, self._stop - self._start)
        self._pixels = np.concatenate([self._pixels[:, kept], pixels], axis=1)
        self._valid = np.concatenate([self._valid[kept], valid], axis=0)
        self._start = start


@dataclass(frozen=True, slots=True)
class Axis:
    """How one axis is resampled: output pixel ``i`` has its centre at ``(i + 0.5) * scale`` source pixels."""

    source: int
    """Pixels of the source."""
    size: int
    """Pixels of the output."""
    scale: float
    """Source pixels an output pixel."""

    @classmethod
    def stretch(cls, source: int, size: int) -> Axis:
        """Map the whole axis onto `size` pixels."""
        return cls(source, size, source / size)

    @classmethod
    def at_scale(cls, source: int, scale: float) -> Axis:
        """Take exactly `scale` source pixels an output pixel, from the first edge on; the length is rounded."""
        return cls(source, max(1, round(source / scale)), scale)

    @property
    def support(self) -> float:
        """Half the filter's width, in source pixels."""
        return max(self.scale, 1.0)

    @property
    def moves_nothing(self) -> bool:
        """Whether resampling would shift no pixel by more than a hundredth."""
        return self.size == self.source and abs(self.scale - 1) * self.source < _SAME_PX

    def weights(self, start: int, stop: int, dtype: np.dtype[np.floating]) -> tuple[int, csr_array]:
        """Weigh the source pixels of output pixels ``start`` to ``stop``.

        Returns:
            The first source pixel that counts, and the matrix (stop - start, source pixels from there).
        """
        centres = (np.arange(start, stop) + 0.5) * self.scale
        first = np.floor(centres - self.support + 0.5).astype(np.int64).clip(0, self.source - 1)
        last = np.floor(centres + self.support + 0.5).astype(np.int64).clip(first + 1, self.source)
        counts = last - first
        ends = np.cumsum(counts)
        begins = ends - counts
        indices = np.arange(ends[-1]) - np.repeat(begins - first, counts)
        values = np.maximum(0.0, 1.0 - np.abs(indices + 0.5 - np.repeat(centres, counts)) / self.support)
        values /= np.repeat(np.add.reduceat(values, begins), counts)
        offset = int(first[0])
        bounds = np.concatenate([[0], ends])
        shape = (stop - start, int(last.max()) - offset)
        return offset, csr_array((values.astype(dtype), indices - offset, bounds), shape=shape)


class ResampledRaster:
    """A raster on another grid; it is a :class:`vitpipe.domains.base.Raster` itself.

    Rows are resampled in full width and kept while the filter needs them: reads that go downwards decode each block of
    the source once. What is held is a strip of source rows and a strip of output rows, whatever the height.
    """

    def __init__(self, raster: Raster, rows: Axis, cols: Axis) -> None:
        self._raster = raster
        self._rows, self._cols = rows, cols
        self.grid = moved_grid(raster.grid, rows, cols)
        self.channels = raster.channels
        self.dtype = raster.dtype
        self.block_rows = 1
        self._work: np.dtype[np.floating] = working_dtype(raster.dtype)
        self._col_weights = cols.weights(0, cols.size, self._work)[1]
        self._lines = RowBuffer(self._narrow, height=rows.source, block_rows=raster.block_rows)

    def read(self, window: Window) -> tuple[Pixels, NDArray[np.bool_]]:
        """Read a window of the output grid.

        Returns:
            Pixels (channels, height, width) in the source's dtype and units, integers rounded, and the mask
            (height, width). What lies past the edge is zero and not valid.

        Raises:
            UnreadableSource: the pixels cannot be decoded.
            TransientError: the store does not answer.
        """
        pixels = np.zeros((len(self.channels), window.height, window.width), self.dtype)
        valid = np.zeros((window.height, window.width), bool)
        bottom = min(window.row + window.height, self.grid.height)
        cols = slice(window.col, min(window.col + window.width, self.grid.width))
        step = self._strip_rows()
        for start in range(window.row, bottom, step):
            stop = min(start + step, bottom)
            values, mask = self._strip(window.frame, start, stop, cols)
            place = slice(start - window.row, stop - window.row), slice(0, cols.stop - cols.start)
            pixels[:, place[0], place[1]] = values
            valid[place] = mask
        return pixels, valid

    def groups(self, windows: Sequence[Window]) -> list[str]:
        """Give the group of each window, as the source gives it for the same ground."""
        return self._raster.groups([self._in_source(window) for window in windows])

    def _in_source(self, window: Window) -> Window:
        rows, cols = self._rows.scale, self._cols.scale
        height, width = max(1, round(window.height * rows)), max(1, round(window.width * cols))
        return Window(window.frame, int(window.row * rows), int(window.col * cols), height, width)

    def _strip_rows(self) -> int:
        """Output rows whose source rows, once narrowed, fit the strip."""
        room = _STRIP_VALUES / (len(self.channels) * max(self._cols.size, 1)) - 2 * self._rows.support
        return max(1, int(room / max(self._rows.scale, 1.0)))

    def _strip(self, frame: int, start: int, stop: int, cols: slice) -> tuple[Pixels, NDArray[np.bool_]]:
        """Resample output rows ``start`` to ``stop`` of the columns `cols`."""
        top, weights = self._rows.weights(start, stop, self._work)
        lines, shares = self._lines.rows(frame, top, top + weights.shape[1])
        values = np.stack([weights @ line[:, cols] for line in lines])
        share = shares[:, cols]
        if bool((share == 1).all()):
            return to_dtype(values, self.dtype), np.ones(values.shape[1:], bool)
        weight = weights @ share
        # A sum of rounded weights is one up to noise: dividing by the noise would let a strip's mask change its pixels.
        weight[np.abs(weight - 1) < WEIGHT_NOISE] = 1
        valid = weight >= LEAST_VALID_WEIGHT - WEIGHT_NOISE
        values = np.where(valid, values / np.where(valid, weight, 1), 0)
        return to_dtype(values, self.dtype), valid

    def _narrow(self, frame: int, start: int, stop: int) -> tuple[Floats, Floats]:
        """Resample the columns of source rows: values times mask, and the share of valid weight."""
        channels, width = len(self.channels), self._cols.source
        block = max(1, self._raster.block_rows)
        step = max(1, _STRIP_VALUES // (channels * width) // block) * block
        lines: Floats = np.empty((channels, stop - start, self._cols.size), self._work)
        shares: Floats = np.ones((stop - start, self._cols.size), self._work)
        for row in range(start, stop, step):
            count = min(step, stop - row)
            pixels, valid = self._raster.read(Window(frame, row, 0, count, width))
            place = slice(row - start, row - start + count)
            for channel in range(channels):
                lines[channel, place] = self._narrow_one(pixels[channel])
            if not valid.all():
                shares[place] = self._narrow_one(valid)
                shares[place][np.abs(shares[place] - 1) < WEIGHT_NOISE] = 1
        return lines, shares

    def _narrow_one(self, rows: Pixels) -> Floats:
        # The sparse product runs along rows of its dense factor: columns are made rows first.
        turned = np.ascontiguousarray(rows.T, dtype=self._work)
        narrowed: Floats = (self._col_weights @ turned).T
        return narrowed


def at_resolution(raster: Raster, recipe: TileRecipe, *, uri: str) -> Raster:
    """Give the raster at the recipe's ``spacing_mm`` or ``gsd_m``; the raster itself where neither is set.

    Args:
        raster: an opened source.
        recipe: says the spacing.
        uri: the source, for errors.

    Raises:
        UnreadableSource: code ``NO_SPACING`` or ``NO_GSD``: the source does not say how large its pixels are.
    """
    axes = resolution_axes(raster.grid, recipe, uri=uri)
    if axes is None:
        return raster
    return ResampledRaster(raster, *axes)


def whole_axes(grid: Grid, size: int) -> tuple[Axis, Axis]:
    """Fit a frame into a square of `size` pixels: the longer edge fills it, the aspect ratio stays."""
    longer = max(grid.height, grid.width)
    return (
        Axis.stretch(grid.height, max(1, round(grid.height * size / longer))),
        Axis.stretch(grid.width, max(1, round(grid.width * size / longer))),
    )


def resolution_axes(grid: Grid, recipe: TileRecipe, *, uri: str) -> tuple[Axis, Axis] | None:
    """Give the row and column axis at the recipe's spacing; None where nothing is to be resampled.

    Raises:
        UnreadableSource: see :func:`at_resolution`.
    """
    if recipe.spacing_mm is not None:
        if grid.spacing_mm is None:
            reason = (
                f"the source states no pixel spacing, so it cannot be resampled to {recipe.spacing_mm:g} mm; "
                "leave `tiles.spacing_mm` empty, or take the source away"
            )
            raise UnreadableSource("NO_SPACING", reason, uri)
        target, pixel = recipe.spacing_mm, grid.spacing_mm[1:]
    elif recipe.gsd_m is not None:
        target, pixel = recipe.gsd_m, ground_pixel_m(grid, uri=uri)
    else:
        return None
    axes = Axis.at_scale(grid.height, target / pixel[0]), Axis.at_scale(grid.width, target / pixel[1])
    return None if axes[0].moves_nothing and axes[1].moves_nothing else axes


def ground_pixel_m(grid: Grid, *, uri: str) -> tuple[float, float]:
    """Give the size of a pixel on the ground in metres: (along a column, along a row).

    In a projected CRS it is the length of the transform's columns times the CRS unit. In a geographic CRS degrees
    become metres at the latitude of the scene's centre, by the series for the WGS 84 ellipsoid (National
    Geospatial-Intelligence Agency, "Length of a degree of latitude and longitude").

    Raises:
        UnreadableSource: code ``NO_GSD``: no transform, or no CRS that says the unit.
    """
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    missing = UnreadableSource(
        "NO_GSD",
        "the source has no transform with a CRS in known units, so its pixels have no size in metres; "
        "leave `tiles.gsd_m` empty, or give the file its CRS",
        uri,
    )
    if grid.transform is None or grid.crs is None:
        raise missing
    a, b, _, d, e, f = grid.transform
    try:
        crs = CRS.from_user_input(grid.crs)
        factor = float(crs.units_factor[1])
    except CRSError as error:
        raise missing from error
    if crs.is_geographic:
        latitude = (f + d * grid.width / 2 + e * grid.height / 2) * factor
        north, east = _metres_per_radian(latitude)
        sizes = math.hypot(b * east, e * north) * factor, math.hypot(a * east, d * north) * factor
    elif crs.is_projected:
        sizes = math.hypot(b, e) * factor, math.hypot(a, d) * factor
    else:
        raise missing
    if min(sizes) <= 0:
        raise missing
    return sizes


def _metres_per_radian(latitude: float) -> tuple[float, float]:
    """Give metres a radian towards the north and the east at a latitude (radians)."""
    north = 111132.92 - 559.82 * math.cos(2 * latitude) + 1.175 * math.cos(4 * latitude)
    north -= 0.0023 * math.cos(6 * latitude)
    east = 111412.84 * math.cos(latitude) - 93.5 * math.cos(3 * latitude) + 0.118 * math.cos(5 * latitude)
    return math.degrees(north), math.degrees(east)


def moved_grid(grid: Grid, rows: Axis, cols: Axis) -> Grid:
    """Give the output grid: the same corner, other pixels."""
    spacing, transform, affine = grid.spacing_mm, grid.transform, grid.affine
    if spacing is not None:
        spacing = (spacing[0], spacing[1] * rows.scale, spacing[2] * cols.scale)
    if transform is not None:
        a, b, c, d, e, f = transform
        transform = (a * cols.scale, b * rows.scale, c, d * cols.scale, e * rows.scale, f)
    if affine is not None:
        # (col, row, frame) are pixel centres here, so the first centre moves by half the difference of two pixels.
        change = np.diag([cols.scale, rows.scale, 1.0, 1.0])
        change[:2, 3] = (cols.scale - 1) / 2, (rows.scale - 1) / 2
        affine = tuple(float(value) for value in (np.array(affine).reshape(4, 4) @ change).ravel())
    gcps = tuple((row / rows.scale, col / cols.scale, x, y) for row, col, x, y in grid.gcps)
    return dataclasses.replace(
        grid, height=rows.size, width=cols.size, spacing_mm=spacing, transform=transform, affine=affine, gcps=gcps
    )


def working_dtype(dtype: np.dtype[np.generic]) -> np.dtype[np.floating]:
    """Give float32 where it holds the values exactly, else float64."""
    return np.dtype(np.float32 if np.can_cast(dtype, np.float32) else np.float64)


def to_dtype(values: Floats, dtype: np.dtype[Any]) -> Pixels:
    """Round and clip to an integer dtype; cast to others."""
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        return np.rint(values).clip(limits.min, limits.max).astype(dtype)
    return values.astype(dtype, copy=False)
