"""An opened DICOM source that is read through the plan of its repair."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitpipe.domains.base import Raster
from vitpipe.records import Grid, Source, Window

_FRAMES_HELD = 2


def unrepaired(source: Source) -> Source:
    """Give the source as its files hold it: the frames that the plan of its repair counts."""
    plan: Any = source.reader["repair"]
    reader = {name: value for name, value in source.reader.items() if name != "repair"}
    affine = tuple(plan["affine"]) if plan["affine"] else None
    grid = Grid(plan["frames"], plan["rows"], plan["cols"], affine=affine)
    return dataclasses.replace(source, grid=grid, dtype=plan["dtype"], reader=reader)


def repaired_dtype(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """Give the dtype of interpolated values: float32 where it holds every value of the dtype, else float64."""
    return np.dtype(np.float32 if np.can_cast(dtype, np.float32) else np.float64)


class RepairedRaster:
    """Reads windows of a repaired source; two frames of the files and one repaired frame are held at a time.

    Args:
        raster: of the source that :func:`unrepaired` gives.
        source: with the plan in ``reader["repair"]``.
    """

    def __init__(self, raster: Raster, source: Source) -> None:
        plan: Any = source.reader["repair"]
        self._raster = raster
        self._source = source
        self._samples: list[tuple[int, float]] = [(int(place), float(weight)) for place, weight in plan["samples"]]
        self._shifts: list[tuple[float, float]] = [(float(rows), float(cols)) for rows, cols in plan["shifts_px"]]
        self._held: dict[int, tuple[NDArray[Any], NDArray[np.bool_]]] = {}
        self._frame: int | None = None
        self._pixels: NDArray[Any] = np.empty((0, 0, 0), self.dtype)
        self._valid: NDArray[np.bool_] = np.empty((0, 0), np.bool_)

    @property
    def grid(self) -> Grid:
        """Frames, height, width and geometry after the repair."""
        return self._source.grid

    @property
    def channels(self) -> tuple[str, ...]:
        """As in the files."""
        return self._raster.channels

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Floating point: values lie between those of the files."""
        return np.dtype(self._source.dtype)

    @property
    def block_rows(self) -> int:
        """The height: a frame is made as a whole."""
        return self._source.grid.height

    def groups(self, windows: Sequence[Window]) -> list[str]:
        """Give the patient's pseudonym for each window."""
        return self._raster.groups(windows)

    def read(self, window: Window) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Read a window; a frame is made once for all its windows in a row.

        Returns:
            Pixels (channels, height, width) in the source's units and the valid mask (height, width). A pixel is valid
            where all pixels from which it is interpolated are; others are zero.

        Raises:
            UnreadableSource: a frame does not decode, or a file changed since it was indexed.
            ValueError: the window lies outside the source.
        """
        grid = self._source.grid
        if not (0 <= window.frame < grid.frames and 0 <= window.row < grid.height and 0 <= window.col < grid.width):
            raise ValueError(f"{window} begins outside of {grid.frames} x {grid.height} x {grid.width}")
        if self._frame != window.frame:
            # Not kept if the next line fails.
            self._frame = None
            self._pixels, self._valid = self._made(window.frame)
            self._frame = window.frame
        rows, cols = slice(window.row, window.row + window.height), slice(window.col, window.col + window.width)
        found, found_valid = self._pixels[:, rows, cols], self._valid[rows, cols]
        pixels = np.zeros((len(self.channels), window.height, window.width), self.dtype)
        valid = np.zeros((window.height, window.width), np.bool_)
        pixels[:, : found.shape[1], : found.shape[2]] = found
        valid[: found.shape[1], : found.shape[2]] = found_valid
        return pixels, valid

    def _made(self, frame: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Interpolate one frame between its two neighbours."""
        place, weight = self._samples[frame]
        # Frames that neither this nor the next one needs go first, so that no more than two are ever held.
        for held in [held for held in self._held if held not in (place, place + 1)]:
            del self._held[held]
        pixels, valid = self._aligned(place)
        if weight == 0.0:
            return pixels, valid
        following, also_valid = self._aligned(place + 1)
        # By a sum of two products, not by a difference: unsigned values would wrap, and equal ones stay equal.
        pixels = pixels * self.dtype.type(1.0 - weight) + following * self.dtype.type(weight)
        valid = valid & also_valid
        pixels[:, ~valid] = 0
        return pixels, valid

    def _aligned(self, place: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Give one frame of the files on the repaired grid."""
        if place not in self._held:
            grid, inner = self._source.grid, self._raster.grid
            pixels, valid = self._raster.read(Window(place, 0, 0, inner.height, inner.width))
            floats = pixels.astype(self.dtype)
            if self._shifts:
                floats, valid = _shifted(floats, valid, self._shifts[place][0], grid.height, -2)
                floats, valid = _shifted(floats, valid, self._shifts[place][1], grid.width, -1)
            self._held[place] = floats, valid
        assert len(self._held) <= _FRAMES_HELD
        return self._held[place]


def _shifted(
    pixels: NDArray[Any], valid: NDArray[np.bool_], shift_px: float, length: int, axis: int
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Shift along one axis by linear interpolation onto a longer axis.

    Args:
        pixels: (channels, height, width).
        valid: (height, width).
        shift_px: by how much, not negative: element k comes from k - shift.
        length: of the new axis.
        axis: -2 (rows) or -1 (columns).

    Returns:
        Pixels, zero where not valid, and the mask.
    """
    whole = int(shift_px)
    part = shift_px - whole
    placed, placed_valid = _padded(pixels, whole, length, axis), _padded(valid, whole, length, axis)
    if part:
        later, later_valid = _padded(pixels, whole + 1, length, axis), _padded(valid, whole + 1, length, axis)
        placed = placed * pixels.dtype.type(1.0 - part) + later * pixels.dtype.type(part)
        placed_valid = placed_valid & later_valid
        placed[:, ~placed_valid] = 0
    return placed, placed_valid


def _padded(values: NDArray[Any], before: int, length: int, axis: int) -> NDArray[Any]:
    """Place values on a longer axis, zero around them; what lies past its end is cut."""
    shape = list(values.shape)
    count = min(shape[axis], length - before)
    shape[axis] = length
    result = np.zeros(shape, values.dtype)
    target, origin = [slice(None)] * values.ndim, [slice(None)] * values.ndim
    target[axis], origin[axis] = slice(before, before + count), slice(0, count)
    result[tuple(target)] = values[tuple(origin)]
    return result
