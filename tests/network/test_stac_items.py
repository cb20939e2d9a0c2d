"""What an item says: which assets, which scale and nodata, which addresses may be followed; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from pydantic import ValidationError

from tests.network.network_cases import QUICK
from tests.network.range_server import Ranges, serving
from tests.network.stac_cases import SIGNATURE, answer_with, item, open_pixels, pipeline, tiff
from vitpipe.check import check_pipeline
from vitpipe.config import StacSource
from vitpipe.domains.geotiff import Geotiff
from vitpipe.errors import ConfigError, TooManyRejected, UnreadableSource
from vitpipe.fetch import fetch
from vitpipe.ingest import ingest, read_catalog, read_quarantine
from vitpipe.records import Window
from vitpipe.stac.catalog import Found
from vitpipe.stac.items import choose, scene_names
from vitpipe.web.address import Rules


@pytest.fixture
def held() -> Iterator[Ranges]:
    with serving(Ranges()) as server:
        yield server


def _local(folder: Path, content: bytes, document: dict[str, Any], **source: Any) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "red.tif").write_bytes(content)
    (folder / "one.json").write_text(json.dumps(document))
    config, workspace = pipeline(folder, str(folder / "one.json"), **source)
    ingest(config, workspace)
    return workspace


def _read(workspace: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    (source,) = read_catalog(workspace)
    with Geotiff().open(source) as raster:
        return raster.read(Window(0, 0, 0, source.grid.height, source.grid.width))


# ------------------------------------------------------------------------------------------------ scale, offset, nodata

_STATED = {"raster:bands": [{"scale": 0.0001, "offset": -0.1, "nodata": 1200, "unit": "reflectance"}]}
_NEW_STYLE = {
    "eo:bands": None,
    "nodata": 1200,
    "unit": "reflectance",
    "bands": [{"name": "B04", "eo:common_name": "red", "raster:scale": 0.0001, "raster:offset": -0.1}],
}


# STAC 1.1: what holds for all bands needs no list of them.
_WITHOUT_BANDS = {
    "eo:bands": None, "nodata": 1200, "unit": "reflectance", "raster:scale": 0.0001, "raster:offset": -0.1,
}  # fmt: skip


@pytest.mark.parametrize("asset", [_STATED, _NEW_STYLE, _WITHOUT_BANDS])
def test_what_an_item_states_of_pixels_holds(asset: dict[str, Any], tmp_path: Path) -> None:
    content = tiff(0, size=128)
    workspace = _local(tmp_path / "stated", content, item(0, "red.tif", **asset))
    stored = open_pixels(tmp_path / "stated" / "red.tif")
    pixels, valid = _read(workspace)
    assert (stored == 1200).any()
    np.testing.assert_array_equal(valid, stored[0] != 1200)
    np.testing.assert_allclose(pixels[0][valid], (stored[0] * 0.0001 - 0.1)[valid], atol=1e-6)
    (source,) = read_catalog(workspace)
    assert (source.units, source.dtype, source.channels) == (
        "reflectance", "float32", ("b1",) if asset is _WITHOUT_BANDS else ("B04",),
    )  # fmt: skip
    assert "SCALED" in source.notes
    # Other values are another source; with `scaling: none` they are those of the file.
    plain = _local(tmp_path / "plain", content, item(0, "red.tif", **asset), scaling="none")
    assert read_catalog(plain)[0].source_id != source.source_id
    pixels, valid = _read(plain)
    np.testing.assert_array_equal(pixels[0][valid], stored[0][valid])


def test_an_offset_that_the_pixels_hold_already_is_not_taken_away_twice(tmp_path: Path) -> None:
    document = item(0, "red.tif", **{"raster:bands": [{"scale": 0.0001, "offset": -0.1}]})
    document["properties"]["earthsearch:boa_offset_applied"] = True
    workspace = _local(tmp_path, tiff(0), document)
    pixels, _ = _read(workspace)
    np.testing.assert_allclose(pixels, open_pixels(tmp_path / "red.tif") * 0.0001, atol=1e-6)
    assert "OFFSET_APPLIED" in read_catalog(workspace)[0].notes


@pytest.mark.parametrize(
    ("stated", "fits"),
    [
        ({"scale": 0.0001, "offset": -0.1}, True),
        ({"scale": 0.0001}, False),
        ({}, True),
        ({"scale": 0}, False),
        ({"scale": "0.0001"}, False),
        ({"scale": 10**400}, False),
    ],
)
def test_a_file_and_an_item_that_state_different_scales_are_told(
    stated: dict[str, float], fits: bool, tmp_path: Path
) -> None:
    content = tiff(0, scales=(0.0001,), offsets=(-0.1,))
    document = item(0, "red.tif", **{"raster:bands": [stated]})
    if fits:
        pixels, _ = _read(_local(tmp_path, content, document))
        np.testing.assert_allclose(pixels, open_pixels(tmp_path / "red.tif") * 0.0001 - 0.1, atol=1e-6)
    else:
        with pytest.raises(TooManyRejected, match=r"SCALE_CONFLICT|BAD_SCALE"):
            _local(tmp_path, content, document)


def test_an_item_of_other_bands_than_the_file_has_says_nothing_of_them(tmp_path: Path) -> None:
    bands = [{"name": name, "scale": 0.5} for name in ("B02", "B03")]
    workspace = _local(tmp_path, tiff(0, bands=3), item(0, "red.tif", **{"eo:bands": bands, "raster:bands": bands}))
    assert read_catalog(workspace)[0].channels == ("b1", "b2", "b3")
    assert read_catalog(workspace)[0].dtype == "uint16"
    assert "ITEM_BANDS_DIFFER" in read_catalog(workspace)[0].notes


def test_an_item_need_not_count_the_alpha_band(tmp_path: Path) -> None:
    content = tiff(0, bands=2, alpha="yes")
    bands = [{"name": "B04", "scale": 0.5, "offset": 3, "nodata": 1200}]
    workspace = _local(tmp_path, content, item(0, "red.tif", **{"eo:bands": bands, "raster:bands": bands}))
    (source,) = read_catalog(workspace)
    assert (source.channels, source.notes) == (("B04",), ("ALPHA", "SCALED"))
    pixels, valid = _read(workspace)
    stored = open_pixels(tmp_path / "red.tif")
    np.testing.assert_array_equal(valid, stored[0] != 1200)
    np.testing.assert_allclose(pixels[0][valid], (stored[0] * 0.5 + 3)[valid])


@pytest.mark.parametrize("name", ["LC08_L2SP_190028_20210708_20210713_02_T1", "S2A_MSIL2A_20210708T101031_T33TXM.SAFE"])
@pytest.mark.parametrize("key", ["red", "SR_B4", "B04"])
def test_one_file_of_a_known_product_is_what_its_item_says(key: str, name: str, tmp_path: Path) -> None:
    document = item(0, "red.tif", **_STATED)
    document |= {"id": name, "assets": {key: document["assets"]["red"]}}
    workspace = _local(tmp_path, tiff(0, size=128), document, assets=[key])
    (source,) = read_catalog(workspace)
    assert (source.units, source.channels) == ("reflectance", ("B04",))


@pytest.mark.parametrize(
    "properties", [{"eo:cloud_cover": float("nan")}, {"eo:cloud_cover": 10**400}, {"view:sun_elevation": float("-inf")}]
)
def test_what_is_no_number_states_nothing(properties: dict[str, Any], tmp_path: Path) -> None:
    document = item(0, "red.tif")
    document["properties"] |= {"eo:cloud_cover": None, **properties}
    (source,) = read_catalog(_local(tmp_path, tiff(0), document))
    assert not {"cloud_cover", "sun_elevation"} & set(source.attributes)


def test_text_that_is_no_unicode_and_long_names_are_borne(held: Ranges, tmp_path: Path) -> None:
    held.add("/0.tif", tiff(0))
    odd = item(0, "/0.tif")
    odd["properties"]["title"] = "\ud800"
    long = item(1, "/0.tif")
    long["assets"] = {"k" * 300: long["assets"]["red"]}
    answer_with(held, odd, long)
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", max_reject_share=0.5)
    ingest(config, workspace)
    assert [source.keys["scene"][0][:12] for source in read_catalog(workspace)] == ["scene-1_kkkk"]
    assert read_quarantine(workspace).query("not junk")["code"].tolist() == ["BAD_ITEM"]


def test_a_json_file_of_that_name_that_is_no_item_is_junk(tmp_path: Path) -> None:
    for number, text in enumerate(["{", "[]", "[" * 100_000, '{"type": "Feature", "assets": []}']):
        folder = tmp_path / str(number)
        workspace = _local(folder, tiff(0), item(0, "red.tif"))
        (folder / "workspace" / "scenes" / "scene-0" / "item.json").write_text(text)
        config = load_config_of(folder)
        ingest(config.on_disk(), workspace)
        assert set(read_quarantine(workspace)["code"]) == {"NOT_GEOTIFF"}
        assert read_catalog(workspace)[0].channels == ("b1",)


def load_config_of(folder: Path) -> Any:
    return pipeline(folder, str(folder / "one.json"))[0]


# --------------------------------------------------------------------------------------------------------------- assets


def _many() -> dict[str, Any]:
    document = item(0, "red.tif")
    red = document["assets"]["red"]

    def like_red(href: str, *names: tuple[str, str], **other: Any) -> dict[str, Any]:
        bands = [{"name": name, "common_name": common} for name, common in names]
        return {**red, "href": href, "eo:bands": bands, **other}

    document["assets"] |= {
        "nir": {**like_red("nir.tif"), "bands": [{"name": "B08", "eo:common_name": "nir"}]},
        "visual": like_red("tci.tif", ("B04", "red"), ("B03", "green"), roles=["visual"]),
        "red-jp2": like_red("red.jp2", ("B04", "red"), type="image/jp2"),
        "swir-a": like_red("a.tif", ("S1", "swir")),
        "swir-b": like_red("b.tif", ("S2", "swir")),
        "thumb": {"href": "thumb.png", "type": "image/png", "roles": ["thumbnail"]},
    }
    return document


@pytest.mark.parametrize(
    ("assets", "keys"),
    [(["red"], ["red"]), (["B04"], ["red"]), (["B08", "red"], ["nir", "red"]), (["green"], ["visual"])],
)
def test_assets_are_named_by_key_or_band(assets: list[str], keys: list[str]) -> None:
    source = StacSource(url="/one.json", assets=tuple(assets))
    scene = choose(Found(_many(), "/cat/one.json"), "scene-0", source)
    assert [file.key for file in scene.files] == keys
    assert [file.name for file in scene.files] == [f"scene-0_{label}.tif" for label in assets]
    assert {asset["href"] for asset in scene.item["assets"].values()} == {f"./{file.name}" for file in scene.files}


@pytest.mark.parametrize(
    ("asset", "code"),
    [("B99", "MISSING_ASSET"), ("swir", "AMBIGUOUS_ASSET"), ("red-jp2", "NOT_GEOTIFF"), ("thumb", "NOT_GEOTIFF")],
)
def test_an_item_without_what_is_named_is_told(asset: str, code: str, held: Ranges, tmp_path: Path) -> None:
    held.add("/1.tif", tiff(1))
    good = item(1, f"{held.url}/1.tif")
    good["assets"][asset] = dict(good["assets"]["red"])
    answer_with(held, _many(), good)
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", assets=[asset], max_reject_share=0.5)
    ingest(config, workspace)
    assert code in set(read_quarantine(workspace)["code"])
    with pytest.raises(TooManyRejected, match=code):
        fetch(
            config.model_copy(update={"source": config.source.model_copy(update={"max_reject_share": 0.1})}), workspace
        )


def test_one_file_by_two_names_is_told() -> None:
    source = StacSource(url="/one.json", assets=("red", "B04"))
    with pytest.raises(UnreadableSource, match="red is red, B04 is red"):
        choose(Found(_many(), "/cat/one.json"), "scene-0", source)
    for names in (("red", "red"), ("a b", "a-b")):
        with pytest.raises(ValidationError, match="names a file twice"):
            StacSource(url="/one.json", assets=names)


def test_several_files_without_a_choice_are_asked_about(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"choose some .*`source.assets`: nir \(B08\), red \(B04\)"):
        _local(tmp_path, tiff(0), _many())


def test_odd_and_equal_identifiers_get_names_of_their_own() -> None:
    ids = ["plain", "../up", "a/b", ".dot", "same", "same", "x" * 300, ""]
    found = [Found({"id": name, "collection": str(place)}, "") for place, name in enumerate(ids)]
    names = scene_names(found)
    assert names[0] == "plain"
    assert len(set(names)) == len(ids)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-") and name[0] != "." for name in names)
    assert max(map(len, names)) < 140


# ------------------------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    ("root", "address", "plain", "word"),
    [
        ("https://a.org/c.json", "https://b.org/x.tif?sig=1", False, ""),
        ("https://a.org/c.json", "/etc/passwd", False, "file of this machine"),
        ("https://a.org/c.json", "ftp://b.org/x.tif", False, "only https"),
        ("https://a.org/c.json", "http://b.org/x.tif", False, "plain http"),
        ("https://a.org/c.json", "http://b.org/x.tif", True, ""),
        # Who named https did not name http, though the host be the same.
        ("https://a.org/c.json", "http://a.org/x.tif", False, "plain http"),
        ("https://a.org/c.json", "https://a.org/x.tif", False, ""),
        ("https://a.org/c.json", "http://127.0.0.1:4200/api", True, "service of this machine"),
        ("https://a.org/c.json", "https://localhost/x.tif", False, "service of this machine"),
        ("https://a.org/c.json", "http://169.254.169.254/latest", True, "local network"),
        # Other ways to write the same hosts, as a connection takes them.
        ("https://a.org/c.json", "http://127.1/x.tif", True, "service of this machine"),
        ("https://a.org/c.json", "http://2130706433/x.tif", True, "service of this machine"),
        ("https://a.org/c.json", "https://0.0.0.0/x.tif", False, "service of this machine"),
        ("https://a.org/c.json", "http://[::]/x.tif", True, "service of this machine"),
        ("https://a.org/c.json", "http://[::ffff:127.0.0.1]/x.tif", True, "service of this machine"),
        ("https://a.org/c.json", "https://LOCALHOST./x.tif", False, "service of this machine"),
        ("https://a.org/c.json", "http://2852039166/latest", True, "local network"),
        ("https://a.org/c.json", "http://[fd00:ec2::254]/latest", True, "local network"),
        ("https://a.org/c.json", "https://u:p@b.org/x.tif", False, "credentials"),
        ("https://a.org/c.json", "https://[bad/x.tif", False, "no address"),
        ("http://127.0.0.1:80/c.json", "http://127.0.0.1:81/x.tif", False, ""),
        ("/data/c.json", "/data/x.tif", False, ""),
        ("/data/c.json", "https://b.org/x.tif", False, ""),
    ],
)
def test_a_catalog_leads_only_where_it_may(root: str, address: str, plain: bool, word: str) -> None:
    refusal = Rules(root, plain).refusal(address)
    assert word in refusal
    assert bool(refusal) == bool(word)


def test_an_asset_that_may_not_be_followed_is_told_and_not_asked(held: Ranges, tmp_path: Path) -> None:
    held.add("/1.tif", tiff(1))
    held.always["/moved.tif"] = (302, {"Location": f"http://169.254.169.254/x.tif?{SIGNATURE}"})
    answer_with(held, item(1, "/1.tif"), item(2, "http://example.org/x.tif"), item(3, "/moved.tif"))
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", max_reject_share=0.7)
    ingest(config, workspace)
    rows = read_quarantine(workspace).query("not junk")
    assert sorted(rows["code"]) == ["ADDRESS_REFUSED", "FETCH_FAILED"]
    assert rows["reason"].str.contains("is not followed|plain http", regex=True).all()
    assert not rows["reason"].str.contains("canary").any()


def test_an_object_of_s3_is_fetched_from_the_endpoint_of_the_environment(
    held: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", held.url)
    held.add("/bucket/key/0.tif", tiff(0))
    answer_with(held, item(0, "s3://bucket/key/0.tif", tiff(0)))
    config, workspace = pipeline(tmp_path, f"{held.url}/v1")
    assert fetch(config, workspace, QUICK).done == 1


# ------------------------------------------------------------------------------------------------- scenes of many files


def _two_bands(held: Ranges, number: int) -> dict[str, Any]:
    """Put a scene of red at 10 m and a coarser one at 20 m, each an asset."""
    document = item(number, f"/{number}/red.tif?{SIGNATURE}", tiff(number))
    seen = {"center_wavelength": 1.61, "full_width_half_max": 0.1}
    stated = {"eo:bands": [{"name": "B11", "common_name": "swir16", **seen}]}
    document["assets"]["ST_B04"] = {
        **document["assets"]["red"], "href": f"/{number}/swir.tif", "raster:bands": [{"scale": 0.5, "nodata": 7}],
        "file:size": None, "file:checksum": None, **stated,
    }  # fmt: skip
    held.add(f"/{number}/red.tif", tiff(number))
    held.add(f"/{number}/swir.tif", tiff(number, size=32, gsd_m=20))
    return document


def test_several_assets_are_one_scene(held: Ranges, tmp_path: Path) -> None:
    answer_with(held, *(_two_bands(held, number) for number in range(2)))
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", assets=["B04", "ST_B04"], bands=["ST_B04", "B04"])
    summary = ingest(config, workspace)
    assert (summary.done, summary.rejected) == (2, {})
    sources = sorted(read_catalog(workspace), key=lambda source: source.uri)
    assert [source.keys["scene"] for source in sources] == [("scene-0",), ("scene-1",)]
    assert {source.channels for source in sources} == {("ST_B04", "B04")}
    assert [source.attributes["cloud_cover"] for source in sources] == [0.0, 10.0]
    assert sources[0].acquired_at == "2023-06-01T10:00:00+00:00"
    with Geotiff().open(sources[0]) as raster:
        pixels, valid = raster.read(Window(0, 0, 0, 64, 64))
    folder = workspace.root / "scenes" / "scene-0"
    coarse = open_pixels(folder / "scene-0_ST_B04.tif")[0].repeat(2, 0).repeat(2, 1)
    np.testing.assert_allclose(pixels[0], np.where(coarse == 7, 0, coarse * 0.5))
    np.testing.assert_array_equal(pixels[1][valid], open_pixels(folder / "scene-0_B04.tif")[0][valid])
    np.testing.assert_array_equal(valid, coarse != 7)
    assert "canary" not in "".join(path.read_text("latin-1") for path in workspace.root.rglob("*") if path.is_file())


def test_a_scene_that_lacks_a_file_is_not_used(held: Ranges, tmp_path: Path) -> None:
    answer_with(held, *(_two_bands(held, number) for number in range(3)))
    held.always = {"/1/swir.tif": 404}
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", assets=["red", "B11"], max_reject_share=0.5)
    ingest(config, workspace)
    assert len(read_catalog(workspace)) == 2
    assert read_quarantine(workspace).query("not junk")["code"].tolist() == ["FETCH_FAILED"]
    # What came of it is kept.
    held.always = {}
    held.asked.clear()
    assert fetch(config, workspace, QUICK).done == 1
    assert held.paths(".tif") == ["/1/swir.tif"]


def test_a_wavelength_of_an_item_names_a_band(held: Ranges, tmp_path: Path) -> None:
    answer_with(held, _two_bands(held, 0))
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", assets=["swir16"], bands=["1600nm"])
    ingest(config, workspace)
    assert read_catalog(workspace)[0].channels == ("1600nm",)


def test_check_fetches_and_says_what_would_be_done(tmp_path: Path) -> None:
    (tmp_path / "red.tif").write_bytes(tiff(0))
    (tmp_path / "one.json").write_text(json.dumps(item(0, "red.tif")))
    findings = check_pipeline(load_config_of(tmp_path))
    assert findings.values["sources"] == 1
    with rasterio.open(next((tmp_path / "workspace").rglob("*.tif"))) as dataset:
        assert dataset.count == 1
