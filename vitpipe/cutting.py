"""Where tiles lie on a grid, and how they are cut: streamed by rows of tiles, nothing decoded twice.

2-D tiles of each frame, 2-D tiles with neighbouring frames as channels (2.5-D), or tiles of several frames (3-D).
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vitpipe.config import TileRecipe
from vitpipe.domains.base import BlockRow, BlockRowRaster, Raster
from vitpipe.errors import UnreadableSource
from vitpipe.held_rows import PIECE_BYTES, HeldRows, copy_columns, valid_rows
from vitpipe.open_tiles import OPEN_BYTES, Wanted, can_be_open, filled
from vitpipe.processors import thread_count
from vitpipe.records import Grid, Window, box_mm
from vitpipe.resample import (
    FrameCache,
    ResampledRaster,
    RowBuffer,
    SlicedRaster,
    Slices,
    prepare,
    prepared_grid,
    tile_channels,
    whole_axes,
    with_neighbours,
)

_NAMED_AT_ONCE: Final = 1024

_Cut: TypeAlias = "tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.float64]]"
"""Tiles, masks, valid shares."""


@dataclass(frozen=True, slots=True)
class Block:
    """Tiles cut at once: a row of tiles, or a piece of one."""

    tiles: NDArray[Any]
    """(N, channels, size, size), with a depth (N, channels, depth, size, size), in the raster's dtype and units; what
    is not valid is zero."""
    valid: NDArray[np.bool_]
    """(N, size, size), with a depth (N, depth, size, size)."""
    windows: list[Window]
    """What each tile covers, in the raster at the recipe's spacing and orientation; the whole frame, with a depth the
    whole stack, for ``cut: whole``."""
    groups: list[str]
    boxes_mm: list[list[float] | None]
    """What each tile covers in the patient, see `vitpipe.records.box_mm`."""
    valid_fraction: NDArray[np.float64]
    """Share of the tile's pixels that is valid."""


def origins(length: int, recipe: TileRecipe) -> list[int]:
    """Give where tiles begin along a row or column of `length` pixels.

    ``pad`` and ``shift`` cover every pixel with ``1 + ceil((length - size) / stride)`` tiles, ``shift`` by moving the
    last one inwards; ``drop`` gives ``1 + floor((length - size) / stride)``. An axis shorter than a tile gives one
    origin, and none with ``drop``.
    """
    return _starts(length, recipe.size, recipe.step, recipe.edge)


def depth_origins(frames: int, recipe: TileRecipe) -> list[int]:
    """Give the frames at which tiles begin: every frame for 2-D tiles, by the rule of :func:`origins` for 3-D ones."""
    return _starts(frames, recipe.depth or 1, recipe.step_depth, recipe.edge)


def _starts(length: int, size: int, step: int, edge: str) -> list[int]:
    if length < size:
        return [] if edge == "drop" else [0]
    if edge == "drop":
        return list(range(0, length - size + 1, step))
    starts = list(range(0, length - size + step, step))
    if edge == "shift":
        starts[-1] = length - size
    return starts


def windows(grid: Grid, recipe: TileRecipe) -> list[Window]:
    """Give every window of a grid (already at the recipe's spacing), in the order of frame, row, column.

    For ``cut: whole`` it is each whole frame, with a depth the whole stack. With ``edge: pad`` a window may reach past
    the edge.
    """
    depth = recipe.depth or 1
    if recipe.cut == "whole":
        if recipe.depth is not None:
            return [Window(0, 0, 0, grid.height, grid.width, grid.frames)]
        return [Window(frame, 0, 0, grid.height, grid.width) for frame in range(grid.frames)]
    frames, rows, cols = _all_origins(grid, recipe)
    return [
        Window(frame, row, col, recipe.size, recipe.size, depth) for frame in frames for row in rows for col in cols
    ]


def window_count(grid: Grid, recipe: TileRecipe) -> int:
    """Count :func:`windows` without making them."""
    if recipe.cut == "whole":
        return grid.frames if recipe.depth is None else 1
    frames, rows, cols = _all_origins(grid, recipe)
    return len(frames) * len(rows) * len(cols)


def _all_origins(grid: Grid, recipe: TileRecipe) -> tuple[list[int], list[int], list[int]]:
    return depth_origins(grid.frames, recipe), origins(grid.height, recipe), origins(grid.width, recipe)


def planned_windows(grid: Grid, recipe: TileRecipe, *, uri: str) -> int:
    """Count the windows of a source, from its grid as it lies in the file.

    Raises:
        UnreadableSource: the recipe states a spacing and the grid has none, or it needs a stack and there is none.
    """
    return window_count(prepared_grid(grid, recipe, uri=uri), recipe)


