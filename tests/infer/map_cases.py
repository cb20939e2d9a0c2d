"""Rasters in memory and small models for the tests of maps."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitpipe.infer.mapping import Blend, ClassLayers, MapPlan, MapTask, PixelModel, stitch
from vitpipe.records import Grid, Window

TRANSFORM = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0)


class MemoryRaster:
    """A scene in memory; counts the reads and their rows."""

    def __init__(
        self, pixels: NDArray, valid: NDArray | None = None, *, block_rows: int = 1, crs: str | None = "EPSG:32633"
    ) -> None:
        self.pixels = pixels
        self.valid = np.ones(pixels.shape[1:], bool) if valid is None else valid
        height, width = pixels.shape[1:]
        self.grid = Grid(1, height, width, transform=TRANSFORM if crs else None, crs=crs)
        self.channels = tuple(f"B{number}" for number in range(len(pixels)))
        self.dtype = pixels.dtype
        self.block_rows = block_rows
        self.rows_read = 0
        self.reads = 0

    def read(self, window: Window) -> tuple[NDArray, NDArray]:
        """Read a window inside the scene, whole blocks alone."""
        assert window.row % self.block_rows == 0
        rows = slice(window.row, window.row + window.height)
        cols = slice(window.col, window.col + window.width)
        self.rows_read += window.height
        self.reads += 1
        valid = self.valid[rows, cols]
        return np.where(valid, self.pixels[:, rows, cols], 0).astype(self.dtype), valid

    def groups(self, windows: Sequence[Window]) -> list[str]:
        """All ground is one group."""
        return ["g"] * len(windows)


def identity(tiles: NDArray, valid: NDArray) -> NDArray:
    """Give the tiles themselves."""
    return tiles


def positional(tiles: NDArray, valid: NDArray) -> NDArray:
    """Give what depends on the place in the tile, as models do near a tile's rim, and not on the batch."""
    size = tiles.shape[-1]
    place = np.linspace(0, 1, size, dtype=np.float32)
    return (tiles * (1 + place[:, None] * place**2) + place[:, None]).astype(np.float32)


def whole(raster: MemoryRaster, model: PixelModel, plan: MapPlan, *, first_row: int = 0) -> NDArray:
    """Stitch and put the rows together; NaN where a pixel is not valid."""
    parts, row = [], first_row
    for rows in stitch(raster, model, plan, first_row=first_row):
        assert rows.row == row
        row += rows.values.shape[1]
        parts.append(np.where(rows.valid, rows.values, np.nan))
    assert row == raster.grid.height
    return np.concatenate(parts, axis=1)


def in_memory(raster: MemoryRaster, model: PixelModel, plan: MapPlan) -> NDArray:
    """Give ``sum(w v) / sum(w)`` of all tiles in float64, the scene held as a whole."""
    size = plan.size
    _, height, width = raster.pixels.shape
    step = max(1, round(size * (1 - plan.overlap)))
    padded = np.where(raster.valid, raster.pixels, 0).astype(np.float32)
    below, right = max(0, size - height), max(0, size - width)
    padded = np.pad(padded, ((0, 0), (0, below), (0, right)), mode="reflect")
    valid = np.pad(raster.valid, ((0, below), (0, right)), mode="reflect")
    window = np.maximum(np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2, 1e-3)
    if plan.blend is Blend.MEAN:
        window = np.ones(size)
    total = np.zeros(padded.shape[1:])
    sums = np.zeros((plan.outputs, *total.shape))
    for row in sorted({*range(0, max(1, padded.shape[1] - size), step), padded.shape[1] - size}):
        for col in sorted({*range(0, max(1, padded.shape[2] - size), step), padded.shape[2] - size}):
            place = slice(row, row + size), slice(col, col + size)
            if not valid[place].any():
                continue
            weight = window[:, None] * window
            tile, mask = padded[(slice(None), *place)][None], valid[place][None]
            sums[(slice(None), *place)] += weight * model(tile, mask)[0]
            total[place] += weight
    with np.errstate(invalid="ignore"):
        return np.where(valid, sums / total, np.nan)[:, :height, :width]


def killed_raster() -> MemoryRaster:
    """Make the scene of the test that kills; each pixel of its second channel holds the number of its row."""
    rng = np.random.default_rng(3)
    pixels = rng.normal(0, 1, (3, 1500, 130)).astype(np.float32)
    pixels[1] = np.arange(1500)[:, None]
    return MemoryRaster(pixels, rng.random((1500, 130)) > 0.1)


def killed_task(folder: Path) -> MapTask:
    """Make its task."""
    return MapTask(folder, {"scene": "killed"}, MapPlan(64, 3, 0.5, batch=4), ClassLayers(("a", "b", "c")))


def slow_softmax(seconds: float, seen: list[int] | None = None) -> PixelModel:
    """Make a model of three classes that takes its time and notes the first row that it sees of each batch."""

    def model(tiles: NDArray, valid: NDArray) -> NDArray:
        time.sleep(seconds)
        if seen is not None:
            seen.append(int(tiles[:, 1][valid].min()))
        place = np.linspace(0.5, 1.5, tiles.shape[-1], dtype=np.float32)
        powers = np.exp(tiles * place * np.array([1, 0.001, 1], np.float32)[:, None, None])
        return powers / powers.sum(axis=1, keepdims=True)

    return model


@contextlib.contextmanager
def full_after(size: int) -> Iterator[None]:
    """Let no file grow past a size: the system says so as it says that a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
