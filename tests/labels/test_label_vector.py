"""Polygons, lines and points: on any CRS, with holes and overlaps, as pixels and as classes of tiles."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.warp import transform as warp_points

from tests.conftest import SHARED
from tests.labels.ground_cases import UTM, Run, X, Y, make_config, mosaic, write_scene, write_tif
from tests.labels.vector_cases import H, W, as_values, box, moved, painted, run_of, write_vectors
from vitpipe.config import PipelineConfig
from vitpipe.errors import LabelError
from vitpipe.pixel_targets import IGNORE


def spread() -> tuple[list[shapely.Geometry], list[str], NDArray[np.uint8]]:
    """Polygons with a hole, of several parts, with a long edge, and the targets that they make: b, a, c are 1, 0, 2."""
    holed = box(2, 3, 20, 30).difference(box(8, 10, 5, 9))
    parts = shapely.MultiPolygon([box(30, 5, 10, 12), box(45, 40, 12, 20)])
    expected = np.full((H, W), IGNORE, np.uint8)
    expected[2:22, 3:33] = 1
    expected[8:13, 10:19] = IGNORE
    expected[30:40, 5:17] = expected[45:57, 40:60] = 0
    expected[:, 70:] = 2
    return [holed, parts, box(-500, 70, 2000, 900)], ["b", "a", "c"], expected


@pytest.mark.parametrize("suffix", [".gpkg", ".shp", ".geojson"])
def test_polygons_of_every_format_fill_the_pixels_whose_centres_they_hold(tmp_path: Path, suffix: str) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    shapes, names, expected = spread()
    crs = UTM
    if suffix == ".geojson":
        crs = "EPSG:4326"
        shapes = [moved(shapely.segmentize(shape, 100), crs) for shape in shapes]
    kind = "Unknown" if suffix == ".geojson" else "MultiPolygon"
    path = write_vectors(
        tmp_path / f"labels{suffix}", [shapely.multipolygons([shape]) if shape.geom_type == "Polygon" else shape
                                       for shape in shapes],
        names, crs, geometry_type=kind,
    )  # fmt: skip
    assert (painted(run_of(tmp_path, path)) == expected).all()


def test_a_long_edge_of_another_crs_is_bent_before_it_is_moved(tmp_path: Path) -> None:
    """A parallel is no straight line in UTM: over 60 km at 60 degrees it swells by 120 m, four pixels of these."""
    top, gsd_m, width = 6_655_205.0, 30, 2000
    write_scene(tmp_path / "scenes" / "a.tif", H, width, y=top, x=X - 30_000, gsd_m=gsd_m)
    cols, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(H) + 0.5)
    x, y = X - 30_000 + gsd_m * cols.ravel(), top - gsd_m * rows.ravel()
    _, latitude = warp_points(CRS.from_string(UTM), CRS.from_epsg(4326), x, y)
    edge = float(np.median(latitude))
    shapes = [shapely.box(0, edge, 20, 70), shapely.box(0, 50, 20, edge)]
    path = write_vectors(tmp_path / "labels.gpkg", shapes, ["north", "south"], "EPSG:4326")
    expected = (np.array(latitude) < edge).reshape(H, width)
    assert np.ptp(expected.sum(axis=0)) >= 4
    assert np.count_nonzero(painted(run_of(tmp_path, path)) != expected) < 20


def test_where_classes_overlap_the_one_listed_first_wins_in_one_file_and_across_files(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    write_vectors(tmp_path / "labels" / "1.gpkg", [box(0, 0, 30, 30), box(10, 10, 30, 30)], ["a", "b"])
    write_vectors(tmp_path / "labels" / "2.gpkg", [box(20, 20, 30, 30)], ["c"])
    run = run_of(tmp_path, tmp_path / "labels")
    run.config = make_config(tmp_path, as_values(run) | {"priority": ["b", "typo"]})
    assert "`labels.priority` names what no label is: typo" in run.labels().notes
    for priority in ((), ("b",), ("c", "b", "a"), ("b", "c")):
        run.config = make_config(
            tmp_path,
            {
                "kind": "vector", "path": str(tmp_path / "labels"), "column": "kind", "per": "pixel",
                "priority": list(priority),
            },
        )  # fmt: skip
        found = painted(run)
        order = [*priority, *(name for name in "abc" if name not in priority)]
        expected = np.full((H, W), IGNORE, np.uint8)
        for name in reversed(order):
            at = "abc".index(name) * 10
            expected[at : at + 30, at : at + 30] = "abc".index(name)
        assert (found == expected).all()


def test_an_invalid_polygon_is_repaired_and_counted(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    corners = [(X + 10 * col, Y - 10 * row) for row, col in ((10, 10), (30, 30), (30, 10), (10, 30))]
    path = write_vectors(tmp_path / "labels.gpkg", [shapely.Polygon(corners), box(40, 40, 10, 10)], ["a", "b"])
    run = run_of(tmp_path, path)
    assert "1 invalid geometry was repaired" in run.labels().notes
    found = painted(run)
    # A bow tie, its two halves above and below the knot: each a triangle of 10 rows and 20 columns at its base.
    assert (found == 0).sum() == 200
    assert found[12, 20] == found[28, 20] == 0
    assert found[20, 12] == found[20, 28] == IGNORE
    # In another CRS it is cut to the surroundings of the scene, which no invalid geometry can be.
    corners = [(X + 10 * col, Y - 10 * row) for row, col in ((-9000, 10), (30, 9000), (30, 10), (-9000, 9000))]
    far = [moved(shapely.Polygon(corners), "EPSG:4326"), moved(box(40, 40, 10, 10), "EPSG:4326")]
    write_vectors(tmp_path / "far.gpkg", far, ["a", "b"], "EPSG:4326")
    run.config = make_config(tmp_path, as_values(run) | {"path": str(tmp_path / "far.gpkg")})
    assert (painted(run)[40:50, 40:50] == 1).all()


def test_points_are_pixels_or_discs_in_metres_in_any_crs(tmp_path: Path) -> None:
    """In Web Mercator at 48 degrees north a metre on the ground is 1.49 m of the CRS."""
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    points = [shapely.Point(X + 205, Y - 305), shapely.MultiPoint([(X + 405, Y - 205), (X + 555, Y - 405)])]
    path = write_vectors(
        tmp_path / "points.geojson", [moved(point, "EPSG:4326") for point in points], ["a", "b"], "EPSG:4326",
        geometry_type="Unknown",
    )  # fmt: skip
    run = run_of(tmp_path, path)
    found = painted(run)
    assert np.argwhere(found == 0).tolist() == [[30, 20]]
    assert np.argwhere(found == 1).tolist() == [[20, 40], [40, 55]]
    run.config = make_config(tmp_path, as_values(run) | {"buffer_m": 45})
    found = painted(run)
    rows, cols = np.mgrid[:H, :W]
    for place, centres in ((0, [(30, 20)]), (1, [(20, 40), (40, 55)])):
        distance = np.min([np.hypot(rows - row, cols - col) * 10 for row, col in centres], axis=0)
        assert ((found == place) == (distance <= 45)).all()
    mercator = tmp_path / "mercator"
    left, top = (float(value[0]) for value in warp_points(CRS.from_string(UTM), CRS.from_epsg(3857), [X], [Y]))
    write_scene(mercator / "scenes" / "m.tif", H, W, crs="EPSG:3857", x=left, y=top, gsd_m=15)
    found = painted(run_of(mercator, path, buffer_m=45), "m")
    areas = [(found == place).sum() * (15 / 1.4935) ** 2 for place in (0, 1)]
    assert areas == pytest.approx([np.pi * 45**2, 2 * np.pi * 45**2], rel=0.06)


def test_ground_without_a_shape_is_background_where_that_is_set_and_inside_the_area_of_interest(
    tmp_path: Path,
) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    path = write_vectors(tmp_path / "labels.gpkg", [box(5, 5, 20, 20)], ["a"])
    aoi = write_vectors(tmp_path / "aoi.gpkg", [box(0, 0, 40, 50)], ["ignored"])
    run = run_of(tmp_path, path, background="other")
    expected = np.ones((H, W), np.uint8)
    expected[5:25, 5:25] = 0
    assert (painted(run) == expected).all()
    run.config = make_config(tmp_path, as_values(run) | {"aoi": str(aoi)})
    expected[40:] = expected[:, 50:] = IGNORE
    assert (painted(run) == expected).all()
    run.config = make_config(tmp_path, as_values(run) | {"per": "tile", "min_share": 0.6})
    expected_tiles = {}
    for row in range(0, H, 16):
        for col in range(0, W, 16):
            tile = expected[row : row + 16, col : col + 16]
            shares = [(tile == place).mean() for place in (0, 1)]
            if max(shares) >= 0.6:
                expected_tiles["a", row, col] = ("a", "other")[int(np.argmax(shares))]
            elif sum(shares) >= 0.6:
                expected_tiles["a", row, col] = "other"
    assert run.tile_labels() == expected_tiles


def test_what_is_no_vector_file_is_never_handed_to_gdal(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    folder = tmp_path / "labels"
    write_vectors(folder / "good.gpkg", [box(5, 5, 20, 20), box(30, 30, 9, 9)], ["a", "b"])
    (folder / "vrt.geojson").write_text("<OGRVRTDataSource><OGRVRTLayer/></OGRVRTDataSource>")
    (folder / "pipe.geojson").write_text(json.dumps({"type": "gdal_streamed_alg", "command_line": "gdal vector info"}))
    (folder / "empty.gpkg").write_bytes(b"")
    write_vectors(folder / "nocrs.shp", [box(5, 5, 20, 20)], ["a"], None)
    write_vectors(folder / "other.gpkg", [box(5, 5, 20, 20)], ["a"], layer="one")
    write_vectors(folder / "other.gpkg", [box(5, 5, 20, 20)], ["a"], layer="two", append=True)
    run = run_of(tmp_path, folder)
    labels = run.labels()
    reasons = {Path(item.uri).name: item.reason for item in labels.rejected}
    assert {item.code for item in labels.rejected} == {"LABEL_UNREADABLE"}
    assert "does not begin as" in reasons["vrt.geojson"]
    assert "cannot be read" in reasons["pipe.geojson"]
    assert "does not begin as" in reasons["empty.gpkg"]
    assert "says no CRS" in reasons["nocrs.shp"]
    assert "2 layers (one, two)" in reasons["other.gpkg"]
    assert len(reasons) == 5
    column = {"column": "class"}
    run.config = make_config(tmp_path, as_values(run) | column)
    with pytest.raises(LabelError, match="6 LABEL_UNREADABLE"):
        run.labels()
    run.config = make_config(tmp_path, as_values(run) | {"path": str(folder / "good.gpkg")} | column)
    with pytest.raises(LabelError, match="has no column `class`; it has: kind"):
        run.labels()


@pytest.mark.shared
def test_a_sparse_raster_and_its_polygons_give_equal_targets(tmp_path: Path) -> None:
    folder = SHARED / "pixel_scene"
    raster: dict[str, object] = {
        "kind": "raster", "path": str(folder / "training_data.gtif"),
        "classes": {1: "forest", 2: "water", 3: "herbaceous", 4: "barren", 5: "urban"},
    }  # fmt: skip
    vector: dict[str, object] = {
        # Of one polygon its number and its name say different classes; the raster was made from the number.
        "kind": "vector", "path": str(folder / "training_data.shp"), "column": "id", "per": "pixel",
        "classes": {"1": "forest", "2": "water", "3": "herbaceous", "4": "barren", "5": "urban"},
    }  # fmt: skip
    config = make_config(tmp_path, raster, size=32)
    scene = folder / "LE70220491999322EDC01_stack.gtif"
    values = config.model_dump(mode="json") | {"source": {"kind": "geotiff", "path": str(scene), "block_m": 1500}}
    run = Run(PipelineConfig.model_validate(values))
    by_raster = run.manifest()
    run.config = PipelineConfig.model_validate(values | {"labels": vector})
    by_vector = run.manifest()
    assert by_raster.classes == by_vector.classes == ("barren", "forest", "herbaceous", "urban", "water")
    found = [mosaic(manifest, run.sources[0].source_id, 250, 250) for manifest in (by_raster, by_vector)]
    assert (found[0] == found[1]).all()
    counts = np.bincount(found[0].ravel(), minlength=256)
    assert counts[:5].tolist() == [106, 383, 145, 68, 16]
    assert by_raster.table["label"].tolist() == by_vector.table["label"].tolist()
    assert by_raster.table["labelled_px"].sum() == 718


@pytest.mark.shared
@pytest.mark.parametrize("tile_class", ["majority", "centre"])
def test_cells_label_the_tiles_that_they_cover(tmp_path: Path, tile_class: str) -> None:
    folder = SHARED / "eurosat_geo" / "scenes"
    labels: dict[str, object] = {
        "kind": "vector", "path": str(folder), "column": "label", "min_share": 0.9, "tile_class": tile_class,
    }  # fmt: skip
    values = make_config(tmp_path, labels, size=64, stride=64, min_valid_fraction=0.5).model_dump(mode="json")
    values["source"] = {"kind": "geotiff", "path": str(folder), "block_m": 5000}
    run = Run(PipelineConfig.model_validate(values))
    table = run.manifest().table
    assert len(run.labels().classes) >= 6
    assert len(table) > 20
    for source in run.sources:
        cells = json.loads((folder / f"{run.name(source.source_id)}.geojson").read_text())["features"]
        here = table[table["source_id"] == source.source_id]
        rows: list[dict[str, Any]] = here.to_dict("records")
        for row in rows:
            shares: dict[str, float] = {}
            for cell in (feature["properties"] for feature in cells):
                down = min(row["row"], cell["row_off"]) + 64 - max(row["row"], cell["row_off"])
                right = min(row["col"], cell["col_off"]) + 64 - max(row["col"], cell["col_off"])
                area = max(down, 0) * max(right, 0) / 4096 / row["valid_fraction"]
                shares[cell["label"]] = shares.get(cell["label"], 0.0) + area
            assert shares[row["label"]] >= 0.9 - 1e-9


def test_a_label_on_no_scene_is_counted_and_a_scene_without_one_is_not_labelled(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    write_scene(tmp_path / "scenes" / "b.tif", H, W, seed=1, x=X + 50_000)
    shapes = [box(5, 5, 20, 20), box(30, 30, 9, 9), box(9000, 9000, 9, 9)]
    path = write_vectors(tmp_path / "labels.gpkg", shapes, ["a", "b", "c"])
    run = run_of(tmp_path, path)
    labels = run.labels()
    assert "2 of 3 feature(s) lie on a source" in labels.notes
    assert "1 of 2 source(s) have no label: kept for prediction, not trained on" in labels.notes
    assert [run.name(name) for name in labels.rows["source_id"]] == ["a"]
    assert labels.rows["label"].tolist() == ["a|b"]
    write_tif(tmp_path / "scenes" / "bare.tif", np.ones((2, H, W), np.uint8), crs=None)
    assert any("1 source(s) have no CRS" in note for note in Run(run.config).labels().notes)


def test_labels_of_another_place_are_told_where_the_scenes_lie(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", 60, 90)
    write_vectors(tmp_path / "far.gpkg", [shapely.box(X + 90_000, Y, X + 90_100, Y + 100)], ["wood"])
    run = Run(make_config(tmp_path, {"kind": "vector", "path": str(tmp_path / "far.gpkg"), "column": "kind"}))
    told = r"; the sources lie at longitudes 9.00 to 9.01 and latitudes 47.8\d to 47.8\d degrees; check `labels.path`"
    with pytest.raises(LabelError, match=told):
        run.labels()


def test_lines_and_touched_pixels_are_drawn_as_asked(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    line = shapely.LineString([(X + 100, Y - 205), (X + 500, Y - 205)])
    small = box(40.6, 40.6, 0.3, 2.8)
    path = write_vectors(tmp_path / "labels.gpkg", [line, small], ["a", "b"], geometry_type="Unknown")
    run = run_of(tmp_path, path)
    found = painted(run)
    assert {int(row) for row in np.argwhere(found == 0)[:, 0]} == {20}
    assert 39 <= (found == 0).sum() <= 41
    assert (found == 1).sum() == 0
    run.config = make_config(tmp_path, as_values(run) | {"all_touched": True})
    touched = painted(run)
    assert np.argwhere(touched == 1).tolist() == [[40, 40], [40, 41], [40, 42], [40, 43]]
    run.config = make_config(tmp_path, as_values(run) | {"all_touched": False, "buffer_m": 21})
    wide = painted(run)
    assert (wide[18:23, 12:48] == 0).all()
    assert (wide[:18] == IGNORE).all()
    assert (wide[23:40] == IGNORE).all()


def test_a_column_of_names_of_each_feature_is_an_error_not_a_crash(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    points = [shapely.Point(X + 5 + 10 * (place % W), Y - 5 - 10 * (place // W)) for place in range(300)]
    path = write_vectors(tmp_path / "points.gpkg", points, [f"id{place}" for place in range(300)])
    with pytest.raises(LabelError, match=r"300 classes \(id0, id1, id10, \.\.\.\), at most 254"):
        run_of(tmp_path, path).labels()


def test_tables_without_geometry_beside_the_layer_are_passed_over(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    path = write_vectors(tmp_path / "drawn.gpkg", [box(0, 0, 20, 20), box(0, 20, 20, 20)], ["a", "b"])
    with contextlib.closing(sqlite3.connect(path)) as opened, opened:
        opened.execute("CREATE TABLE layer_styles (id INTEGER PRIMARY KEY, styleQML TEXT)")
        opened.execute("INSERT INTO gpkg_contents (table_name, data_type) VALUES ('layer_styles', 'attributes')")
    assert run_of(tmp_path, path).labels().classes == ("a", "b")


def test_a_tile_of_several_classes_has_all_that_cover_it_and_overlaps_count_for_both(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    shapes = [box(0, 0, 16, 16), box(0, 0, 16, 24), box(16, 0, 16, 5)]
    path = write_vectors(tmp_path / "labels.gpkg", shapes, ["a", "b", "c"])
    aoi = write_vectors(tmp_path / "aoi.gpkg", [box(0, 0, 32, 32)], ["x"])
    run = run_of(tmp_path, path, per="tile", multi_label=True, min_share=0.4, background="none", aoi=str(aoi))
    assert run.labels().classes == ("a", "b", "c")
    assert run.tile_labels() == {("a", 0, 0): "a|b", ("a", 0, 16): "b", ("a", 16, 0): "", ("a", 16, 16): ""}
    run.config = make_config(tmp_path, as_values(run) | {"background": None})
    assert run.tile_labels() == {("a", 0, 0): "a|b", ("a", 0, 16): "b"}


def test_an_area_of_interest_holds_for_rasters_too_and_needs_a_crs_of_the_scene(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    write_scene(tmp_path / "scenes" / "bare.tif", H, W, seed=1, crs=None)
    drawn = np.random.default_rng(3).integers(1, 4, (H, W)).astype(np.uint8)
    write_tif(tmp_path / "labels" / "a.tif", drawn)
    write_tif(tmp_path / "labels" / "bare.tif", drawn, crs=None)
    aoi = write_vectors(tmp_path / "aoi.geojson", [moved(box(10, 20, 30, 40), "EPSG:4326")], ["x"], "EPSG:4326")
    values: dict[str, object] = {"kind": "raster", "path": str(tmp_path / "labels"), "match": "name", "aoi": str(aoi)}
    run = Run(make_config(tmp_path, values))
    labels, found = run.targets()
    expected = np.full((H, W), IGNORE)
    expected[10:40, 20:60] = drawn[10:40, 20:60] - 1
    assert (found["a"] == expected).all()
    assert [run.name(name) for name in labels.rows["source_id"]] == ["a"]
    assert "1 source(s) have no CRS, so they lie in no area of interest: no label" in labels.notes
    lines = write_vectors(tmp_path / "lines.gpkg", [shapely.LineString([(X, Y), (X + 300, Y - 300)])], ["x"])
    run.config = make_config(tmp_path, values | {"aoi": str(lines)})
    with pytest.raises(LabelError, match=r"1 feature\(s\) that are no polygons"):
        run.labels()