def tile_values(recipe: TileRecipe, channels: Sequence[str]) -> int:
    """Count the values of one tile of a source with these channels."""
    return len(tile_channels(recipe, channels)) * (recipe.depth or 1) * recipe.size**2


def cut(raster: Raster, recipe: TileRecipe, *, source_id: str, threads: int | None = None) -> Iterator[Block]:
    """Cut an opened source; nothing is decoded twice. A row of blocks bounds the memory, of 3-D tiles its frames.

    A window is kept when ``min_valid_fraction`` of the pixels that it could hold is valid: those of a tile, or of the
    source where it is smaller than a tile, so that a small source is padded and not lost.

    Args:
        raster: an opened source.
        recipe: how to cut.
        source_id: names the source in errors.
        threads: how many decode and cut side by side, where the raster allows; None: as many as this process has
            processors, at most four. The tiles are the same.

    Yields:
        Blocks in the order of :func:`windows`; blocks without a tile are left out.

    Raises:
        UnreadableSource: the pixels cannot be decoded; ``NO_SPACING`` or ``NO_GSD``: it does not say how large they
            are; ``NO_REGULAR_STACK``: the recipe goes along a stack, and it is none; ``TOO_SMALL``: it is smaller than
            a tile and the recipe drops edges.
    """
    base = prepare(raster, recipe, uri=source_id, threads=threads)
    if window_count(base.grid, recipe) == 0:
        through = f"{base.grid.frames} x " if recipe.depth else ""
        tile = f"{recipe.depth} x {recipe.size} x {recipe.size}" if recipe.depth else f"{recipe.size}"
        reason = (
            f"{through}{base.grid.height} x {base.grid.width} pixels are smaller than a tile of {tile}, and "
            f"`tiles.edge: drop` keeps whole tiles alone; set `tiles.edge: pad`, or a smaller `tiles.size`"
            f"{' or `tiles.depth`' if recipe.depth else ''}"
        )
        raise UnreadableSource("TOO_SMALL", reason, source_id)
    whole = recipe.cut == "whole"
    shown = ResampledRaster(base, *whole_axes(base.grid, recipe.size)) if whole else base
    least = _least_fraction(shown.grid, recipe)
    wholes = windows(base.grid, recipe) if whole else []
    groups = _Groups(base, recipe)
    for frame, row, cols, (tiles, valid, fraction) in _pieces(shown, recipe, thread_count(threads)):
        kept = np.flatnonzero(fraction >= least)
        if len(kept) == 0:
            continue
        if whole:
            covered = [wholes[frame]]
        else:
            size, depth = recipe.size, recipe.depth or 1
            covered = [Window(frame, row, col, size, size, depth) for col in np.array(cols)[kept].tolist()]
        # A copy only where something is left out.
        chosen = kept if len(kept) < len(tiles) else slice(None)
        boxes = [box_mm(base.grid, window) for window in covered]
        names = base.groups(covered) if whole else groups.of(covered)
        yield Block(tiles[chosen], valid[chosen], covered, names, boxes, fraction[chosen])


def _least_fraction(grid: Grid, recipe: TileRecipe) -> float:
    """Give the share of valid pixels that a tile must have: of those that it can have in a source so small."""
    reachable = min(grid.height, recipe.size) * min(grid.width, recipe.size)
    if recipe.depth is None:
        return recipe.min_valid_fraction * reachable / recipe.size**2
    # A whole stack is stretched to the depth.
    frames = recipe.depth if recipe.cut == "whole" else min(grid.frames, recipe.depth)
    return recipe.min_valid_fraction * (frames * reachable) / (recipe.depth * recipe.size**2)


