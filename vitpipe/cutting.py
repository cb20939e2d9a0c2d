"""Where tiles lie on a grid, and how they are cut: streamed by rows of tiles, nothing decoded twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vitpipe.config import TileRecipe
from vitpipe.domains.base import Raster
from vitpipe.errors import UnreadableSource
from vitpipe.records import Grid, Window, box_mm
from vitpipe.resample import (
    ResampledRaster,
    RowBuffer,
    prepare,
    prepared_grid,
    tile_channels,
    whole_axes,
    with_neighbours,
)

_BLOCK_BYTES: Final = 32 << 20


@dataclass(frozen=True, slots=True)
class Block:
    """Tiles cut at once: a row of tiles, or a piece of one."""

    tiles: NDArray[Any]
    """(N, channels, size, size) in the raster's dtype and units; what is not valid is zero."""
    valid: NDArray[np.bool_]
    """(N, size, size)."""
    windows: list[Window]
    """What each tile covers, in the raster at the recipe's spacing; the whole frame for ``cut: whole``."""
    groups: list[str]
    boxes_mm: list[list[float] | None]
    """What each tile covers in the patient, see `vitpipe.records.box_mm`."""
    valid_fraction: NDArray[np.float64]
    """Share of the tile's pixels that is valid."""


def origins(length: int, recipe: TileRecipe) -> list[int]:
    """Give where tiles begin along an axis of `length` pixels.

    ``pad`` and ``shift`` cover every pixel with ``1 + ceil((length - size) / stride)`` tiles, ``shift`` by moving the
    last one inwards; ``drop`` gives ``1 + floor((length - size) / stride)``. An axis shorter than a tile gives one
    origin, and none with ``drop``.
    """
    size, step = recipe.size, recipe.step
    if length < size:
        return [] if recipe.edge == "drop" else [0]
    if recipe.edge == "drop":
        return list(range(0, length - size + 1, step))
    starts = list(range(0, length - size + step, step))
    if recipe.edge == "shift":
        starts[-1] = length - size
    return starts


def windows(grid: Grid, recipe: TileRecipe) -> list[Window]:
    """Give every window of a grid (already at the recipe's spacing), in the order of frame, row, column.

    For ``cut: whole`` it is each whole frame. With ``edge: pad`` a window may reach past the edge.
    """
    if recipe.cut == "whole":
        return [Window(frame, 0, 0, grid.height, grid.width) for frame in range(grid.frames)]
    rows, cols, size = origins(grid.height, recipe), origins(grid.width, recipe), recipe.size
    return [Window(frame, row, col, size, size) for frame in range(grid.frames) for row in rows for col in cols]


def window_count(grid: Grid, recipe: TileRecipe) -> int:
    """Count :func:`windows` without making them."""
    if recipe.cut == "whole":
        return grid.frames
    return grid.frames * len(origins(grid.height, recipe)) * len(origins(grid.width, recipe))


def planned_windows(grid: Grid, recipe: TileRecipe, *, uri: str) -> int:
    """Count the windows of a source, from its grid as it lies in the file.

    Raises:
        UnreadableSource: the recipe states a spacing and the grid has none, or it needs a stack and there is none.
    """
    return window_count(prepared_grid(grid, recipe, uri=uri), recipe)


def tile_values(recipe: TileRecipe, channels: Sequence[str]) -> int:
    """Count the values of one tile of a source with these channels."""
    return len(tile_channels(recipe, channels)) * recipe.size**2


