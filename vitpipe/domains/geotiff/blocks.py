"""Rows of blocks of a plain TIFF, decoded by imagecodecs straight to where tiles are cut from.

GDAL decodes a block into its cache, copies it from there band by band into the result, and holds its lock meanwhile.
Here a block is decoded once into the place from which it is used; libdeflate, zstd and the predictor let go of Python's
lock, so blocks are decoded by as many threads as there are.
"""

from __future__ import annotations

import os
import weakref
import zlib
from collections.abc import Callable
from concurrent.futures import Executor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from vitpipe.domains.base import BlockRow, Visit
from vitpipe.domains.geotiff.checksums import inflate
from vitpipe.domains.geotiff.layout import BlockLayout

Judge: TypeAlias = "Callable[[NDArray[Any], NDArray[np.bool_] | None], tuple[NDArray[Any], NDArray[np.bool_] | None]]"
"""Takes stored values (bands, rows, width) and a mask (None: all valid); gives pixels (channels, rows, width) in
physical units, in place where nothing is to be converted, and the mask."""

_STRIP_JOBS: Final = 8
_SPARE_BYTES: Final = 1 << 16


class BlockUnread(Exception):
    """A block is not there, or cannot be decoded here: GDAL is asked, and its word counts."""


class BlockDamaged(Exception):
    """A block's content is not what was written: its checksum (Adler-32, RFC 1950) is another one.

    GDAL looks at no checksum, and gives other pixels for about one flipped bit in seven without a word.
    """


class BlockFile:
    """An opened file, read by position: threads and forked processes do not disturb each other."""

    def __init__(self, path: Path, layout: BlockLayout) -> None:
        self.layout = layout
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        # Not before its last reader is done: the number of a closed file may be another file's by then.
        weakref.finalize(self, os.close, self._file)
        # Of libtiff too: differences are taken between the bit patterns, and floats are split into bytes of big order.
        self._stored = layout.dtype if layout.predictor != 3 else layout.dtype.newbyteorder("=")

    @property
    def parts_samples(self) -> bool:
        """Undoing the predictor can bring samples that lie pixel by pixel into planes, which then costs nothing."""
        layout = self.layout
        return layout.predictor == 2 and layout.dtype.isnative and not layout.by_plane

    def decode(self, place: tuple[int, int, int], out: NDArray[Any], *, apart: NDArray[Any] | None = None) -> None:
        """Decode a block.

        Args:
            place: the band, where each has its own blocks, else 0; row of blocks; column of blocks.
            out: where to: contiguous, the file's dtype in the machine's byte order, as `BlockLayout.block_shape`.
            apart: where the values go when the predictor is undone (samples, rows, columns); only if `parts_samples`.

        Raises:
            BlockUnread: it was never written, is cut off, or does not decode to its size.
            BlockDamaged: its checksum is wrong.
        """
        layout = self.layout
        offset, count = int(layout.offsets[place]), int(layout.counts[place])
        if offset == 0 or count == 0 or count > 2 * out.nbytes + _SPARE_BYTES:
            raise BlockUnread
        room = out.reshape(-1).view(np.uint8).data
        try:
            size = self._fill(room, offset, count)
        except (OSError, imagecodecs.ZstdError) as error:
            raise BlockUnread from error
        if size != out.nbytes:
            raise BlockUnread
        if layout.predictor == 3:
            # It cannot be done in place: each value's bytes lie in as many places of the row.
            out[...] = imagecodecs.floatpred_decode(out.copy(), axis=1)
            return
        stored = out.view(layout.dtype)
        if layout.predictor == 2:
            unsigned = f"{layout.dtype.str[0].replace('|', '=')}u{out.itemsize}"
            bits = stored.view(unsigned)
            undone = bits if apart is None else apart.view(unsigned).transpose(1, 2, 0)
            imagecodecs.delta_decode(bits, axis=1, out=undone)
        if not layout.dtype.isnative:
            out.byteswap(inplace=True)

    def _fill(self, room: memoryview, offset: int, count: int) -> int:
        if self.layout.codec == "none":
            return os.preadv(self._file, [room], offset) if count == room.nbytes else -1
        raw = os.pread(self._file, count, offset)
        if len(raw) < count:
            return -1
        if self.layout.codec == "zstd":
            return len(imagecodecs.zstd_decode(raw, out=room))
        try:
            return len(imagecodecs.deflate_decode(raw, out=room))
        except imagecodecs.DeflateError:
            return _padded(raw, room)


