"""Polygons, lines and points on the grid of the tiles: drawn block by block, in the grid's own pixels.

Geometries are cut to the surroundings of the scene, and edges longer than 64 pixels are divided before they are moved
to the scene's CRS: a straight edge of one CRS is bent in another, by about ``n^2 gsd / (8 R)`` for an edge of n pixels
on an earth of radius R, thus a small part of a pixel. A pixel belongs to a polygon when its centre lies inside.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.features import rasterize
from shapely import affinity

from vitpipe.labels.footprints import beyond_half_turn, footprints, in_every_turn
from vitpipe.labels.ground import Painter, TileGrid
from vitpipe.labels.places import apply, crs_of, move_points
from vitpipe.labels.vector_files import Geometries, Shapes
from vitpipe.pixel_targets import IGNORE

_EDGE_PX: Final = 64
_AROUND: Final = 0.05
"""Of a scene's extent: how far around it geometries are kept."""
_CIRCLE_POINTS: Final = 64
_LON_LAT: Final = 4326
_HALF_TURN, _TURN = 180.0, 360.0
_LEAST_SHARE: Final = 1e-3


@dataclass(frozen=True)
class Style:
    """How shapes are drawn."""

    all_touched: bool = False
    buffer_m: float | None = None
    """Radius around points and lines."""


@dataclass(frozen=True)
class VectorLayer:
    """The features of one file that have a class."""

    shapes: Shapes
    places: NDArray[np.uint8]
    """Of each feature, in the list of classes."""
    ranks: Sequence[int]
    """Of each class: where features overlap the lowest wins."""
    style: Style
    content: str
    """Digest of the file."""

    @property
    def digest(self) -> str:
        """Of the file; what its features mean stands in the digest of the label set."""
        return self.content

    @cached_property
    def tree(self) -> shapely.STRtree:
        """The features by place."""
        return shapely.STRtree(self.shapes.geometries)

    def on(self, height: int, width: int, transform: Sequence[float], crs: str) -> NDArray[np.int64]:
        """Give the features that touch a grid, in the order of the file.

        Args:
            height: of the grid.
            width: of the grid.
            transform: a, b, c, d, e, f of the grid.
            crs: of the grid.
        """
        reach = reach_px(height, width, transform, crs, self.style.buffer_m)
        parts = _grounds((height, width), transform, (crs_of(crs), crs_of(self.shapes.crs)), reach)
        found = [self.tree.query(part, predicate="intersects") for part in parts]
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)

    def covers(self, points: NDArray[np.float64], crs: str) -> NDArray[np.bool_]:
        """Tell which points lie on a feature.

        Args:
            points: (N, 2) x, y.
            crs: theirs.
        """
        own = crs_of(self.shapes.crs)
        x, y = move_points(points.T, crs_of(crs), own)
        inside = np.zeros(len(points), bool)
        # Longitudes may be counted beyond half a turn.
        for turn in (0.0, _TURN, -_TURN) if own.is_geographic else (0.0,):
            inside[self.tree.query(shapely.points(x + turn, y), predicate="intersects")[0]] = True
        return inside

    @contextlib.contextmanager
    def open(self, grid: TileGrid) -> Iterator[Painter]:
        """Move the features that touch the grid to its pixels."""
        assert grid.transform is not None
        assert grid.crs is not None
        hits = self.on(grid.height, grid.width, grid.transform, grid.crs)
        reach = reach_px(grid.height, grid.width, grid.transform, grid.crs, self.style.buffer_m)
        drawn = to_pixels(self.shapes.geometries[hits], crs_of(self.shapes.crs), grid, reach)
        places = self.places[hits]
        if self.style.buffer_m is not None:
            drawn = _buffered(drawn, grid, self.style.buffer_m)
        yield _VectorPainter(drawn, places, np.asarray(self.ranks)[places], (grid, self.style.all_touched))