def cut(raster: Raster, recipe: TileRecipe, *, source_id: str) -> Iterator[Block]:
    """Cut an opened source; nothing is decoded twice, and memory is bounded by a row of blocks.

    A window is kept when ``min_valid_fraction`` of the pixels that it could hold is valid: those of a tile, or of the
    source where it is smaller than a tile, so that a small source is padded and not lost.

    Args:
        raster: an opened source.
        recipe: how to cut.
        source_id: names the source in errors.

    Yields:
        Blocks in the order of :func:`windows`; blocks without a tile are left out.

    Raises:
        UnreadableSource: the pixels cannot be decoded; ``NO_SPACING`` or ``NO_GSD``: it does not say how large they
            are; ``NO_REGULAR_STACK``: the recipe goes along a stack, and it is none; ``TOO_SMALL``: it is smaller than
            a tile and the recipe drops edges.
    """
    base = prepare(raster, recipe, uri=source_id)
    if window_count(base.grid, recipe) == 0:
        reason = (
            f"{base.grid.height} x {base.grid.width} pixels are smaller than a tile of {recipe.size}, and "
            "`tiles.edge: drop` keeps whole tiles alone; set `tiles.edge: pad`, or a smaller `tiles.size`"
        )
        raise UnreadableSource("TOO_SMALL", reason, source_id)
    whole = recipe.cut == "whole"
    shown = ResampledRaster(base, *whole_axes(base.grid, recipe.size)) if whole else base
    cutter = _Cutter(with_neighbours(shown, recipe), recipe)
    for frame in range(base.grid.frames):
        for row in cutter.row_origins:
            for piece in cutter.pieces():
                tiles, valid, fraction = cutter.cut(frame, row, piece)
                kept = np.flatnonzero(fraction >= cutter.least_fraction)
                if len(kept) == 0:
                    continue
                if len(kept) < len(tiles):
                    tiles, valid, fraction = tiles[kept], valid[kept], fraction[kept]
                if whole:
                    covered = [Window(frame, 0, 0, base.grid.height, base.grid.width)]
                else:
                    covered = [
                        Window(frame, row, col, recipe.size, recipe.size) for col in np.array(piece)[kept].tolist()
                    ]
                boxes = [box_mm(base.grid, window) for window in covered]
                yield Block(tiles, valid, covered, base.groups(covered), boxes, fraction)


class _Cutter:
    """Cuts rows of tiles out of a raster."""

    def __init__(self, raster: Raster, recipe: TileRecipe) -> None:
        grid = raster.grid
        self._size, self._step = recipe.size, recipe.step
        self._height, self._width = grid.height, grid.width
        self._channels, self._dtype = len(raster.channels), raster.dtype
        if recipe.cut == "whole":
            self.row_origins, self._cols = [0], [0]
        else:
            self.row_origins, self._cols = origins(grid.height, recipe), origins(grid.width, recipe)
        reachable = min(grid.height, recipe.size) * min(grid.width, recipe.size)
        self.least_fraction = recipe.min_valid_fraction * reachable / recipe.size**2

        def read(frame: int, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
            return raster.read(Window(frame, start, 0, stop - start, grid.width))

        self._rows = RowBuffer(read, height=grid.height, block_rows=raster.block_rows)

    def pieces(self) -> Iterator[list[int]]:
        """Give the columns of a row of tiles, in pieces that bound the memory however much tiles overlap."""
        tile_bytes = self._channels * self._size**2 * self._dtype.itemsize
        step = max(1, _BLOCK_BYTES // tile_bytes)
        for start in range(0, len(self._cols), step):
            yield self._cols[start : start + step]

    def cut(self, frame: int, row: int, cols: list[int]) -> tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.float64]]:
        """Give tiles (N, C, size, size), masks (N, size, size) and the share of valid pixels (N,)."""
        size = self._size
        pixels, valid = self._rows.rows(frame, row, min(row + size, self._height))
        tiles = self._cut_rows(pixels, cols)
        inside = pixels.shape[1] == size and cols[-1] + size <= self._width
        if inside and valid[:, cols[0] : cols[-1] + size].all():
            return tiles, np.ones((len(cols), size, size), bool), np.ones(len(cols))
        masks = self._cut_rows(valid[np.newaxis], cols)[:, 0]
        # A count of pixels is exact: no tile is kept or lost by the rounding of a mean.
        fraction = np.count_nonzero(masks, axis=(1, 2)) / size**2
        return tiles, masks, fraction

    def _cut_rows(self, rows: NDArray[Any], cols: list[int]) -> NDArray[Any]:
        """Copy tiles out of rows (C, height, width), height at most the tile size; the rest is zero."""
        channels, height, width = rows.shape
        size = self._size
        # Only the last tile may lie off the regular steps (shifted inwards) or reach past the edge.
        regular = len(cols)
        if cols[-1] + size > width or (regular > 1 and cols[-1] - cols[-2] != self._step):
            regular -= 1
        tiles = np.empty((len(cols), channels, size, size), rows.dtype)
        tiles[:, :, height:] = 0
        if regular:
            views = sliding_window_view(rows, size, axis=2)[:, :, cols[0] : cols[regular - 1] + 1 : self._step]
            tiles[:regular, :, :height] = views.transpose(2, 0, 1, 3)
        if regular < len(cols):
            last = rows[:, :, cols[-1] : cols[-1] + size]
            tiles[-1, :, :height, : last.shape[2]] = last
            tiles[-1, :, :height, last.shape[2] :] = 0
        return tiles