class _Groups:
    """Names the groups of windows, of several rows of tiles at once: a call for each row costs more than its points."""

    def __init__(self, raster: Raster, recipe: TileRecipe) -> None:
        self._raster, self._size, self._depth = raster, recipe.size, recipe.depth or 1
        self._rows, self._cols = origins(raster.grid.height, recipe), origins(raster.grid.width, recipe)
        self._names: dict[tuple[int, int, int], str] = {}

    def of(self, covered: Sequence[Window]) -> list[str]:
        """Give the group of each window; all begin in one row of one frame."""
        frame, row = covered[0][:2]
        if (frame, row, self._cols[0]) not in self._names:
            first = bisect_left(self._rows, row)
            rows = self._rows[first : first + max(1, _NAMED_AT_ONCE // len(self._cols))]
            asked = [Window(frame, top, col, self._size, self._size, self._depth) for top in rows for col in self._cols]
            places = [window[:3] for window in asked]
            self._names = dict(zip(places, self._raster.groups(asked), strict=True))
        return [self._names[window[:3]] for window in covered]


def _pieces(shown: Raster, recipe: TileRecipe, threads: int) -> Iterator[tuple[int, int, list[int], _Cut]]:
    """Cut row after row of tiles, a piece of a row at a time: first frame, first row, first columns, and the tiles."""
    if recipe.depth is None:
        shown = with_neighbours(shown, recipe)
        with contextlib.ExitStack() as stack:
            cutter = _Cutter(shown, recipe)
            if isinstance(shown, BlockRowRaster) and recipe.cut == "grid":
                pool = stack.enter_context(ThreadPoolExecutor(threads)) if threads > 1 else None
                cutter = stack.enter_context(contextlib.closing(_block_cutter(shown, recipe, pool)))
            for frame in range(shown.grid.frames):
                for row in cutter.row_origins:
                    for cols in cutter.pieces():
                        yield frame, row, cols, cutter.cut(frame, row, cols)
        return
    if recipe.cut == "whole":
        shown = SlicedRaster(shown, Slices.stretch(shown.grid.frames, recipe.depth))
    cutter = _Cutter(shown, recipe)
    cache = FrameCache(shown, recipe.depth)
    starts = [0] if recipe.cut == "whole" else depth_origins(shown.grid.frames, recipe)
    for start in starts:
        for row in cutter.row_origins:
            for cols in cutter.pieces():
                yield start, row, cols, cutter.cut_volume(cache, (start, recipe.depth), row, cols)


class _Cutter:
    """Cuts rows of tiles out of a raster."""

    def __init__(self, raster: Raster, recipe: TileRecipe) -> None:
        grid = raster.grid
        self._size, self._step = recipe.size, recipe.step
        self._height, self._width = grid.height, grid.width
        if recipe.cut == "whole":
            self.row_origins, self._cols = [0], [0]
        else:
            self.row_origins, self._cols = origins(grid.height, recipe), origins(grid.width, recipe)
        self._tile_bytes = len(raster.channels) * (recipe.depth or 1) * recipe.size**2 * raster.dtype.itemsize
        self._piece_bytes = PIECE_BYTES

        def read(frame: int, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
            return raster.read(Window(frame, start, 0, stop - start, grid.width))

        self._rows = RowBuffer(read, height=grid.height, block_rows=raster.block_rows)

    def pieces(self) -> Iterator[list[int]]:
        """Give the columns of a row of tiles, in pieces that bound the memory however much tiles overlap."""
        step = max(1, self._piece_bytes // self._tile_bytes)
        for start in range(0, len(self._cols), step):
            yield self._cols[start : start + step]

    def cut(self, frame: int, row: int, cols: list[int]) -> _Cut:
        """Give tiles (N, C, size, size), masks (N, size, size) and the share of valid pixels (N,)."""
        size = self._size
        pixels, valid = self._rows.rows(frame, row, min(row + size, self._height))
        tiles = self._cut_rows(pixels, cols)
        inside = pixels.shape[1] == size and cols[-1] + size <= self._width
        if inside and valid[:, cols[0] : cols[-1] + size].all():
            return tiles, np.ones((len(cols), size, size), bool), np.ones(len(cols))
        masks = self._cut_rows(valid[np.newaxis], cols)[:, 0]
        return tiles, masks, _fractions(masks)

    def close(self) -> None:
        """Nothing is held beyond memory."""

    def cut_volume(self, cache: FrameCache, span: tuple[int, int], row: int, cols: list[int]) -> _Cut:
        """Give tiles (N, C, depth, size, size), masks (N, depth, size, size) and the share of valid pixels (N,).

        Args:
            cache: gives whole frames; the frames of a tile are kept.
            span: first frame and depth; what lies past the last frame is zero and not valid.
            row: first row.
            cols: first columns.
        """
        start, depth = span
        frames = range(start, min(start + depth, cache.frames))
        tiles: NDArray[Any] | None = None
        masks = np.zeros((len(cols), depth, self._size, self._size), np.bool_)
        for place, frame in enumerate(frames):
            pixels, valid = cache.frame(frame)
            rows = slice(row, min(row + self._size, self._height))
            if tiles is None:
                tiles = np.zeros((len(cols), len(pixels), depth, self._size, self._size), pixels.dtype)
            tiles[:, :, place] = self._cut_rows(pixels[:, rows], cols)
            masks[:, place] = self._cut_rows(valid[np.newaxis, rows], cols)[:, 0]
        assert tiles is not None
        fraction = np.count_nonzero(masks, axis=(1, 2, 3)) / (depth * self._size**2)
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


def _block_cutter(raster: BlockRowRaster, recipe: TileRecipe, pool: Executor | None) -> _Cutter:
    """Give a cutter that fills tiles block by block; one that holds rows of blocks where too many would be open."""
    opened = _OpenCutter(raster, recipe, pool)
    return opened if opened.is_possible else _BlockRowCutter(raster, recipe, pool)


class _OpenCutter(_Cutter):
    """Gives pieces of rows of tiles that are filled block by block; asked for in the order of rows, then columns."""

    def __init__(self, raster: BlockRowRaster, recipe: TileRecipe, pool: Executor | None) -> None:
        super().__init__(raster, recipe)
        self._piece_bytes = min(PIECE_BYTES, OPEN_BYTES)
        wanted = [
            Wanted(np.full(len(cols), row), np.array(cols), (recipe.size, recipe.size))
            for row in self.row_origins
            for cols in self.pieces()
        ]
        self.is_possible = can_be_open(wanted, raster)
        self._open = filled(raster, wanted, pool)

    def cut(self, frame: int, row: int, cols: list[int]) -> _Cut:  # noqa: ARG002 - a scene has one frame
        """Give tiles (N, C, size, size), masks (N, size, size) and the share of valid pixels (N,)."""
        done = next(self._open)
        return done.tiles, done.masks, np.ones(len(cols)) if done.whole else _fractions(done.masks)

    def close(self) -> None:
        """Wait for what still writes."""
        self._open.close()


class _BlockRowCutter(_Cutter):
    """Cuts tiles straight out of rows of blocks: no row is copied to join others, or to be kept for the next tiles."""

    def __init__(self, raster: BlockRowRaster, recipe: TileRecipe, pool: Executor | None) -> None:
        super().__init__(raster, recipe)
        self._held = HeldRows(raster, pool)
        self._pool = pool
        self._channels, self._dtype = len(raster.channels), raster.dtype

    def cut(self, frame: int, row: int, cols: list[int]) -> _Cut:
        """Give tiles (N, C, size, size), masks (N, size, size) and the share of valid pixels (N,)."""
        size, bottom = self._size, min(row + self._size, self._height)
        held = self._held.rows(frame, row, bottom)
        tiles = np.empty((len(cols), self._channels, size, size), self._dtype)
        tiles[:, :, bottom - row :] = 0
        tiles[-1, :, :, max(0, self._width - cols[-1]) :] = 0
        jobs = [(block, part) for block in held for part in block.parts]

        def work(job: tuple[BlockRow, tuple[int, NDArray[Any]]]) -> None:
            block, (left, pixels) = job
            top, stop = max(row, block.start), min(bottom, block.stop)
            place = tiles[:, :, top - row : stop - row]
            self._fill(place, cols, left, pixels[:, top - block.start : stop - block.start])

        list(self._pool.map(work, jobs) if self._pool else map(work, jobs))
        if all(block.valid is None for block in held) and bottom - row == size and cols[-1] + size <= self._width:
            return tiles, np.ones((len(cols), size, size), np.bool_), np.ones(len(cols))
        masks = self._cut_rows(valid_rows(held, (row, bottom), self._width)[np.newaxis], cols)[:, 0]
        return tiles, masks, _fractions(masks)

    def _fill(self, tiles: NDArray[Any], cols: list[int], left: int, part: NDArray[Any]) -> None:
        """Copy what a part holds of tiles (N, C, rows, size) at the columns `cols`; it begins at column `left`."""
        size, right = self._size, left + part.shape[2]
        starts = np.array(cols)
        # Only the last tile may lie off the regular steps (shifted inwards).
        regular = len(cols) - (len(cols) > 1 and cols[-1] - cols[-2] != self._step)
        first = int(np.searchsorted(starts[:regular], left))
        last = int(np.searchsorted(starts[:regular], right - size, side="right"))
        if first < last:
            views = sliding_window_view(part, size, axis=2)[:, :, cols[first] - left : cols[last - 1] - left + 1]
            tiles[first:last] = views[:, :, :: self._step].transpose(2, 0, 1, 3)
        for place in np.flatnonzero((starts < right) & (starts + size > left)).tolist():
            if not first <= place < last:
                copy_columns(tiles[place], cols[place], left, part)


def _fractions(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Give the share of valid pixels of masks (N, size, size)."""
    # A count of pixels is exact: no tile is kept or lost by the rounding of a mean.
    fractions: NDArray[np.float64] = np.count_nonzero(masks, axis=(1, 2)) / (masks.shape[1] * masks.shape[2])
    return fractions
