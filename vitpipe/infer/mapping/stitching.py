"""One seamless map out of overlapping tiles, streamed from top to bottom.

Rows of tiles are read, run and blended one after the other; rows of the map that no later tile touches are given away
at once. What is held is a row of tiles of the scene and of the map, however tall the scene is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vitpipe.domains.base import Raster
from vitpipe.errors import ContractError
from vitpipe.infer.mapping.ahead import one_ahead
from vitpipe.infer.mapping.blending import Band, RowBlend, tiles_with_pixels
from vitpipe.infer.mapping.cover import Blend, Cover
from vitpipe.infer.mapping.symmetry import PixelModel, over_symmetries
from vitpipe.records import Window

_WAITING_BYTES: Final = 32 << 20
"""Masks of rows that may wait for a batch to be full."""
_ROWS_A_READ: Final = 64
"""Rows that are read at once, where blocks are lower: a read may cost the same however few rows it is of."""
_BATCHES_ALIVE: Final = 4
"""Batches that are used in turn, since fresh memory costs more than the copy into it: one that is filled, one that the
model has, one that is blended, and one to spare."""


@dataclass(frozen=True, slots=True)
class MapPlan:
    """How a scene is covered by tiles."""

    size: int
    """Edge of a tile in pixels, as the model takes it."""
    outputs: int
    """Values that the model gives for a pixel: classes, or 1."""
    overlap: float = 0.25
    """Share of a tile that the next one covers too; 0 to below 1."""
    blend: Blend = Blend.HANN
    d4: bool = False
    """Run the model on all eight turns and flips of each tile, and average."""
    batch: int = 16
    """Tiles of a call of the model; the last call may have fewer."""
    depth: int | None = None
    """Frames of a tile; None: tiles of one frame. A map has none, see :func:`vitpipe.infer.mapping.stitch_stack`."""


@dataclass(frozen=True, slots=True)
class MapRows:
    """Finished rows of the map."""

    row: int
    """The first of them."""
    values: NDArray[np.float32]
    """(outputs, rows, width); anything where a pixel is not valid. They hold until the next rows are asked for."""
    valid: NDArray[np.bool_]
    """(rows, width)."""


@dataclass(slots=True)
class _TileRow:
    """A row of tiles that was read: the mask of the rows that will be final after it, and its tiles still to come."""

    number: int
    valid: NDArray[np.bool_]
    tiles: int


@dataclass(frozen=True, slots=True)
class _Step:
    """What goes from thread to thread: a batch, and the rows of tiles that begin in it or before it.

    They go together, since a thread is one step ahead of the next one: with a step for each row, the model would wait
    for rows to be blended and written.
    """

    rows: list[_TileRow]
    cols: list[int]
    """Number of each tile in its row."""
    values: NDArray[Any]
    """Tiles, later the model's output."""
    valid: NDArray[np.bool_]


def stitch(raster: Raster, model: PixelModel, plan: MapPlan, *, first_row: int = 0) -> Iterator[MapRows]:
    """Map a scene.

    Reading and the model run in threads of their own, one step ahead of the blending. A tile without a valid pixel is
    not computed. Tiles at the right and lower edge are moved inwards; a scene that is smaller than a tile is mirrored.

    Args:
        raster: one frame; it is read by one thread.
        model: gives (N, outputs, size, size) for (N, C, size, size). What it is given is overwritten some
            calls later; it may give it back, and must not keep it.
        plan: the tiles.
        first_row: rows above it were made before and are not given again. Those from it on are the same bit for bit,
            as long as a tile's values do not depend on the other tiles of its batch.

    Yields:
        All rows from `first_row` on, from top to bottom.

    Raises:
        ContractError: the model's output has another shape.
        UnreadableSource: the pixels cannot be decoded.
        TransientError: the store does not answer.
    """
    job = _Stitching(raster, over_symmetries(model) if plan.d4 else model, plan)
    return job.rows(first_row)


