"""Turning a stack to stated directions: axes swapped and flipped, nothing resampled.

A code names where columns, rows and frames grow towards in the patient: ``LPS`` is left, posterior, superior, as in
most axial DICOM series. An oblique axis counts as the direction that it is nearest to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vitpipe.domains.base import Raster
from vitpipe.errors import WorkspaceError
from vitpipe.records import Grid, Window
from vitpipe.resample.stack import Frame, FrameCache

_TOWARDS: Final = ("RL", "AP", "IS")
"""The two ends of each axis of the patient: the second letter is where LPS coordinates grow."""
_COL, _ROW, _FRAME = 0, 1, 2
_SAME_LENGTH = 1e-6


@dataclass(frozen=True, slots=True)
class Turn:
    """How the axes (columns, rows, frames) of a stack become those of a turned one."""

    axes: tuple[int, int, int]
    """Which axis of the stack each output axis is."""
    flips: tuple[bool, bool, bool]
    """Whether each output axis runs against that of the stack."""

    @property
    def moves_nothing(self) -> bool:
        """Whether it leaves everything where it is."""
        return self.axes == (_COL, _ROW, _FRAME) and not any(self.flips)

    def index(self, axis: int, place: int, sizes: Sequence[int]) -> tuple[int, int]:
        """Give the stack's axis and index of a place on an output axis; `sizes` are the stack's."""
        source = self.axes[axis]
        return source, sizes[source] - 1 - place if self.flips[axis] else place


def code_of(grid: Grid) -> str:
    """Give the code of a stack with an affine: where its columns, rows and frames grow towards."""
    return "".join(_TOWARDS[axis][int(up)] for axis, up in _directions(grid))


def turn_to(grid: Grid, code: str) -> Turn:
    """Give the turn of a stack with an affine to a code."""
    wanted = [
        next((axis, letter == ends[1]) for axis, ends in enumerate(_TOWARDS) if letter in ends) for letter in code
    ]
    found = _directions(grid)
    axes = [next(place for place, (axis, _) in enumerate(found) if axis == target) for target, _ in wanted]
    flips = [found[place][1] != up for place, (_, up) in zip(axes, wanted, strict=True)]
    return Turn((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))


def turned_grid(grid: Grid, turn: Turn) -> Grid:
    """Give the grid of a turned stack: the same places under other indices."""
    if turn.moves_nothing:
        return grid
    sizes = grid.width, grid.height, grid.frames
    affine = _affine(grid)
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for axis in range(3):
        source, first = turn.index(axis, 0, sizes)
        change[source, axis] = -1 if turn.flips[axis] else 1
        change[source, 3] = first
    turned = affine @ change
    width, height, frames = (sizes[axis] for axis in turn.axes)
    return dataclasses.replace(
        grid,
        frames=frames,
        height=height,
        width=width,
        spacing_mm=_spacing_mm(grid, turned, turn),
        affine=tuple(float(value) for value in turned.ravel()),
    )


def _spacing_mm(grid: Grid, turned: NDArray[np.float64], turn: Turn) -> tuple[float, float, float] | None:
    """Give (between frames along the normal, rows, columns); what the header states is kept to the last digit."""
    if grid.spacing_mm is None:
        return None
    step, row_mm, col_mm = grid.spacing_mm
    lengths = [float(value) for value in np.linalg.norm(turned[:3, :3], axis=0)]
    normal = np.cross(turned[:3, _COL], turned[:3, _ROW])
    lengths[_FRAME] = float(abs(turned[:3, _FRAME] @ normal) / np.linalg.norm(normal))
    stated = (col_mm, row_mm, step)
    col, row, frame = (
        stated[source] if math.isclose(length, stated[source], rel_tol=_SAME_LENGTH) else length
        for length, source in zip(lengths, turn.axes, strict=True)
    )
    return frame, row, col


def _directions(grid: Grid) -> list[tuple[int, bool]]:
    """Give, for columns, rows and frames, the axis of the patient and whether it is followed upwards (towards L, P, S).

    Of the six ways to share out three axes the one with the largest cosines is taken: two axes never become one.
    """
    axes = _affine(grid)[:3, :3]
    cosines = axes / np.linalg.norm(axes, axis=0)
    best = max(
        itertools.permutations(range(3)),
        key=lambda order: sum(abs(cosines[axis, place]) for place, axis in enumerate(order)),
    )
    return [(axis, bool(cosines[axis, place] > 0)) for place, axis in enumerate(best)]


def _affine(grid: Grid) -> NDArray[np.float64]:
    if grid.affine is None:
        raise ValueError("a grid without an affine has no directions")
    return np.asarray(grid.affine, np.float64).reshape(4, 4)


class TurnedRaster:
    """A stack turned: it is a :class:`vitpipe.domains.base.Raster` itself.

    Where frames stay frames, each is turned by itself. Where they become rows or columns every frame is needed for any:
    the stack is then decoded once into a file without a name in the temporary folder and mapped, so that memory stays
    bounded; the file is gone with the raster, or with the process however it ends.

    Args:
        raster: the stack; its grid has an affine.
        turn: how.
    """

    def __init__(self, raster: Raster, turn: Turn) -> None:
        self._raster = raster
        self._turn = turn
        self.grid = turned_grid(raster.grid, turn)
        self.channels = raster.channels
        self.dtype = raster.dtype
        self.block_rows = self.grid.height
        self._cache = FrameCache(raster, 1)
        self._whole: Frame | None = None

    def read(self, window: Window) -> Frame:
        """Read a window of the turned stack.

        Returns:
            Pixels (channels, height, width) and mask (height, width); what lies past the edge is zero and not valid.

        Raises:
            UnreadableSource: a frame cannot be decoded.
            TransientError: the store does not answer.
            WorkspaceError: the temporary folder has no room for the stack.
        """
        pixels, valid = self._frame(window.frame)
        rows = slice(window.row, min(window.row + window.height, self.grid.height))
        cols = slice(window.col, min(window.col + window.width, self.grid.width))
        room = ((0, window.height - (rows.stop - rows.start)), (0, window.width - (cols.stop - cols.start)))
        return np.pad(pixels[:, rows, cols], ((0, 0), *room)), np.pad(valid[rows, cols], room)

    def groups(self, windows: Sequence[Window]) -> list[str]:
        """Give the group of each window, as the source gives it for the pixel in its middle."""
        return self._raster.groups([self._middle(window) for window in windows])

    def _middle(self, window: Window) -> Window:
        grid = self._raster.grid
        sizes = grid.width, grid.height, grid.frames
        middle = (
            min(window.col + window.width // 2, self.grid.width - 1),
            min(window.row + window.height // 2, self.grid.height - 1),
            min(window.frame + window.depth // 2, self.grid.frames - 1),
        )
        found = dict(self._turn.index(axis, place, sizes) for axis, place in enumerate(middle))
        return Window(found[_FRAME], found[_ROW], found[_COL], 1, 1)

    def _frame(self, number: int) -> Frame:
        """Give views of a turned frame: (channels, height, width) and (height, width)."""
        grid = self._raster.grid
        source, index = self._turn.index(_FRAME, number, (grid.width, grid.height, grid.frames))
        if source == _FRAME:
            pixels, valid = self._cache.frame(index)
            swapped = self._turn.axes[:2] != (_COL, _ROW)
        else:
            if self._whole is None:
                self._whole = self._decode()
            whole, inside = self._whole
            # Axes of `whole` are frame, channel, row, col; what is left is (frame, col) or (frame, row).
            if source == _ROW:
                pixels, valid, left = whole[:, :, index].transpose(1, 0, 2), inside[:, index], (_COL, _FRAME)
            else:
                pixels, valid, left = whole[..., index].transpose(1, 0, 2), inside[..., index], (_ROW, _FRAME)
            swapped = self._turn.axes[:2] != left
        if swapped:
            pixels, valid = pixels.transpose(0, 2, 1), valid.T
        col_step, row_step = (-1 if flip else 1 for flip in self._turn.flips[:2])
        return pixels[:, ::row_step, ::col_step], valid[::row_step, ::col_step]

    def _decode(self) -> Frame:
        """Decode the stack into a file and map it: (frames, channels, height, width) and (frames, height, width)."""
        grid = self._raster.grid
        shape = grid.frames, len(self.channels), grid.height, grid.width
        mask_shape = grid.frames, grid.height, grid.width
        with contextlib.ExitStack() as files:
            pixels, valid = (files.enter_context(tempfile.TemporaryFile(prefix="vitpipe-")) for _ in range(2))
            for frame in range(grid.frames):
                found, inside = self._raster.read(Window(frame, 0, 0, grid.height, grid.width))
                try:
                    # Written, not assigned through the map: a full disk is then an error, not the process's end.
                    for stream, part in ((pixels, found.astype(self.dtype, copy=False)), (valid, inside)):
                        stream.write(np.ascontiguousarray(part).data)
                        stream.flush()
                except OSError as error:
                    need = math.prod(shape) * self.dtype.itemsize + math.prod(mask_shape)
                    raise WorkspaceError(
                        f"{tempfile.gettempdir()} cannot take the {need / 2**20:.0f} MiB that turning a stack needs "
                        f"({error}); make room there, or set TMPDIR to a folder that has it"
                    ) from error
            mapped: NDArray[Any] = np.memmap(pixels, self.dtype, "r", shape=shape)
            mask: NDArray[np.bool_] = np.memmap(valid, np.bool_, "r", shape=mask_shape)
            return mapped, mask
