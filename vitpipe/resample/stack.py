"""Along a stack: neighbouring frames as channels (2.5-D), and other steps. Frames are kept while they are needed."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vitpipe.domains.base import Raster
from vitpipe.records import Grid, Window
from vitpipe.resample.plane import LEAST_VALID_WEIGHT, WEIGHT_NOISE, to_dtype, working_dtype

Frame: TypeAlias = "tuple[NDArray[Any], NDArray[np.bool_]]"

_SAME_FRAME: Final = 0.01
"""A stack in which no frame would move by more than this share of a step is left as it is."""


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

    @property
    def frames(self) -> int:
        """How many frames there are."""
        return self._raster.grid.frames

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


@dataclass(frozen=True, slots=True)
class Slices:
    """Where output frames lie in a stack: frame ``k`` at ``first + k * scale`` source frames, within the stack."""

    source: int
    """Frames of the stack."""
    size: int
    """Frames of the output."""
    scale: float
    """Source frames an output frame."""
    first: float = 0.0

    @classmethod
    def at_spacing(cls, frames: int, step_mm: float, spacing_mm: float) -> Slices:
        """Begin at the first frame and go in steps of `spacing_mm` along the normal, as far as there are frames.

        No frame is made where none was taken: the first and the last lie between the first and the last of the stack.
        """
        scale = spacing_mm / step_mm
        return cls(frames, int((frames - 1) / scale + _SAME_FRAME) + 1, scale)

    @classmethod
    def stretch(cls, frames: int, size: int) -> Slices:
        """Share the extent of the stack out to `size` frames, each in the middle of its share."""
        return cls(frames, size, frames / size, (frames / size - 1) / 2)

    @property
    def moves_nothing(self) -> bool:
        """Whether every output frame is the source's of this number, within a hundredth of a step."""
        return self.size == self.source and self.first == 0 and abs(self.scale - 1) * self.source < _SAME_FRAME

    def moved(self, grid: Grid) -> Grid:
        """Give the grid of the output frames."""
        spacing, affine = grid.spacing_mm, grid.affine
        if spacing is not None:
            spacing = (spacing[0] * self.scale, *spacing[1:])
        if affine is not None:
            change = np.diag([1.0, 1.0, self.scale, 1.0])
            change[2, 3] = self.first
            affine = tuple(float(value) for value in (np.asarray(affine).reshape(4, 4) @ change).ravel())
        return dataclasses.replace(grid, frames=self.size, spacing_mm=spacing, affine=affine)


class SlicedRaster:
    """A stack resampled along its frames, linearly between the two frames around each place; two are held.

    With a mask ``m`` the value is the mean of the valid ones, weighed by nearness; it is valid where valid pixels carry
    at least half of the weight, as in the plane.

    Args:
        raster: the stack.
        slices: where the output frames lie.
    """

    def __init__(self, raster: Raster, slices: Slices) -> None:
        self._raster = raster
        self._slices = slices
        self.grid = slices.moved(raster.grid)
        self.channels = raster.channels
        self.dtype = raster.dtype
        self.block_rows = raster.grid.height
        self._work = working_dtype(raster.dtype)
        self._cache = FrameCache(raster, 2)

    def read(self, window: Window) -> Frame:
        """Read a window of an output frame.

        Returns:
            Pixels (channels, height, width) in the source's dtype and units, integers rounded, and the mask
            (height, width); what lies past the edge is zero and not valid.

        Raises:
            UnreadableSource: a frame cannot be decoded.
            TransientError: the store does not answer.
        """
        place = min(max(self._slices.first + window.frame * self._slices.scale, 0.0), self._slices.source - 1.0)
        before = int(place)
        share = place - before
        rows = slice(window.row, min(window.row + window.height, self.grid.height))
        cols = slice(window.col, min(window.col + window.width, self.grid.width))
        if share < _SAME_FRAME / self._slices.source:
            pixels, valid = self._cache.frame(before)
            pixels, valid = pixels[:, rows, cols], valid[rows, cols]
        else:
            pixels, valid = self._between(before, share, rows, cols)
        room = ((0, window.height - valid.shape[0]), (0, window.width - valid.shape[1]))
        return np.pad(pixels, ((0, 0), *room)), np.pad(valid, room)

    def _between(self, before: int, share: float, rows: slice, cols: slice) -> Frame:
        """Interpolate between a frame and the next: ``(1 - share) * x0 + share * x1``."""
        total = weight = None
        for frame, part in ((before, 1 - share), (before + 1, share)):
            pixels, valid = self._cache.frame(frame)
            inside = valid[rows, cols].astype(self._work) * self._work.type(part)
            values = pixels[:, rows, cols].astype(self._work) * inside
            total = values if total is None else total + values
            weight = inside if weight is None else weight + inside
        assert total is not None
        assert weight is not None
        kept = weight >= LEAST_VALID_WEIGHT - WEIGHT_NOISE
        return to_dtype(np.where(kept, total / np.where(kept, weight, 1), 0), self.dtype), kept

    def groups(self, windows: Sequence[Window]) -> list[str]:
        """Give the group of each window, as the source gives it for the nearest frame."""
        last = self._slices.source - 1
        return self._raster.groups(
            [
                window._replace(frame=min(last, max(0, round(self._slices.first + window.frame * self._slices.scale))))
                for window in windows
            ]
        )
