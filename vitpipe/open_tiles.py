"""Tiles that are filled while the blocks of a file are decoded, so that no row of blocks is held.

A block that was just decoded lies in the processor's cache; copied to its tiles at once it costs a third of what it
costs once a whole row of blocks was decoded after it.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vitpipe.domains.base import BlockRowRaster
from vitpipe.lent import Lender

LEAST_TILE_BYTES: Final = 1 << 15
"""Of smaller tiles a call for each costs more than is gained."""
OPEN_BYTES: Final = 8 << 20
"""Bytes of tiles that are best given together: what comes back soon is filled again while it lies in the cache."""
_SPARE_BYTES: Final = 64 << 20
_AHEAD_BYTES: Final = 128 << 20
_ROWS_AT_ONCE: Final = 2
"""Rows of blocks that are decoded at the same time: no thread waits for the last block of a row."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Tiles (N) of one size that are given together; they begin inside the grid and may reach past its edge."""

    rows: NDArray[np.int64]
    """First row of each."""
    cols: NDArray[np.int64]
    """First column of each."""
    size: tuple[int, int]
    """Height and width of each."""

    @property
    def span(self) -> tuple[int, int]:
        """First row, and the row after the last."""
        return int(self.rows.min()), int(self.rows.max()) + self.size[0]

    @property
    def across(self) -> tuple[int, int]:
        """First column, and the column after the last."""
        return int(self.cols.min()), int(self.cols.max()) + self.size[1]