class _VectorPainter:
    def __init__(
        self, drawn: Geometries, places: NDArray[np.uint8], ranks: NDArray[Any], how: tuple[TileGrid, bool]
    ) -> None:
        there = ~(shapely.is_missing(drawn) | shapely.is_empty(drawn))
        # The one that wins is drawn last; of one class the order does not matter.
        order = np.flatnonzero(there)[np.argsort(-ranks[there], kind="stable")]
        self._drawn, self._places = drawn[order], places[order]
        self._grid, self._all_touched = how
        self._tree = shapely.STRtree(self._drawn)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        return self._draw(self._near(start, stop), start, stop)

    def masks(self, start: int, stop: int) -> dict[int, NDArray[np.bool_]]:
        near = self._near(start, stop)
        found = {}
        for place in np.unique(self._places[near]):
            mask = self._draw(near[self._places[near] == place], start, stop) != IGNORE
            if mask.any():
                found[int(place)] = mask
        return found

    def _near(self, start: int, stop: int) -> NDArray[np.int64]:
        return np.sort(self._tree.query(shapely.box(-1, start - 1, self._grid.width + 1, stop + 1)))

    def _draw(self, chosen: NDArray[np.int64], start: int, stop: int) -> NDArray[np.uint8]:
        shape = (stop - start, self._grid.width)
        if not len(chosen):
            return np.full(shape, IGNORE, np.uint8)
        painted: NDArray[np.uint8] = rasterize(
            list(zip(self._drawn[chosen], self._places[chosen].tolist(), strict=True)),
            out_shape=shape,
            fill=IGNORE,
            transform=Affine.translation(0, start),
            all_touched=self._all_touched,
            dtype=np.uint8,
        )
        return painted


def reach_px(height: int, width: int, transform: Sequence[float], crs: str, buffer_m: float | None) -> int:
    """Say how many pixels beside a grid a feature may lie and still be drawn on it."""
    if buffer_m is None:
        return 0
    # At a pole, where many a scene has its middle, degrees say nothing.
    along = np.array([0.25, 0.5, 0.75])
    metres = _metres_a_pixel(transform, crs, along * width, along * height)
    sizes = np.linalg.svd(metres[np.isfinite(metres).all(axis=(1, 2))], compute_uv=False).min(axis=1)
    sizes = sizes[sizes > _LEAST_SHARE * sizes.max(initial=0.0)]
    return math.ceil(buffer_m / float(sizes.min())) + 1 if len(sizes) else 0


