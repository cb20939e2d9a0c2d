"""The steps that a recipe asks for between the file and the cut, planned from a grid alone or done on a raster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vitpipe.config import TileRecipe
from vitpipe.domains.base import Raster
from vitpipe.errors import UnreadableSource
from vitpipe.records import Grid
from vitpipe.resample.orientation import TurnedRaster, code_of, turn_to, turned_grid
from vitpipe.resample.plane import at_resolution, moved_grid, resolution_axes
from vitpipe.resample.stack import NeighbourRaster, SlicedRaster, Slices
from vitpipe.resample.warped import WarpedRaster, warped_grid

NO_REGULAR_STACK: Final = "NO_REGULAR_STACK"
"""Code of a source whose frames do not lie at one step along one line, where the recipe needs that."""


def tile_channels(recipe: TileRecipe, channels: Sequence[str]) -> tuple[str, ...]:
    """Name the channels of tiles: those of the source, and with neighbours each with the frames' distance.

    ``intensity`` with one neighbour becomes ``intensity-1, intensity, intensity+1``.
    """
    if not recipe.neighbours:
        return tuple(channels)
    around = range(-recipe.neighbours, recipe.neighbours + 1)
    return tuple(f"{name}{distance:+d}" if distance else name for distance in around for name in channels)


def prepared_grid(grid: Grid, recipe: TileRecipe, *, uri: str) -> Grid:
    """Give the grid that tiles of a source are cut from, without opening it.

    Raises:
        UnreadableSource: ``NO_REGULAR_STACK``: the recipe goes along the stack and the source is none; ``NO_SPACING``
            or ``NO_GSD``: it does not say how large its pixels are.
    """
    _check_stack(grid, recipe, uri=uri)
    if recipe.orientation is not None:
        grid = turned_grid(grid, turn_to(grid, recipe.orientation))
    if recipe.crs is not None and (warped := warped_grid(grid, recipe, uri=uri)) is not None:
        return warped
    axes = resolution_axes(grid, recipe, uri=uri)
    grid = moved_grid(grid, *axes) if axes else grid
    slices = _slices(grid, recipe)
    return slices.moved(grid) if slices else grid


def prepare(raster: Raster, recipe: TileRecipe, *, uri: str, threads: int | None = None) -> Raster:
    """Give the raster that tiles are cut from: its grid is that of :func:`prepared_grid`.

    Args:
        raster: an opened source.
        recipe: says what is to be done.
        uri: the source, for errors.
        threads: how many warp side by side, see :func:`vitpipe.processors.thread_count`; the pixels are the same.

    Raises:
        UnreadableSource: see :func:`prepared_grid`.
    """
    _check_stack(raster.grid, recipe, uri=uri)
    if recipe.orientation is not None:
        turn = turn_to(raster.grid, recipe.orientation)
        raster = raster if turn.moves_nothing else TurnedRaster(raster, turn)
    if recipe.crs is not None and (warped := warped_grid(raster.grid, recipe, uri=uri)) is not None:
        return WarpedRaster(raster, warped, threads=threads)
    raster = at_resolution(raster, recipe, uri=uri)
    slices = _slices(raster.grid, recipe)
    return SlicedRaster(raster, slices) if slices else raster


def preparation(grid: Grid, recipe: TileRecipe, *, uri: str) -> str:
    """Say what is done to a source, for the table of tiles; empty where nothing is.

    Such as ``turned from RAS to LPS; rows 0.8 to 1 mm, columns 0.8 to 1 mm; slices 5 to 2.5 mm``.

    Raises:
        UnreadableSource: see :func:`prepared_grid`.
    """
    _check_stack(grid, recipe, uri=uri)
    done = []
    if recipe.orientation is not None and (code := code_of(grid)) != recipe.orientation:
        done.append(f"turned from {code} to {recipe.orientation}")
        grid = turned_grid(grid, turn_to(grid, recipe.orientation))
    if recipe.crs is not None and (warped := warped_grid(grid, recipe, uri=uri)) is not None:
        assert warped.transform is not None
        return f"warped from {_name(grid.crs)} to {warped.crs}, pixels of {warped.transform[0]:g}"
    if axes := resolution_axes(grid, recipe, uri=uri):
        if recipe.gsd_m is not None:
            done.append(f"pixels {axes[0].scale:g} x {axes[1].scale:g} times as large: {recipe.gsd_m:g} m")
        elif grid.spacing_mm is not None:
            _, rows, cols = grid.spacing_mm
            done.append(f"rows {rows:g} to {recipe.spacing_mm:g} mm, columns {cols:g} to {recipe.spacing_mm:g} mm")
    if _slices(grid, recipe) and grid.spacing_mm is not None:
        done.append(f"slices {grid.spacing_mm[0]:g} to {recipe.slice_spacing_mm:g} mm")
    return "; ".join(done)


def _name(crs: str | None) -> str:
    return crs if crs is not None and crs.startswith("EPSG:") else "its own CRS"


def _slices(grid: Grid, recipe: TileRecipe) -> Slices | None:
    """Give the frames at the recipe's spacing; None where they stay as they are."""
    if recipe.slice_spacing_mm is None or grid.spacing_mm is None:
        return None
    slices = Slices.at_spacing(grid.frames, grid.spacing_mm[0], recipe.slice_spacing_mm)
    return None if slices.moves_nothing else slices


def with_neighbours(raster: Raster, recipe: TileRecipe) -> Raster:
    """Give the raster with the channels of :func:`tile_channels`; the raster itself where none are asked for."""
    if not recipe.neighbours:
        return raster
    return NeighbourRaster(raster, recipe.neighbours, tile_channels(recipe, raster.channels))


def _check_stack(grid: Grid, recipe: TileRecipe, *, uri: str) -> None:
    regular = grid.affine is not None and grid.spacing_mm is not None and grid.spacing_mm[0] > 0
    if not recipe.along_stack or (regular and grid.frames > 1):
        return
    raise UnreadableSource(
        NO_REGULAR_STACK,
        f"`tiles.{recipe.along_stack[0]}` needs frames at one step along one line, and the {grid.frames} frame(s) of "
        "the source have gaps, irregular steps or no positions in the patient; set `source.geometry: repair`, which "
        "makes a regular stack of many such series, take the source away, or cut 2-D tiles",
        uri,
    )
