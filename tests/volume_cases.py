"""A stack whose values are linear in the patient's millimetres, so that every pixel says where it lies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.tiling_cases import MemoryRaster
from vitpipe.config import TileRecipe
from vitpipe.cutting import cut
from vitpipe.records import Grid, Window

SLOPES = np.array([0.11, -0.07, 0.05])
OFFSET = 3.0


def field(points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the value at points (..., 3), LPS millimetres."""
    return points_mm @ SLOPES + OFFSET


def affine_of(
    spacing_mm: tuple[float, float, float] = (5.0, 0.8, 0.5),
    *,
    angles: tuple[float, float] = (0.0, 0.0),
    tilt_mm: float = 0.0,
) -> NDArray[np.float64]:
    """Give (col, row, frame, 1) to LPS.

    Args:
        spacing_mm: between frames along the normal, rows, columns.
        angles: of a turn about x, then about z, in radians.
        tilt_mm: how far each frame is shifted along its rows: gantry tilt.
    """
    about_x, about_z = angles
    turn_x = np.array([[1, 0, 0], [0, np.cos(about_x), -np.sin(about_x)], [0, np.sin(about_x), np.cos(about_x)]])
    turn_z = np.array([[np.cos(about_z), -np.sin(about_z), 0], [np.sin(about_z), np.cos(about_z), 0], [0, 0, 1]])
    axes = turn_z @ turn_x
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = axes[:, 0] * spacing_mm[2], axes[:, 1] * spacing_mm[1], axes[:, 2]
    affine[:3, 2] = axes[:, 2] * spacing_mm[0] + axes[:, 1] * tilt_mm
    affine[:3, 3] = -31.5, 12.25, -400.0
    return affine


def grid_of(frames: int, height: int, width: int, affine: NDArray[np.float64] | None, **values: Any) -> Grid:
    """Give a grid with the spacing of its affine (frames along the normal)."""
    if affine is None:
        return Grid(frames, height, width, (0.0, 0.8, 0.5))
    rows, cols = np.linalg.norm(affine[:3, 1]), np.linalg.norm(affine[:3, 0])
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    step = abs(affine[:3, 2] @ normal) / np.linalg.norm(normal)
    return Grid(frames, height, width, (float(step), float(rows), float(cols)), tuple(affine.ravel().tolist()))


def places_mm(affine: NDArray[np.float64], frames: int, height: int, width: int) -> NDArray[np.float64]:
    """Give the centres (frames, height, width, 3) of all pixels."""
    frame, row, col = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    return np.stack([col, row, frame, np.ones_like(col)], -1) @ affine[:3].T


def field_raster(
    shape: tuple[int, int, int] = (7, 24, 40),
    affine: NDArray[np.float64] | None = None,
    *,
    regular: bool = True,
    valid: NDArray[np.bool_] | None = None,
) -> MemoryRaster:
    """Make a stack of the field; without a regular step its grid says so."""
    known = affine_of() if affine is None else affine
    pixels = field(places_mm(known, *shape)).astype(np.float32)[:, None]
    raster = MemoryRaster(pixels, valid, block_rows=shape[1], grid=grid_of(*shape, known if regular else None))
    raster.channels = ("intensity",)
    return raster


def centres_of_box(box_mm: list[float], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Give the centres (D, H, W, 3) of the pixels that fill a box evenly."""
    origin, down, right, through = np.asarray(box_mm, np.float64).reshape(4, 3)
    at = [(np.arange(count) + 0.5) / count for count in shape]
    return (
        origin
        + at[0][:, None, None, None] * through
        + at[1][None, :, None, None] * down
        + at[2][None, None, :, None] * right
    )


def blocks_of(
    raster: object, recipe: TileRecipe
) -> list[tuple[NDArray[Any], NDArray[np.bool_], Window, list[float] | None]]:
    """Cut, and give a row a tile: pixels, mask, window, box."""
    return [
        row
        for block in cut(raster, recipe, source_id="a")  # type: ignore[arg-type]
        for row in zip(block.tiles, block.valid, block.windows, block.boxes_mm, strict=True)
    ]
