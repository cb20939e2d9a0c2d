"""Where a tile lies in its source as it is in the file, whatever spacing the tiles were cut at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitpipe.config import TileRecipe
from vitpipe.records import Grid, Window
from vitpipe.resample import resolution_axes, whole_axes


class Box(NamedTuple):
    """A rectangle of one frame in pixels of the source, edges (0 is the outer edge of the first pixel)."""

    frame: int
    top: float
    left: float
    bottom: float
    right: float


@dataclass(frozen=True, slots=True)
class TilePlaces:
    """Maps tiles of one source to its own pixels."""

    grid: Grid
    """Of the source."""
    size: int
    """Of a tile, px."""
    scale: tuple[float, float]
    """Source pixels a pixel of the grid on which windows are counted: rows, columns."""
    shape: tuple[int, int] | None
    """``cut: whole``: rows and columns of the tile that the frame fills; else None."""

    @classmethod
    def of(cls, grid: Grid, recipe: TileRecipe, *, uri: str) -> TilePlaces:
        """Make it of a source's grid.

        Raises:
            UnreadableSource: the recipe states a spacing and the grid has none.
        """
        axes = resolution_axes(grid, recipe, uri=uri)
        scale = (axes[0].scale, axes[1].scale) if axes else (1.0, 1.0)
        shape = None
        if recipe.cut == "whole":
            height, width = (axes[0].size, axes[1].size) if axes else (grid.height, grid.width)
            rows, cols = whole_axes(Grid(grid.frames, height, width), recipe.size)
            shape = rows.size, cols.size
        return cls(grid, recipe.size, scale, shape)

    def box(self, window: Window) -> Box:
        """Give the part of the source that a window covers, cut off at the edges of the frame."""
        grid = self.grid
        if self.shape is not None:
            return Box(window.frame, 0.0, 0.0, float(grid.height), float(grid.width))
        top, left = window.row * self.scale[0], window.col * self.scale[1]
        bottom = min((window.row + window.height) * self.scale[0], float(grid.height))
        right = min((window.col + window.width) * self.scale[1], float(grid.width))
        return Box(window.frame, top, left, bottom, right)

    def pixels(self, window: Window) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Give the source row of each tile row and the source column of each tile column that lies inside.

        The source pixel is the one in which the centre of the tile's pixel lies. Both are shorter than the tile where
        it reaches past the right or bottom edge.
        """
        grid = self.grid
        if self.shape is not None:
            return _spread(self.shape[0], grid.height), _spread(self.shape[1], grid.width)
        return (
            _inside(window.row, window.height, self.scale[0], grid.height),
            _inside(window.col, window.width, self.scale[1], grid.width),
        )


def _inside(start: int, count: int, scale: float, limit: int) -> NDArray[np.intp]:
    places: NDArray[np.intp] = np.floor((start + np.arange(count) + 0.5) * scale).astype(np.intp)
    inside: NDArray[np.intp] = places[places < limit]
    return inside


def _spread(count: int, length: int) -> NDArray[np.intp]:
    places: NDArray[np.intp] = np.floor((np.arange(count) + 0.5) * (length / count)).astype(np.intp)
    return places.clip(max=length - 1)