class _Stitching:
    def __init__(self, raster: Raster, model: PixelModel, plan: MapPlan) -> None:
        grid = raster.grid
        self._raster, self._model, self._plan = raster, model, plan
        self._height, self._width = grid.height, grid.width
        self._down = Cover.of(grid.height, plan.size, overlap=plan.overlap, blend=plan.blend)
        self._across = Cover.of(grid.width, plan.size, overlap=plan.overlap, blend=plan.blend)
        self._blend = RowBlend(self._down, plan.outputs, grid.width)

    def rows(self, first_row: int) -> Iterator[MapRows]:
        if first_row >= self._height:
            return
        waiting: deque[_TileRow] = deque()
        band = Band(self._plan.outputs, min(self._plan.size, self._height), self._across)
        first = self._down.first_for(first_row)
        for step in one_ahead(self._computed(one_ahead(self._read(first)))):
            waiting.extend(step.rows)
            for col, tile in zip(step.cols, step.values, strict=True):
                while not waiting[0].tiles:
                    yield from self._finished(waiting.popleft(), band, first_row)
                band.add(col, tile, last=waiting[0].tiles == 1)
                waiting[0].tiles -= 1
            while waiting and not waiting[0].tiles:
                yield from self._finished(waiting.popleft(), band, first_row)

    def _read(self, first: int) -> Iterator[_Step]:
        """Read rows of tiles, and fill batches with them across rows."""
        size, down, across = self._plan.size, self._down, self._across
        buffer = _SourceRows(self._raster, size)
        filling = _Filling(self._plan, len(self._raster.channels), (down.mirrored(), across.mirrored()))
        held = 0
        for number in range(first, len(down.starts)):
            top = down.starts[number]
            pixels, valid = buffer.rows(top, down.stop(number))
            cols = tiles_with_pixels(valid, across)
            mask = valid[: down.final(number) - top].copy()
            held += mask.nbytes
            filling.begin(_TileRow(number, mask, len(cols)))
            for col in cols:
                span = slice(across.starts[col], across.starts[col] + size)
                filling.add(col, pixels[:, :, span], valid[:, span])
                if filling.full:
                    held = 0
                    yield filling.take()
            if held > _WAITING_BYTES:
                held = 0
                yield filling.take()
        if filling.some:
            yield filling.take()

    def _computed(self, steps: Iterator[_Step]) -> Iterator[_Step]:
        for step in steps:
            if not step.cols:
                yield step
                continue
            values = self._model(step.values, step.valid)
            expected = (len(step.cols), self._plan.outputs, self._plan.size, self._plan.size)
            if values.shape != expected:
                raise ContractError(
                    f"the model gave an array of shape {values.shape} for tiles {step.values.shape}; a map needs "
                    f"{expected}: a value of each pixel; use a model of segmentation or of per-pixel regression"
                )
            yield _Step(step.rows, step.cols, values, step.valid)

    def _finished(self, row: _TileRow, band: Band, first_row: int) -> Iterator[MapRows]:
        """Blend a whole row of tiles with the rows that the one before left, and give what is final."""
        top, stop = self._down.starts[row.number], self._down.final(row.number)
        values = self._blend.finish(row.number, band.take(self._down.stop(row.number) - top))
        skipped = max(0, first_row - top)
        if skipped < stop - top:
            yield MapRows(top + skipped, values[:, skipped:], row.valid[skipped:])


class _SourceRows:
    """The rows of the scene under one row of tiles, in one place that is used again: whole blocks are read, once each.

    `vitpipe.resample.RowBuffer` makes a new array a read, which for wide scenes is most of the memory of a map.
    """

    def __init__(self, raster: Raster, size: int) -> None:
        self._raster = raster
        height, width = raster.grid.height, raster.grid.width
        self._block = min(max(1, raster.block_rows), height)
        room = min(size + self._block, height)
        self._pixels = np.empty((len(raster.channels), room, width), raster.dtype)
        self._valid = np.empty((room, width), np.bool_)
        self._start = self._stop = 0

    def rows(self, start: int, stop: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Give views of rows, that hold until the next call; requests go down."""
        if stop > self._stop:
            self._drop(start)
            while self._stop < stop:
                self._read(stop)
        span = slice(start - self._start, stop - self._start)
        return self._pixels[:, span], self._valid[span]

    def _drop(self, start: int) -> None:
        """Move what is still needed to the front."""
        kept = max(0, self._stop - start)
        if kept:
            # An overlapping copy: numpy sees that.
            self._pixels[:, :kept] = self._pixels[:, start - self._start : self._stop - self._start]
            self._valid[:kept] = self._valid[start - self._start : self._stop - self._start]
        else:
            self._stop = start // self._block * self._block
        self._start = start

    def _read(self, stop: int) -> None:
        """Read some blocks at once, as far as they are needed: a scene that is warped has rows for blocks."""
        grid = self._raster.grid
        blocks = min(max(1, _ROWS_A_READ // self._block), -(-(stop - self._stop) // self._block))
        count = min(blocks * self._block, grid.height - self._stop)
        pixels, valid = self._raster.read(Window(0, self._stop, 0, count, grid.width))
        skipped = max(0, self._start - self._stop)
        self._stop += count
        into = slice(self._stop - count + skipped - self._start, self._stop - self._start)
        self._pixels[:, into], self._valid[into] = pixels[:, skipped:], valid[skipped:]


class _Filling:
    """A batch that is being filled."""

    def __init__(self, plan: MapPlan, channels: int, mirrored: tuple[NDArray[Any] | None, NDArray[Any] | None]) -> None:
        self._shape = plan.batch, channels, plan.size, plan.size
        self._mirrored = mirrored
        self._rows: list[_TileRow] = []
        self._cols: list[int] = []
        self._rooms = [self._empty() for _ in range(_BATCHES_ALIVE)]
        self._turn = 0
        self._tiles, self._valid = self._rooms[0]

    @property
    def full(self) -> bool:
        return len(self._cols) == self._shape[0]

    @property
    def some(self) -> bool:
        return bool(self._rows or self._cols)

    def begin(self, row: _TileRow) -> None:
        """Take a row of tiles, before its tiles."""
        self._rows.append(row)

    def add(self, col: int, pixels: NDArray[Any], valid: NDArray[np.bool_]) -> None:
        place = len(self._cols)
        for axis, index in zip((-2, -1), self._mirrored, strict=True):
            if index is not None:
                pixels, valid = np.take(pixels, index, axis), np.take(valid, index, axis)
        self._tiles[place], self._valid[place] = pixels, valid
        self._cols.append(col)

    def take(self) -> _Step:
        count = len(self._cols)
        step = _Step(self._rows, self._cols, self._tiles[:count], self._valid[:count])
        self._rows, self._cols = [], []
        self._turn = (self._turn + 1) % _BATCHES_ALIVE
        self._tiles, self._valid = self._rooms[self._turn]
        return step

    def _empty(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        return np.empty(self._shape, np.float32), np.empty((self._shape[0], *self._shape[2:]), np.bool_)
