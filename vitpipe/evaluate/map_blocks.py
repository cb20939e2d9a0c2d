"""Blocks of a map: each is one cluster of reference units, and together they show where the map errs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.io import MemoryFile

from vitpipe.atomic import write_file
from vitpipe.evaluate.map_ground import ClassRaster, pixel_edge_m

BLOCKS_FILE: Final = "error_blocks.tif"
MOST_BLOCKS: Final = 4_000_000
"""More are no picture, and would take memory like a map."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """The squares of pixels that a map is cut into, from its first pixel on."""

    edge_px: int
    height: int
    """Of the map, in pixels."""
    width: int
    transform: Affine
    """Of the map: (col, row) to (x, y)."""
    crs: CRS | None
    edge_m: float

    @classmethod
    def of(cls, raster: ClassRaster, edge_px: int) -> Blocks:
        """Cut a map."""
        data = raster.dataset
        edge_m = edge_px * (pixel_edge_m(raster) or 0.0)
        return cls(edge_px, raster.height, raster.width, data.transform, data.crs, edge_m)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        return -(-self.height // self.edge_px), -(-self.width // self.edge_px)

    def numbers(self, row: NDArray[np.int64], col: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number the blocks that pixels of the map lie in, row by row."""
        return row // self.edge_px * self.shape[1] + col // self.edge_px


@dataclass(frozen=True, slots=True)
class BlockErrors:
    """How many reference units a block holds, and how many of them the map has wrong."""

    blocks: Blocks
    units: NDArray[np.int64]
    """(rows, columns of blocks)."""
    wrong: NDArray[np.int64]
    """As `units`."""

    @property
    def error(self) -> NDArray[np.float64]:
        """Share of units that are wrong; NaN where there is none."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.wrong / np.where(self.units > 0, self.units, np.nan))

    @property
    def transform(self) -> Affine:
        """Of the blocks: (column, row) of a block to (x, y)."""
        return self.blocks.transform @ Affine.scale(self.blocks.edge_px)


def block_errors(sample: pd.DataFrame, blocks: Blocks) -> BlockErrors | None:
    """Sum up the units of each block; None where there are too many blocks.

    Args:
        sample: `map, reference, count`, and `cluster`, of which each is a block.
        blocks: that numbered the clusters.
    """
    size = int(np.prod(blocks.shape, dtype=np.int64))
    if size > MOST_BLOCKS:
        return None
    number, count = sample["cluster"].to_numpy(np.int64), sample["count"].to_numpy(np.int64)
    wrong = count * (sample["map"] != sample["reference"]).to_numpy(np.int64)
    # Sums of whole numbers below 2^53 are exact.
    units, errors = (np.bincount(number, each, minlength=size).astype(np.int64) for each in (count, wrong))
    return BlockErrors(blocks, units.reshape(blocks.shape), errors.reshape(blocks.shape))


def write_blocks(found: BlockErrors, path: Path) -> None:
    """Write the errors as a GeoTIFF in the CRS of the map: the share of wrong units (NaN: none), and the units.

    Raises:
        WorkspaceError: it cannot be written.
    """
    height, width = found.units.shape
    profile = {"driver": "GTiff", "count": 2, "dtype": "float32", "height": height, "width": width, "nodata": np.nan}
    with MemoryFile() as memory:
        with memory.open(**profile, crs=found.blocks.crs, transform=found.transform, compress="deflate") as raster:
            raster.write(found.error.astype(np.float32), 1)
            raster.write(found.units.astype(np.float32), 2)
            raster.set_band_description(1, "share of reference units that are wrong")
            raster.set_band_description(2, "reference units")
        content = memory.read()
    with write_file(path) as partial:
        partial.write_bytes(content)
