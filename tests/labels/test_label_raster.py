"""Label rasters: copied or warped onto the tiles' grid, ignored where they say nothing, never guessed."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.io import DatasetReader
from rasterio.transform import from_origin
from rasterio.warp import transform as warp_points

from tests.labels.ground_cases import UTM, Run, X, Y, make_config, mosaic, targets_of, write_scene, write_tif
from vitpipe import tile_asking
from vitpipe.errors import LabelError
from vitpipe.labels import raster_layer
from vitpipe.labels.places import Rectangle
from vitpipe.labels.raster_layer import read_values, to_places
from vitpipe.manifest import Manifest, read_manifest, write_manifest
from vitpipe.pixel_targets import IGNORE
from vitpipe.records import Task

H, W = 72, 90


def classes(seed: int, height: int = H, width: int = W, values: int = 4) -> np.ndarray:
    """Values 0 (unlabelled) and 1.. in squares of 6 pixels."""
    small = np.random.default_rng(seed).integers(0, values, (-(-height // 6), -(-width // 6)))
    return np.kron(small, np.ones((6, 6), int))[:height, :width].astype(np.uint8)


def test_an_aligned_raster_gives_the_targets_of_every_pixel(tmp_path: Path) -> None:
    holes = np.zeros((H, W), bool)
    holes[10:30, 40:60] = True
    write_scene(tmp_path / "scenes" / "a.tif", H, W, holes=holes)
    drawn = classes(1)
    write_tif(tmp_path / "labels" / "a_label.tif", drawn, nodata=0)
    names = {1: "water", 2: "forest", 3: "field"}
    run = Run(make_config(tmp_path, {"kind": "raster", "path": str(tmp_path / "labels"), "classes": names}))
    manifest = run.manifest()
    assert manifest.task is Task.SEGMENTATION
    assert manifest.classes == ("field", "forest", "water")
    expected = np.choose(drawn, [IGNORE, 2, 1, 0])
    expected[holes] = IGNORE
    assert (mosaic(manifest, run.sources[0].source_id, H, W) == expected).all()
    targets = targets_of(manifest)
    table = manifest.table
    assert table["labelled_px"].tolist() == [(tile != IGNORE).sum() for tile in targets]
    most = [np.bincount(tile[tile != IGNORE], minlength=3).argmax() for tile in targets]
    assert table["label"].tolist() == [manifest.classes[place] for place in most]
    train = (table["split"] == "train").to_numpy()
    counts = np.bincount(targets[train].ravel(), minlength=256)[:3]
    listed = f"pixels by class: field {counts[0]}, forest {counts[1]}, water {counts[2]}"
    assert any(note.startswith("train:") and note.endswith(listed) for note in manifest.notes)
    write_manifest(manifest, tmp_path / "run")
    again = read_manifest(tmp_path / "run")
    assert (again.task, again.targets_folder) == (manifest.task, manifest.targets_folder)


def test_targets_that_are_there_are_kept_and_a_lost_array_is_made_again(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    write_tif(tmp_path / "labels" / "a.tif", classes(2), nodata=0)
    run = Run(make_config(tmp_path, {"kind": "raster", "path": str(tmp_path / "labels")}, stride=8))
    first = run.manifest()
    assert any("the values themselves are the names" in note for note in first.notes)
    assert first.classes == ("1", "2", "3")
    assert first.targets_folder is not None
    arrays = sorted(first.targets_folder.glob("*.npy"))
    assert arrays
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in arrays]
    again = run.manifest()
    assert again.digest == first.digest
    assert [(path.stat().st_mtime_ns, path.read_bytes()) for path in arrays] == before
    arrays[0].unlink()
    assert run.manifest().digest == first.digest
    assert arrays[0].read_bytes() == before[0][1]


def test_values_without_a_name_are_an_error_that_names_them_and_ignored_ones_are_not(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    write_tif(tmp_path / "labels" / "a.tif", classes(3))
    labels: dict[str, object] = {"kind": "raster", "path": str(tmp_path / "labels"), "classes": {1: "a", 2: "b"}}
    run = Run(make_config(tmp_path, labels))
    with pytest.raises(LabelError, match=r"2 value\(s\) on the sources have no class: 0, 3"):
        run.labels()
    run.config = make_config(tmp_path, labels | {"ignore": [0, 3]})
    manifest = run.manifest()
    assert manifest.classes == ("a", "b")
    found = mosaic(manifest, run.sources[0].source_id, H, W)
    assert (found == np.choose(classes(3), [IGNORE, 0, 1, IGNORE])).all()


def looked_up(drawn: np.ndarray, to_label: Affine, crs: tuple[str, str], shape: tuple[int, int]) -> np.ndarray:
    """Look up the label under the centre of each pixel of a scene at X, Y, each by itself; 0 outside."""
    cols, rows = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
    x, y = X + 10 * cols.ravel(), Y - 10 * rows.ravel()
    if crs[0] != crs[1]:
        x, y = (np.array(found) for found in warp_points(CRS.from_string(crs[0]), CRS.from_string(crs[1]), x, y))
    at_cols, at_rows = ~to_label * (x, y)
    places = np.floor(at_rows).astype(int), np.floor(at_cols).astype(int)
    inside = (places[0] >= 0) & (places[0] < drawn.shape[0]) & (places[1] >= 0) & (places[1] < drawn.shape[1])
    found = np.zeros(len(x), np.uint8)
    found[inside] = drawn[places[0][inside], places[1][inside]]
    return found.reshape(shape)


@pytest.mark.parametrize("case", ["finer", "coarser", "shifted", "south-up", "degrees", "other zone", "turned"])
def test_a_raster_on_another_grid_is_looked_up_at_the_centres_of_the_pixels(tmp_path: Path, case: str) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    crs, drawn = UTM, classes(4, 120, 150)
    transform = from_origin(X - 103, Y + 52, 7, 7)
    if case == "coarser":
        transform = from_origin(X + 100, Y - 100, 30, 25)
    elif case == "shifted":
        transform = from_origin(X + 200, Y + 50, 10, 10)
    elif case == "south-up":
        transform = Affine(10, 0, X - 50, 0, 10, Y - 800)
    elif case == "turned":
        transform = Affine.translation(X - 100, Y - 300) @ Affine.rotation(30) @ Affine.scale(12, -12)
    elif case in ("degrees", "other zone"):
        crs = "EPSG:4326" if case == "degrees" else "EPSG:32633"
        left, top = (float(at[0]) for at in warp_points(CRS.from_string(UTM), CRS.from_string(crs), [X], [Y]))
        step = (1.2e-4, 0.8e-4) if case == "degrees" else (12, 12)
        transform = from_origin(left - 5 * step[0], top + 5 * step[1], *step)
    write_tif(tmp_path / "labels.tif", drawn, crs=crs, transform=transform, nodata=0)
    run = Run(make_config(tmp_path, {"kind": "raster", "path": str(tmp_path / "labels.tif")}, stride=12))
    labels, found = run.targets()
    assert labels.classes == ("1", "2", "3")
    expected = looked_up(drawn, transform, (UTM, crs), (H, W))
    assert np.count_nonzero(expected) > 500
    different = np.count_nonzero(found["a"] != np.choose(expected, [IGNORE, 0, 1, 2]))
    # GDAL's warp may err by an eighth of a pixel, so some pixels at edges of classes are those of a neighbour.
    assert different <= (0.02 * H * W if case in ("degrees", "other zone", "turned") else 0)


def test_what_a_warp_reads_is_bounded_and_the_same_in_one_piece_or_in_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    drawn = classes(5, 400, 500)
    left, top = (float(at[0]) for at in warp_points(CRS.from_string(UTM), CRS.from_epsg(32633), [X], [Y]))
    write_tif(tmp_path / "labels.tif", drawn, crs="EPSG:32633", x=left - 100, y=top + 100, gsd_m=3, nodata=0)
    run = Run(make_config(tmp_path, {"kind": "raster", "path": str(tmp_path / "labels.tif")}))
    _, whole = run.targets()
    read: list[int] = []

    def noted(dataset: DatasetReader, number: int, part: Rectangle) -> tuple[np.ndarray, np.ndarray]:
        read.append(part.pixels)
        return read_values(dataset, number, part)

    monkeypatch.setattr(raster_layer, "_MOST_WINDOW_PX", 4000)
    monkeypatch.setattr(raster_layer, "read_values", noted)
    run.config = run.config.model_copy(update={"workspace": str(tmp_path / "other")})
    _, pieces = Run(run.config).targets()
    assert len(read) > 20
    assert max(read) <= 4000
    assert np.count_nonzero(pieces["a"] != whole["a"]) < 0.01 * H * W


def test_tiles_at_another_resolution_look_up_their_own_pixels(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    drawn = classes(6, 2 * H, 2 * W)
    write_tif(tmp_path / "labels.tif", drawn, gsd_m=5, nodata=0)
    run = Run(make_config(tmp_path, {"kind": "raster", "path": str(tmp_path / "labels.tif")}, gsd_m=5))
    _, found = run.targets()
    assert (found["a"] == np.choose(drawn, [IGNORE, 0, 1, 2])).all()


def test_scenes_without_a_crs_have_labels_by_name_pixel_by_pixel(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W, crs=None)
    write_scene(tmp_path / "scenes" / "b.tif", H, W + 3, seed=1, crs=None)
    for name in "abc":
        write_tif(tmp_path / "labels" / f"{name}_mask.tif", classes(7), crs=None, nodata=0)
    values: dict[str, object] = {"kind": "raster", "path": str(tmp_path / "labels")}
    run = Run(make_config(tmp_path, values | {"match": "name", "suffix": "_mask"}))
    labels, found = run.targets()
    assert (found["a"] == np.choose(classes(7), [IGNORE, 0, 1, 2])).all()
    assert [(Path(item.uri).name, item.code) for item in labels.rejected] == [("b_mask.tif", "LABEL_NO_CRS")]
    assert "1 label raster(s) lie on no source and are not used" in labels.notes
    run.config = make_config(tmp_path, values)
    with pytest.raises(LabelError, match=r"no label in .* lies on any of the 2 source.*; no source has a CRS; "):
        run.labels()
    whole = Run(make_config(tmp_path / "x", values).model_copy(update={"source": run.config.source}))
    whole.config = make_config(
        tmp_path / "x", values | {"match": "name", "suffix": "_mask"}, cut="whole", size=45, min_valid_fraction=0.1
    ).model_copy(update={"source": run.config.source})
    whole = Run(whole.config)
    _, halved = whole.targets()
    assert (halved["a"] == np.choose(classes(7)[1::2, 1::2], [IGNORE, 0, 1, 2])).all()


def test_continuous_values_are_regression_targets_in_their_units(tmp_path: Path) -> None:
    holes = np.zeros((H, W), bool)
    holes[:10, :20] = True
    write_scene(tmp_path / "scenes" / "a.tif", H, W, holes=holes)
    rng = np.random.default_rng(8)
    heights = rng.normal(100, 20, (H, W)).astype(np.float32)
    heights[30:40] = -9999
    heights[50, 50] = np.nan
    path = write_tif(tmp_path / "labels.tif", heights, nodata=-9999)
    with rasterio.open(path, "r+") as dataset:
        dataset.units = ("m",)
        dataset.scales = (0.5,)
    run = Run(make_config(tmp_path, {"kind": "raster", "path": str(path), "values": "continuous"}))
    manifest = run.manifest()
    assert manifest.task is Task.REGRESSION
    assert manifest.classes == ()
    assert manifest.target_units == "m"
    expected = heights * np.float32(0.5)
    expected[30:40] = expected[50, 50] = expected[holes] = np.nan
    found = mosaic(manifest, run.sources[0].source_id, H, W, np.nan)
    np.testing.assert_array_equal(found, expected)
    assert set(manifest.table["label"]) == {"value"}
    assert manifest.table["labelled_px"].sum() == np.count_nonzero(~np.isnan(expected))
    assert read_manifest_of(manifest, tmp_path).target_units == "m"
    # Half a pixel aside each value is made of its neighbours, and of the valid ones alone.
    write_tif(path, heights, nodata=-9999, x=X + 5)
    run = Run(make_config(tmp_path / "b", {"kind": "raster", "path": str(path), "values": "continuous"}).model_copy(
        update={"source": run.config.source}
    ))  # fmt: skip
    _, shifted = run.targets()
    between = (heights[:20, 20:-1] + heights[:20, 21:]) / 2
    np.testing.assert_allclose(shifted["a"][:20, 21:-1], between[:, :-1], atol=1e-3)
    assert np.nanmin(shifted["a"]) > 0


def test_ignored_values_are_no_targets_of_a_regression(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    heights = np.random.default_rng(3).normal(100, 20, (H, W)).astype(np.float32).astype(np.float64)
    heights[:10] = -9999
    heights[20], heights[21] = 1e300, -1e39
    path = write_tif(tmp_path / "labels.tif", heights)
    values: dict[str, object] = {"kind": "raster", "path": str(path), "values": "continuous", "ignore": [-9999]}
    _, found = Run(make_config(tmp_path, values)).targets()
    # No float32 holds the largest ones.
    np.testing.assert_array_equal(found["a"], np.where(np.abs(heights) > 9000, np.nan, heights))


@pytest.mark.parametrize("values", ["continuous", "classes"])
def test_the_range_of_labels_is_that_of_their_values_and_shares(tmp_path: Path, values: str) -> None:
    size, rng = 448, np.random.default_rng(5)
    write_scene(tmp_path / "scenes" / "a.tif", size, size)
    # Squares of 640 m, tiles of 160 m: beyond 640 m nothing is alike, whatever most of a tile is.
    low = np.kron(rng.uniform(0, 0.45, (7, 7)), np.ones((64, 64)))
    drawn = low.astype(np.float32) if values == "continuous" else (rng.uniform(size=low.shape) < low).astype(np.uint8)
    write_tif(tmp_path / "labels.tif", drawn)
    config = make_config(tmp_path, {"kind": "raster", "path": str(tmp_path / "labels.tif"), "values": values})
    blocks = Run(config).manifest().audit["blocks"]
    assert isinstance(blocks, dict)
    assert isinstance(blocks["range_m"], float)
    assert 400 < blocks["range_m"] < 1100


def read_manifest_of(manifest: Manifest, folder: Path) -> Manifest:
    write_manifest(manifest, folder / "run")
    return read_manifest(folder / "run")


def test_tiles_take_the_class_of_a_raster_by_majority_or_by_their_centre(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    drawn = classes(9)
    values: dict[str, object] = {"kind": "raster", "per": "tile"}
    values["path"] = str(write_tif(tmp_path / "labels.tif", drawn, nodata=0))
    run = Run(make_config(tmp_path, values, size=8, stride=5))
    for tile_class, least, background in (("majority", 0.4, None), ("centre", 0.4, None), ("majority", 0.7, "mixed")):
        run.config = make_config(
            tmp_path,
            values | {"tile_class": tile_class, "min_share": least, "background": background},
            size=8,
            stride=5,
        )
        expected = {}
        for tile in run.store.table().to_dict("records"):
            part = drawn[tile["row"] : tile["row"] + 8, tile["col"] : tile["col"] + 8]
            shares = np.bincount(part.ravel(), minlength=4) / part.size
            chosen = int(shares[1:].argmax()) + 1
            if tile_class == "centre":
                chosen = int(part[part.shape[0] // 2, part.shape[1] // 2])
            if chosen and shares[chosen] >= least:
                expected["a", tile["row"], tile["col"]] = str(chosen)
            elif background and 1 - shares[0] >= least:
                expected["a", tile["row"], tile["col"]] = background
        assert run.tile_labels() == expected
        assert len(set(expected.values())) >= 3


def test_names_come_from_the_sidecar_of_the_raster(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    path = write_tif(tmp_path / "labels.tif", classes(10), nodata=0)
    side = path.with_name("labels.tif.aux.xml")
    run = Run(make_config(tmp_path, {"kind": "raster", "path": str(path)}))
    side.write_text(
        '<PAMDataset><PAMRasterBand band="1"><CategoryNames><Category/><Category>wood</Category>'
        "<Category>water</Category><Category>town</Category><Category>nowhere</Category></CategoryNames>"
        "</PAMRasterBand></PAMDataset>"
    )
    assert run.labels().classes == ("town", "water", "wood")
    side.write_text(
        '<PAMDataset><PAMRasterBand band="1"><GDALRasterAttributeTable><FieldDefn index="0"><Name>Value</Name>'
        '<Type>0</Type><Usage>5</Usage></FieldDefn><FieldDefn index="1"><Name>What</Name><Type>2</Type>'
        '<Usage>2</Usage></FieldDefn><Row index="0"><F>3</F><F>a</F></Row><Row index="1"><F>1</F><F>b</F></Row>'
        '<Row index="2"><F>2</F><F>a</F></Row></GDALRasterAttributeTable></PAMRasterBand></PAMDataset>'
    )
    labels, found = run.targets()
    assert labels.classes == ("a", "b")
    assert (found["a"] == np.choose(classes(10), [IGNORE, 1, 0, 0])).all()
    side.write_text('<!DOCTYPE x [<!ENTITY a "aaaa">]>' + side.read_text())
    assert run.labels().classes == ("1", "2", "3")


def test_values_beside_the_scenes_need_no_name(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    drawn = np.full((400, 400), 77, np.uint8)
    drawn[100 : 100 + H, 100 : 100 + W] = classes(12)
    path = write_tif(tmp_path / "labels.tif", drawn, x=X - 1000, y=Y + 1000)
    values = {"kind": "raster", "path": str(path), "classes": {0: "w", 1: "x", 2: "y", 3: "z"}, "ignore": [77]}
    _, found = Run(make_config(tmp_path, values)).targets()
    assert (found["a"] == classes(12)).all()
    del values["ignore"]
    assert Run(make_config(tmp_path, values)).labels().classes == ("w", "x", "y", "z")


def test_rasters_that_cannot_be_used_are_rows_of_the_quarantine(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    folder = tmp_path / "labels"
    write_tif(folder / "good.tif", classes(11), nodata=0)
    write_tif(folder / "complex.tif", np.ones((H, W), np.complex64))
    whole = write_tif(folder / "cut.tif", np.random.default_rng(0).integers(0, 4, (900, 900)).astype(np.uint8))
    whole.write_bytes(whole.read_bytes()[:-100_000])
    broken = write_tif(
        folder / "broken.tif", np.random.default_rng(1).integers(0, 4, (H, W)).astype(np.uint8), compress="deflate"
    )
    content = bytearray(broken.read_bytes())
    content[-1800:-900] = b"\xff" * 900
    broken.write_bytes(content)
    (folder / "vrt.tif").write_text("<VRTDataset/>")
    run = Run(make_config(tmp_path, {"kind": "raster", "path": str(folder)}))
    found = {Path(item.uri).name: item.code for item in run.labels().rejected}
    unreadable = dict.fromkeys(("broken.tif", "cut.tif", "vrt.tif"), "LABEL_UNREADABLE")
    assert found == {"complex.tif": "LABEL_UNSUPPORTED", **unreadable}
    run.config = make_config(tmp_path, {"kind": "raster", "path": str(folder / "good.tif"), "band": 2})
    with pytest.raises(LabelError, match=r"1 LABEL_NO_BAND\); the first is .*it has 1 band"):
        run.labels()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "float32"])
def test_values_of_every_dtype_have_their_place(tmp_path: Path, dtype: str) -> None:
    values = [1, 7, 100] if dtype == "uint8" else [-128, 7, 100] if dtype == "int8" else [-300, 7, 30_000]
    if dtype == "uint16":
        values = [0, 7, 65_535]
    drawn = np.array(values)[classes(13, values=3)].astype(dtype)
    names = {values[0]: "z", values[2]: "x"}
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    path = write_tif(tmp_path / "labels.tif", drawn)
    run = Run(make_config(tmp_path, {"kind": "raster", "path": str(path), "classes": names, "ignore": [7]}))
    labels, found = run.targets()
    assert labels.classes == ("x", "z")
    assert (found["a"] == np.choose(classes(13, values=3), [1, IGNORE, 0])).all()
    beside = np.array([values[0], 8, values[2]], dtype)
    there = np.array([True, True, False])
    assert to_places(beside, there, {values[0]: 1, values[2]: 0}).tolist() == [1, IGNORE, IGNORE]


def test_rows_are_painted_once_in_blocks_of_bounded_height(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    path = write_tif(tmp_path / "labels.tif", classes(14), nodata=0)
    values: dict[str, object] = {"kind": "raster", "path": str(path)}
    expected = np.choose(classes(14), [IGNORE, 0, 1, 2])
    asked: list[tuple[int, int]] = []
    plain = raster_layer._RasterPainter.rows

    def noted(self: raster_layer._RasterPainter, start: int, stop: int) -> np.ndarray:
        asked.append((start, stop))
        return plain(self, start, stop)

    monkeypatch.setattr(raster_layer._RasterPainter, "rows", noted)
    for painted_px, stride in ((W * 20, 5), (W, 5), (W * 7, 16)):
        monkeypatch.setattr(tile_asking, "_PAINTED_PX", painted_px)
        asked.clear()
        config = make_config(tmp_path, values, stride=stride)
        run = Run(config.model_copy(update={"workspace": str(tmp_path / f"w{painted_px}")}))
        _, found = run.targets()
        assert (found["a"] == expected).all()
        assert asked[0][0] == 0
        assert asked[-1][1] == H
        assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(asked))
        assert max(stop - start for start, stop in asked) <= max(20, 16)
