"""Along a stack: neighbouring frames as channels (2.5-D). Frames are kept while they are needed, never the volume."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vitpipe.domains.base import Raster
from vitpipe.records import Window

Frame: TypeAlias = "tuple[NDArray[Any], NDArray[np.bool_]]"


class FrameCache:
    """Whole frames of a raster; a frame that is asked for again soon is not decoded twice.

    Args:
        raster: what is read.
        frames: how many are kept: those used last.
    """

    def __init__(self, raster: Raster, frames: int) -> None:
        self._raster = raster
        self._room = frames
        self._kept: OrderedDict[int, Frame] = OrderedDict()

    def frame(self, number: int) -> Frame:
        """Give pixels (channels, height, width) and mask (height, width) of a frame; do not write to them."""
        if number not in self._kept:
            grid = self._raster.grid
            # Before the read: at no moment is there one more than `frames`.
            while len(self._kept) >= self._room:
                self._kept.popitem(last=False)
            self._kept[number] = self._raster.read(Window(number, 0, 0, grid.height, grid.width))
        self._kept.move_to_end(number)
        return self._kept[number]


class NeighbourRaster:
    """A raster whose channels are those of the frames around each frame: 2.5-D.

    Channels run from the frame `neighbours` before to the one `neighbours` after. Past the first and last frame that
    frame is repeated. The mask is the centre's alone; where a neighbour's pixel is not valid it takes the pixel of the
    next frame towards the centre, so that padding of a neighbour never counts as a value.

    Args:
        raster: the stack.
        neighbours: frames before and after, at least 1.
        channels: names of the output channels.
    """

    def __init__(self, raster: Raster, neighbours: int, channels: tuple[str, ...]) -> None:
        self._raster = raster
        self._neighbours = neighbours
        self.grid = raster.grid
        self.channels = channels
        self.dtype = raster.dtype
        self.block_rows = raster.grid.height
        self._cache = FrameCache(raster, 2 * neighbours + 1)

    def read(self, window: Window) -> Frame:
        """Read a window of the centre frame and of its neighbours.

        Returns:
            Pixels (channels, height, width) and the centre's mask (height, width); what lies past the edge is zero and
            not valid.

        Raises:
            UnreadableSource: a frame cannot be decoded.
            TransientError: the store does not answer.
        """
        rows = slice(window.row, min(window.row + window.height, self.grid.height))
        cols = slice(window.col, min(window.col + window.width, self.grid.width))
        parts = self._around(window.frame, rows, cols)
        shape = rows.stop - rows.start, cols.stop - cols.start
        pixels = np.zeros((len(self.channels), window.height, window.width), self.dtype)
        valid = np.zeros((window.height, window.width), np.bool_)
        valid[: shape[0], : shape[1]] = self._cache.frame(window.frame)[1][rows, cols]
        pixels[:, : shape[0], : shape[1]] = np.concatenate(parts) * valid[: shape[0], : shape[1]]
        return pixels, valid

    def _around(self, centre: int, rows: slice, cols: slice) -> list[NDArray[Any]]:
        """Give the pixels of the frames around a centre, in order."""
        # Frames are asked for in ascending order: the cache forgets the one that no later centre needs.
        first, last = max(0, centre - self._neighbours), min(self.grid.frames - 1, centre + self._neighbours)
        frames = {number: self._cache.frame(number) for number in range(first, last + 1)}
        found = {centre: frames[centre][0][:, rows, cols]}
        for way in (-1, 1):
            for distance in range(1, self._neighbours + 1):
                place, nearer = centre + way * distance, found[centre + way * (distance - 1)]
                if place in frames:
                    pixels, valid = frames[place]
                    found[place] = np.where(valid[rows, cols], pixels[:, rows, cols], nearer)
                else:
                    found[place] = nearer
        return [found[number] for number in sorted(found)]

    def groups(self, windows: Sequence[Window]) -> list[str]:
        """Give the group of each window, as the source gives it."""
        return self._raster.groups(windows)
