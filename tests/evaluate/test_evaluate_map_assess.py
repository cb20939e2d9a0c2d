from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
from rasterio.transform import from_origin
from typer.testing import CliRunner

from flows.cli import app
from vitpipe.errors import ConfigError, DataError
from vitpipe.evaluate.map_accuracy import Design, Share, map_accuracy
from vitpipe.evaluate.map_assess import AccuracyRequest, MapFindings, assess_map, judge_map, plus_minus
from vitpipe.evaluate.map_ground import count_classes, open_classes, pixel_areas, pixel_edge_m

UTM = from_origin(500_000, 5_500_000, 10, 10)


def write(path: Path, values: np.ndarray, transform: Any = UTM, crs: str | None = "EPSG:32632", **extra: Any) -> Path:
    height, width = values.shape
    profile = {"height": height, "width": width, "count": 1, "dtype": values.dtype, "nodata": 255} | extra
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **profile) as target:
        target.write(values, 1)
    return path


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """A map of 3 classes in 120 x 200 px with nodata in a corner, and the truth of every pixel."""
    generator = np.random.default_rng(1)
    values = np.repeat(np.repeat(generator.integers(0, 3, (12, 20)), 10, 0), 10, 1).astype(np.uint8)
    truth = np.where(generator.random(values.shape) < 0.8, values, generator.integers(0, 3, values.shape))
    values[:20, :20] = 255
    return write(tmp_path / "map.tif", values, tiled=True, blockxsize=64, blockysize=64), values, truth


def drawn(values: np.ndarray, truth: np.ndarray, count: int = 60) -> pd.DataFrame:
    """Points in lon/lat free form: x, y of pixel centres in the CRS of the map."""
    generator = np.random.default_rng(2)
    rows = []
    for value in range(3):
        places = np.argwhere(values == value)
        for row, col in places[generator.choice(len(places), count, replace=False)]:
            rows.append({"x": 500_005 + 10 * col, "y": 5_499_995 - 10 * row, "label": int(truth[row, col])})
    return pd.DataFrame(rows).assign(crs="EPSG:32632")