class OpenTiles:
    """Tiles that are being filled; they take no memory before the first block comes.

    Args:
        wanted: where they lie.
        raster: what they are cut from; past its edge they are zero and not valid.
        lender: gives memory for them.
    """

    def __init__(self, wanted: Wanted, raster: BlockRowRaster, lender: Lender) -> None:
        self._wanted, self._raster, self._lender = wanted, raster, lender
        (self.top, self.bottom), (self._left, self._right) = wanted.span, wanted.across
        (height, width), grid = wanted.size, raster.grid
        over = (wanted.rows + height > grid.height) | (wanted.cols + width > grid.width)
        self._over: list[int] = np.flatnonzero(over).tolist()
        self.whole = not self._over
        """Every pixel of every tile is valid, as far as is known."""
        self.nbytes = _bytes_of(wanted, raster)
        self._lock = threading.Lock()
        self._memory: tuple[NDArray[Any], NDArray[np.bool_]] | None = None

    @property
    def tiles(self) -> NDArray[Any]:
        """(N, channels, height, width)."""
        return self._taken()[0]

    @property
    def masks(self) -> NDArray[np.bool_]:
        """(N, height, width)."""
        return self._taken()[1]

    def _taken(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        with self._lock:
            if self._memory is None:
                self._memory = self._lent()
            return self._memory

    def _lent(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        wanted, raster, (height, width) = self._wanted, self._raster, self._wanted.size
        count = len(wanted.rows)
        tiles: NDArray[Any] = self._lender.lend((count, len(raster.channels), height, width), raster.dtype)
        masks: NDArray[np.bool_] = self._lender.lend((count, height, width), np.dtype(np.bool_))
        masks[...] = True
        for place in self._over:
            below, beside = raster.grid.height - int(wanted.rows[place]), raster.grid.width - int(wanted.cols[place])
            for part in (tiles[place], masks[place]):
                part[..., below:, :] = 0
                part[..., beside:] = 0
        return tiles, masks

    def fill(self, row: int, col: int, pixels: NDArray[Any], valid: NDArray[np.bool_] | None) -> None:
        """Copy what the tiles share with a block; threads may do so side by side.

        Args:
            row: first row of the block.
            col: its first column.
            pixels: (channels, rows, columns).
            valid: (rows, columns); None: all valid.
        """
        bottom, right = row + pixels.shape[1], col + pixels.shape[2]
        if bottom <= self.top or row >= self.bottom or right <= self._left or col >= self._right:
            return
        if valid is not None:
            # Before a mask is written: a block that comes a second time then writes its mask too.
            self.whole = False
        tiles, masks = self._taken()
        wanted, (height, width) = self._wanted, self._wanted.size
        inside = (wanted.rows < bottom) & (wanted.rows + height > row)
        inside &= (wanted.cols < right) & (wanted.cols + width > col)
        for place in np.flatnonzero(inside).tolist():
            at_row, at_col = int(wanted.rows[place]), int(wanted.cols[place])
            down = max(row, at_row), min(bottom, at_row + height)
            across = max(col, at_col), min(right, at_col + width)
            here = slice(down[0] - at_row, down[1] - at_row), slice(across[0] - at_col, across[1] - at_col)
            there = slice(down[0] - row, down[1] - row), slice(across[0] - col, across[1] - col)
            tiles[place][:, *here] = pixels[:, *there]
            if not self.whole:
                masks[place][here] = True if valid is None else valid[there]


def can_be_open(wanted: Sequence[Wanted], raster: BlockRowRaster) -> bool:
    """Tell whether tiles may be filled so: not too small, and those that are open at once bound the memory.

    Args:
        wanted: tiles in the order of their first rows; those given together begin in the same rows of blocks.
        raster: what they are cut from.

    Returns:
        Whether at no time more than two rows of blocks and 64 MiB are open.
    """
    pixel_bytes = len(raster.channels) * raster.dtype.itemsize
    height, width = wanted[0].size
    if height * width * pixel_bytes < LEAST_TILE_BYTES:
        return False
    spans = np.array([item.span for item in wanted])
    total = np.concatenate([[0], np.cumsum([_bytes_of(item, raster) for item in wanted])])
    step = max(1, raster.block_rows)
    starts = np.arange(0, raster.grid.height, step)
    # Open are those that began above the end of a row of blocks, and that do not end above its start.
    begun, ended = np.searchsorted(spans[:, 0], starts + step), np.searchsorted(spans[:, 1], starts, side="right")
    most = int((total[begun] - total[np.minimum(ended, begun)]).max())
    return most <= 2 * _row_bytes(raster) + _SPARE_BYTES


def _bytes_of(wanted: Wanted, raster: BlockRowRaster) -> int:
    """Give the memory of tiles with their masks."""
    height, width = wanted.size
    return len(wanted.rows) * height * width * (len(raster.channels) * raster.dtype.itemsize + 1)


def _row_bytes(raster: BlockRowRaster) -> int:
    return max(1, raster.block_rows) * raster.grid.width * len(raster.channels) * raster.dtype.itemsize


def filled(raster: BlockRowRaster, wanted: Sequence[Wanted], pool: Executor | None) -> Generator[OpenTiles]:
    """Decode the rows of blocks that tiles need, each once, and give the tiles as they are filled.

    With a pool the next rows of blocks are decoded while tiles are in use, as far as the memory of :func:`can_be_open`
    allows. Close what this gives, or take all of it, before the raster is closed.

    Args:
        raster: an opened source.
        wanted: tiles in the order of their first rows.
        pool: decodes and copies side by side.

    Raises:
        UnreadableSource, TransientError: see :meth:`vitpipe.domains.base.Raster.read`.
    """
    filling = _Filling(raster, wanted, pool)
    try:
        for _ in wanted:
            yield filling.next()
    finally:
        filling.close()


class _Filling:
    """Rows of blocks on their way into tiles."""

    def __init__(self, raster: BlockRowRaster, wanted: Sequence[Wanted], pool: Executor | None) -> None:
        self._raster, self._pool = raster, pool
        self._rows, self._wanted = deque(_needed_rows(raster, wanted)), deque(wanted)
        # They wait for the pool, or read what only GDAL reads.
        self._drivers = ThreadPoolExecutor(_ROWS_AT_ONCE) if pool is not None else None
        self._begun: deque[tuple[int, Future[None]]] = deque()
        self._open: deque[OpenTiles] = deque()
        self._open_bytes = self._done = 0
        self._lender = Lender()
        self._next_bytes = self._bytes_of_next()

    def next(self) -> OpenTiles:
        """Give the next tiles once they are filled."""
        while not self._open or self._done < min(self._open[0].bottom, self._raster.grid.height):
            if self._drivers is None:
                start, stop = self._rows.popleft()
                self._visit(start, stop, self._touched(start, stop))
            else:
                if not self._begun:
                    self._begin(self._drivers)
                self._begin_more(self._drivers)
                stop, future = self._begun.popleft()
                future.result()
            self._done = stop
        if self._drivers is not None:
            self._begin_more(self._drivers)
        given = self._open.popleft()
        self._open_bytes -= given.nbytes
        return given

    def close(self) -> None:
        """Wait for what still writes."""
        if self._drivers is not None:
            self._drivers.shutdown(cancel_futures=True)

    def _begin_more(self, drivers: Executor) -> None:
        """Begin rows of blocks before their tiles are asked for, as far as the memory goes."""
        row_bytes = _row_bytes(self._raster)
        most = max(2 * row_bytes, _AHEAD_BYTES)
        while self._rows and len(self._begun) < _ROWS_AT_ONCE:
            # Rows that are decoded are counted too: a file that only GDAL reads has them in memory as a whole.
            if self._open_bytes + self._next_bytes + len(self._begun) * row_bytes > most:
                return
            self._begin(drivers)

    def _begin(self, drivers: Executor) -> None:
        start, stop = self._rows.popleft()
        self._begun.append((stop, drivers.submit(self._visit, start, stop, self._touched(start, stop))))
        self._next_bytes = self._bytes_of_next()

    def _bytes_of_next(self) -> int:
        """Give the memory of the tiles that the next row of blocks opens."""
        if not self._rows:
            return 0
        stop = self._rows[0][1]
        above = itertools.takewhile(lambda item: item.span[0] < stop, self._wanted)
        return sum(_bytes_of(item, self._raster) for item in above)

    def _touched(self, start: int, stop: int) -> list[OpenTiles]:
        """Open tiles that begin above row `stop`; gives those that rows `start` to `stop` are part of."""
        while self._wanted and self._wanted[0].span[0] < stop:
            tiles = OpenTiles(self._wanted.popleft(), self._raster, self._lender)
            self._open.append(tiles)
            self._open_bytes += tiles.nbytes
        return [tiles for tiles in self._open if tiles.top < stop and tiles.bottom > start]

    def _visit(self, start: int, stop: int, touched: Sequence[OpenTiles]) -> None:
        def visit(row: int, col: int, pixels: NDArray[Any], valid: NDArray[np.bool_] | None) -> None:
            for tiles in touched:
                tiles.fill(row, col, pixels, valid)

        self._raster.visit_blocks(start, stop, visit, pool=self._pool)


def _needed_rows(raster: BlockRowRaster, wanted: Sequence[Wanted]) -> Iterator[tuple[int, int]]:
    """Give the rows of blocks that tiles lie on, first row and row after the last; the others are passed over."""
    step, height, done = max(1, raster.block_rows), raster.grid.height, 0
    for item in wanted:
        top, bottom = item.span
        start = max(done, top // step * step)
        while start < min(bottom, height):
            done = min(start + step, height)
            yield start, done
            start = done
