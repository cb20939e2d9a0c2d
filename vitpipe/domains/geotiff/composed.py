"""A scene whose bands lie in several files, or a series of such scenes: windows on one grid, in physical units.

Each file is read by a `GeotiffRaster` of its own, so forks and masks are its matter; here pixels are brought onto the
grid, scaled, and joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vitpipe.domains.geotiff.facts import window_groups
from vitpipe.domains.geotiff.raster import GeotiffRaster
from vitpipe.records import Grid, Source, Window

_STRIP_BYTES: Final = 64 << 20
_LEAST_ROWS: Final = 64
_SCL_BAD: Final = (0, 1, 3, 8, 9, 10)
"""No data, saturated or defective, cloud shadow, cloud of medium and of high probability, thin cirrus (Sentinel-2 L2A
product specification)."""
_QA_PIXEL_BAD: Final = 0b11111
"""Fill, dilated cloud, cirrus, cloud, cloud shadow (Landsat Collection 2 QA_PIXEL, bits 0 to 4)."""


class ComposedRaster:
    """A scene of several files. Close it; `vitpipe.domains.geotiff.Geotiff.open` does."""

    def __init__(self, source: Source) -> None:
        self._source = source
        reader: Any = source.reader
        self._dtype = np.dtype(source.dtype)
        self._channels: list[tuple[int, int, float, float]] = [tuple(item) for item in reader["channels"]]
        self._quality: list[tuple[int, str]] = [tuple(item) for item in reader["quality"]]
        self._members: list[_Member] = []
        try:
            for facts in reader["members"]:
                self._members.append(_Member.of(source, facts))
        except BaseException:
            self.close()
            raise
        wanted = max(member.raster.block_rows * member.coarser // member.finer for member in self._members)
        row_bytes = source.grid.width * len(source.channels) * self._dtype.itemsize
        self._block_rows = max(1, min(wanted, max(_LEAST_ROWS, _STRIP_BYTES // row_bytes)))

    @property
    def grid(self) -> Grid:
        """One frame, and where it lies."""
        return self._source.grid

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the chosen bands."""
        return self._source.channels

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Dtype of a read: a float where bands are scaled or averaged."""
        return self._dtype

    @property
    def block_rows(self) -> int:
        """Rows to read at once: those of the highest blocks, of many bands fewer.

        Reads in full width that go downwards decode nothing twice, whatever their height: of each file the last strip
        of blocks is kept, as stored.
        """
        return self._block_rows

    def read(self, window: Window) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Read a window.

        Returns:
            Pixels (channels, height, width) in `Source.units` and the valid mask (height, width). A pixel is valid if
            it is valid in every channel, and not cloud where clouds are dropped.

        Raises:
            UnreadableSource: see `GeotiffRaster.read`.
            TransientError: the store does not answer.
            ValueError: the window begins outside the grid, or names another frame.
        """
        if window.frame != 0 or window.row < 0 or window.col < 0:
            raise ValueError(f"a scene has the frame 0 and rows and cols from 0, got {window}")
        shape = (len(self._channels), window.height, window.width)
        pixels, valid = np.zeros(shape, self._dtype), np.zeros(shape[1:], np.bool_)
        height = min(window.height, self.grid.height - window.row)
        width = min(window.width, self.grid.width - window.col)
        if height <= 0 or width <= 0:
            return pixels, valid
        inner = Window(0, window.row, window.col, height, width)
        part, mask = pixels[:, :height, :width], valid[:height, :width]
        mask[:] = True
        for number, member in enumerate(self._members):
            wanted = [place for place, channel in enumerate(self._channels) if channel[0] == number]
            if not wanted:
                continue
            found, found_valid = member.on_grid(inner)
            mask &= found_valid
            for place in wanted:
                _, band, scale, offset = self._channels[place]
                _scale_into(part[place], found[band], scale, offset)
        for number, kind in self._quality:
            mask &= self._members[number].clear(inner, kind)
        if not mask.all():
            part[:, ~mask] = 0
        return pixels, valid

    def groups(self, windows: Sequence[Window]) -> list[str]:
        """Name the block of ground under the centre of each window's part inside the scene."""
        return window_groups(self._source, windows)

    def close(self) -> None:
        """Close this process's handles of all files."""
        for member in self._members:
            member.raster.close()


def _scale_into(out: NDArray[Any], stored: NDArray[Any], scale: float, offset: float) -> None:
    """Write ``stored * scale + offset`` in the dtype of `out`."""
    if scale == 1 and offset == 0:
        out[:] = stored
        return
    np.multiply(stored, out.dtype.type(scale), out=out, casting="unsafe")
    if offset != 0:
        out += out.dtype.type(offset)


