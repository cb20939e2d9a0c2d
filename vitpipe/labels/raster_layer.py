"""A label raster on the grid of the tiles: copied where the grids agree, else warped window by window.

Each part of the grid reads the window of the raster that covers it, and is warped from that window alone: never
through a warped VRT, which is twenty to thirty times slower. A part that would need too large a window is halved.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.warp import reproject
from rasterio.windows import Window as RasterioWindow

from vitpipe.errors import LabelError, UnreadableSource
from vitpipe.labels.ground import Painter, TileGrid, masks_of
from vitpipe.labels.places import Points, Rectangle, apply, crs_of, lattice, move_points
from vitpipe.opening import MOST_CACHE_BYTES, gdal_environment, open_tiff
from vitpipe.pixel_targets import IGNORE

_MOST_WINDOW_PX: Final = 1 << 24
_MARGIN_PX: Final = 2
_DECIMALS: Final = 6
"""Places are rounded to it, so that a centre on the edge of two pixels falls to the same of them everywhere."""


@dataclass(frozen=True)
class Band:
    """One band of a label raster, and what its values mean."""

    path: str
    number: int
    height: int
    width: int
    crs: str | None
    transform: tuple[float, ...]
    places: Mapping[float, int] | None
    """Value to place in the list of classes; of what is ignored to `IGNORE`. None: the values are continuous."""
    ignored: tuple[float, ...] = ()
    """Values, as stored, that say nothing; of continuous ones alone."""


@dataclass(frozen=True)
class RasterLayer:
    """A label raster for one source."""

    band: Band
    content: str
    """Digest of the file."""
    pixel_by_pixel: bool
    """The raster has the source's own pixels, whatever their place."""

    @property
    def digest(self) -> str:
        """Of the file; what its values mean stands in the digest of the label set."""
        return self.content

    @contextlib.contextmanager
    def open(self, grid: TileGrid) -> Iterator[Painter]:
        """Open the file."""
        with open_band(self.band.path) as dataset:
            yield _RasterPainter(self, dataset, grid)


@contextlib.contextmanager
def open_band(path: str) -> Iterator[DatasetReader]:
    """Open a label raster with a cache of two rows of its blocks.

    Raises:
        LabelError: it can no longer be opened.
    """
    try:
        with gdal_environment():
            dataset = open_tiff(Path(path))
    except (CPLE_BaseError, RasterioError, OSError, ValueError) as error:
        raise LabelError(f"{path} can no longer be opened as a GeoTIFF; run the same command again") from error
    with dataset:
        row_bytes = dataset.block_shapes[0][0] * dataset.width * np.dtype(dataset.dtypes[0]).itemsize
        with gdal_environment(min(2 * row_bytes, MOST_CACHE_BYTES)):
            yield dataset