def to_pixels(geometries: Geometries, crs: CRS, grid: TileGrid, around_px: int = 0) -> Geometries:
    """Give geometries in the pixels of a grid: x along its columns, y along its rows, from its outer corner.

    Args:
        geometries: in their CRS.
        crs: theirs.
        grid: of the tiles.
        around_px: what lies within so many pixels of the grid is given too.
    """
    assert grid.transform is not None
    assert grid.crs is not None
    if not len(geometries):
        return geometries
    grid_crs, affine = crs_of(grid.crs), Affine(*grid.transform[:6])
    moved = geometries
    if crs != grid_crs:
        grounds = _grounds((grid.height, grid.width), grid.transform, (grid_crs, crs), around_px)
        moved = _cut(geometries, grounds)
        edge = _edge(grid, affine, (grid_crs, crs))
        if edge is not None:
            moved = shapely.segmentize(moved, edge)

    if (span := beyond_half_turn(grid.height, grid.width, grid.transform, grid_crs)) is not None:
        margin = around_px * max(abs(affine.a), abs(affine.b))
        moved, crs = _in_turns(moved, (crs, grid_crs), (span[0] - margin, span[1] + margin)), grid_crs

    def move(coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = move_points(coordinates.T, crs, grid_crs)
        return apply(~affine, x, y).T

    pixels: Geometries = shapely.transform(moved, move)
    # A point that lies on no ground of the scene's CRS takes its geometry away.
    pixels[~np.isfinite(shapely.bounds(pixels)).all(axis=1)] = None
    return pixels


def _grounds(
    shape: tuple[int, int], transform: Sequence[float], crs: tuple[CRS, CRS], around_px: int
) -> list[shapely.Polygon]:
    """Give the ground of a grid in another CRS: in degrees in every turn, where the grid counts beyond half of one."""
    parts = footprints(*shape, transform, crs, around_px)
    turned = crs[1].is_geographic and beyond_half_turn(*shape, transform, crs[0]) is not None
    return in_every_turn(parts) if turned else parts


def _in_turns(geometries: Geometries, crs: tuple[CRS, CRS], span: tuple[float, float]) -> Geometries:
    """Move geometries to degrees, and to the turns in which they lie between two longitudes; None: in none."""

    def move(coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = move_points(coordinates.T, *crs)
        if crs[0] != crs[1]:
            # In one piece: what a map holds on both sides of the 180th meridian has a jump there in degrees.
            x = x[0] + (x - x[0] + _HALF_TURN) % _TURN - _HALF_TURN
        return np.stack([x, y], axis=1)

    found = np.full(len(geometries), None, object)
    for place, geometry in enumerate(geometries):
        one = shapely.transform(geometry, move)
        west, _, east, _ = shapely.bounds(one)
        turns = [turn for turn in (-_TURN, 0.0, _TURN) if west + turn <= span[1] and east + turn >= span[0]]
        if turns:
            found[place] = shapely.union_all([affinity.translate(one, turn) for turn in turns])
    return found


def _cut(geometries: Geometries, grounds: Sequence[shapely.Polygon]) -> Geometries:
    """Cut geometries to the surroundings of the scene: far away a CRS has no place for them."""
    boxes = []
    for ground in grounds:
        left, bottom, right, top = shapely.bounds(ground)
        margin = _AROUND * max(right - left, top - bottom)
        boxes.append(shapely.box(left - margin, bottom - margin, right + margin, top + margin))
    around = shapely.union_all(boxes)
    shapely.prepare(around)
    beyond = ~shapely.covers(around, geometries)
    cut = geometries.copy()
    cut[beyond] = shapely.intersection(geometries[beyond], around)
    return cut


def _edge(grid: TileGrid, affine: Affine, crs: tuple[CRS, CRS]) -> float | None:
    """Give the length of `_EDGE_PX` pixels in units of the geometries' CRS, at the centre of the grid.

    Degrees of longitude count as those of latitude do, by their length: near a pole a pixel is many of them.
    """
    cols = np.array([0.0, 1.0, 0.0]) + grid.width / 2
    rows = np.array([0.0, 0.0, 1.0]) + grid.height / 2
    x, y = move_points(apply(affine, cols, rows), *crs)
    right, up = x[1:] - x[0], y[1:] - y[0]
    if crs[1].is_geographic:
        right = ((right + _HALF_TURN) % _TURN - _HALF_TURN) * np.cos(np.radians(y[0]))
    sizes = np.hypot(right, up)
    return float(sizes.min()) * _EDGE_PX if np.isfinite(sizes).all() and sizes.min() > 0 else None


def _buffered(drawn: Geometries, grid: TileGrid, buffer_m: float) -> Geometries:
    """Put discs around points, and strips along lines; polygons stay as they are.

    A circle on the ground is an ellipse of pixels: metres a pixel are measured at each geometry.
    """
    assert grid.transform is not None
    assert grid.crs is not None
    thin = np.flatnonzero(~shapely.is_missing(drawn) & (shapely.get_dimensions(drawn) < 2))
    if not len(thin):
        return drawn
    out = drawn.copy()
    for at in thin:
        parts = shapely.get_parts(drawn[at])
        centres = shapely.get_coordinates(shapely.centroid(parts)).T
        metres = _metres_a_pixel(grid.transform, grid.crs, *centres)
        out[at] = shapely.union_all(
            [_around(part, matrix, buffer_m) for part, matrix in zip(parts, metres, strict=True)]
        )
    return out


def _around(part: shapely.Geometry, metres: NDArray[np.float64], buffer_m: float) -> shapely.Geometry:
    """Buffer one geometry of pixels in metres, by the matrix (2, 2) from pixels to metres."""
    if not np.isfinite(metres).all() or abs(np.linalg.det(metres)) < 1e-12:
        return part
    there = shapely.transform(part, lambda points: points @ metres.T)
    back = np.linalg.inv(metres)
    wide = there.buffer(buffer_m, quad_segs=_CIRCLE_POINTS // 4)
    return shapely.transform(wide, lambda points: points @ back.T)


def _metres_a_pixel(
    transform: Sequence[float], crs: str, cols: NDArray[np.float64], rows: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Give the matrices (N, 2, 2) from pixels to metres east and north at places of a grid.

    Degrees become metres by the radii of curvature of the WGS 84 ellipsoid (Snyder 1987, equations 4-18 and 4-19).
    """
    both = crs_of(crs), CRS.from_epsg(_LON_LAT)
    at = [
        move_points(apply(Affine(*transform[:6]), cols + right, rows + down), *both)
        for right, down in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    ]
    latitude = np.radians(at[0][1])
    axis_m, squared = 6378137.0, 0.00669437999014
    root = np.sqrt(1 - squared * np.sin(latitude) ** 2)
    north = np.radians(1) * axis_m * (1 - squared) / root**3
    east = np.radians(1) * axis_m * np.cos(latitude) / root
    steps = [point - at[0] for point in at[1:]]
    for step in steps:
        step[0] = (step[0] + _HALF_TURN) % _TURN - _HALF_TURN
    return np.stack([np.stack([step[0] * east, step[1] * north], axis=-1) for step in steps], axis=-1)
