"""Tiles that are filled while the blocks of a file are decoded, so that no row of blocks is held.

A block that was just decoded lies in the processor's cache; copied to its tiles at once it costs a third of what it
costs once a whole row of blocks was decoded after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vitpipe.domains.base import BlockRowRaster
from vitpipe.lent import Lender

LEAST_TILE_BYTES: Final = 1 << 15
"""Of smaller tiles a call for each costs more than is gained."""
_SPARE_BYTES: Final = 64 << 20


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


class OpenTiles:
    """Tiles that are being filled.

    Args:
        wanted: where they lie.
        raster: what they are cut from; past its edge they are zero and not valid.
        lender: gives memory for them.
    """

    def __init__(self, wanted: Wanted, raster: BlockRowRaster, lender: Lender) -> None:
        self._wanted, (self.top, self.bottom) = wanted, wanted.span
        (height, width), grid = wanted.size, raster.grid
        count = len(wanted.rows)
        self.tiles: NDArray[Any] = lender.lend((count, len(raster.channels), height, width), raster.dtype)
        """(N, channels, height, width)."""
        self.masks: NDArray[np.bool_] = lender.lend((count, height, width), np.dtype(np.bool_))
        """(N, height, width)."""
        self.masks[...] = True
        over = (wanted.rows + height > grid.height) | (wanted.cols + width > grid.width)
        for place in np.flatnonzero(over).tolist():
            below, beside = grid.height - int(wanted.rows[place]), grid.width - int(wanted.cols[place])
            for part in (self.tiles[place], self.masks[place]):
                part[..., below:, :] = 0
                part[..., beside:] = 0
        self.whole = not over.any()
        """Every pixel of every tile is valid, as far as is known."""

    def fill(self, row: int, col: int, pixels: NDArray[Any], valid: NDArray[np.bool_] | None) -> None:
        """Copy what the tiles share with a block; threads may do so side by side.

        Args:
            row: first row of the block.
            col: its first column.
            pixels: (channels, rows, columns).
            valid: (rows, columns); None: all valid.
        """
        bottom, right = row + pixels.shape[1], col + pixels.shape[2]
        if bottom <= self.top or row >= self.bottom:
            return
        # Before a mask is written: a block that comes a second time then writes its mask too.
        self.whole = self.whole and valid is None
        wanted, (height, width) = self._wanted, self._wanted.size
        inside = (wanted.rows < bottom) & (wanted.rows + height > row)
        inside &= (wanted.cols < right) & (wanted.cols + width > col)
        for place in np.flatnonzero(inside).tolist():
            at_row, at_col = int(wanted.rows[place]), int(wanted.cols[place])
            down = max(row, at_row), min(bottom, at_row + height)
            across = max(col, at_col), min(right, at_col + width)
            here = slice(down[0] - at_row, down[1] - at_row), slice(across[0] - at_col, across[1] - at_col)
            there = slice(down[0] - row, down[1] - row), slice(across[0] - col, across[1] - col)
            self.tiles[place][:, *here] = pixels[:, *there]
            if not self.whole:
                self.masks[place][here] = True if valid is None else valid[there]


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
    sizes = np.array([len(item.rows) for item in wanted]) * (height * width * (pixel_bytes + 1))
    total = np.concatenate([[0], np.cumsum(sizes)])
    step = max(1, raster.block_rows)
    starts = np.arange(0, raster.grid.height, step)
    # Open are those that began above the end of a row of blocks, and that do not end above its start.
    begun, ended = np.searchsorted(spans[:, 0], starts + step), np.searchsorted(spans[:, 1], starts, side="right")
    most = int((total[begun] - total[np.minimum(ended, begun)]).max())
    return most <= 2 * step * raster.grid.width * pixel_bytes + _SPARE_BYTES


def filled(raster: BlockRowRaster, wanted: Sequence[Wanted], pool: Executor | None) -> Iterator[OpenTiles]:
    """Decode the rows of blocks that tiles need, each once, and give the tiles as they are filled.

    Args:
        raster: an opened source.
        wanted: tiles in the order of their first rows.
        pool: decodes and copies side by side.

    Raises:
        UnreadableSource, TransientError: see :meth:`vitpipe.domains.base.Raster.read`.
    """
    step, height = max(1, raster.block_rows), raster.grid.height
    tiles: deque[OpenTiles] = deque()
    lender = Lender()
    made = done = 0

    def visit(row: int, col: int, pixels: NDArray[Any], valid: NDArray[np.bool_] | None) -> None:
        for item in tiles:
            item.fill(row, col, pixels, valid)

    for item in wanted:
        top, bottom = item.span
        while done < min(bottom, height):
            # Rows of blocks that no tile needs are passed over.
            start = done if tiles else max(done, top // step * step)
            done = min(start + step, height)
            while made < len(wanted) and wanted[made].span[0] < done:
                tiles.append(OpenTiles(wanted[made], raster, lender))
                made += 1
            raster.visit_blocks(start, done, visit, pool=pool)
        yield tiles.popleft()
