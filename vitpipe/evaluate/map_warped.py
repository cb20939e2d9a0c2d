"""A reference raster that lies on another grid than the map, read on the map's grid strip by strip.

As label rasters are: each pixel of the map takes the reference pixel in which its centre lies (nearest neighbour), and
what is held is a strip, never a warped copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import shapely

from vitpipe.errors import DataError, LabelError, UnreadableSource
from vitpipe.evaluate.map_ground import (
    MAP_UNREADABLE,
    NOT_CLASSES,
    OTHER_GRID,
    VALUES,
    ClassRaster,
    Strip,
    pixel_edge_m,
)
from vitpipe.labels.footprints import footprints
from vitpipe.labels.ground import TileGrid
from vitpipe.labels.places import Rectangle, apply
from vitpipe.labels.raster_layer import Band, RasterLayer
from vitpipe.labels.raster_look import values_under
from vitpipe.pixel_targets import IGNORE

_MARGIN_PX = 2
"""Around the ground of the map: its outline is bent between the points that are moved."""


def grid_note(raster: ClassRaster, reference: ClassRaster) -> str:
    """Say in a sentence how a reference was brought onto the grid of the map."""
    theirs, ours = (pixel_edge_m(each) for each in (reference, raster))
    sizes = f" (pixels of {theirs:.3g} m, the map's are of {ours:.3g} m)" if theirs and ours else ""
    return (
        f"the reference raster lies on another grid{sizes}: each pixel of the map took the reference pixel in which "
        "its centre lies (nearest neighbour)"
    )


def strips_on_grid(raster: ClassRaster, reference: ClassRaster) -> Iterator[Strip]:
    """Give a reference on the grid of a map, from top to bottom.

    Args:
        raster: the map.
        reference: of classes, on any grid.

    Raises:
        DataError: one of them has no CRS, or the reference is damaged or holds no classes.
    """
    for each, other in ((raster, reference), (reference, raster)):
        if each.dataset.crs is None:
            raise DataError(
                f"{OTHER_GRID}: {each.path} ({each.height} x {each.width}) has no CRS and is not on the grid of "
                f"{other.path} ({other.height} x {other.width}); give it its CRS, or bring both to one grid"
            )
    grid = TileGrid(
        raster.height,
        raster.width,
        raster.dataset.crs.to_wkt(),
        tuple(raster.dataset.transform[:6]),
        None,
        (raster.height, raster.width),
    )
    try:
        values = _values(raster, reference)
        table = np.array([*values, *([0] * (VALUES - len(values)))], np.uint8)
        layer = RasterLayer(_band(reference, values), "", pixel_by_pixel=False)
        with layer.open(grid) as painter:
            step = raster.strip_rows
            for row in range(0, raster.height, step):
                places = painter.rows(row, min(row + step, raster.height))
                yield Strip(row, table[places], places != IGNORE)
    except (LabelError, UnreadableSource) as error:
        raise DataError(f"{MAP_UNREADABLE}: {reference.path} cannot be read as a reference: {error}") from error


def _band(reference: ClassRaster, values: list[int]) -> Band:
    return Band(
        path=str(reference.path),
        number=1,
        height=reference.height,
        width=reference.width,
        crs=reference.dataset.crs.to_wkt(),
        transform=tuple(reference.dataset.transform[:6]),
        places={float(value): place for place, value in enumerate(values)},
    )


def _values(raster: ClassRaster, reference: ClassRaster) -> list[int]:
    """Look which class values lie about the ground of the map, ascending."""
    window = _window(raster, reference)
    found: set[float] = set()
    for _, values in values_under(_band(reference, []), [("map", window)], continuous=False):
        found |= values
    wrong = [value for value in sorted(found) if not 0 <= value < VALUES]
    if wrong:
        raise DataError(
            f"{NOT_CLASSES}: {reference.path} holds {wrong[0]:g}, but class values are 0..255; renumber the classes, "
            "or set the nodata value if this one means no class"
        )
    if len(found) > IGNORE:
        raise DataError(f"{NOT_CLASSES}: {reference.path} holds every value 0..255; set the one that means no class")
    return [int(value) for value in sorted(found)]


def _window(raster: ClassRaster, reference: ClassRaster) -> Rectangle:
    """Give the window of the reference that covers the ground of the map; an empty one where they lie apart."""
    crs = raster.dataset.crs, reference.dataset.crs
    ground = footprints(raster.height, raster.width, raster.dataset.transform, crs, around_px=_MARGIN_PX)
    to_pixels = ~reference.dataset.transform
    parts = [shapely.transform(part, lambda x, y: apply(to_pixels, x, y), interleaved=False) for part in ground]
    whole = shapely.box(0, 0, reference.width, reference.height)
    shared = shapely.intersection(shapely.union_all([shapely.make_valid(part) for part in parts]), whole)
    if shared.is_empty:
        return Rectangle(0, 0, 0, 0)
    left, top, right, bottom = shapely.bounds(shared)
    found = Rectangle(
        math.floor(top) - _MARGIN_PX,
        math.ceil(bottom) + _MARGIN_PX,
        math.floor(left) - _MARGIN_PX,
        math.ceil(right) + _MARGIN_PX,
    )
    return found.within(reference.height, reference.width)
