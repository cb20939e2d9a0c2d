"""STAC items and footprints: where a map lies and what it is of, as the standards want it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely

from tests.infer.infer_cases import BANDS, CLASSES, MEAN, STD, make_package, write_scene
from tests.infer.pixel_cases import hold, pixel_predictor
from tests.infer.stac_rules import read_item
from vitpipe import results
from vitpipe.config import MapRecipe, TileRecipe
from vitpipe.infer.mapping.footprint import footprint
from vitpipe.infer.predictor import Predictor
from vitpipe.infer.tilegrid import tile_grid
from vitpipe.records import Grid, Json, Task


def only_map(out: Path) -> Path:
    """Give the folder of the one map."""
    (item,) = (out / "maps").glob("*/item.json")
    return item.parent


def test_the_item_says_what_made_the_map_of_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch, pixel_predictor(tmp_path / "model"))
    write_scene(tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        file.update_tags(TIFFTAG_DATETIME="2021:07:01 10:20:30")
    results.predict("models:/land@champion", str(tmp_path / "a.tif"), str(tmp_path / "out"), None)
    folder = only_map(tmp_path / "out")
    item = read_item(folder)
    properties = item["properties"]
    assert properties["datetime"] == "2021-07-01T10:20:30Z"
    assert "land/3" in properties["processing:lineage"]
    assert "25% overlap" in properties["processing:lineage"]
    assert (properties["vitpipe:model_sha256"], properties["vitpipe:mlflow_run_id"]) == ("ab" * 32, "run1")
    assert (properties["proj:code"], properties["proj:shape"]) == ("EPSG:32633", [70, 100])
    assert properties["proj:bbox"] == [500_000, 4_999_300, 501_000, 5_000_000]
    assert {link["rel"]: link["href"] for link in item["links"]}["derived_from"] == (tmp_path / "a.tif").as_uri()
    about = [link["href"] for link in item["links"] if link["rel"] == "about"]
    assert about == ["models:/land/3", "./model.json"]
    classes = item["assets"]["classes"]["classification:classes"]
    assert [entry["name"] for entry in classes] == list(CLASSES)
    assert [band["name"] for band in item["assets"]["probabilities"]["bands"]] == list(CLASSES)
    shape = shapely.geometry.shape(item["geometry"])
    assert shape.is_valid
    assert shape.bounds == pytest.approx(item["bbox"])
    for asset in item["assets"].values():
        content = (folder / asset["href"]).read_bytes()
        assert asset["file:size"] == len(content)
        assert asset["file:checksum"] == "1220" + hashlib.sha256(content).hexdigest()
    catalog = json.loads((tmp_path / "out" / "maps" / "catalog.json").read_text(encoding="utf-8"))
    assert [link["href"] for link in catalog["links"] if link["rel"] == "item"] == [f"./{folder.name}/item.json"]


def test_the_model_is_described_beside_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scene(tmp_path / "a.tif")
    for task, outputs in ((Task.SEGMENTATION, len(CLASSES)), (Task.REGRESSION, 1)):
        hold(monkeypatch, pixel_predictor(tmp_path / "model", task))
        out = tmp_path / str(task)
        results.predict("models:/land@champion", str(tmp_path / "a.tif"), str(out), None)
        folder = only_map(out)
        model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        properties = model["properties"]
        for asset in read_item(folder)["assets"].values():
            assert all(band.get("raster:offset", 0) == 0 for band in asset["bands"])
        assert (properties["mlm:name"], properties["mlm:pretrained"]) == ("land", False)
        (entry,), (result,) = properties["mlm:input"], properties["mlm:output"]
        assert entry["bands"] == list(BANDS)
        assert entry["input"]["shape"] == [-1, 3, 32, 32]
        assert entry["value_scaling"] == [{"type": "z-score", "mean": MEAN, "stddev": STD}] * 3
        assert result["result"]["shape"] == [-1, outputs, 32, 32]
        assert result["result"]["dim_order"][2:] == ["height", "width"]
        names = [item["name"] for item in result["classification:classes"]]
        assert names == (list(CLASSES) if task is Task.SEGMENTATION else [])
        assert model["assets"]["model"]["href"] == "models:/land/3"
        assert model["assets"]["model"]["file:checksum"] == "1220" + "ab" * 32


def test_vectors_are_the_classes_of_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch, pixel_predictor(tmp_path / "model"))
    write_scene(tmp_path / "a.tif")
    for least, count in ((1, 7000), (50, 0)):
        maps = MapRecipe(vectors=True, min_area_px=least)
        results.predict("models:/land@champion", str(tmp_path / "a.tif"), str(tmp_path / "out"), None, maps=maps)
        folder = only_map(tmp_path / "out")
        assert "vectors" in read_item(folder)["assets"]
        meta, _, _, columns = pyogrio.raw.read(folder / "classes.gpkg", layer="classes")
        area = dict(zip(meta["fields"], columns, strict=True))["area_px"]
        assert meta["crs"] == "EPSG:32633"
        assert (area >= least).all()
        assert not count or area.sum() == count


def test_a_model_of_tiles_gives_a_pixel_a_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor.load(make_package(tmp_path / "model", head_scale=20))
    hold(monkeypatch, predictor)
    write_scene(tmp_path / "a.tif", height=96, width=120)
    maps = MapRecipe(grid=True, vectors=True)
    results.predict("models:/land@champion", str(tmp_path / "a.tif"), str(tmp_path / "out"), None, maps=maps)
    tiles = predictor.predict_path(tmp_path / "a.tif").tiles
    folder = only_map(tmp_path / "out")
    read_item(folder)
    with rasterio.open(folder / "classes.tif") as file:
        classes = file.read(1)
        # The last column of tiles holds 24 of 32 pixels: enough.
        assert file.shape == (3, 4)
        assert tuple(file.transform)[:6] == (320, 0, 500_000, 0, -320, 5_000_000)
    with rasterio.open(folder / "abstain.tif") as file:
        abstain = file.read(1)
    with rasterio.open(folder / "probabilities.tif") as file:
        water = file.read(2) * 0.004
    assert len(tiles) == 12
    for row in tiles.to_dict("records"):
        place = row["row"] // 32, row["col"] // 32
        assert CLASSES[classes[place]] == row["predicted"]
        assert abstain[place] == row["abstain"]
        assert water[place] == pytest.approx(row["p_water"], abs=0.0021)
    assert (folder / "classes.gpkg").is_file()


def test_a_pixel_of_the_grid_has_the_middle_of_its_tile() -> None:
    grid = Grid(1, 100, 100, transform=(10, 0, 0, 0, -10, 1000), crs="EPSG:32633")
    found = tile_grid(grid, TileRecipe(size=40, stride=20), uri="a")
    assert (found.height, found.width) == (4, 4)
    # The middle of the first tile is 20 pixels in, that of a pixel of 20 pixels 10 after its edge.
    assert found.transform == (200, 0, 100, 0, -200, 900)
    whole = tile_grid(grid, TileRecipe(size=40, cut="whole"), uri="a")
    assert (whole.height, whole.width, whole.transform) == (1, 1, (1000, 0, 0, 0, -1000, 1000))


@pytest.mark.parametrize(
    ("crs", "transform", "bbox"),
    [
        ("EPSG:4326", (0.1, 0, 5, 0, -0.1, 10), [5, 0, 15, 10]),
        ("EPSG:4326", (0.1, 0, 175, 0, -0.1, 10), [175, 0, -175, 10]),
        ("EPSG:4326", (3.6, 0, 0, 0, -1.8, 90), [-180, -90, 180, 90]),
        ("EPSG:3031", (10_000, 0, -500_000, 0, -10_000, 500_000), [-180, -90, 180, -83.4987329]),
        ("EPSG:3413", (1_000, 0, 0, 0, -1_000, -1_000_000), [-45, 79.83, -39.29, 80.8]),
    ],
)
def test_footprints_split_at_the_antimeridian_and_hold_poles(
    crs: str, transform: tuple[float, float, float, float, float, float], bbox: list[float]
) -> None:
    found = footprint(Grid(1, 100, 100, transform=transform, crs=crs))
    assert found is not None
    geometry, box = found
    shape = shapely.geometry.shape(geometry)
    assert shape.is_valid
    assert all(-180 <= value <= 180 for value in (shape.bounds[0], shape.bounds[2]))
    assert box[:3] == pytest.approx(bbox[:3], abs=0.3)
    assert geometry["type"] == ("MultiPolygon" if bbox[0] > bbox[2] else "Polygon")


def test_what_lies_nowhere_has_no_footprint() -> None:
    grid: Grid = Grid(1, 10, 10)
    found: tuple[dict[str, Json], list[Json]] | None = footprint(grid)
    assert found is None


@pytest.mark.parametrize(("longitude", "west", "east"), [(-75, -150, 0), (140.7, 65.7, -144.3)])
def test_a_geostationary_disk_whose_corners_lie_off_the_earth_has_a_footprint(
    longitude: float, west: float, east: float
) -> None:
    crs = f"+proj=geos +lon_0={longitude} +h=35786023 +ellps=GRS80 +units=m +sweep=x"
    edge = 5_434_895.0
    grid = Grid(1, 542, 542, transform=(2 * edge / 542, 0, -edge, 0, -2 * edge / 542, edge), crs=crs)
    found = footprint(grid)
    assert found is not None
    geometry, box = found
    shape = shapely.geometry.shape(geometry)
    assert shape.is_valid
    assert geometry["type"] == ("MultiPolygon" if west > east else "Polygon")
    # Of 24 cells an edge, so a little small; and none of the disk's is left out.
    assert box == pytest.approx([west, -75, east, 75], abs=14)
    assert shapely.contains_xy(shape, longitude + np.array([-50, 0, 39]), np.array([0, 50, -30])).all()


def test_a_grid_off_the_earth_has_no_footprint() -> None:
    crs = "+proj=geos +lon_0=0 +h=35786023 +ellps=GRS80 +units=m"
    assert footprint(Grid(1, 10, 10, transform=(10, 0, 9e6, 0, -10, 9e6), crs=crs)) is None