def test_points_of_a_csv_give_the_estimates_of_their_matrix(
    scene: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    path, values, truth = scene
    points = drawn(values, truth)
    extra = pd.DataFrame({"x": [0.0, 500_005], "y": [0.0, 5_499_995], "label": [1, 1], "crs": "EPSG:32632"})
    pd.concat([points, extra]).to_csv(tmp_path / "points.csv", index=False)
    found = judge_map(AccuracyRequest(path, tmp_path / "points.csv"))
    row, col = (5_500_000 - points["y"]) // 10, (points["x"] - 500_000) // 10
    mapped = values[row.astype(int), col.astype(int)].astype(str)
    sample = pd.DataFrame({"stratum": mapped, "map": mapped, "reference": points["label"].astype(str)})
    sizes = {str(value): found.mapped[str(value)][1] for value in range(3)}
    expected = map_accuracy(sample, Design(sizes))
    assert found.accuracy.overall == expected.overall
    assert found.accuracy.counts.tolist() == expected.counts.tolist()
    assert {name: px for name, (px, _) in found.mapped.items()} == {
        str(value): int((values == value).sum()) for value in range(3)
    }
    assert found.reference.dropped == {"outside the map": 1, "where the map has no class": 1}


def test_points_in_another_crs_and_named_classes_are_the_same(
    scene: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    path, values, truth = scene
    points = drawn(values, truth)
    points.to_csv(tmp_path / "utm.csv", index=False)
    lon, lat = rasterio.warp.transform("EPSG:32632", "EPSG:4326", points["x"], points["y"])
    names = {0: "water", 1: "forest", 2: "field"}
    points = points.assign(lon=lon, lat=lat, kind=points["label"].map(names)).drop(columns=["x", "y", "crs"])
    points.to_csv(tmp_path / "geographic.csv", index=False)
    features = [
        {"type": "Feature", "properties": {"kind": kind}, "geometry": {"type": "Point", "coordinates": [x, y]}}
        for x, y, kind in points[["lon", "lat", "kind"]].itertuples(index=False)
    ]
    (tmp_path / "points.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    named = "0=water,1=forest,2=field"
    first = judge_map(AccuracyRequest(path, tmp_path / "utm.csv", classes=named))
    for name in ("geographic.csv", "points.geojson"):
        other = judge_map(AccuracyRequest(path, tmp_path / name, "kind", classes=named))
        assert other.accuracy.overall == first.accuracy.overall
        assert dict(other.accuracy.areas) == dict(first.accuracy.areas)
    assert first.accuracy.classes == ("field", "forest", "water")
    with rasterio.open(path, "r+") as target:
        target.update_tags(CLASS_0="water", CLASS_1="forest", CLASS_2="field", CLASS_OF="nothing")
    # A number in the reference need not be the map's own: a map of ours counts its classes by their names.
    with pytest.raises(DataError, match=r"CLASSES_DIFFER.*--reference-classes"):
        judge_map(AccuracyRequest(path, tmp_path / "utm.csv"))
    tagged = judge_map(AccuracyRequest(path, tmp_path / "utm.csv", reference_classes=named)).accuracy
    assert (tagged.classes, tagged.overall) == (first.accuracy.classes, first.accuracy.overall)


def test_the_pixels_of_polygons_are_counted_and_each_is_a_cluster(
    scene: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    path, values, _ = scene
    features, expected = [], 0
    for number in range(30):
        # The first lies by one row in the corner where the map has no class.
        row, col = (21 + 3 * number, 5 * number) if number else (19, 0)
        corners = [(col, row), (col + 4, row), (col + 4, row + 3), (col, row + 3), (col, row)]
        ring = [[500_000 + 10 * x, 5_500_000 - 10 * y] for x, y in corners]
        label = int(values[row + 2, col])
        expected += int((values[row : row + 3, col : col + 4] == label).sum())
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "properties": {"label": str(label)}, "geometry": geometry})
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32632"}}
    (tmp_path / "p.geojson").write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    found = judge_map(AccuracyRequest(path, tmp_path / "p.geojson"))
    assert found.accuracy.n == 30 * 12 - 4
    assert found.accuracy.n_clusters == 30
    assert int(np.trace(found.accuracy.counts)) == expected
    assert "polygons" in found.design


def test_a_pixel_of_two_polygons_counts_once_and_a_contradicted_one_not_at_all(tmp_path: Path) -> None:
    path = write(tmp_path / "map.tif", np.ones((40, 40), np.uint8))

    def box(row: int, col: int, label: str) -> dict[str, object]:
        corners = [(col, row), (col + 10, row), (col + 10, row + 10), (col, row + 10), (col, row)]
        ring = [[500_000 + 10 * x, 5_500_000 - 10 * y] for x, y in corners]
        return {
            "type": "Feature",
            "properties": {"label": label},
            "geometry": {"type": "Polygon", "coordinates": [ring]},
        }

    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32632"}}

    def judged(*features: dict[str, object]) -> MapFindings:
        text = json.dumps({"type": "FeatureCollection", "crs": crs, "features": features})
        (tmp_path / "p.geojson").write_text(text)
        return judge_map(AccuracyRequest(path, tmp_path / "p.geojson"))

    # Two side by side share an edge alone; the third repeats the first, the fourth lies half on it.
    alike = judged(box(0, 0, "1"), box(0, 10, "1"), box(0, 0, "1"), box(5, 0, "1"), box(20, 20, "1"))
    assert alike.accuracy.n == 350
    assert alike.accuracy.n_clusters == 4
    assert alike.reference.dropped == {"wholly covered by other polygons": 1}
    other = judged(box(0, 0, "1"), box(5, 0, "2"), box(0, 20, "1"), box(20, 20, "2"))
    assert other.accuracy.counts.tolist() == [[150, 150], [0, 0]]
    assert other.reference.dropped == {"in the part of a polygon that one of another class covers, too": 2}


def test_a_reference_raster_needs_blocks_and_gives_the_whole_matrix(
    scene: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    path, values, truth = scene
    reference = write(tmp_path / "truth.tif", truth.astype(np.uint8))
    with pytest.raises(ConfigError, match="--block-m"):
        judge_map(AccuracyRequest(path, reference))
    found = judge_map(AccuracyRequest(path, reference, block_m=200))
    valid = values != 255
    matrix = np.zeros((3, 3), dtype=int)
    np.add.at(matrix, (values[valid], truth[valid]), 1)
    assert found.accuracy.counts.tolist() == matrix.tolist()
    assert found.accuracy.n_clusters == 6 * 10 - 1
    shifted = write(tmp_path / "shifted.tif", (truth + 5).astype(np.uint8))
    again = judge_map(AccuracyRequest(path, shifted, block_m=200, reference_classes="5=0,6=1,7=2"))
    assert again.accuracy.counts.tolist() == matrix.tolist()
    # Every pixel was looked at: the adjusted areas are those of the truth.
    assert found.accuracy.areas["1"].estimate == pytest.approx((truth[valid] == 1).mean(), abs=1e-5)


@pytest.mark.parametrize(("crs", "edge_m"), [("EPSG:32632", 30.0), ("EPSG:32632", 7.0), ("EPSG:32633", 25.0)])
def test_a_reference_on_another_grid_is_read_at_the_centres_of_the_maps_pixels(
    scene: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, crs: str, edge_m: float
) -> None:
    path, values, _ = scene
    left, top = rasterio.warp.transform("EPSG:32632", crs, [500_050.0], [5_499_950.0])
    generator = np.random.default_rng(3)
    # 255 is a class here and 9 says nothing; the reference ends inside the map, and begins there.
    theirs = generator.choice(np.array([0, 1, 2, 9, 255], np.uint8), (40, 60))
    place = from_origin(left[0], top[0], edge_m, edge_m)
    reference = write(tmp_path / "other.tif", theirs, place, crs, nodata=9)
    with rasterio.open(path) as raster:
        rows, cols = np.indices(raster.shape)
        x, y = raster.transform @ (cols.ravel() + 0.5, rows.ravel() + 0.5)
    x, y = (np.asarray(each) for each in rasterio.warp.transform("EPSG:32632", crs, x, y))
    col, row = np.floor((x - left[0]) / edge_m).astype(int), np.floor((top[0] - y) / edge_m).astype(int)
    inside = (col >= 0) & (row >= 0) & (col < 60) & (row < 40)
    said = np.full(x.size, 9, np.uint8)
    said[inside] = theirs[row[inside], col[inside]]
    both = (said != 9) & (values.ravel() != 255)
    expected = pd.crosstab(values.ravel()[both], said[both]).to_numpy()
    found = judge_map(AccuracyRequest(path, reference, block_m=200))
    counts = found.accuracy.counts[:, [found.accuracy.classes.index(name) for name in ("0", "1", "2", "255")]]
    if crs == "EPSG:32632":
        assert counts[:3].tolist() == expected.tolist()
    else:
        # GDAL places pixels to an eighth of one.
        assert np.abs(counts[:3] - expected).sum() < 0.02 * expected.sum()
    assert any("another grid" in note and "nearest" in note for note in found.notes)


def test_a_reference_on_another_grid_that_cannot_be_used_is_said(
    scene: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    path, _, _ = scene
    coarse = from_origin(500_000, 5_500_000, 300, 300)
    ones = np.ones((4, 7), np.uint8)

    def refused(reference: Path, match: str, kind: type[Exception] = DataError) -> None:
        with pytest.raises(kind, match=match):
            judge_map(AccuracyRequest(path, reference, block_m=200))

    refused(write(tmp_path / "coarse.tif", ones, coarse), r"blocks of 200 m are narrower.*\(300 m\)", ConfigError)
    refused(write(tmp_path / "bare.tif", ones, from_origin(500_000, 5_500_000, 20, 20), None), "OTHER_GRID.*no CRS")
    far = from_origin(600_000, 5_500_000, 20, 20)
    refused(write(tmp_path / "far.tif", ones, far), "REFERENCE_EMPTY")
    large = np.full((40, 70), 300, np.int16)
    refused(write(tmp_path / "large.tif", large, from_origin(500_000, 5_500_000, 20, 20), nodata=0), "NOT_CLASSES.*300")


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_a_reference_on_another_grid_that_says_nothing_is_empty(
    scene: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, dtype: str
) -> None:
    nothing = np.full((60, 60), 7, dtype)
    reference = write(tmp_path / "r.tif", nothing, from_origin(500_000, 5_500_000, 20, 20), nodata=7)
    with pytest.raises(DataError, match="REFERENCE_EMPTY"):
        judge_map(AccuracyRequest(map=scene[0], reference=reference, block_m=200.0))


def test_the_errors_of_blocks_are_a_picture_and_a_layer(
    scene: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, values, truth = scene
    request = AccuracyRequest(path, write(tmp_path / "truth.tif", truth.astype(np.uint8)), block_m=500)
    found = judge_map(request).by_block
    assert found is not None
    # Blocks of 50 pixels: the last ones of 120 rows hold 20, the first one has a corner of nodata.
    parts = [(slice(50 * row, 50 * row + 50), slice(50 * col, 50 * col + 50)) for row in range(3) for col in range(4)]
    units = [int((values[part] != 255).sum()) for part in parts]
    wrong = [int(((values[part] != 255) & (values[part] != truth[part])).sum()) for part in parts]
    assert found.units.ravel().tolist() == units
    assert found.wrong.ravel().tolist() == wrong
    said = assess_map(request, tmp_path / "out")
    assert "error_blocks.tif" in said.lines[-1]
    with rasterio.open(tmp_path / "out" / "error_blocks.tif") as layer:
        assert (layer.crs.to_epsg(), layer.shape) == (32632, (3, 4))
        assert layer.transform == from_origin(500_000, 5_500_000, 500, 500)
        assert layer.read(1).ravel() == pytest.approx(np.array(wrong) / np.array(units))
        assert layer.read(2).ravel().tolist() == units
    page = (tmp_path / "out" / "accuracy.html").read_text()
    assert "The 12 blocks of 500 m" in page
    worst = max(range(12), key=lambda at: wrong[at] / units[at])
    x, y = 500_250 + 500 * (worst % 4), 5_499_750 - 500 * (worst // 4)
    assert "<h3>Blocks with the largest error</h3><div class='scroll'>" in page
    assert page.split("Blocks with the largest error")[1].index(f"<td>{x:,}</td><td>{y:,}</td>") < 400
    monkeypatch.setattr("vitpipe.evaluate.map_blocks.MOST_BLOCKS", 11)
    many = judge_map(request)
    assert many.by_block is None
    assert any("more than" in note for note in many.notes)


def test_strata_of_an_older_map(scene: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    path, values, truth = scene
    older = np.where(np.arange(200)[None, :] < 80, 4, 9).astype(np.uint8) * np.ones((120, 1), np.uint8)
    strata = write(tmp_path / "older.tif", older)
    points = drawn(values, truth)
    points.to_csv(tmp_path / "points.csv", index=False)
    found = judge_map(AccuracyRequest(path, tmp_path / "points.csv", strata=strata))
    left = ((points["x"] - 500_000) // 10 < 80).to_numpy()
    row, col = ((5_500_000 - points["y"]) // 10).astype(int), ((points["x"] - 500_000) // 10).astype(int)
    right = values[row, col] == points["label"]
    with open_classes(path) as raster, open_classes(strata) as others:
        sizes = count_classes(raster, others).groupby("stratum")["area_m2"].sum()
    expected = (sizes[4] * right[left].mean() + sizes[9] * right[~left].mean()) / sizes.sum()
    assert found.accuracy.overall.estimate == pytest.approx(expected)
    with pytest.raises(DataError, match="OTHER_GRID"):
        judge_map(
            AccuracyRequest(path, tmp_path / "points.csv", strata=write(tmp_path / "s.tif", older[:50, :50].copy()))
        )


def test_the_ground_of_a_geographic_pixel_shrinks_towards_the_pole(tmp_path: Path) -> None:
    values = np.ones((180, 360), np.uint8)
    values[:30] = 2  # 60 to 90 degrees north
    path = write(tmp_path / "world.tif", values, from_origin(-180, 90, 1, 1), "EPSG:4326")
    with open_classes(path) as raster:
        counted = count_classes(raster).set_index("value")
    # The authalic sphere of WGS 84 has 510,065,621.7 km2; north of 60 degrees lie 6.72 % of it.
    assert counted["area_m2"].sum() == pytest.approx(5.100656217e14, rel=1e-6)
    assert counted.loc[2, "area_m2"] / counted["area_m2"].sum() == pytest.approx(0.0674, abs=2e-4)
    assert counted.loc[2, "pixels"] == 30 * 360


@pytest.mark.parametrize(("crs", "x"), [("EPSG:32632", 500_000), ("EPSG:32601", 297_000), ("EPSG:3857", 1_000_000)])
def test_the_lattice_measures_projected_pixels(tmp_path: Path, crs: str, x: float) -> None:
    """Also across the antimeridian, which zone 1 of UTM crosses here at its 70th pixel."""
    path = write(tmp_path / "m.tif", np.ones((100, 150), np.uint8), from_origin(x, 6_000_000, 100, 100), crs)
    with open_classes(path) as raster:
        found = pixel_areas(raster, 0, 100)
        assert found is not None
        areas, step = found
        edge = pixel_edge_m(raster)
    assert areas.shape == (2, 3)
    assert step == 64
    sphere = 6_378_137.0
    lat = 2 * np.arctan(np.exp(6_000_000 / sphere)) - np.pi / 2
    expected = 1e4 * np.cos(lat) ** 2 if crs == "EPSG:3857" else 1e4
    assert areas == pytest.approx(np.full((2, 3), expected), rel=0.02)
    assert edge == pytest.approx(np.sqrt(expected), rel=0.02)


@pytest.mark.parametrize(("edge_m", "size"), [(25_000.0, 180), (1_000.0, 130), (10.0, 130)])
def test_the_ground_about_a_pole_and_of_coarse_pixels_is_measured(tmp_path: Path, edge_m: float, size: int) -> None:
    # Lambert's equal-area projection of the pole: each pixel is edge_m squared, on this side of the equator.
    path = tmp_path / "map.tif"
    half = edge_m * size / 2
    place = rasterio.transform.from_origin(-half, half, edge_m, edge_m)
    shape = {"height": size, "width": size, "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:3571", transform=place, **shape) as dataset:
        dataset.write(np.ones((size, size), np.uint8), 1)
    with open_classes(path) as raster:
        found = pixel_areas(raster, 0, size)
        total = count_classes(raster)["area_m2"].sum()
    assert found is not None
    assert found[0] == pytest.approx(np.full(found[0].shape, edge_m**2), rel=1e-4)
    assert total == pytest.approx((edge_m * size) ** 2, rel=5e-6)


def test_the_class_of_int16_and_a_map_without_crs(tmp_path: Path) -> None:
    values = np.array([[1, 1, 2], [2, -9999, 1]], np.int16)
    path = write(tmp_path / "m.tif", values, crs=None, nodata=-9999)
    with open_classes(path) as raster:
        counted = count_classes(raster)
    assert counted[["value", "pixels"]].values.tolist() == [[1, 3], [2, 2]]
    assert counted["area_m2"].isna().all()
    for bad, code in ((np.ones((2, 2), np.float32), "NOT_CLASSES"), (np.full((2, 2), 300, np.int16), "NOT_CLASSES")):
        with pytest.raises(DataError, match=code), open_classes(write(tmp_path / "b.tif", bad, nodata=0)) as raster:
            count_classes(raster)
    (tmp_path / "no.tif").write_text("<VRTDataset/>")
    with pytest.raises(DataError, match="MAP_UNREADABLE"), open_classes(tmp_path / "no.tif"):
        pass


def test_the_folder_of_a_map_stands_for_its_classes_and_another_names_those_below(
    scene: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    path, values, truth = scene
    drawn(values, truth).to_csv(tmp_path / "points.csv", index=False)
    folder = tmp_path / "maps" / "a"
    folder.mkdir(parents=True)
    path.rename(folder / "classes.tif")
    findings = assess_map(AccuracyRequest(folder, tmp_path / "points.csv"), tmp_path / "out")
    assert findings.lines[0].startswith("overall accuracy 0.")
    with pytest.raises(ConfigError, match=r"is a folder without classes.tif.*such as .*a/classes.tif"):
        judge_map(AccuracyRequest(tmp_path / "maps", tmp_path / "points.csv"))


def test_areas_are_written_alike() -> None:
    assert plus_minus(Share(2892.84, low=2754.4, high=3031.24), 1) == "2,892.8 +- 138.4"


def test_what_is_wrong_with_a_reference_is_a_coded_sentence(
    scene: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    path, values, truth = scene
    points = drawn(values, truth)

    def refused(table: pd.DataFrame, match: str, kind: type[Exception] = DataError, name: str = "p.csv") -> None:
        table.to_csv(tmp_path / name, index=False)
        with pytest.raises(kind, match=match):
            judge_map(AccuracyRequest(path, tmp_path / name))

    refused(points.drop(columns="crs"), "REFERENCE_NO_CRS")
    refused(points.drop(columns="label"), "REFERENCE_NO_COLUMN.*label.*`--column NAME`")
    refused(points.drop(columns="x"), "REFERENCE_NO_COLUMN[^`]*x[^`]*$")
    refused(points.assign(crs="EPSG:1"), "REFERENCE_NO_CRS")
    refused(points.assign(x=0.0), "REFERENCE_EMPTY.*180 outside the map")
    refused(points.assign(label="tree"), "CLASSES_DIFFER.*tree")
    refused(points.assign(label=0).iloc[:61], "STRATUM_TOO_FEW.*--pool-small")
    refused(points, "no known kind", ConfigError, "p.txt")
    refused(points, "not what its name says", DataError, "p.gpkg")
    found = judge_map(AccuracyRequest(path, _csv(points.assign(label=0).iloc[:61], tmp_path), pool_small=True))
    assert any("merged" in note for note in found.notes)
    with pytest.raises(ConfigError, match="no file"):
        judge_map(AccuracyRequest(path, tmp_path / "none.csv"))


def _csv(table: pd.DataFrame, folder: Path) -> Path:
    table.to_csv(folder / "few.csv", index=False)
    return folder / "few.csv"


def test_the_verb_writes_numbers_and_a_page(scene: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    path, values, truth = scene
    drawn(values, truth).to_csv(tmp_path / "points.csv", index=False)
    out = tmp_path / "out"
    arguments = ["accuracy", str(path), str(tmp_path / "points.csv"), "--classes", "0=a<b,1=forest", "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "probability sample" in result.output
    assert "error-adjusted" in result.output
    numbers = json.loads((out / "accuracy.json").read_text())
    assert numbers["classes"]["forest"]["area_ha"]["low"] < numbers["classes"]["forest"]["area_ha"]["estimate"]
    assert sum(map(sum, numbers["error_matrix"]["area_proportions"])) == pytest.approx(1)
    page = (out / "accuracy.html").read_text()
    assert "a&lt;b" in page
    assert "a<b" not in page
    assert "biased" in page
    failed = CliRunner().invoke(app, ["accuracy", str(path), str(tmp_path / "points.csv"), "--column", "x", "--json"])
    assert failed.exit_code == 3
    assert "CLASSES_DIFFER" in failed.output


def test_the_order_of_points_does_not_matter(scene: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    path, values, truth = scene
    points = drawn(values, truth)
    found = []
    for seed in (0, 1):
        points.sample(frac=1, random_state=seed).to_csv(tmp_path / "p.csv", index=False)
        request = AccuracyRequest(path, tmp_path / "p.csv", block_m=300)
        assess_map(request, tmp_path / str(seed))
        found.append(json.loads((tmp_path / str(seed) / "accuracy.json").read_text()))
    assert found[0]["overall_accuracy"]["estimate"] == pytest.approx(found[1]["overall_accuracy"]["estimate"])
    assert found[0]["overall_accuracy"]["se"] == pytest.approx(found[1]["overall_accuracy"]["se"])
    assert found[0]["n_clusters"] == found[1]["n_clusters"] > 10
