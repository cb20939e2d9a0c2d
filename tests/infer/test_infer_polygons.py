"""Polygons of strips are those of the whole map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyogrio
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.features import shapes

from tests.infer.map_cases import full_after
from vitpipe.errors import WorkspaceError
from vitpipe.infer.mapping.layers import NODATA
from vitpipe.infer.mapping.polygons import ClassPolygon, at_home, polygons_of, write_polygons
from vitpipe.records import Grid


def at_once(classes: NDArray) -> list[tuple[int, str]]:
    """Give class and normalised form of each polygon of a whole map."""
    found = shapes(classes, mask=classes != NODATA, connectivity=4)
    return sorted((int(value), form(shapely.geometry.shape(geometry))) for geometry, value in found)


def form(polygon: shapely.Polygon) -> str:
    """Give a polygon in a form that two equal ones share."""
    assert polygon.geom_type == "Polygon"
    return shapely.normalize(shapely.simplify(polygon, 0)).wkt


@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 4), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_polygons_of_strips_are_those_of_the_whole_map(
    height: int, width: int, classes: int, rows: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    whole = rng.integers(0, classes + 1, (height, width)).astype(np.uint8)
    whole = np.where(whole == classes, NODATA, whole).astype(np.uint8)
    # Larger patches, and rings that close and open again.
    whole = np.kron(whole, np.ones((rng.integers(1, 4), rng.integers(1, 4)), np.uint8))
    strips = (whole[row : row + rows] for row in range(0, len(whole), rows))
    found = sorted((item.value, form(item.polygon)) for item in polygons_of(strips, whole.shape[1]))
    assert found == at_once(whole)


def test_rings_and_combs_are_joined_once() -> None:
    # A comb: four teeth that are one polygon only in the last row; and a ring with another one inside.
    comb = np.zeros((12, 7), np.uint8)
    comb[:11, ::2] = 1
    comb[11] = 1
    found = list(polygons_of((comb[row : row + 1] for row in range(12)), 7))
    assert sorted((item.value, item.polygon.area) for item in found) == [(0, 11), (0, 11), (0, 11), (1, 51)]
    ring = np.ones((9, 9), np.uint8)
    ring[2:7, 2:7] = 0
    ring[4, 4] = 1
    found = list(polygons_of((ring[row : row + 2] for row in range(0, 9, 2)), 9))
    assert sorted((item.value, item.polygon.area, len(item.polygon.interiors)) for item in found) == [
        (0, 24, 1),
        (1, 1, 0),
        (1, 56, 1),
    ]


def test_a_finished_polygon_does_not_wait_for_the_end() -> None:
    strip = np.full((4, 50), NODATA, np.uint8)
    strip[1:3, ::5] = 1
    given = polygons_of(iter([strip, strip]), 50)
    assert next(given).polygon.area == 2


def test_polygons_are_written_on_the_ground(tmp_path: Path) -> None:
    square = shapely.box(2, 3, 4, 7)
    grid = Grid(1, 10, 10, transform=(10, 0, 500_000, 0, -10, 5_000_000), crs="EPSG:32633")
    path = tmp_path / "classes.gpkg"
    write_polygons(path, [ClassPolygon(1, square)] * 3, ("soil", "water"), grid)
    meta, _, geometry, columns = pyogrio.raw.read(path, layer="classes")
    assert meta["crs"] == "EPSG:32633"
    assert shapely.from_wkb(geometry[0]).bounds == (500_020, 4_999_930, 500_040, 4_999_970)
    assert dict(zip(meta["fields"], (column[0] for column in columns), strict=True)) == {
        "class": "water",
        "class_id": 1,
        "area_px": 8.0,
    }
    write_polygons(tmp_path / "none.gpkg", [], ("soil", "water"), Grid(1, 10, 10))
    assert pyogrio.read_info(tmp_path / "none.gpkg", layer="classes")["features"] == 0


def test_polygons_of_a_grid_from_0_to_360_degrees_lie_where_other_data_do(tmp_path: Path) -> None:
    grid = Grid(1, 180, 360, transform=(1, 0, 0, 0, -1, 90), crs="EPSG:4326")
    # West of 180, up to it, across it, east of it.
    boxes = [(10, 20), (170, 180), (170, 190), (350, 360)]
    found = [ClassPolygon(1, shapely.box(west, 80, east, 90)) for west, east in boxes]
    path = tmp_path / "classes.gpkg"
    write_polygons(path, found, ("soil", "water"), grid)
    meta, _, geometry, columns = pyogrio.raw.read(path, layer="classes")
    assert meta["geometry_type"] == "MultiPolygon"
    shapes = shapely.from_wkb(geometry)
    assert [tuple(shapely.bounds(shape)[[0, 2]]) for shape in shapes] == [
        (10, 20), (170, 180), (-180, 180), (-10, 0),
    ]  # fmt: skip
    assert shapely.area(shapes).tolist() == [100, 100, 200, 100]
    assert [len(shapely.get_parts(shape)) for shape in shapes] == [1, 1, 2, 1]
    assert columns[2].tolist() == [100, 100, 200, 100]
    write_polygons(tmp_path / "none.gpkg", [], ("soil", "water"), grid)
    assert pyogrio.read_info(tmp_path / "none.gpkg", layer="classes")["features"] == 0


def test_a_polygon_that_touches_180_keeps_no_line_of_the_cut() -> None:
    # West of 180 a square, and a spike whose tip touches it.
    shape = shapely.union(shapely.box(170, 0, 175, 5), shapely.Polygon([(175, 0), (180, 2.5), (175, 5)]))
    ring = shapely.Polygon([(170, -5), (190, -5), (190, 10), (180, 10), (180, 0), (170, 0)])
    found = at_home(np.array([shape, ring], dtype=object))
    assert shapely.get_dimensions(found).tolist() == [2, 2]
    assert [item.geom_type for item in found] == ["Polygon", "MultiPolygon"]
    assert shapely.area(found).tolist() == [shape.area, ring.area]


def test_grids_that_stay_on_the_globe_keep_plain_polygons(tmp_path: Path) -> None:
    for number, crs in enumerate(("EPSG:4326", "EPSG:32633")):
        grid = Grid(1, 10, 360, transform=(1, 0, -180, 0, -1, 10), crs=crs)
        path = tmp_path / f"{number}.gpkg"
        write_polygons(path, [ClassPolygon(0, shapely.box(0, 0, 360, 1))], ("soil",), grid)
        assert pyogrio.read_info(path, layer="classes")["geometry_type"] == "Polygon"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.8, 0.9, 1.0])
def test_a_full_disk_is_said(tmp_path: Path, share: float) -> None:
    grid = Grid(1, 100, 100, transform=(10, 0, 500_000, 0, -10, 5_000_000), crs="EPSG:32633")
    squares = [
        ClassPolygon(1, shapely.box(col, row, col + 1, row + 1)) for row in range(0, 100, 2) for col in range(0, 100, 2)
    ]
    write_polygons(tmp_path / "whole.gpkg", squares, ("soil", "water"), grid)
    size = (tmp_path / "whole.gpkg").stat().st_size
    with full_after(int(share * (size - 1))), pytest.raises(WorkspaceError, match="see that the disk has room"):
        write_polygons(tmp_path / "classes.gpkg", squares, ("soil", "water"), grid)