@dataclass(slots=True)
class _Member:
    """One opened file, and how its pixels come onto the grid."""

    raster: GeotiffRaster
    coarser: int
    finer: int
    invalid: tuple[int, ...]
    kept: tuple[int, NDArray[Any], NDArray[np.bool_]] | None = None
    """The last strip of blocks in full width, by its number; replaced as a whole, never written to."""

    @classmethod
    def of(cls, source: Source, facts: Mapping[str, Any]) -> _Member:
        """Open a file of a source; `facts` is what `compose.member_json` wrote."""
        files = tuple(source.files[place] for place in facts["files"])
        alone = Source(
            source_id=source.source_id,
            group_id=source.group_id,
            domain=source.domain,
            uri=files[0],
            files=files,
            grid=Grid(1, facts["height"], facts["width"]),
            channels=tuple(f"b{number}" for number in facts["bands"]),
            units="dn",
            dtype=facts["dtype"],
            reader={
                **{name: facts[name] for name in ("bands", "alpha", "stated", "remote") if name in facts},
                "block_m": source.reader["block_m"],
            },
        )
        return cls(GeotiffRaster(alone), facts["coarser"], facts["finer"], tuple(facts["invalid"]))

    def on_grid(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Give stored values (bands, height, width), averages as floats, and what is valid in all bands."""
        if self.coarser > 1:
            pixels, valid = self._repeated(window)
            return pixels, valid & self._measured(pixels)
        if self.finer == 1:
            pixels, valid = self._rows(window)
            return pixels, valid & self._measured(pixels)
        fine, valid = self._fine(window)
        valid = valid & self._measured(fine)
        step = self.finer
        blocks = fine.reshape(len(fine), window.height, step, window.width, step)
        dtype = np.result_type(fine.dtype, np.float32)
        return blocks.mean(axis=(2, 4), dtype=np.float64).astype(dtype), _all_of(valid, window, step)

    def clear(self, window: Window, kind: str) -> NDArray[np.bool_]:
        """Tell where the ground is seen, by a file of classes or of bits; a coarse pixel where all of it is seen."""
        read = self._repeated if self.coarser > 1 else self._rows if self.finer == 1 else self._fine
        pixels, valid = read(window)
        codes = pixels[0]
        bad = np.isin(codes, _SCL_BAD) if kind == "scl" else (codes & _QA_PIXEL_BAD) != 0
        seen = valid & ~bad
        return _all_of(seen, window, self.finer) if self.finer > 1 else seen

    def _measured(self, pixels: NDArray[Any]) -> NDArray[np.bool_]:
        good = np.ones(pixels.shape[1:], np.bool_)
        for band in pixels:
            for value in self.invalid:
                good &= band != value
        return good

    def _repeated(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Repeat each coarse pixel as often as the grid has pixels in it."""
        step = self.coarser
        first_row, first_col = window.row // step, window.col // step
        rows = -(-(window.row + window.height) // step) - first_row
        cols = -(-(window.col + window.width) // step) - first_col
        pixels, valid = self._rows(Window(0, first_row, first_col, rows, cols))
        row_of = np.arange(window.row, window.row + window.height) // step - first_row
        col_of = np.arange(window.col, window.col + window.width) // step - first_col
        return pixels[:, row_of[:, np.newaxis], col_of], valid[row_of[:, np.newaxis], col_of]

    def _fine(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read the fine pixels under a window; past the edge nothing is valid."""
        step = self.finer
        fine = Window(0, window.row * step, window.col * step, window.height * step, window.width * step)
        return self._rows(fine)

    def _rows(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a window; in full width by whole strips of blocks, of which the last is kept for the next read."""
        raster = self.raster
        height, width = raster.grid.height, raster.grid.width
        stop = min(window.row + window.height, height)
        if window.col != 0 or window.width < width or window.row >= height:
            return raster.read(window)
        strip = raster.block_rows
        parts = []
        for number in range(window.row // strip, -(-stop // strip)):
            kept = self.kept
            if kept is None or kept[0] != number:
                top = number * strip
                kept = (number, *raster.read(Window(0, top, 0, min(strip, height - top), width)))
                self.kept = kept
            parts.append(kept)
        top = parts[0][0] * strip
        if len(parts) == 1:
            pixels, valid = parts[0][1], parts[0][2]
        else:
            pixels = np.concatenate([part[1] for part in parts], axis=1)
            valid = np.concatenate([part[2] for part in parts], axis=0)
        pixels, valid = pixels[:, window.row - top : stop - top], valid[window.row - top : stop - top]
        lacking = (window.row + window.height - stop, window.width - width)
        if not any(lacking):
            return pixels, valid
        edges = ((0, lacking[0]), (0, lacking[1]))
        return np.pad(pixels, ((0, 0), *edges)), np.pad(valid, edges)


def _all_of(fine: NDArray[np.bool_], window: Window, step: int) -> NDArray[np.bool_]:
    return np.asarray(fine.reshape(window.height, step, window.width, step).all(axis=(1, 3)))
