"""Finished strips of a map on disk, so that a run that was killed goes on in the middle of a scene.

A strip is a file, renamed into place once its bytes are on the disk: that it is there is the journal. What the engine
had not yet written is computed again, which gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import rasterio
from numpy.typing import NDArray

from vitpipe.atomic import write_file
from vitpipe.infer.mapping.gdal import gdal_writes
from vitpipe.infer.mapping.layers import Layers
from vitpipe.infer.mapping.stitching import MapRows

STRIP_ROWS: Final = 256
_BLOCK: Final = 256


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
        self.done = next(
            (number for number in range(self.count) if not self.path(number).exists()),
            self.count,
        )
        self._buffer: NDArray[Any] | None = None
        self._filled = 0

    @property
    def count(self) -> int:
        """Strips of the whole map."""
        return -(-self.height // STRIP_ROWS)

    @property
    def next_row(self) -> int:
        """The first row that is in no strip yet."""
        return min(self.done * STRIP_ROWS, self.height)

    def path(self, number: int) -> Path:
        """Name the file of a strip."""
        return self.folder / f"strip-{number:06d}.tif"

    def rows_of(self, number: int) -> int:
        """Give the rows of a strip; the last one may be lower."""
        return min(STRIP_ROWS, self.height - number * STRIP_ROWS)

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
                self._write(self._buffer[:, :needed])
                self.done += 1
                self._filled = 0

    def read(self, band: int) -> Iterator[NDArray[Any]]:
        """Give a band strip by strip: arrays (rows, width)."""
        for number in range(self.count):
            path = self.path(number)
            with gdal_writes(path), rasterio.open(path, driver="GTiff", sharing=False) as file:
                values: NDArray[Any] = file.read(band + 1)
            yield values

    def _write(self, bands: NDArray[Any]) -> None:
        profile = {
            "driver": "GTiff",
            "width": self.width,
            "height": bands.shape[1],
            "count": len(bands),
            "dtype": bands.dtype.name,
            "tiled": True,
            "blockxsize": _BLOCK,
            "blockysize": _BLOCK,
            "compress": "zstd",
            "zstd_level": 1,
            "interleave": "band",
            "bigtiff": "if_safer",
        }
        path = self.path(self.done)
        with write_file(path) as partial, gdal_writes(path), rasterio.open(partial, "w", **profile) as file:
            file.write(bands)
