"""One seamless stack out of overlapping tiles of some frames each, streamed from the first frame to the last.

Tiles are blended along rows, then rows of tiles, then layers of tiles; frames that no later tile touches are given away
at once. What is held is a layer of tiles: as many frames as a tile is deep, however many the stack has. Tiles of one
frame (2-D and 2.5-D) are layers of one frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitpipe.domains.base import Raster
from vitpipe.errors import ContractError
from vitpipe.infer.mapping.ahead import one_ahead
from vitpipe.infer.mapping.blending import Band, RowBlend, tiles_with_pixels
from vitpipe.infer.mapping.cover import Cover, blend_into
from vitpipe.infer.mapping.stitching import MapPlan
from vitpipe.infer.mapping.symmetry import PixelModel, over_symmetries
from vitpipe.resample import FrameCache

_WAITING_BYTES: Final = 32 << 20
"""Masks of frames that may wait for a batch to be full."""


@dataclass(frozen=True, slots=True)
class StackFrame:
    """One finished frame."""

    frame: int
    values: NDArray[np.float32]
    """(outputs, height, width); anything where a pixel is not valid. They hold until the next frame is asked for."""
    valid: NDArray[np.bool_]
    """(height, width)."""


class _Place(NamedTuple):
    """Which tile of its layer: the row of tiles, and its place in that row."""

    row: int
    col: int


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer of tiles that was read: the masks of the frames that will be final after it, and its tiles to come."""

    number: int
    valid: NDArray[np.bool_]
    tiles: tuple[_Place, ...]


@dataclass(frozen=True, slots=True)
class _Batch:
    values: NDArray[np.float32]
    """Tiles, later the model's output."""
    valid: NDArray[np.bool_]


def stitch_stack(raster: Raster, model: PixelModel, plan: MapPlan) -> Generator[StackFrame, None, None]:
    """Run a model of pixels over a whole stack.

    Reading and the model run in threads of their own, one step ahead of the blending. A tile without a valid pixel is
    not computed. The last tiles of each axis are moved inwards; a stack that is smaller than a tile is mirrored.

    Args:
        raster: the stack; it is read by one thread, each frame once.
        model: gives (N, outputs, depth, size, size) for (N, C, depth, size, size) and masks; without a depth in the
            plan the tiles have no such axis. It must not depend on the other tiles of a batch.
        plan: the tiles.

    Yields:
        All frames in their order.

    Raises:
        ContractError: the model's output has another shape.
        UnreadableSource: the pixels cannot be decoded.
        TransientError: the store does not answer.
    """
    return _Stack(raster, over_symmetries(model) if plan.d4 else model, plan).frames()


class _Stack:
    def __init__(self, raster: Raster, model: PixelModel, plan: MapPlan) -> None:
        grid = raster.grid
        self._raster, self._model, self._plan = raster, model, plan
        self._height, self._width = grid.height, grid.width
        depth = plan.depth or 1
        self._through, self._down, self._across = (
            Cover.of(length, size, overlap=plan.overlap, blend=plan.blend)
            for length, size in ((grid.frames, depth), (grid.height, plan.size), (grid.width, plan.size))
        )
        self._frames = min(depth, grid.frames)
        """Of a layer within the stack."""

    def frames(self) -> Generator[StackFrame, None, None]:
        blend = _LayerBlend((self._through, self._down, self._across), self._plan.outputs)
        waiting: deque[_Layer] = deque()
        done = 0
        for item in one_ahead(self._computed(one_ahead(self._read()))):
            if isinstance(item, _Layer):
                waiting.append(item)
            else:
                for tile in item.values:
                    while done == len(waiting[0].tiles):
                        yield from blend.finish(waiting.popleft())
                        done = 0
                    volume = tile.reshape(self._plan.outputs, -1, *tile.shape[-2:])
                    blend.add(waiting[0].tiles, done, volume[:, : self._frames])
                    done += 1
            while waiting and done == len(waiting[0].tiles):
                yield from blend.finish(waiting.popleft())
                done = 0

    def _read(self) -> Iterator[_Layer | _Batch]:
        """Read layers of tiles, and fill batches with them across layers."""
        cache = FrameCache(self._raster, self._frames)
        filling = _Filling(self._plan, len(self._raster.channels), (self._through, self._down, self._across))
        held = 0
        for number, first in enumerate(self._through.starts):
            stop = self._through.stop(number)
            masks = [cache.frame(frame)[1] for frame in range(first, stop)]
            seen = np.logical_or.reduce(masks)
            places = tuple(
                _Place(row, col)
                for row, top in enumerate(self._down.starts)
                for col in tiles_with_pixels(seen[top : self._down.stop(row)], self._across)
            )
            final = np.stack(masks[: self._through.final(number) - first])
            held += final.nbytes
            yield _Layer(number, final, places)
            for place in places:
                filling.add(cache, first, place)
                if filling.full:
                    held = 0
                    yield filling.take()
            if held > _WAITING_BYTES and filling.some:
                held = 0
                yield filling.take()
        if filling.some:
            yield filling.take()

    def _computed(self, items: Iterator[_Layer | _Batch]) -> Iterator[_Layer | _Batch]:
        for item in items:
            if isinstance(item, _Layer):
                yield item
                continue
            values = self._model(item.values, item.valid)
            expected = (len(item.values), self._plan.outputs, *item.values.shape[2:])
            if values.shape != expected:
                raise ContractError(
                    f"the model gave an array of shape {values.shape} for tiles {item.values.shape}; a mask needs "
                    f"{expected}: a value of each pixel; use a model of segmentation"
                )
            yield _Batch(values, item.valid)


