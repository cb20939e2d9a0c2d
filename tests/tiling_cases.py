"""Sources that lie in memory, for the tests of the tiling rooms."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitpipe.config import PipelineConfig
from vitpipe.cutting import Block
from vitpipe.records import Grid, Source, Window


class MemoryRaster:
    """A raster over arrays (frames, channels, height, width) and (frames, height, width) that notes every read."""

    def __init__(
        self,
        pixels: NDArray[Any],
        valid: NDArray[np.bool_] | None = None,
        *,
        block_rows: int = 7,
        grid: Grid | None = None,
    ) -> None:
        frames, channels, height, width = pixels.shape
        self.pixels = pixels
        self.valid = np.ones((frames, height, width), bool) if valid is None else valid
        self.grid = grid or Grid(frames, height, width)
        self.channels = tuple(f"c{index}" for index in range(channels))
        self.dtype = pixels.dtype
        self.block_rows = block_rows
        self.reads: list[Window] = []

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        self.reads.append(window)
        place = slice(window.row, window.row + window.height), slice(window.col, window.col + window.width)
        mask = self.valid[window.frame, place[0], place[1]]
        return self.pixels[window.frame, :, place[0], place[1]] * mask.astype(self.dtype), mask

    def groups(self, windows: Sequence[Window]) -> list[str]:
        return [f"block-{window.row // 1000}" for window in windows]

    def rows_read(self, frame: int = 0) -> list[int]:
        return [row for read in self.reads if read.frame == frame for row in range(read.row, read.row + read.height)]


class SlowRaster(MemoryRaster):
    """Takes its time, so that a test can kill the process in the middle."""

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        time.sleep(0.03)
        return super().read(window)


@dataclass
class MemoryDomain:
    """Opens sources by their identity; an error in the place of a raster is raised at the second read."""

    rasters: Mapping[str, MemoryRaster]
    failures: Mapping[str, Exception] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)
    name: str = "memory"

    @contextlib.contextmanager
    def open(self, source: Source) -> Iterator[MemoryRaster]:
        self.opened.append(source.source_id)
        raster = self.rasters[source.source_id]
        if source.source_id in self.failures:
            raster = _Failing(raster, self.failures[source.source_id])
        yield raster


class _Failing(MemoryRaster):
    def __init__(self, raster: MemoryRaster, error: Exception) -> None:
        super().__init__(raster.pixels, raster.valid, block_rows=raster.block_rows, grid=raster.grid)
        self._error = error

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        if self.reads:
            raise self._error
        return super().read(window)


def source_of(source_id: str, raster: MemoryRaster, **changes: Any) -> Source:
    values: dict[str, Any] = {
        "source_id": source_id,
        "group_id": f"group-{source_id}",
        "domain": "images",
        "uri": f"/data/{source_id}.png",
        "files": (f"/data/{source_id}.png",),
        "grid": raster.grid,
        "channels": raster.channels,
        "units": "dn",
        "dtype": raster.dtype.name,
    }
    return Source(**(values | changes))


def noise(seed: int, shape: tuple[int, ...], dtype: str = "uint8") -> NDArray[Any]:
    return np.random.default_rng(seed).integers(1, 250, shape).astype(dtype)


def config_of(root: Path, *, max_reject_share: float = 0.5, **tiles: Any) -> PipelineConfig:
    values = {"size": 16, "shard_mib": 1} | tiles
    return PipelineConfig.model_validate(
        {
            "name": "case",
            "source": {"kind": "images", "path": str(root / "data"), "max_reject_share": max_reject_share},
            "tiles": values,
            "workspace": str(root / "workspace"),
        }
    )


def scenes(count: int, raster: type[MemoryRaster] = MemoryRaster) -> tuple[dict[str, MemoryRaster], list[Source]]:
    """Some sources of 200 x 150 and more pixels: about 600 KiB of tiles each."""
    rasters = {f"{seed:016x}": raster(noise(seed, (2, 1, 400 + seed, 700))) for seed in range(count)}
    return rasters, [source_of(source_id, item) for source_id, item in rasters.items()]


def together(blocks: Sequence[Block]) -> tuple[NDArray[Any], NDArray[np.bool_], list[Window]]:
    """Give all tiles, masks and windows of blocks."""
    return (
        np.concatenate([block.tiles for block in blocks]),
        np.concatenate([block.valid for block in blocks]),
        [window for block in blocks for window in block.windows],
    )