def read_values(dataset: DatasetReader, number: int, part: Rectangle) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Read a window of a band, and where it says something: not nodata, not masked, finite.

    Raises:
        UnreadableSource: a block cannot be decoded.
    """
    window = RasterioWindow(part.left, part.top, part.right - part.left, part.bottom - part.top)
    try:
        values: NDArray[Any] = dataset.read(number, window=window)
        said = np.ones(values.shape, np.bool_)
        if MaskFlags.all_valid not in dataset.mask_flag_enums[number - 1]:
            said = dataset.read_masks(number, window=window) != 0
    except (CPLE_BaseError, RasterioError) as error:
        reason = f"the labels in rows {part.top} to {part.bottom} cannot be decoded: the file is damaged; make it again"
        raise UnreadableSource("UNDECODABLE", reason, str(dataset.name)) from error
    if values.dtype.kind == "f":
        said &= np.isfinite(values)
    return values, said


class _RasterPainter:
    """Paints rows of a grid from an opened raster."""

    def __init__(self, layer: RasterLayer, dataset: DatasetReader, grid: TileGrid) -> None:
        self._band, self._dataset, self._grid = layer.band, dataset, grid
        self._continuous = layer.band.places is None
        self._scale, self._offset = dataset.scales[layer.band.number - 1], dataset.offsets[layer.band.number - 1]
        self._straight: Affine | None = None
        """From the grid to the raster's pixels, where that needs no warp."""
        self._crs: tuple[CRS, CRS] | None = None
        own = Affine(*layer.band.transform[:6])
        if layer.pixel_by_pixel:
            if grid.to_source is None:
                raise LabelError(
                    f"{layer.band.path} has the pixels of its scene and no CRS, so it cannot follow the scene into "
                    "another CRS; leave `tiles.crs` empty, or give the raster its CRS"
                )
            self._straight = Affine(*grid.to_source[:6])
        elif grid.transform is not None and grid.crs is not None and layer.band.crs is not None:
            self._crs = crs_of(grid.crs), crs_of(layer.band.crs)
            place = ~own @ Affine(*grid.transform[:6])
            unturned = max(abs(place.b) * grid.height, abs(place.d) * grid.width) < 10**-_DECIMALS
            whole = _moves_whole_pixels(place)
            if self._crs[0] == self._crs[1] and unturned and (whole or not self._continuous):
                self._straight = place
        else:
            raise LabelError(f"{layer.band.path}: without a CRS it has no place on a scene; give the file its CRS")

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        out = np.full((stop - start, self._grid.width), *((np.nan, "f4") if self._continuous else (IGNORE, "u1")))
        self._paint(Rectangle(start, stop, 0, self._grid.width), out)
        return out

    def masks(self, start: int, stop: int) -> dict[int, NDArray[np.bool_]]:
        return masks_of(self.rows(start, stop))

    def _paint(self, part: Rectangle, out: NDArray[Any]) -> None:
        if self._straight is not None:
            self._copy(part, out, self._straight)
            return
        window, sure = self._window(part)
        if part.pixels > 1 and (window.pixels > _MOST_WINDOW_PX or not sure):
            for half in part.halves():
                rows = slice(half.top - part.top, half.bottom - part.top)
                self._paint(half, out[rows, half.left - part.left : half.right - part.left])
        elif window.pixels:
            self._warp(part, window, out)

    def _copy(self, part: Rectangle, out: NDArray[Any], place: Affine) -> None:
        """Take the raster's pixel in which each pixel of the grid has its centre."""
        rows = _nearest(place.e, place.f, part.top, part.bottom)
        cols = _nearest(place.a, place.c, part.left, part.right)
        rows_in, cols_in = (rows >= 0) & (rows < self._band.height), (cols >= 0) & (cols < self._band.width)
        if not rows_in.any() or not cols_in.any():
            return
        rows, cols = rows[rows_in], cols[cols_in]
        window = Rectangle(int(rows.min()), int(rows.max()) + 1, int(cols.min()), int(cols.max()) + 1)
        if window.pixels > _MOST_WINDOW_PX and part.pixels > 1:
            for half in part.halves():
                inner = slice(half.top - part.top, half.bottom - part.top)
                self._copy(half, out[inner, half.left - part.left : half.right - part.left], place)
            return
        found = self._read(window)
        if found.shape != (len(rows), len(cols)) or rows[0] > rows[-1] or cols[0] > cols[-1]:
            found = found[np.ix_(rows - window.top, cols - window.left)]
        # What lies inside is one stretch of each axis.
        first_row, first_col = int(rows_in.argmax()), int(cols_in.argmax())
        out[first_row : first_row + len(rows), first_col : first_col + len(cols)] = found

    def _warp(self, part: Rectangle, window: Rectangle, out: NDArray[Any]) -> None:
        assert self._crs is not None
        assert self._grid.transform is not None
        nodata = math.nan if self._continuous else IGNORE
        painted = np.full_like(out, nodata)
        reproject(
            self._read(window),
            painted,
            src_transform=Affine(*self._band.transform[:6]) @ Affine.translation(window.left, window.top),
            src_crs=self._crs[1],
            src_nodata=nodata,
            dst_transform=Affine(*self._grid.transform[:6]) @ Affine.translation(part.left, part.top),
            dst_crs=self._crs[0],
            dst_nodata=nodata,
            resampling=Resampling.bilinear if self._continuous else Resampling.nearest,
        )
        out[:] = painted

    def _read(self, window: Rectangle) -> NDArray[Any]:
        values, said = read_values(self._dataset, self._band.number, window)
        if self._band.places is None:
            said &= ~np.isin(values, self._band.ignored)
            with np.errstate(over="ignore"):
                found = np.where(said, values, np.nan).astype(np.float32)
                found = found * np.float32(self._scale) + np.float32(self._offset)
            # One value that float32 cannot hold would make every loss infinite.
            found[~np.isfinite(found)] = np.nan
            return found
        return to_places(values, said, self._band.places)

    def _window(self, part: Rectangle) -> tuple[Rectangle, bool]:
        """Give the raster's window that covers a part of the grid; False: some of the part has no place there."""
        assert self._crs is not None
        assert self._grid.transform is not None
        cols, rows = lattice(part)
        points = move_points(apply(Affine(*self._grid.transform[:6]), cols, rows), *self._crs)
        there: Points = points[:, np.isfinite(points[0])]
        if not there.shape[1]:
            return Rectangle(0, 0, 0, 0), True
        at_cols, at_rows = apply(~Affine(*self._band.transform[:6]), there[0], there[1])
        high, wide = float(np.ptp(at_rows)), float(np.ptp(at_cols))
        # A filter that shrinks the raster reaches as far as the pixels that it makes are large.
        margin = _MARGIN_PX * (1 + max(high / (part.bottom - part.top), wide / (part.right - part.left)))
        found = Rectangle(
            math.floor(at_rows.min() - margin),
            math.ceil(at_rows.max() + margin),
            math.floor(at_cols.min() - margin),
            math.ceil(at_cols.max() + margin),
        )
        return found.within(self._band.height, self._band.width), there.shape[1] == points.shape[1]


