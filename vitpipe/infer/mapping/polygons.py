"""Polygons of a class map, strip by strip: parts that meet at a seam are joined, whole ones leave memory at once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS

from vitpipe.errors import WorkspaceError
from vitpipe.infer.mapping.gdal import gdal_writes
from vitpipe.infer.mapping.layers import NODATA
from vitpipe.infer.mapping.strips import StripStore
from vitpipe.infer.mapping.styles import add_polygon_style
from vitpipe.records import Grid

VECTORS_FILE: Final = "classes.gpkg"
_LAYER: Final = "classes"
_AT_ONCE: Final = 10_000
_SAID: Final = 200
"""Letters of an error of pyogrio: it may hold a whole statement of SQL."""


class ClassPolygon(NamedTuple):
    """Pixels of one class that hang together by their edges."""

    value: int
    """The class."""
    polygon: Any
    """shapely's; x counts columns, y counts rows, from the upper left corner of the map."""


@dataclass(slots=True)
class _Open:
    """Parts of one polygon that reaches the last row so far."""

    value: int
    parts: list[Any]


class SeamJoiner:
    """Joins the polygons of strips that follow each other.

    A polygon is kept in parts while it reaches the last row, so what is held is the polygons that cross one line, in
    full; joining them costs once what they are, however many strips they cross.

    Args:
        width: columns of the map.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._row = 0
        self._open: dict[int, _Open] = {}
        self._owner: NDArray[np.int64] = np.full(width, -1)
        """Which open polygon each pixel of the last row is of; -1: none."""
        self._next = 0

    def add(self, classes: NDArray[np.uint8]) -> Iterator[ClassPolygon]:
        """Take the next rows (rows, width); gives the polygons that end above or in them."""
        from rasterio.features import shapes

        rows = len(classes)
        above, below = self._owner, np.full(self._width, -1)
        joined: dict[int, int] = {}
        reaching: set[int] = set()
        for geometry, value in shapes(classes, mask=classes != NODATA, connectivity=4):
            rings = geometry["coordinates"]
            edge = np.asarray(rings[0], dtype=np.int64)
            down = np.array([0, self._row])
            polygon = shapely.Polygon(edge + down, [np.asarray(ring) + down for ring in rings[1:]])
            upper = _columns(edge, 0)
            met = {_root(joined, int(found)) for found in np.unique(above[upper]) if found >= 0} if self._row else set()
            number = self._join({found for found in met if self._open[found].value == int(value)}, joined)
            if number is None:
                number = self._next
                self._next += 1
                self._open[number] = _Open(int(value), [])
            self._open[number].parts.append(polygon)
            lower = _columns(edge, rows)
            if len(lower):
                below[lower] = number
                reaching.add(number)
        self._row += rows
        ends = below >= 0
        below[ends] = [_root(joined, int(found)) for found in below[ends]]
        self._owner = below
        kept = {_root(joined, found) for found in reaching}
        for number in [found for found in self._open if found not in kept]:
            yield _whole(self._open.pop(number))

    def finish(self) -> Iterator[ClassPolygon]:
        """Give the polygons that reach the last row of the map."""
        for number in list(self._open):
            yield _whole(self._open.pop(number))

    def _join(self, numbers: set[int], joined: dict[int, int]) -> int | None:
        """Make one open polygon of several."""
        if not numbers:
            return None
        first, *others = sorted(numbers)
        for other in others:
            self._open[first].parts += self._open.pop(other).parts
            joined[other] = first
        return first


def polygons_of(strips: Iterable[NDArray[np.uint8]], width: int) -> Iterator[ClassPolygon]:
    """Give the polygons of a class map, 4-connected, in the order in which they end.

    Args:
        strips: of classes, `NODATA` where there is none; (rows, width) from top to bottom.
        width: columns.
    """
    joiner = SeamJoiner(width)
    for strip in strips:
        yield from joiner.add(strip)
    yield from joiner.finish()


@dataclass(frozen=True, slots=True)
class ClassVectors:
    """Writes the polygons of a class map as a GeoPackage, beside it.

    Args:
        classes: their names.
        min_area_px: polygons of fewer pixels are left out.
    """

    classes: tuple[str, ...]
    min_area_px: int

    def __call__(self, store: StripStore, grid: Grid, folder: Path) -> list[Path]:
        """Write ``classes.gpkg``; see `vitpipe.infer.mapping.scene.Extra`."""
        path = folder / VECTORS_FILE
        found = polygons_of(store.read(0), store.width)
        chosen = (item for item in found if self.min_area_px == 1 or item.polygon.area >= self.min_area_px)
        write_polygons(path, chosen, self.classes, grid)
        return [path]


def write_polygons(path: Path, polygons: Iterable[ClassPolygon], classes: tuple[str, ...], grid: Grid) -> None:
    """Write polygons with the columns class, class_id and area_px, some thousand at a time.

    Raises:
        WorkspaceError: the file cannot be written.
    """
    waiting: list[ClassPolygon] = []
    written = False
    for item in polygons:
        waiting.append(item)
        if len(waiting) == _AT_ONCE:
            _append(path, waiting, classes, grid, more=written)
            waiting, written = [], True
    if waiting or not written:
        _append(path, waiting, classes, grid, more=written)
    add_polygon_style(path, _LAYER, classes)


def _append(path: Path, polygons: list[ClassPolygon], classes: tuple[str, ...], grid: Grid, *, more: bool) -> None:
    from pyogrio.errors import DataLayerError, DataSourceError
    from pyogrio.raw import write

    shapes = np.array([item.polygon for item in polygons], dtype=object)
    values = np.array([item.value for item in polygons], dtype=np.int32)
    names = np.array([classes[value] for value in values], dtype=object)
    placed, turned = to_ground(shapes, grid), _leaves_the_globe(grid)
    if turned and len(shapes):
        placed = at_home(placed)
    columns = [names, values, np.asarray(shapely.area(shapes), dtype=np.float64)]
    try:
        with gdal_writes(path):
            # A map that lies nowhere is told of elsewhere.
            warnings.filterwarnings("ignore", message="'crs' was not provided")
            write(
                path,
                np.asarray(shapely.to_wkb(placed), dtype=object),
                columns,
                ["class", "class_id", "area_px"],
                layer=_LAYER,
                driver="GPKG",
                geometry_type="MultiPolygon" if turned else "Polygon",
                promote_to_multi=turned,
                crs=grid.crs,
                append=more,
                # GDAL 3.10 writes 1.4, of which readers before its version 3.7 warn.
                dataset_options=None if more else {"VERSION": "1.2"},
            )
    except (DataLayerError, DataSourceError) as error:
        # pyogrio repeats what SQLite was asked, and not why it could not.
        raise WorkspaceError(
            f"cannot write {path}: {str(error).splitlines()[0][:_SAID]}; see that the disk has room, and run the same "
            "command again: it goes on where it was"
        ) from error


def to_ground(shapes: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """Move geometries from columns and rows to the CRS; where there is none they stay."""
    if grid.transform is None:
        return shapes
    a, b, c, d, e, f = grid.transform

    def moved(points: NDArray[np.float64]) -> NDArray[np.float64]:
        col, row = points.T
        return np.stack([a * col + b * row + c, d * col + e * row + f], axis=1)

    return np.asarray(shapely.transform(shapes, moved))


def at_home(shapes: NDArray[Any]) -> NDArray[Any]:
    """Bring polygons in degrees to longitudes of -180 to 180, where other data are; what crosses 180 becomes two parts.

    Args:
        shapes: polygons, such as those of a grid from 0 to 360 degrees.
    """
    first, last = np.floor((shapely.total_bounds(shapes)[[0, 2]] + 180) / 360)
    turns: list[NDArray[Any]] = []
    for turn in np.arange(first, last + 1) * 360:
        inside = shapely.intersection(shapes, shapely.box(turn - 180, -90, turn + 180, 90))
        # What only touches the cut leaves lines and points.
        mixed = shapely.get_type_id(inside) == shapely.GeometryType.GEOMETRYCOLLECTION
        inside[mixed] = [
            shapely.union_all([part for part in shapely.get_parts(item) if shapely.area(part)])
            for item in inside[mixed]
        ]
        inside[shapely.area(inside) == 0] = shapely.Polygon()
        turns.append(shapely.transform(inside, lambda points, turn=turn: points - np.array([turn, 0.0])))
    return np.asarray(shapely.union_all(np.stack(turns), axis=0))


def _leaves_the_globe(grid: Grid) -> bool:
    """Say whether a grid in degrees goes on beyond -180 or 180."""
    if grid.crs is None or grid.transform is None or not CRS.from_user_input(grid.crs).is_geographic:
        return False
    west, _, east, _ = shapely.bounds(to_ground(np.array([shapely.box(0, 0, grid.width, grid.height)]), grid)[0])
    # Beyond half a pixel: many a grid of the globe is not exact to the last digit.
    half = abs(grid.transform[0]) / 2
    return bool(west < -180 - half or east > 180 + half)


def _columns(edge: NDArray[np.int64], row: int) -> NDArray[np.int64]:
    """Give the columns along which a ring runs on a line between rows."""
    first, second = edge[:-1], edge[1:]
    along = (first[:, 1] == row) & (second[:, 1] == row)
    spans = np.sort(np.stack([first[along, 0], second[along, 0]], axis=1), axis=1)
    if not len(spans):
        return np.empty(0, np.int64)
    return np.concatenate([np.arange(start, stop) for start, stop in spans])


def _root(joined: dict[int, int], number: int) -> int:
    while number in joined:
        number = joined[number]
    return number


def _whole(item: _Open) -> ClassPolygon:
    """Join the parts of a polygon; points on a straight line, such as those at seams, go."""
    polygon = item.parts[0] if len(item.parts) == 1 else shapely.union_all(item.parts)
    return ClassPolygon(item.value, shapely.simplify(polygon, 0))
