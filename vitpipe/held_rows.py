"""Rows of blocks that are held while tiles need them, and windows in any order cut out of them."""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vitpipe.domains.base import BlockRow, BlockRowRaster, Raster
from vitpipe.open_tiles import OPEN_BYTES, Wanted, can_be_open, filled
from vitpipe.processors import thread_count
from vitpipe.records import Window
from vitpipe.resample import RowBuffer

PIECE_BYTES: Final = 32 << 20
"""Bytes of tiles that are cut at once."""
_WINDOWS_A_JOB: Final = 16
_WANTED_ROWS: Final = 256


class HeldRows:
    """Holds the rows of blocks that tiles still need: as long as requests do not go up, none is decoded twice."""

    def __init__(self, raster: BlockRowRaster, pool: Executor | None) -> None:
        self._raster, self._pool = raster, pool
        self._step = max(1, raster.block_rows)
        self._held: deque[BlockRow] = deque()
        self._spare: BlockRow | None = None

    def rows(self, frame: int, start: int, stop: int) -> list[BlockRow]:  # noqa: ARG002 - a scene has one frame
        """Give the rows of blocks that hold rows ``start`` to ``stop``; those above are let go."""
        first = start // self._step * self._step
        while self._held and (self._held[0].start < first or self._held[0].start > start):
            self._spare = self._held.popleft()
        at = self._held[-1].stop if self._held else first
        while at < stop:
            end = min(at + self._step, self._raster.grid.height)
            self._held.append(self._raster.read_block_row(at, end, pool=self._pool, spare=self._spare))
            self._spare = None
            at = end
        return [block for block in self._held if block.start < stop]


def copy_columns(tile: NDArray[Any], col: int, left: int, part: NDArray[Any]) -> None:
    """Copy the columns that a tile (C, rows, size) from column `col` on shares with a part from column `left` on."""
    begin, end = max(col, left), min(col + tile.shape[2], left + part.shape[2])
    if begin < end:
        tile[:, :, begin - col : end - col] = part[:, :, begin - left : end - left]


def valid_rows(held: Sequence[BlockRow], span: tuple[int, int], width: int) -> NDArray[np.bool_]:
    """Put the masks of rows `span` (first, after the last) into one array (rows, width)."""
    valid = np.ones((span[1] - span[0], width), np.bool_)
    for block in held:
        if block.valid is not None:
            top, stop = max(span[0], block.start), min(span[1], block.stop)
            valid[top - span[0] : stop - span[0]] = block.valid[top - block.start : stop - block.start]
    return valid