def to_places(values: NDArray[Any], said: NDArray[np.bool_], places: Mapping[float, int]) -> NDArray[np.uint8]:
    """Map values to places of classes.

    Args:
        values: of a label raster.
        said: where they count.
        places: value to place. What lies under the sources was looked at before: other values lie beside them.
    """
    if not places:
        return np.full(values.shape, IGNORE, np.uint8)
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
        # Few values are possible: each has its entry in a table, negative ones behind the positive.
        limits, count = np.iinfo(values.dtype), 1 << 8 * values.dtype.itemsize
        table = np.full(count, IGNORE, np.uint8)
        for value, place in places.items():
            if value == int(value) and limits.min <= value <= limits.max:
                table[int(value) % count] = place
        found: NDArray[np.uint8] = table[values.view(f"u{values.dtype.itemsize}")]
    else:
        keys = np.array(sorted(places), np.float64)
        targets = np.array([*(places[key] for key in keys), IGNORE], np.uint8)
        index = np.searchsorted(keys, values).clip(0, len(keys) - 1)
        index[keys[index] != values] = len(keys)
        found = targets[index]
    found[~said] = IGNORE
    return found


def _nearest(step: float, first: float, start: int, stop: int) -> NDArray[np.int64]:
    return np.floor(np.round((np.arange(start, stop) + 0.5) * step + first, _DECIMALS)).astype(np.int64)


def _moves_whole_pixels(place: Affine) -> bool:
    """Tell whether pixels fall onto pixels: no value is then made of several."""
    return all(
        abs(value - round(value)) < 1e-3 and abs(scale - 1) < 1e-6
        for scale, value in ((place.a, place.c), (place.e, place.f))
    )
