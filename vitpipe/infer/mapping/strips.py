"""Finished strips of a map on disk, so that a run that was killed goes on in the middle of a scene.

A strip is a file, renamed into place once its bytes are on the disk: that it is there is the journal. What the engine
had not yet written is computed again, which gives the same bytes. Overviews are strips too, each made of two of the
level below as soon as these are written: while the model runs, and without reading what was in memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import rasterio
from numpy.typing import NDArray

from vitpipe.atomic import write_file
from vitpipe.infer.mapping.gdal import gdal_writes
from vitpipe.infer.mapping.layers import Layers
from vitpipe.infer.mapping.pyramid import level_shapes, reduce_by_two
from vitpipe.infer.mapping.stitching import MapRows

STRIP_ROWS: Final = 256
_BLOCK: Final = 256
_WORTH_COMPRESSING: Final = 0.5
"""Share of its size that a sample must shrink to: what shrinks less costs more time than its bytes do."""


class StripStore:
    """The strips of one map, from top to bottom.

    Args:
        folder: theirs alone.
        height: rows of the map.
        width: columns of the map.
        layers: how the model's output is kept.
    """

    def __init__(self, folder: Path, height: int, width: int, layers: Layers) -> None:
        self.folder = folder
        self.height, self.width = height, width
        self.layers = layers
        self.shapes = level_shapes(height, width)
        """(height, width) of each level: the map, then its overviews."""
        self.done = next(
            (number for number in range(self.count) if not self.path(number).exists()),
            self.count,
        )
        self._buffer: NDArray[Any] | None = None
        self._filled = 0
        self._levels: dict[int, tuple[int, NDArray[Any]]] = {}
        """For each level of overviews: the strip that is being made, and its bands."""

    @property
    def count(self) -> int:
        """Strips of the whole map."""
        return self.count_of(0)

    def count_of(self, level: int) -> int:
        """Give the strips of a level."""
        return -(-self.shapes[level][0] // STRIP_ROWS)

    @property
    def next_row(self) -> int:
        """The first row that is in no strip yet."""
        return min(self.done * STRIP_ROWS, self.height)

    def path(self, number: int, level: int = 0) -> Path:
        """Name the file of a strip."""
        return self.folder / (f"strip-{number:06d}.tif" if not level else f"level-{level}-{number:06d}.tif")

    def rows_of(self, number: int, level: int = 0) -> int:
        """Give the rows of a strip; the last one may be lower."""
        return min(STRIP_ROWS, self.shapes[level][0] - number * STRIP_ROWS)

    def add(self, rows: MapRows) -> None:
        """Take rows, and write each strip that is full.

        Args:
            rows: the next ones, from `next_row` on.

        Raises:
            ValueError: they are not the next ones.
            WorkspaceError: the disk is full.
        """
        if rows.row != self.next_row + self._filled:
            raise ValueError(f"row {self.next_row + self._filled} is the next of the map, got {rows.row}")
        start, stop = 0, rows.values.shape[1]
        while start < stop:
            needed = self.rows_of(self.done)
            if self._buffer is None:
                self._buffer = np.empty((self.layers.bands, STRIP_ROWS, self.width), self.layers.dtype)
            count = min(stop - start, needed - self._filled)
            into = self._buffer[:, self._filled : self._filled + count]
            self.layers.keep(rows.values[:, start : start + count], rows.valid[start : start + count], into)
            start += count
            self._filled += count
            if self._filled == needed:
                self._write(self._buffer[:, :needed], self.done, 0)
                self.done += 1
                self._filled = 0

    def complete_overviews(self) -> None:
        """Make the strips of overviews that a run that was killed did not come to.

        Raises:
            WorkspaceError: the disk is full.
        """
        for level in range(1, len(self.shapes)):
            for number in range(self.count_of(level)):
                if not self.path(number, level).exists():
                    for below in range(2 * number, min(2 * number + 2, self.count_of(level - 1))):
                        self._reduce(self._read(below, level - 1), below, level)

    def read(self, band: int) -> Iterator[NDArray[Any]]:
        """Give a band strip by strip: arrays (rows, width)."""
        for number in range(self.count):
            yield self._read(number, 0, [band])[0]

    def _reduce(self, bands: NDArray[Any], number: int, level: int) -> None:
        """Take a strip of the level below into its strip of this level, and write that when it is full."""
        above, place = divmod(number, 2)
        making, room = self._levels.get(level, (-1, None))
        if room is None:
            room = np.empty((self.layers.bands, STRIP_ROWS, self.shapes[level][1]), self.layers.dtype)
        if making != above and place:
            # Another run made the first half; where it was killed before it wrote it, the end does.
            if not self.path(number - 1, level - 1).exists():
                return
            self._halve(self._read(number - 1, level - 1), 0, room)
        self._levels[level] = above, room
        self._halve(bands, place, room)
        if place or number + 1 == self.count_of(level - 1):
            self._write(room[:, : self.rows_of(above, level)], above, level)

    def _halve(self, bands: NDArray[Any], place: int, into: NDArray[Any]) -> None:
        start, rows = place * STRIP_ROWS // 2, -(-bands.shape[1] // 2)
        for file in self.layers.files:
            for band in file.bands:
                reduce_by_two(bands[band], self.layers.nodata, file.resampling, into[band, start : start + rows])

    def _read(self, number: int, level: int, bands: list[int] | None = None) -> NDArray[Any]:
        path = self.path(number, level)
        with gdal_writes(path), rasterio.open(path, driver="GTiff", sharing=False) as file:
            values: NDArray[Any] = file.read([band + 1 for band in bands or range(self.layers.bands)])
        return values

    def _write(self, bands: NDArray[Any], number: int, level: int) -> None:
        profile = {
            "driver": "GTiff",
            "width": bands.shape[2],
            "height": bands.shape[1],
            "count": len(bands),
            "dtype": bands.dtype.name,
            "tiled": True,
            "blockxsize": _BLOCK,
            "blockysize": _BLOCK,
            "interleave": "band",
            "bigtiff": "if_safer",
        }
        sample = bands[:, len(bands[0]) // 2].tobytes()
        if len(zlib.compress(sample, 1)) < _WORTH_COMPRESSING * len(sample):
            profile |= {"compress": "zstd", "zstd_level": 1}
        path = self.path(number, level)
        with write_file(path) as partial, gdal_writes(path), rasterio.open(partial, "w", **profile) as file:
            file.write(bands)
        if level + 1 < len(self.shapes):
            self._reduce(bands, number, level + 1)
