"""Maps of scenes without a transform: those with control points keep them, the others say that they lie nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.rpc import RPC
from rio_cogeo import cog_validate

from tests.infer.infer_cases import write_scene
from tests.infer.pixel_cases import hold, pixel_predictor
from vitpipe import results
from vitpipe.config import MapRecipe, TileRecipe
from vitpipe.domains.geotiff.ground import fitted_transform
from vitpipe.infer.mapping.footprint import footprint
from vitpipe.infer.tilegrid import tile_grid
from vitpipe.records import Grid
from vitpipe.resample.plane import Axis, moved_grid

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

# Of a scene of 70 x 100 pixels; the lens bends it a little, so no affine fits.
POINTS = [
    GroundControlPoint(row, col, 10 + col / 1000 + row * row / 1e6, 50 - row / 1000)
    for row in (0, 35, 70)
    for col in (0, 100)
]


def unplaced(path: Path, **places: object) -> Path:
    """Write a scene without transform and CRS, and place it as said."""
    write_scene(path)
    with rasterio.open(path) as file:
        profile, pixels, names = file.profile, file.read(), file.descriptions
    del profile["crs"], profile["transform"]
    with rasterio.open(path, "w", **profile, **places) as file:
        file.write(pixels)
        file.descriptions = names
    return path


def test_a_map_has_the_control_points_of_its_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch, pixel_predictor(tmp_path / "model"))
    scene = unplaced(tmp_path / "a.tif", gcps=POINTS, crs=CRS.from_epsg(4326))
    maps = MapRecipe(vectors=True)
    summary = results.predict("models:/land@champion", str(scene), str(tmp_path / "out"), None, maps=maps)
    assert any("ground control points" in note for note in summary.notes)
    (folder,) = (path.parent for path in (tmp_path / "out" / "maps").glob("*/item.json"))
    for name in ("classes", "probabilities", "entropy"):
        assert cog_validate(folder / f"{name}.tif", strict=True, quiet=True)[0]
        with rasterio.open(folder / f"{name}.tif") as file:
            found, crs = file.gcps
            assert [(p.row, p.col, p.x, p.y) for p in found] == [(p.row, p.col, p.x, p.y) for p in POINTS]
            assert (crs.to_epsg(), file.crs) == (4326, None)
    item = json.loads((folder / "item.json").read_text(encoding="utf-8"))
    assert item["bbox"] == pytest.approx([10, 49.93, 10.1049, 50], abs=3e-3)
    assert shapely.geometry.shape(item["geometry"]).is_valid


def test_a_scene_with_rpcs_alone_says_that_its_map_lies_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(monkeypatch, pixel_predictor(tmp_path / "model"))
    ones = [1.0, *[0.0] * 19]
    offsets = {"height_off": 0.0, "height_scale": 1.0, "lat_off": 50.0, "lat_scale": 1.0, "long_off": 10.0}
    offsets |= {"long_scale": 1.0, "line_off": 35.0, "line_scale": 35.0, "samp_off": 50.0, "samp_scale": 50.0}
    rpcs = RPC(**offsets, line_num_coeff=ones, line_den_coeff=ones, samp_num_coeff=ones, samp_den_coeff=ones)
    scene = unplaced(tmp_path / "a.tif", rpcs=rpcs)
    summary = results.predict("models:/land@champion", str(scene), str(tmp_path / "out"), None)
    assert any("RPCs" in note and "nowhere" in note for note in summary.notes)


def test_control_points_move_with_the_pixels() -> None:
    grid = Grid(1, 100, 100, gcps=((20.0, 40.0, 7.0, 8.0),), gcp_crs="EPSG:4326")
    assert moved_grid(grid, Axis(100, 50, 2.0), Axis(100, 25, 4.0)).gcps == ((10.0, 10.0, 7.0, 8.0),)
    # A pixel is 20 pixels, the first one starts 10 in: the middle of a tile of 40.
    assert tile_grid(grid, TileRecipe(size=40, stride=20), uri="a").gcps == ((0.5, 1.5, 7.0, 8.0),)


def test_the_footprint_of_control_points_crosses_the_antimeridian() -> None:
    places = [(0, 0, 179.0, 10.0), (0, 100, -179.0, 10.0), (100, 0, 179.0, 8.0), (100, 100, -179.0, 8.0)]
    found = footprint(Grid(1, 100, 100, gcps=tuple(places), gcp_crs="EPSG:4326"))
    assert found is not None
    assert np.allclose(np.array(found[1], float), [179, 8, -179, 10])
    assert found[0]["type"] == "MultiPolygon"


@pytest.mark.parametrize("where", [(0.0, 0.0, 0.0), (0.0, 50.0, 100.0)])
def test_control_points_on_a_line_have_no_footprint(where: tuple[float, ...]) -> None:
    points = tuple((row, row, 10 + row / 100, 50 - row / 100) for row in where)
    assert footprint(Grid(1, 100, 100, gcps=points, gcp_crs="EPSG:4326")) is None
    # Apart in the scene, and on one line of the ground.
    points = ((0.0, 0.0, 10.0, 50.0), (0.0, 100.0, 11.0, 50.0), (100.0, 0.0, 10.0, 50.0))
    assert footprint(Grid(1, 100, 100, gcps=points, gcp_crs="EPSG:4326")) is None


def test_control_points_are_fitted_by_least_squares() -> None:
    rng = np.random.default_rng(1)
    rows, cols = rng.uniform(0, 10_000, (2, 30))
    xs, ys = 5e5 + 10 * cols - 3 * rows + rng.normal(0, 5, 30), 5e6 - 2 * cols - 10 * rows + rng.normal(0, 5, 30)
    found = fitted_transform(np.stack([rows, cols, xs, ys], axis=1).tolist(), CRS.from_epsg(32633))
    assert found is not None
    design = np.stack([cols, rows, np.ones(30)], axis=1)
    expected = np.concatenate([np.linalg.lstsq(design, values)[0] for values in (xs, ys)])
    np.testing.assert_allclose(found, expected, rtol=1e-7)