def _padded(raw: bytes, room: memoryview) -> int:
    """Inflate a block that holds more than its pixels, such as a last strip of full height; tells the bytes in `room`.

    GDAL may leave memory as it was there, without a word.
    """
    try:
        found = inflate(raw, room)
    except zlib.error as error:
        raise BlockDamaged from error
    return min(found, room.nbytes)


@dataclass(frozen=True, slots=True)
class BlockRows:
    """Reads rows of blocks as pixels in physical units."""

    file: BlockFile
    numbers: tuple[int, ...]
    """Bands that are read, from 0: the channels, then alpha."""
    channels: int
    dtype: np.dtype[np.generic]
    """Of the pixels."""
    judge: Judge
    _rooms: list[dict[str, NDArray[Any]]] = field(default_factory=list, repr=False, compare=False)
    """Memory of the blocks that were visited, a dictionary for each thread that needs one at the same time."""

    def visit(
        self, span: tuple[int, int], mask: NDArray[np.bool_] | None, visit: Visit, *, pool: Executor | None
    ) -> None:
        """Show each block of some rows of blocks, or a few that lie below each other, right after it was decoded.

        Args:
            span: first row and the row after the last: edges of blocks, or the height.
            mask: (rows, width), what the file's masks say; None: all valid.
            visit: called for each.
            pool: decodes blocks side by side.

        Raises:
            BlockUnread, BlockDamaged: see :meth:`BlockFile.decode`.
        """
        layout, (start, stop) = self.file.layout, span

        def work(job: tuple[int, int, int]) -> None:
            col, down, end = job
            top, bottom = down * layout.block_height, min(end * layout.block_height, stop)
            left, right = col * layout.block_width, min((col + 1) * layout.block_width, layout.width)
            rows = (end - down) * layout.block_height if layout.tiled else bottom - top
            rooms = self._lent_rooms()
            stored = self._visited(col, (down, end), rows, rooms)[:, : bottom - top, : right - left]
            part = None if mask is None else mask[top - start : bottom - start, left:right]
            visit(top, left, *self.judge(stored, part))
            self._rooms.append(rooms)

        jobs = self._jobs(span)
        if pool is None:
            for job in jobs:
                work(job)
            return
        futures = [pool.submit(work, job) for job in jobs]
        # Also where one failed: none may still write when the caller goes on.
        wait(futures)
        for future in futures:
            future.result()

    def _lent_rooms(self) -> dict[str, NDArray[Any]]:
        try:
            return self._rooms.pop()
        except IndexError:  # Asked first, another thread could take the last meanwhile.
            return {}

    def _visited(self, col: int, downs: tuple[int, int], rows: int, rooms: dict[str, NDArray[Any]]) -> NDArray[Any]:
        """Decode blocks of one column; gives the bands that are read (bands, rows, block width), as stored."""
        layout, count = self.file.layout, len(self.numbers)
        native = layout.dtype.newbyteorder("=")
        planes = (layout.bands if self.file.parts_samples else count, rows, layout.block_width)
        apart = _room(rooms, "planes", planes, native) if layout.by_plane or self.file.parts_samples else None
        if layout.by_plane and apart is not None:
            for place, band in enumerate(self.numbers):
                self._column(band, col, downs, apart[place][..., np.newaxis])
            return apart
        pixels = _room(rooms, "pixels", (rows, layout.block_width, layout.bands), native)
        self._column(0, col, downs, pixels, apart)
        found = pixels.transpose(2, 0, 1) if apart is None else apart
        return found if self.numbers == tuple(range(layout.bands)) else found[list(self.numbers)]

    def _jobs(self, span: tuple[int, int]) -> list[tuple[int, int, int]]:
        """Give units of work: column of blocks, first row of blocks, the one after the last."""
        layout = self.file.layout
        first, last, across = (
            span[0] // layout.block_height,
            -(-span[1] // layout.block_height),
            layout.offsets.shape[2],
        )
        step = last - first if across > 1 else max(1, -(-(last - first) // _STRIP_JOBS))
        return [(col, down, min(down + step, last)) for col in range(across) for down in range(first, last, step)]

    def read(
        self,
        span: tuple[int, int],
        mask: NDArray[np.bool_] | None,
        *,
        pool: Executor | None,
        room: NDArray[Any] | None,
    ) -> BlockRow:
        """Read rows of blocks.

        Args:
            span: first row and the row after the last: edges of blocks, or the height.
            mask: (rows, width), what the file's masks say; None: all valid.
            pool: decodes blocks side by side.
            room: memory that is filled again where it fits.

        Raises:
            BlockUnread, BlockDamaged: see :meth:`BlockFile.decode`.
        """
        layout, (start, stop) = self.file.layout, span
        first, last = start // layout.block_height, -(-stop // layout.block_height)
        rows = (last - first) * layout.block_height if layout.tiled else stop - start
        across = layout.offsets.shape[2]
        place = (across, rows, layout.block_width)
        shape = (self.channels, *place) if layout.by_plane else (*place, self.channels)
        whole = room if room is not None and room.shape == shape else np.empty(shape, self.dtype)
        if layout.by_plane:
            columns = [whole[:, col] for col in range(across)]
        else:
            columns = [whole[col].transpose(2, 0, 1) for col in range(across)]
        valid = np.ones((stop - start, layout.width), np.bool_) if mask is None else mask
        jobs = self._jobs(span)

        def work(job: tuple[int, int, int]) -> bool:
            col, down, end = job
            top, bottom = down * layout.block_height - start, min(end * layout.block_height, stop) - start
            left, right = col * layout.block_width, min((col + 1) * layout.block_width, layout.width)
            area = columns[col][:, top : min(end * layout.block_height - start, rows)]
            part = valid[top:bottom, left:right]
            pixels = area[:, : bottom - top, : right - left]
            stored = self._decode(col, (down, end), area)[:, : bottom - top, : right - left]
            found, judged = self.judge(stored, None if mask is None else part)
            # What needed no conversion was judged where it lies.
            if not np.may_share_memory(found, pixels):
                pixels[...] = found
            if judged is not None:
                part[...] = judged
            return judged is None

        plain = list(pool.map(work, jobs) if pool else map(work, jobs))
        edges = range(0, across * layout.block_width, layout.block_width)
        parts = [
            (left, column[:, : stop - start, : layout.width - left])
            for left, column in zip(edges, columns, strict=True)
        ]
        return BlockRow(start, stop, parts, None if all(plain) else valid, whole)

    def _decode(self, col: int, downs: tuple[int, int], room: NDArray[Any]) -> NDArray[Any]:
        """Decode blocks of one column into `room` where that holds what is stored, else beside it."""
        layout, count = self.file.layout, len(self.numbers)
        native = layout.dtype.newbyteorder("=")
        alike = self.dtype == native and self.channels == count
        if layout.by_plane:
            stored = room if alike else np.empty((count, *room.shape[1:]), native)
            for place, band in enumerate(self.numbers):
                self._column(band, col, downs, stored[place][..., np.newaxis])
            return stored
        if alike and self.numbers == tuple(range(layout.bands)):
            self._column(0, col, downs, room.transpose(1, 2, 0))
            return room
        beside = np.empty((*room.shape[1:], layout.bands), native)
        self._column(0, col, downs, beside)
        return beside.transpose(2, 0, 1)[list(self.numbers)]

    def _column(
        self, plane: int, col: int, downs: tuple[int, int], out: NDArray[Any], apart: NDArray[Any] | None = None
    ) -> None:
        """Decode blocks that lie below each other into `out` (rows, block width, samples), contiguous.

        `apart` (samples, rows, block width): see :meth:`BlockFile.decode`.
        """
        top = 0
        for down in range(*downs):
            rows = self.file.layout.block_shape(down)[0]
            parted = None if apart is None else apart[:, top : top + rows]
            self.file.decode((plane, down, col), out[top : top + rows], apart=parted)
            top += rows


def _room(
    rooms: dict[str, NDArray[Any]], name: str, shape: tuple[int, ...], dtype: np.dtype[np.generic]
) -> NDArray[Any]:
    """Give memory that is filled again where it fits: fresh pages cost as much as a copy."""
    if name not in rooms or rooms[name].shape != shape:
        rooms[name] = np.empty(shape, dtype)
    return rooms[name]


def assembled(row: BlockRow, out: NDArray[Any], valid: NDArray[np.bool_]) -> None:
    """Copy a row of blocks to (channels, rows, width) and its mask to (rows, width)."""
    for col, part in row.parts:
        out[:, :, col : col + part.shape[2]] = part
    valid[...] = True if row.valid is None else row.valid