class _ReadRows:
    """Gives rows of a raster that knows no rows of blocks, or has several frames, as one part."""

    def __init__(self, raster: Raster) -> None:
        width = raster.grid.width

        def read(frame: int, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
            return raster.read(Window(frame, start, 0, stop - start, width))

        self._buffer = RowBuffer(read, height=raster.grid.height, block_rows=raster.block_rows)

    def rows(self, frame: int, start: int, stop: int) -> list[BlockRow]:
        pixels, valid = self._buffer.rows(frame, start, stop)
        return [BlockRow(start, stop, [(0, pixels)], valid)]


def cut_windows(
    raster: Raster, windows: Sequence[Window], *, threads: int | None = None
) -> Iterator[tuple[NDArray[np.intp], NDArray[Any], NDArray[np.bool_]]]:
    """Cut windows that are asked for in any order: they are answered from top to bottom, so no block is decoded twice.

    What is held are the windows that are open while a row of blocks is decoded, see `can_be_open`; where they are too
    small or too many, the rows of blocks that one row of blocks of windows reaches into, and 32 MiB of tiles.

    Args:
        raster: an opened source.
        windows: each of one frame, all of one height and width, beginning inside the grid; what reaches past its edge
            is zero and not valid. They may overlap or repeat.
        threads: see :func:`vitpipe.processors.thread_count`.

    Yields:
        Places in `windows` (N,), tiles (N, channels, height, width) and masks (N, height, width); each place once.

    Raises:
        ValueError: windows differ in size, have a depth, or begin outside the grid.
        UnreadableSource, TransientError: see :meth:`vitpipe.domains.base.Raster.read`.
    """
    if not windows:
        return
    asked = np.array(windows, dtype=np.int64)
    grid = raster.grid
    if (asked[:, 3:] != (*asked[0, 3:5], 1)).any() or asked[0, 3:5].min() < 1:
        raise ValueError("windows that are cut together have one height and width, and no depth")
    if asked[:, :3].min() < 0 or (asked[:, :3] >= (grid.frames, grid.height, grid.width)).any():
        raise ValueError(f"a window begins outside the grid of {grid.frames} x {grid.height} x {grid.width} pixels")
    height, width = int(asked[0, 3]), int(asked[0, 4])
    order = np.lexsort((asked[:, 2], asked[:, 1], asked[:, 0]))
    together = _rows_together(raster)
    row_of = asked[order, 0] * (grid.height // together + 1) + asked[order, 1] // together
    tile_bytes = len(raster.channels) * height * width * raster.dtype.itemsize
    most = max(1, PIECE_BYTES // tile_bytes)
    count = thread_count(threads)
    pool = ThreadPoolExecutor(count) if count > 1 and isinstance(raster, BlockRowRaster) else None
    groups = np.split(order, np.flatnonzero(np.diff(row_of)) + 1)
    try:
        if isinstance(raster, BlockRowRaster):
            few = max(1, min(PIECE_BYTES, OPEN_BYTES) // tile_bytes)
            pieces = [group[start : start + few] for group in groups for start in range(0, len(group), few)]
            wanted = [Wanted(asked[piece, 1], asked[piece, 2], (height, width)) for piece in pieces]
            if can_be_open(wanted, raster):
                with contextlib.closing(filled(raster, wanted, pool)) as opened:
                    for piece, done in zip(pieces, opened, strict=True):
                        yield piece, done.tiles, done.masks
                return
        held = HeldRows(raster, pool) if isinstance(raster, BlockRowRaster) else _ReadRows(raster)
        for group in groups:
            for start in range(0, len(group), most):
                places = group[start : start + most]
                batch = asked[places]
                bottom = min(int(batch[:, 1].max()) + height, grid.height)
                rows = held.rows(int(batch[0, 0]), int(batch[0, 1]), bottom)
                yield places, *_cut_batch(rows, batch, raster, pool)
    finally:
        if pool is not None:
            pool.shutdown()


def _rows_together(raster: Raster) -> int:
    """Give in how many rows windows begin that are cut together.

    A scene that is warped reads as few rows as it is asked for, but a call for each costs more than its pixels.
    """
    block_rows = max(1, raster.block_rows)
    if isinstance(raster, BlockRowRaster):
        return block_rows
    row_bytes = block_rows * raster.grid.width * len(raster.channels) * raster.dtype.itemsize
    return block_rows * max(1, min(_WANTED_ROWS // block_rows, PIECE_BYTES // row_bytes))


def _cut_batch(
    held: list[BlockRow], batch: NDArray[np.int64], raster: Raster, pool: Executor | None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Cut windows (N, 6) out of rows that hold them."""
    size = int(batch[0, 3]), int(batch[0, 4])
    inside = (batch[:, 1:3] + batch[:, 3:5] <= (raster.grid.height, raster.grid.width)).all()
    shape = len(batch), len(raster.channels), *size
    # Where every pixel is written, fresh pages need not be cleared first.
    tiles = np.empty(shape, raster.dtype) if inside else np.zeros(shape, raster.dtype)
    masks = (np.ones if inside else np.zeros)((len(batch), *size), np.bool_)

    def work(place: int) -> None:
        row, col = int(batch[place, 1]), int(batch[place, 2])
        for block in held:
            top, stop = max(row, block.start), min(row + size[0], block.stop)
            if top >= stop:
                continue
            _copy_across(
                tiles[place, :, top - row : stop - row], col, block, slice(top - block.start, stop - block.start)
            )
            if block.valid is None:
                masks[place, top - row : stop - row, : raster.grid.width - col] = True
            else:
                part = block.valid[top - block.start : stop - block.start, col : col + size[1]]
                masks[place, top - row : stop - row, : part.shape[1]] = part

    def work_some(first: int) -> None:
        for place in range(first, min(first + _WINDOWS_A_JOB, len(batch))):
            work(place)

    list((pool.map if pool else map)(work_some, range(0, len(batch), _WINDOWS_A_JOB)))
    return tiles, masks


def _copy_across(tile: NDArray[Any], col: int, block: BlockRow, rows: slice) -> None:
    """Copy what the parts of a row of blocks hold of a tile (C, rows, width) from column `col` on."""
    first = bisect_right(block.parts, col, key=lambda part: part[0]) - 1
    for left, part in block.parts[first:]:
        if left >= col + tile.shape[2]:
            break
        copy_columns(tile, col, left, part[:, rows])
