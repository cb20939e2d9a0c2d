"""Where vectors lie: near scenes, around poles, across the 180th meridian, and which files meet which scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.warp import transform as warp_points

from tests.labels.ground_cases import UTM, Run, X, Y, make_config, write_scene, write_tif
from tests.labels.vector_cases import H, W, as_values, at_centres, box, moved, painted, run_of, write_vectors
from vitpipe.labels import raster, vector
from vitpipe.pixel_targets import IGNORE


def test_a_point_beside_the_scene_reaches_in_by_its_buffer(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    points = [shapely.Point(X - 95, Y - 305), shapely.Point(X + 405, Y - 305)]
    path = write_vectors(tmp_path / "points.gpkg", points, ["a", "b"])
    found = painted(run_of(tmp_path, path, buffer_m=112))
    # The first column's centres are 100 m from the point, so half the chord is 50.4 m; the second's 110 m, and 21.1 m.
    expected = {(row, 0) for row in range(25, 36)} | {(row, 1) for row in range(28, 33)}
    assert {(int(row), int(col)) for row, col in np.argwhere(found == 0)} == expected


@pytest.mark.parametrize("crs", [UTM, "EPSG:4326"])
def test_a_buffer_wider_than_the_scene_reaches_it_from_any_crs(tmp_path: Path, crs: str) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    points = [shapely.Point(X - 1200, Y - 300), shapely.Point(X + 1100, Y - 300)]
    path = write_vectors(tmp_path / "points.gpkg", [moved(point, crs) for point in points], ["a", "b"], crs=crs)
    found = painted(run_of(tmp_path, path, buffer_m=1300))
    rows, cols = np.mgrid[:H, :W] * 10 + 5
    # The scene is 800 m wide; metres of the map are up to 0.04 % longer than those of the ground.
    near = [np.hypot(cols + 1200, rows - 300), np.hypot(cols - 1100, rows - 300)]
    for place, distance in enumerate(near):
        assert (found == place)[distance < 1298].all() or place == 1
        assert not (found == place)[distance > 1302].any()
    assert (found != IGNORE)[near[1] < 1298].all()


def test_classes_are_those_that_lie_on_a_scene(tmp_path: Path) -> None:
    for name, x in (("a", X), ("b", X + 5000)):
        write_scene(tmp_path / "scenes" / f"{name}.tif", H, W, x=x, seed=int(x))
    shapes = [box(0, 0, 20, 20), box(0, 20, 20, 20), box(0, 500, 20, 20), box(0, 250, 20, 20)]
    path = write_vectors(tmp_path / "all.gpkg", shapes, ["field", "water", "field", "between"])
    run = run_of(tmp_path, path, {"crs": "EPSG:32631"})
    labels, found = run.targets()
    assert labels.classes == ("field", "water")
    assert set(np.unique(found["a"])) == {0, 1, IGNORE}
    assert "3 of 4 feature(s) lie on a source" in labels.notes


def test_a_file_a_scene_is_looked_at_once_not_once_a_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 24
    for place in range(count):
        x = X + 3000 * place
        write_scene(tmp_path / "scenes" / f"{place}.tif", 16, 16, seed=place, x=x)
        shapes = [shapely.box(x, Y - 80, x + 80, Y), shapely.box(x + 80, Y - 80, x + 160, Y)]
        write_vectors(tmp_path / "drawn" / f"{place}.gpkg", shapes, ["a", "b"])
        write_tif(tmp_path / "rasters" / f"{place}.tif", np.full((16, 16), 1 + place % 2, np.uint8), x=x)
    asked: list[str] = []
    of_vectors, of_rasters = vector._on, raster._window_on
    monkeypatch.setattr(vector, "_on", lambda *given: asked.append("vector") or of_vectors(*given))
    monkeypatch.setattr(raster, "_window_on", lambda *given: asked.append("raster") or of_rasters(*given))
    run = run_of(tmp_path, tmp_path / "drawn")
    assert run.labels().rows["label"].tolist() == ["a|b"] * count
    values: dict[str, object] = {"kind": "raster", "path": str(tmp_path / "rasters")}
    sources = run.sources
    found = raster.read_raster_labels(make_config(tmp_path, values).labels, sources, None)  # type: ignore[arg-type]
    assert dict(zip(found.rows["source_id"].map(run.name), found.rows["label"], strict=True)) == {
        str(place): str(1 + place % 2) for place in range(count)
    }
    assert asked == ["vector"] * count + ["raster"] * count


def test_labels_across_the_180th_meridian_lie_on_the_scene(tmp_path: Path) -> None:
    """A scene of zone 1 that begins in the east of the meridian's west: its degrees jump from 180 to -180."""
    x, y = (float(at[0]) for at in warp_points(CRS.from_epsg(4326), CRS.from_epsg(32601), [179.996], [-16.5]))
    write_scene(tmp_path / "scenes" / "a.tif", H, 90, crs="EPSG:32701", x=x, y=y + 10_000_000)
    shapes = [shapely.box(179.9, -16.52, 180, -16.4), shapely.box(-180, -16.52, -179.9, -16.4)]
    # Half-way round the world lies nothing of the scene, and 180 to 360 degrees are -180 to 0.
    shapes += [shapely.box(-5, -16.52, 5, -16.4), shapely.box(180.0002, -16.503, 180.0004, -16.502)]
    path = write_vectors(tmp_path / "labels.geojson", shapes, ["west", "east", "far", "beyond"], "EPSG:4326")
    run = run_of(tmp_path, path)
    assert run.labels().rows["label"].tolist() == ["beyond|east|west"]
    run.config = make_config(tmp_path, as_values(run) | {"classes": {"west": "west", "east": "east"}})
    found = painted(run)
    cols, rows = np.meshgrid(np.arange(90) + 0.5, np.arange(H) + 0.5)
    longitude, _ = warp_points(
        CRS.from_epsg(32701), CRS.from_epsg(4326), x + 10 * cols.ravel(), y + 10_000_000 - 10 * rows.ravel()
    )
    expected = (np.array(longitude) > 0).reshape(H, 90)
    assert 0.2 < expected.mean() < 0.8
    assert (found == expected).all()
    # A raster of the whole circle has both sides at its two ends.
    world = np.zeros((40, 3600), np.uint8)
    world[:, :1800], world[:, 1800:] = 1, 2
    raster = write_tif(tmp_path / "world.tif", world, crs="EPSG:4326", gsd_m=0.1, x=-180, y=-15)
    run.config = make_config(tmp_path, {"kind": "raster", "path": str(raster), "classes": {1: "east", 2: "west"}})
    assert (painted(run) == expected).mean() > 0.98