class _Filling:
    """A batch that is being filled."""

    def __init__(self, plan: MapPlan, channels: int, covers: tuple[Cover, Cover, Cover]) -> None:
        self._covers = covers
        self._mirrored = tuple(cover.mirrored() for cover in covers)
        self._flat = plan.depth is None
        self._shape = plan.batch, channels, plan.depth or 1, plan.size, plan.size
        self._start()

    def _start(self) -> None:
        self._count = 0
        self._tiles = np.empty(self._shape, np.float32)
        self._valid = np.empty((self._shape[0], *self._shape[2:]), np.bool_)

    @property
    def full(self) -> bool:
        return self._count == self._shape[0]

    @property
    def some(self) -> bool:
        return self._count > 0

    def add(self, cache: FrameCache, first: int, place: _Place) -> None:
        """Copy a tile out of the frames from `first` on."""
        _, down, across = self._covers
        through = self._mirrored[0]
        rows = slice(down.starts[place.row], down.stop(place.row))
        cols = slice(across.starts[place.col], across.stop(place.col))
        for depth in range(self._shape[2]):
            frame = first + (depth if through is None else int(through[depth]))
            pixels, valid = cache.frame(frame)
            pixels, valid = pixels[:, rows, cols], valid[rows, cols]
            for axis, index in zip((-2, -1), self._mirrored[1:], strict=True):
                if index is not None:
                    pixels, valid = np.take(pixels, index, axis), np.take(valid, index, axis)
            self._tiles[self._count, :, depth], self._valid[self._count, depth] = pixels, valid
        self._count += 1

    def take(self) -> _Batch:
        tiles, valid = self._tiles[: self._count], self._valid[: self._count]
        self._start()
        return _Batch(tiles[:, :, 0], valid[:, 0]) if self._flat else _Batch(tiles, valid)


class _LayerBlend:
    """Blends layers of tiles: rows of tiles as in a map, with the frames of the layer as outputs; then the layers."""

    def __init__(self, covers: tuple[Cover, Cover, Cover], outputs: int) -> None:
        self._through, self._down, self._across = covers
        self._outputs = outputs
        self._frames = min(self._through.size, self._through.length)
        height, width = self._down.length, self._across.length
        self._flat = outputs * self._frames
        self._band = Band(self._flat, min(self._down.size, height), self._across)
        self._rows = RowBlend(self._down, self._flat, width)
        # The frames of the layer, from its first on; those that the last layer covers too hold its mean.
        self._layer = np.zeros((outputs, self._frames, height, width), np.float32)
        self._number = 0
        self._next_row = 0

    def add(self, tiles: tuple[_Place, ...], place: int, values: NDArray[np.float32]) -> None:
        """Blend a tile (outputs, frames, size, size) in; they come in the order of `tiles`."""
        row, col = tiles[place]
        self._finish_rows(row)
        last = place + 1 == len(tiles) or tiles[place + 1].row != row
        self._band.add(col, values.reshape(self._flat, *values.shape[2:]), last=last)

    def finish(self, layer: _Layer) -> Iterator[StackFrame]:
        """End a layer, and give the frames that are final."""
        self._finish_rows(len(self._down.starts))
        first = self._through.starts[layer.number]
        count = len(layer.valid)
        for place in range(count):
            yield StackFrame(first + place, self._layer[:, place], layer.valid[place])
        # An overlapping copy: numpy sees that.
        self._layer[:, : self._frames - count] = self._layer[:, count:]
        self._number, self._next_row = layer.number + 1, 0

    def _finish_rows(self, stop: int) -> None:
        """Finish the rows of tiles up to `stop`; those without a tile have no valid pixel."""
        for number in range(self._next_row, stop):
            top = self._down.starts[number]
            found = self._rows.finish(number, self._band.take(self._down.stop(number) - top))
            values = found.reshape(self._outputs, self._frames, *found.shape[1:])
            into = self._layer[:, :, top : top + values.shape[2]]
            share = self._through.shares[self._number][:, np.newaxis, np.newaxis]
            both = len(share)
            blend_into(into[:, :both], values[:, :both], share)
            into[:, both:] = values[:, both:]
        self._next_row = max(self._next_row, stop)
