"""From a source as it lies in its files to the stack that tiles are cut from: turned, resampled, with neighbours.

Every step is a :class:`vitpipe.domains.base.Raster` over another one, so it streams, and `prepare` chains them.
"""

from __future__ import annotations

from vitpipe.resample.orientation import Turn, TurnedRaster, code_of, turn_to, turned_grid
from vitpipe.resample.plane import (
    LEAST_VALID_WEIGHT,
    Axis,
    ResampledRaster,
    RowBuffer,
    at_resolution,
    ground_pixel_m,
    moved_grid,
    resolution_axes,
    whole_axes,
)
from vitpipe.resample.prepare import (
    NO_REGULAR_STACK,
    preparation,
    prepare,
    prepared_grid,
    tile_channels,
    with_neighbours,
)
from vitpipe.resample.stack import FrameCache, NeighbourRaster, SlicedRaster, Slices
from vitpipe.resample.warped import WarpedRaster, warped_grid

__all__ = [
    "Axis",
    "FrameCache",
    "LEAST_VALID_WEIGHT",
    "NO_REGULAR_STACK",
    "NeighbourRaster",
    "ResampledRaster",
    "RowBuffer",
    "at_resolution",
    "ground_pixel_m",
    "SlicedRaster",
    "Slices",
    "Turn",
    "WarpedRaster",
    "TurnedRaster",
    "code_of",
    "moved_grid",
    "preparation",
    "prepare",
    "prepared_grid",
    "resolution_axes",
    "tile_channels",
    "turn_to",
    "turned_grid",
    "warped_grid",
    "whole_axes",
    "with_neighbours",
]