@pytest.mark.parametrize(
    ("scene", "crs", "shapes"),
    [
        (("EPSG:3413", from_origin(-960_000, 960_000, 20_000, 20_000), 96), "EPSG:4326",
         [shapely.box(-180, 88, 180, 90), shapely.box(-170, 80, 100, 89)]),
        (("EPSG:3031", from_origin(-960_000, 960_000, 20_000, 20_000), 96), "EPSG:4326",
         [shapely.box(-180, -90, 180, -87), shapely.box(-60, -89, 100, -84)]),
        (("EPSG:4326", from_origin(-180, 90, 3, 3), 120), "EPSG:4326",
         [shapely.box(-100, -40, -20, 30), shapely.box(0, 0, 170, 80)]),
        (("EPSG:32601", from_origin(100_000, 200_000, 1600, 1600), 96), "EPSG:3857",
         [shapely.box(19_950_000, 50_000, 20_037_508, 180_000), shapely.box(-20_037_508, 50_000, -19.98e6, 190_000)]),
    ],
    ids=["north pole", "south pole", "whole earth", "180th meridian of a map"],
)  # fmt: skip
def test_labels_lie_on_scenes_around_poles_and_the_whole_earth(
    tmp_path: Path, scene: tuple[str, Affine, int], crs: str, shapes: list[shapely.Geometry]
) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", scene[2], scene[2], crs=scene[0], transform=scene[1])
    path = write_vectors(tmp_path / "drawn.gpkg", shapes, ["a", "b"], crs=crs)
    expected = at_centres(shapes, crs, scene)
    assert {0, 1} <= set(np.unique(expected))
    # A long edge is bent in pieces of 64 pixels, here of 1280 km.
    assert np.mean(painted(run_of(tmp_path, path)) != expected) < 0.004
    if crs == "EPSG:4326":
        values = np.full((360, 720), 0, np.uint8)
        for place in (1, 0):
            left, bottom, right, top = (int(2 * value) for value in shapes[place].bounds)
            values[180 - top : 180 - bottom, 360 + left : 360 + right] = place + 1
        labels = write_tif(tmp_path / "labels.tif", values, crs=crs, transform=from_origin(-180, 90, 0.5, 0.5))
        recipe: dict[str, object] = {"kind": "raster", "path": str(labels), "ignore": [0]}
        found, targets = Run(make_config(tmp_path, recipe)).targets()
        assert found.classes == ("1", "2")
        assert np.mean(targets["a"] != expected) < 0.01


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:4269", "EPSG:32602"])
@pytest.mark.parametrize("buffer_m", [None, 40])
def test_a_grid_of_degrees_beyond_180_has_the_labels_of_its_place(
    tmp_path: Path, crs: str, buffer_m: int | None
) -> None:
    """The same scene, its longitudes counted from -180 and from 0: the same pixels have the same labels."""
    shapes: list[shapely.Geometry] = [
        shapely.box(-170.01, 0.98, -169.985, 1.005), shapely.box(-169.98, 0.97, -169.97, 1.02),
    ]  # fmt: skip
    shapes += [shapely.Point(-169.99, 0.965), shapely.Point(-169.962, 0.99)]
    codes = CRS.from_epsg(4326), CRS.from_string(crs)
    drawn = [shapely.transform(shape, lambda at: np.array(warp_points(*codes, *at.T)).T) for shape in shapes]
    path = write_vectors(tmp_path / "drawn.gpkg", drawn, ["a", "b", "a", "b"], crs=crs, geometry_type="Unknown")
    found = []
    for name, west in (("plain", -170.0), ("beyond", 190.0)):
        root = tmp_path / name
        write_scene(
            root / "scenes" / "a.tif", 64, 64, crs="EPSG:4326", transform=from_origin(west, 1.01, 0.0006, 0.0006)
        )
        values = {"kind": "vector", "path": str(path), "column": "kind", "per": "pixel", "buffer_m": buffer_m}
        found.append(painted(Run(make_config(root, values))))
    assert {0, 1, IGNORE} == set(np.unique(found[0]))
    # Half a pixel's place differs in the last digit of a longitude.
    assert np.mean(found[0] != found[1]) < 0.003


def test_the_whole_earth_from_0_to_360_has_its_labels_on_both_sides(tmp_path: Path) -> None:
    shapes = [shapely.box(-100, -40, -20, 30), shapely.box(-15, -60, 60, -45), shapely.box(170, 50, 180, 80)]
    path = write_vectors(tmp_path / "drawn.gpkg", shapes, ["a", "b", "c"], crs="EPSG:4326")
    found = []
    for name, west in (("plain", -180), ("beyond", 0)):
        root = tmp_path / name
        write_scene(root / "scenes" / "a.tif", 60, 120, crs="EPSG:4326", transform=from_origin(west, 90, 3, 3))
        found.append(
            painted(Run(make_config(root, {"kind": "vector", "path": str(path), "column": "kind", "per": "pixel"})))
        )
    assert {0, 1, 2} < set(np.unique(found[0]))
    assert (np.roll(found[0], -60, axis=1) == found[1]).all()
