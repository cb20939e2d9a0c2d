"""Folders of band files by a stated pattern, and series of dates as one source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from pydantic import ValidationError
from rasterio.transform import from_origin
from scene_cases import (
    LANDSAT_NAME,
    look,
    one,
    read,
    refused,
    refused_codes,
    sentinel2_metadata,
    write_band,
    write_landsat,
    write_safe,
)

from vitpipe.config import GeotiffSource
from vitpipe.domains.geotiff import Geotiff
from vitpipe.domains.geotiff.patterns import compile_pattern
from vitpipe.records import Window

_RNG = np.random.default_rng(6)


def _dn(size: int = 40) -> np.ndarray[Any, Any]:
    return _RNG.integers(1001, 9000, (size, size), dtype=np.uint16)


def _two_scenes(root: Path) -> dict[str, np.ndarray[Any, Any]]:
    pixels = {f"{scene}_{band}": _dn() for scene in ("a_1", "b") for band in ("red", "nir")}
    for name, stored in pixels.items():
        write_band(root / f"{name}.tif", stored, 10)
    return pixels


def test_band_files_are_joined_by_a_stated_pattern(tmp_path: Path) -> None:
    pixels = _two_scenes(tmp_path)
    write_band(tmp_path / "thumbnail.tif", _dn(), 10)
    sources, rejected = look(tmp_path, scenes={"pattern": "{scene}_{band}.tif"})
    (unmatched,) = rejected
    assert (unmatched.code, unmatched.junk, Path(unmatched.uri).name) == ("UNMATCHED", False, "thumbnail.tif")
    assert [source.keys["scene"] for source in sources] == [("a_1",), ("b",)]
    assert [source.keys["path"] for source in sources] == [("a_1",), ("b",)]
    for source, name in zip(sources, ("a_1", "b"), strict=True):
        assert (source.channels, source.units, source.dtype) == (("nir", "red"), "dn", "uint16")
        assert np.array_equal(read(source)[0], np.stack([pixels[f"{name}_nir"], pixels[f"{name}_red"]]))
    (source, _), _ = look(tmp_path, scenes={"pattern": "{scene}_{band}.tif"}, bands=("red",), units="reflectance")
    assert (source.channels, source.units) == (("red",), "reflectance")
    # Without a pattern each file is a scene.
    assert len(look(tmp_path)[0]) == 5


def test_patterns_with_folders_dates_and_expressions(tmp_path: Path) -> None:
    write_band(tmp_path / "20210708" / "x" / "B4.tif", _dn(), 10)
    write_band(tmp_path / "20210708" / "x" / "B5.tif", _dn(), 10)
    source = one(tmp_path, scenes={"pattern": "{date}/{scene}/{band}.tif"})
    assert (source.channels, source.acquired_at) == (("B4", "B5"), "2021-07-08T00:00:00")
    assert (source.attributes["season"], source.keys["path"]) == ("JJA", ("x",))
    # By the name alone two folders are two scenes.
    expression = r"^(?P<scene>)(?P<band>B\d)\.tif"
    assert one(tmp_path, scenes={"pattern": expression}).channels == ("B4", "B5")
    write_band(tmp_path / "20210709" / "x" / "B4.tif", _dn(), 10)
    assert len(look(tmp_path, scenes={"pattern": expression}, bands=("B4",))[0]) == 2
    # The second date of one scene: dates differ only where the scene does.
    assert refused(tmp_path, scenes={"pattern": "{date}/{scene}/{band}.tif"}).code == "DUPLICATE_BAND"


def test_a_pattern_of_letters_that_mean_something_elsewhere() -> None:
    pattern = compile_pattern("{scene}.v1+(x)*_{band}.tif")
    match = pattern.fullmatch("a_b.v1+(x)-anything_B04.tif")
    assert match is not None
    assert (match["scene"], match["band"]) == ("a_b", "B04")
    assert pattern.fullmatch("a_bxv1+(x)_B04.tif") is None
    assert compile_pattern("{scene}_{band}.tif").fullmatch("x/a_b.tif") is None


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("{scene}.tif", "must name {scene} and {band}"),
        ("{scene}_{band}_{band}.tif", "once"),
        ("{scene}_{band}_{level}.tif", "nothing else"),
        ("^(?P<scene>.*)_(?P<band>.*", "no regular expression"),
    ],
)
def test_a_pattern_that_names_no_band_is_refused(pattern: str, words: str) -> None:
    with pytest.raises(ValidationError, match="pattern") as caught:
        GeotiffSource(path="x", scenes={"pattern": pattern})  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_files_that_make_no_scene_have_a_code(tmp_path: Path) -> None:
    scenes = {"pattern": "{scene}_{band}.tif"}
    path = write_band(tmp_path / "a_B1.tif", _dn(), 10)
    write_band(tmp_path / "a_B2.tif", _dn(), 20)
    write_band(tmp_path / "sub" / "a_B1.tif", _dn(), 10)
    assert refused_codes(tmp_path, scenes=scenes) == {"GRIDS_DIFFER"}
    profile = {"driver": "GTiff", "count": 2, "height": 4, "width": 4, "dtype": "uint8"}
    with rasterio.open(tmp_path / "a_B3.tif", "w", crs="EPSG:32633", transform=from_origin(0, 0, 10, 10), **profile):
        pass
    assert refused_codes(tmp_path, scenes=scenes) == {"NOT_ONE_BAND"}
    (tmp_path / "a_B3.tif").unlink()
    write_band(tmp_path / "a_B2.tif", _dn(), 10)
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(ACQUISITION_DATE="2020-01-01")
    with rasterio.open(tmp_path / "a_B2.tif", "r+") as dataset:
        dataset.update_tags(ACQUISITION_DATE="2020-01-02")
    assert refused_codes(tmp_path, scenes=scenes) == {"BAD_DATE"}
    write_band(tmp_path / "a_B2.tif", _dn(), 10)
    with rasterio.open(tmp_path / "a_B2.tif", "r+") as dataset:
        dataset.scales, dataset.units = (0.1,), ("K",)
    assert refused_codes(tmp_path, scenes=scenes) == {"UNITS_DIFFER"}
    bad = tmp_path / "bad"
    write_band(bad / "20211332_x_B1.tif", _dn(), 10)
    assert refused(bad, scenes={"pattern": "{date}_{scene}_{band}.tif"}).code == "BAD_DATE"


def test_scenes_that_are_scaled_in_other_bands_mean_something_else(tmp_path: Path) -> None:
    for name in ("x_B1", "x_B2", "y_B1", "y_B2", "z_B1", "z_B2"):
        path = write_band(tmp_path / f"{name}.tif", np.ones((8, 8), np.uint16), 10)
        if name in ("x_B1", "y_B1", "y_B2"):
            with rasterio.open(path, "r+") as dataset:
                dataset.scales = (0.0001,)
    sources, _ = look(tmp_path, scenes={"pattern": "{scene}_{band}.tif"})
    assert [source.units for source in sources] == ["dn, but scaled in B1", "scaled", "dn"]


def test_a_unit_that_is_stated_for_all_does_not_hide_numbers_as_stored(tmp_path: Path) -> None:
    for name in ("a.tif", "b.tif"):
        write_band(tmp_path / name, np.full((8, 8), 5000, np.uint16), 10)
    write_band(tmp_path / "c.tif", np.full((8, 8), 0.5, np.float32), 10)
    assert len(look(tmp_path, units="reflectance")[0]) == 3
    with rasterio.open(tmp_path / "b.tif", "r+") as dataset:
        dataset.scales = (0.0001,)
    sources, rejected = look(tmp_path, units="reflectance")
    assert [Path(source.uri).name for source in sources] == ["b.tif", "c.tif"]
    assert [(Path(item.uri).name, item.code) for item in rejected] == [("a.tif", "UNITS_DIFFER")]
    # Of a product, too, whose scale its metadata states.
    (tmp_path / "b.tif").unlink()
    write_safe(tmp_path, {("B04", 10): np.full((8, 8), 5000, np.uint16)})
    assert refused_codes(tmp_path, units="reflectance") == {"UNITS_DIFFER"}


def test_masks_and_nodata_of_band_files_are_kept(tmp_path: Path) -> None:
    scenes = {"pattern": "{scene}_{band}.tif"}
    first, second = _dn(), _dn()
    second[5] = 7
    path = write_band(tmp_path / "a_B1.tif", first, 10)
    write_band(tmp_path / "a_B2.tif", second, 10, nodata=7)
    mask = np.full((40, 40), 255, np.uint8)
    mask[:, 3] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    source = one(tmp_path, scenes=scenes)
    assert source.notes == ("MASK_FILE",)
    assert len(source.files) == 3
    assert np.array_equal(read(source)[1], (mask != 0) & (second != 7))


def _series(root: Path, days: tuple[str, ...] = ("20210708", "20210601", "20210820")) -> dict[str, Any]:
    pixels = {day: {("B04", 10): _dn(), ("B8A", 20): _dn(20)} for day in days}
    for day, bands in pixels.items():
        write_safe(root, bands, day=day)
    return pixels


def test_the_dates_of_a_place_are_one_source(tmp_path: Path) -> None:
    pixels = _series(tmp_path)
    pixels["20210601"]["B04", 10][2, 3] = 0
    write_safe(tmp_path, pixels["20210601"], day="20210601")
    source = one(tmp_path, series={"by": "place", "dates": 3})
    assert source.channels == ("0_B04", "0_B8A", "1_B04", "1_B8A", "2_B04", "2_B8A")
    assert source.acquired_at == "2021-06-01T10:14:10"
    assert (source.units, source.attributes["dates"], source.attributes["platform"]) == (
        "reflectance", "3", "sentinel-2a",
    )  # fmt: skip
    assert source.attributes["season"] == "JJA"
    assert "month" not in source.attributes
    stored, valid = read(source)
    for place, day in enumerate(sorted(pixels)):
        expected = (pixels[day]["B04", 10] - 1000.0) / 10_000
        assert np.allclose(stored[2 * place][valid], expected[valid], atol=1e-7)
    assert np.argwhere(~valid).tolist() == [[2, 3]]
    with Geotiff().open(source) as raster:
        assert raster.groups([Window(0, 0, 0, 40, 40)]) == [source.group_id]
    assert source.group_id == look(tmp_path)[0][0].group_id
    by_tile = one(tmp_path, series={"by": "tile", "dates": 3}, bands=("red",))
    assert (by_tile.channels, by_tile.keys["scene"]) == (("0_red", "1_red", "2_red"), ("33TXM",))


def test_a_missing_or_a_doubtful_date_has_a_code(tmp_path: Path) -> None:
    _series(tmp_path)
    assert refused(tmp_path, series={"dates": 4}).code == "MISSING_DATE"
    rejection = refused(tmp_path, series={"dates": 2})
    assert rejection.code == "AMBIGUOUS_DATE"
    assert "name windows" in rejection.reason
    spring, summer = ("2021-03-01", "2021-05-31"), ("2021-06-01", "2021-07-31")
    rejection = refused(tmp_path, series={"dates": [spring, summer]})
    assert rejection.code == "MISSING_DATE"
    assert "from 2021-03-01 to 2021-05-31" in rejection.reason
    autumn = ("2021-08-01", "2021-10-31")
    assert refused(tmp_path, series={"dates": [summer, autumn]}).code == "AMBIGUOUS_DATE"


def test_windows_pick_the_first_or_the_clearest(tmp_path: Path) -> None:
    pixels = _series(tmp_path)
    metadata = sentinel2_metadata().replace(">12.5<", ">3<")
    write_safe(tmp_path, pixels["20210708"], day="20210708", metadata=metadata)
    windows = [("2021-06-01", "2021-07-31"), ("2021-08-01", "2021-10-31")]
    for pick, day in (("first", "20210601"), ("least_cloud", "20210708")):
        sources, rejected = look(tmp_path, bands=("B04",), series={"dates": windows, "pick": pick})
        (source,) = sources
        left = [item for item in rejected if item.code == "DATE_NOT_USED"]
        assert len(left) == 1
        assert left[0].junk
        assert day not in Path(left[0].uri).name
        assert np.allclose(read(source)[0][0], (pixels[day]["B04", 10] - 1000.0) / 10_000, atol=1e-7)
    for path in tmp_path.rglob("MTD_MSIL2A.xml"):
        path.write_text(path.read_text().replace("Cloud_Coverage_Assessment", "Other"))
    assert refused(tmp_path, series={"dates": windows, "pick": "least_cloud"}).code == "AMBIGUOUS_DATE"


def test_single_files_and_landsat_scenes_make_series_too(tmp_path: Path) -> None:
    for name, day in (("b", "2020-01-01"), ("a", "2020-06-01")):
        path = write_band(tmp_path / "files" / f"{name}.tif", _dn(), 10)
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(ACQUISITION_DATE=day)
    sources, _ = look(tmp_path / "files", series={"dates": 2})
    assert sources[0].channels == ("0_b1", "1_b1")
    assert [Path(name).stem for name in sources[0].files] == ["b", "a"]
    other = LANDSAT_NAME.replace("_20210708_", "_20210724_")
    write_landsat(tmp_path / "landsat", {"SR_B4": _dn()}, name=other)
    write_landsat(tmp_path / "landsat", {"SR_B4": _dn()})
    source = one(tmp_path / "landsat", series={"by": "tile", "dates": 2})
    assert (source.channels, source.keys["scene"]) == (("0_B4", "1_B4"), ("190028",))
    assert source.acquired_at == "2021-07-08T09:52:36"


def test_scenes_that_cannot_be_in_a_series_have_a_code(tmp_path: Path) -> None:
    write_band(tmp_path / "undated" / "a.tif", _dn(), 10)
    assert refused(tmp_path / "undated", series={"dates": 2}).code == "NO_DATE"
    path = write_band(tmp_path / "nowhere" / "a.tif", _dn(), 10, crs=None)
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(ACQUISITION_DATE="2020-01-01")
    assert refused(tmp_path / "nowhere", series={"dates": 2}).code == "NO_PLACE"
    assert refused(tmp_path / "nowhere", series={"by": "tile", "dates": 2}).code == "NO_TILE"
    other = LANDSAT_NAME.replace("_20210708_", "_20210724_")
    write_landsat(tmp_path / "landsat", {"SR_B4": _dn()})
    write_landsat(tmp_path / "landsat", {"SR_B4": _dn(41)}, name=other)
    assert refused(tmp_path / "landsat", series={"by": "tile", "dates": 2}).code == "GRIDS_DIFFER"
    # As two places each lacks a date.
    assert refused_codes(tmp_path / "landsat", series={"dates": 2}) == {"MISSING_DATE"}
    write_safe(tmp_path / "safe", {("B04", 10): _dn()})
    write_safe(tmp_path / "safe", {("B04", 10): _dn()}, level="L1C", day="20210808")
    rejection = refused(tmp_path / "safe", series={"dates": 2})
    assert rejection.code == "UNITS_DIFFER"
    assert "toa_reflectance" in rejection.reason
    write_safe(tmp_path / "twice" / "one", {("B04", 10): _dn()})
    write_safe(tmp_path / "twice" / "two", {("B04", 10): _dn()})
    assert refused(tmp_path / "twice", series={"dates": 2}).code == "AMBIGUOUS_DATE"


@pytest.mark.parametrize(
    "series",
    [
        {"dates": 1},
        {"dates": 2, "pick": "first"},
        {"dates": [("2021-01-01", "2021-02-01")]},
        {"dates": [("2021-01-01", "2021-02-01"), ("2021-02-01", "2021-03-01")]},
        {"dates": [("2021-03-01", "2021-04-01"), ("2021-01-01", "2021-02-01")]},
        {"dates": [("2021-02-01", "2021-01-01"), ("2021-03-01", "2021-04-01")]},
    ],
)
def test_dates_out_of_order_are_refused(series: Any) -> None:
    with pytest.raises(ValidationError, match=r"dates|pick"):
        GeotiffSource(path="x", series=series)


def test_a_band_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="names a band twice: B04, B08, B04"):
        GeotiffSource(path="/x", bands=("B04", "B08", "B04"))


def test_keys_that_came_later_do_not_change_old_recipes() -> None:
    plain = GeotiffSource(path="x")
    assert set(plain.model_dump()) == {"kind", "path", "max_reject_share", "bands", "units", "block_m"}
    changed = GeotiffSource(path="x", clouds="drop", grid="B04")
    assert {"clouds": "drop", "grid": "B04"}.items() <= changed.model_dump().items()
    stacked = GeotiffSource.model_validate(
        {"path": "x", "series": {"dates": [["2021-01-01", "2021-02-01"], ["2021-03-01", "2021-04-01"]]}}
    )
    assert GeotiffSource.model_validate(stacked.model_dump(mode="json")) == stacked
