"""Which tiles must stay out so that no two splits share ground or come nearer than the buffer."""

from __future__ import annotations

from typing import Final

import numpy as np
import shapely
from numpy.typing import NDArray

from vitpipe.ground.equal_area import MERCATOR_WORLD_M, WORLD_M, distance_m, from_mercator, to_mercator
from vitpipe.ground.footprints import Footprints, Geometries
from vitpipe.records import Split

SLIVER: Final = 1e-4
"""Overlaps below this share of the smaller tile are rounding of its edges: some hundredths of a pixel."""
_MARGIN: Final = 1.01
"""Tiles are left out up to this multiple of the buffer: which tile is nearest is found on a map, whose scale changes by
less than that over a buffer of 50 km."""
_SEAM_SHARE: Final = 1 / 36
"""Tiles within 10 degrees of the antimeridian are compared across it too."""
_GIVING_WAY: Final = (Split.TEST, Split.CALIBRATION, Split.VAL, Split.TRAIN)
"""A tile gives way to those of an earlier split: train to all, test to none."""


def left_out(splits: NDArray[np.object_], ground: Footprints, buffer_m: float) -> tuple[NDArray[np.bool_], ...]:
    """Find the tiles that share ground with another split, and those that come nearer to one than the buffer.

    The tile of the split that is easier to do without gives way: train first, then val, then calibration; test never.
    A tile that is left out makes no other one give way.

    Args:
        splits: (N,) names.
        ground: of the same tiles; those on no known ground stay.
        buffer_m: 0: only shared ground counts.

    Returns:
        Two masks (N,): shares ground; shares none but is too near.
    """
    overlapping, near = np.zeros(len(splits), bool), np.zeros(len(splits), bool)
    standing = np.zeros(len(splits), bool)
    for split in _GIVING_WAY:
        members = np.flatnonzero((splits == str(split)) & ground.known)
        others = ground.where(standing).distinct()
        if len(members) and len(others.centres):
            mine = ground.where(members)
            overlapping[members] = _overlaps_any(mine.polygons, others.polygons)
            if buffer_m > 0:
                found = nearest_m(mine, others) < buffer_m * _MARGIN
                near[members] = found & ~overlapping[members]
        standing[members] = ~(overlapping | near)[members]
    return overlapping, near


def _overlaps_any(polygons: Geometries, others: Geometries) -> NDArray[np.bool_]:
    found = np.zeros(len(polygons), bool)
    found[overlaps(polygons, others)[0]] = True
    return found


def overlaps(polygons: Geometries, others: Geometries) -> tuple[NDArray[np.intp], NDArray[np.intp], Geometries]:
    """Intersect two sets of polygons on the equal-area grid.

    Returns:
        Places in the first and in the second set, and the ground they share, of every pair that shares more than a
        sliver.
    """
    repeated, whose = _across_the_seam(others, WORLD_M)
    first, second = shapely.STRtree(repeated).query(polygons, predicate="intersects")
    shared = shapely.intersection(polygons[first], repeated[second])
    smaller = np.minimum(shapely.area(polygons[first]), shapely.area(repeated[second]))
    real = shapely.area(shared) > SLIVER * smaller
    return first[real], whose[second[real]], shared[real]


def nearest_m(ground: Footprints, others: Footprints) -> NDArray[np.float64]:
    """Give for each tile the distance in metres from its edge to the nearest of the others; 0 where they touch."""
    mine = shapely.transform(ground.polygons, to_mercator)
    repeated, _ = _across_the_seam(shapely.transform(others.polygons, to_mercator), MERCATOR_WORLD_M)
    tree = shapely.STRtree(repeated)
    first, second = tree.query_nearest(mine, all_matches=False)
    lines = shapely.shortest_line(mine[first], repeated[second])
    ends = shapely.get_coordinates(lines).reshape(-1, 2, 2)
    found = np.full(len(mine), np.inf)
    found[first] = distance_m(from_mercator(ends[:, 0]), from_mercator(ends[:, 1]))
    return found


def _across_the_seam(polygons: Geometries, world_m: float) -> tuple[Geometries, NDArray[np.intp]]:
    """Repeat polygons near the antimeridian on the other edge of the map; also gives the place of each in the input."""
    bounds = shapely.bounds(polygons).reshape(-1, 4)
    east = np.flatnonzero(bounds[:, 2] > world_m * (0.5 - _SEAM_SHARE))
    west = np.flatnonzero(bounds[:, 0] < -world_m * (0.5 - _SEAM_SHARE))
    if not len(east) and not len(west):
        return polygons, np.arange(len(polygons))
    moved = [
        shapely.transform(polygons[east], lambda points: points - np.array([world_m, 0.0])),
        shapely.transform(polygons[west], lambda points: points + np.array([world_m, 0.0])),
    ]
    return np.concatenate([polygons, *moved]), np.concatenate([np.arange(len(polygons)), east, west])


def distance_to_train(splits: NDArray[np.object_], ground: Footprints) -> NDArray[np.float64]:
    """Give the distance in metres of each tile outside train to the nearest tile of train; NaN elsewhere."""
    found = np.full(len(splits), np.nan)
    train = (splits == str(Split.TRAIN)) & ground.known
    judged = (splits != str(Split.TRAIN)) & ground.known
    if train.any() and judged.any():
        found[judged] = nearest_m(ground.where(judged), ground.where(train).distinct())
    return found
