"""Where a tile lies in its source as it is in the files, however the stack was turned and resampled before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitpipe.config import TileRecipe
from vitpipe.records import Grid, Window
from vitpipe.resample import Slices, Turn, moved_grid, prepared_grid, resolution_axes, turn_to, turned_grid, whole_axes

Indices = NDArray[np.intp]

_COL, _ROW, _FRAME = 0, 1, 2
_DECIMALS: Final = 6
"""Places are rounded to it, so that one half-way between two pixels falls to the same of them everywhere."""


class Box(NamedTuple):
    """A part of the source: whole frames from `frame` on, and edges in pixels (0 is the outer edge of the first)."""

    frame: int
    frames: int
    top: float
    left: float
    bottom: float
    right: float


class Voxels(NamedTuple):
    """The source's pixels that a tile's pixels lie in: an array of indices for each axis of the tile."""

    tile: tuple[Indices, Indices, Indices]
    """Along depth, rows, columns of the tile; shorter than the tile where it reaches past the edge."""
    axes: tuple[int, int, int]
    """Which axis of the source (0 frames, 1 rows, 2 columns) each of these counts in."""

    def of_source(self) -> tuple[Indices, Indices, Indices]:
        """Give the frames, rows and columns of the source."""
        found = dict(zip(self.axes, self.tile, strict=True))
        return found[0], found[1], found[2]


def tile_grid(grid: Grid, recipe: TileRecipe, *, uri: str) -> Grid:
    """Give the grid whose pixels are those of the tiles; its transform and CRS say where they lie.

    Raises:
        UnreadableSource: what tiling raises too: the recipe asks for what the grid does not have.
    """
    prepared = prepared_grid(grid, recipe, uri=uri)
    return moved_grid(prepared, *whole_axes(prepared, recipe.size)) if recipe.cut == "whole" else prepared


@dataclass(frozen=True, slots=True)
class _Line:
    """One axis: output pixel ``i`` has its centre at ``first + i * step`` of an axis with `size` pixels."""

    size: int
    first: float = 0.0
    step: float = 1.0

    @classmethod
    def scaled(cls, size: int, scale: float) -> _Line:
        """Keep the outer edge: output pixel ``i`` covers ``i * scale`` to ``(i + 1) * scale``."""
        return cls(size, (scale - 1) / 2, scale)

    def after(self, outer: _Line) -> _Line:
        """Give the line of an output of this output."""
        return _Line(self.size, self.first + outer.first * self.step, outer.step * self.step)

    def nearest(self, start: int, stop: int) -> Indices:
        """Give the pixel in which each of the output pixels has its centre."""
        centres = self.first + np.arange(start, stop) * self.step
        places: Indices = np.floor(np.round(centres + 0.5, _DECIMALS)).astype(np.intp)
        return places.clip(0, self.size - 1)

    def back(self, count: int) -> Indices:
        """Give for each pixel of the axis the nearest of the first `count` output pixels."""
        places = (np.arange(self.size) - self.first) / self.step
        nearest: Indices = np.floor(np.round(places + 0.5, _DECIMALS)).astype(np.intp)
        return nearest.clip(0, count - 1)

    def edges(self, start: int, stop: int) -> tuple[float, float]:
        """Give the outer edges of output pixels `start` to `stop`, cut off at the ends of the axis."""
        low = self.first + (start - 0.5) * self.step + 0.5
        high = self.first + (stop - 0.5) * self.step + 0.5
        return round(max(low, 0.0), _DECIMALS), round(min(high, float(self.size)), _DECIMALS)


@dataclass(frozen=True, slots=True)
class TilePlaces:
    """Maps the tiles of one source to its own pixels."""

    turn: Turn
    sizes: tuple[int, int, int]
    """Columns, rows and frames of the source."""
    lines: tuple[_Line, _Line, _Line]
    """Columns, rows and frames of the turned stack, on which windows are counted."""
    shape: tuple[int, int, int]
    """Columns, rows and frames of the grid on which windows are counted; ``cut: whole``: of the tile."""
    whole: bool
    depth: int | None

    @classmethod
    def of(cls, grid: Grid, recipe: TileRecipe, *, uri: str) -> TilePlaces:
        """Make it of a source's grid.

        Raises:
            UnreadableSource: what tiling raises too: the recipe asks for what the grid does not have.
        """
        prepared = prepared_grid(grid, recipe, uri=uri)
        if recipe.crs is not None and (prepared.crs, prepared.transform) != (grid.crs, grid.transform):
            # Pixels of the warped grid lie in no rows and columns of the file: places are counted on that grid.
            grid, recipe = prepared, recipe.model_copy(update={"crs": None, "gsd_m": None})
        turn = Turn((_COL, _ROW, _FRAME), (False, False, False))
        turned = grid
        if recipe.orientation is not None:
            turn = turn_to(grid, recipe.orientation)
            turned = turned_grid(grid, turn)
        axes = resolution_axes(turned, recipe, uri=uri)
        cols, rows, frames = _Line(turned.width), _Line(turned.height), _Line(turned.frames)
        if axes is not None:
            cols, rows = _Line.scaled(turned.width, axes[1].scale), _Line.scaled(turned.height, axes[0].scale)
        if recipe.slice_spacing_mm is not None and turned.spacing_mm is not None:
            slices = Slices.at_spacing(turned.frames, turned.spacing_mm[0], recipe.slice_spacing_mm)
            if not slices.moves_nothing:
                frames = _Line(turned.frames, slices.first, slices.scale)
        shape = prepared.width, prepared.height, prepared.frames
        whole = recipe.cut == "whole"
        if whole:
            fitted = whole_axes(prepared, recipe.size)
            cols = cols.after(_Line.scaled(prepared.width, fitted[1].scale))
            rows = rows.after(_Line.scaled(prepared.height, fitted[0].scale))
            shape = fitted[1].size, fitted[0].size, prepared.frames
            if recipe.depth is not None:
                stretched = Slices.stretch(prepared.frames, recipe.depth)
                frames = frames.after(_Line(prepared.frames, stretched.first, stretched.scale))
                shape = shape[0], shape[1], recipe.depth
        sizes = grid.width, grid.height, grid.frames
        return cls(turn, sizes, (cols, rows, frames), shape, whole, recipe.depth)

    def box(self, window: Window) -> Box:
        """Give the part of the source that a window covers, cut off at its edges."""
        low, high = [0.0] * 3, [0.0] * 3
        for axis, (start, stop) in enumerate(self.spans(window)):
            source, size = self.turn.axes[axis], self.lines[axis].size
            first, last = self.lines[axis].edges(start, stop)
            low[source], high[source] = (size - last, size - first) if self.turn.flips[axis] else (first, last)
        frames = self.voxels(window).of_source()[0]
        frame = int(frames.min())
        return Box(frame, int(frames.max()) - frame + 1, low[_ROW], low[_COL], high[_ROW], high[_COL])

    def voxels(self, window: Window) -> Voxels:
        """Give the source's pixel for each pixel of a tile that lies inside: the one in which its centre lies."""
        found = []
        for axis, (start, stop) in enumerate(self.spans(window)):
            places = self.lines[axis].nearest(start, stop)
            found.append(self.sizes[self.turn.axes[axis]] - 1 - places if self.turn.flips[axis] else places)
        axes = self.turn.axes
        # From columns, rows, frames to frames, rows, columns.
        return Voxels((found[_FRAME], found[_ROW], found[_COL]), (2 - axes[_FRAME], 2 - axes[_ROW], 2 - axes[_COL]))

    def back(self) -> tuple[Indices, Indices, Indices]:
        """Give for each frame, row and column of the source as it is turned the nearest one of the grid of tiles."""
        cols, rows, frames = (line.back(count) for line, count in zip(self.lines, self.shape, strict=True))
        return frames, rows, cols

    def turned(self, values: NDArray[Any]) -> NDArray[Any]:
        """Give a view of the source's (frames, height, width), along frames, rows and columns as they are turned."""
        axes, flips = self.turn.axes, self.turn.flips
        steps = tuple(slice(None, None, -1 if flips[axis] else 1) for axis in (_FRAME, _ROW, _COL))
        return values.transpose(2 - axes[_FRAME], 2 - axes[_ROW], 2 - axes[_COL])[steps]

    def spans(self, window: Window) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Give the columns, rows and frames of a window that lie inside, as pairs of first and behind the last."""
        cols, rows, frames = self.shape
        if self.whole:
            through = (0, frames) if self.depth is not None else (window.frame, window.frame + 1)
            return (0, cols), (0, rows), through
        return (
            (window.col, min(window.col + window.width, cols)),
            (window.row, min(window.row + window.height, rows)),
            (window.frame, min(window.frame + window.depth, frames)),
        )
