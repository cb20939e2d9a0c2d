"""Finished strips of a map on disk, so that a run that was killed goes on in the middle of a scene.

A strip is a file, renamed into place once its bytes are on the disk: that it is there is the journal. What the engine
had not yet written is computed again, which gives the same bytes. Overviews are strips too, each made of two of the
level below as soon as these are written: while the model runs, and without reading what was in memory.

A strip holds a row of blocks of each file of the map, compressed as they will lie there, so that the end of a map only
puts bytes in another order: first a checksum, then the size of each block, then the blocks of the first file, of the
second, and so on. A strip that an earlier run left and whose bytes are not what was written is made again.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vitpipe.atomic import write_file
from vitpipe.infer.mapping.blocks import BLOCK, decoded, encoded
from vitpipe.infer.mapping.layers import Layers, MapFile
from vitpipe.infer.mapping.pyramid import level_shapes, reduce_by_two
from vitpipe.infer.mapping.stitching import MapRows

STRIP_ROWS: Final = BLOCK
_SIZE: Final = np.dtype("<u4")
"""Of a block's bytes, with what stands around it; the checksum (CRC-32) is one too."""
_CHECKED_BYTES: Final = 1 << 20
"""Of a strip, at once."""


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
        for level in range(len(self.shapes)):
            for number in range(self.count_of(level)):
                if (found := self.path(number, level)).exists() and not self._is_whole(number, level):
                    found.unlink()
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
        return self.folder / (f"strip-{number:06d}.blocks" if not level else f"level-{level}-{number:06d}.blocks")

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
        file = next(file for file in self.layers.files if band in file.bands)
        for number in range(self.count):
            yield self._read(number, 0, (file,))[band]

    def index_bytes(self, level: int) -> int:
        """Give the bytes before the first block of a strip."""
        return (1 + len(self.layers.files) * self._across(level)) * _SIZE.itemsize

    def sizes(self, number: int, level: int) -> NDArray[np.int64]:
        """Give the bytes of the blocks of a strip, with what stands around them: (files, columns of blocks)."""
        with self.path(number, level).open("rb") as stream:
            found = np.frombuffer(stream.read(self.index_bytes(level)), _SIZE)[1:]
        return found.astype(np.int64).reshape(len(self.layers.files), -1)

    def _is_whole(self, number: int, level: int) -> bool:
        """Tell whether a strip holds the bytes that were written: a disk may keep a name without them."""
        with self.path(number, level).open("rb") as stream:
            index = stream.read(self.index_bytes(level))
            checksum = 0
            while part := stream.read(_CHECKED_BYTES):
                checksum = zlib.crc32(part, checksum)
        word = _SIZE.itemsize
        return len(index) == self.index_bytes(level) and index[:word] == _checksum(checksum, index[word:])

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

    def _across(self, level: int) -> int:
        return -(-self.shapes[level][1] // BLOCK)

    def _read(self, number: int, level: int, files: tuple[MapFile, ...] | None = None) -> NDArray[Any]:
        """Give a strip (bands, rows, width); of bands that are in none of the files it holds nothing."""
        layers, width = self.layers, self.shapes[level][1]
        bands = np.empty((layers.bands, self.rows_of(number, level), width), layers.dtype)
        sizes = self.sizes(number, level)
        with self.path(number, level).open("rb") as stream:
            stream.seek(self.index_bytes(level))
            for file, parts in zip(layers.files, sizes, strict=True):
                if files is not None and file not in files:
                    stream.seek(int(parts.sum()), os.SEEK_CUR)
                    continue
                for start, size in zip(range(0, width, BLOCK), parts, strict=True):
                    block = decoded(file, layers.dtype, stream.read(int(size)))
                    into = bands[:, :, start : start + BLOCK]
                    into[list(file.bands)] = block[:, : into.shape[1], : into.shape[2]]
        return bands

    def _write(self, bands: NDArray[Any], number: int, level: int) -> None:
        files, starts = self.layers.files, range(0, bands.shape[2], BLOCK)

        def part(place: tuple[MapFile, int]) -> bytes:
            file, start = place
            return encoded(file, [bands[band, :, start : start + BLOCK] for band in file.bands])

        sizes = np.zeros(len(files) * len(starts), _SIZE)
        checksum = 0
        with (
            write_file(self.path(number, level)) as partial,
            partial.open("wb") as stream,
            ThreadPoolExecutor(os.cpu_count() or 1) as pool,
        ):
            stream.seek(self.index_bytes(level))
            parts = pool.map(part, [(file, start) for file in files for start in starts])
            for place, data in enumerate(parts):
                sizes[place] = stream.write(data)
                checksum = zlib.crc32(data, checksum)
            stream.seek(0)
            stream.write(_checksum(checksum, sizes.tobytes()) + sizes.tobytes())
        if level + 1 < len(self.shapes):
            self._reduce(bands, number, level + 1)


def _checksum(blocks: int, sizes: bytes) -> bytes:
    """Give the first bytes of a strip: the checksum of its blocks, and of their sizes after them."""
    return np.array(zlib.crc32(sizes, blocks), _SIZE).tobytes()
