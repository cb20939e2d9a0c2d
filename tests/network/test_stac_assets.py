"""Assets of other kinds than plain GeoTIFFs: JPEG 2000 files, which come whole, and those that say where clouds are."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from tests.domains.scene_cases import write_band
from tests.network.network_cases import QUICK
from tests.network.range_server import Ranges, serving
from tests.network.stac_cases import SIGNATURE, answer_with, item, multihash, open_pixels, pipeline, tiff
from vitpipe.config import PipelineConfig
from vitpipe.domains.geotiff import Geotiff
from vitpipe.errors import TooManyRejected
from vitpipe.fetch import fetch
from vitpipe.ingest import ingest, read_catalog, read_quarantine
from vitpipe.records import Window
from vitpipe.stac import items
from vitpipe.web import client
from vitpipe.workspace import Workspace

SCALED = {"raster:bands": [{"scale": 0.0001, "offset": -0.1, "nodata": 0}]}
CLOUD, CLEAR = 9, 4


@pytest.fixture
def held() -> Iterator[Ranges]:
    with serving(Ranges()) as server:
        yield server


def put_band(held: Ranges, folder: Path, name: str, pixels: np.ndarray[Any, Any], gsd_m: float) -> dict[str, Any]:
    """Put a band, as JPEG 2000 or GeoTIFF by its name; gives its asset."""
    content = write_band(folder / name, pixels, gsd_m).read_bytes()
    held.add(f"/data/{name}", content)
    kind = "image/jp2" if name.endswith("jp2") else "image/tiff; application=geotiff"
    checked = {"file:size": len(content), "file:checksum": multihash(content)}
    return {"href": f"{held.url}/data/{name}?{SIGNATURE}", "type": kind, "roles": ["data"], **checked}


def put_granule(held: Ranges, folder: Path, mask: str = "scl.tif") -> dict[str, np.ndarray[Any, Any]]:
    """Put an item as catalogs describe a granule: bands as JPEG 2000 at 10 and 20 m, and a cloud mask at 20 m."""
    rng = np.random.default_rng(0)
    red, swir = (rng.integers(1, 9000, (size, size)).astype(np.uint16) for size in (128, 64))
    codes = np.full((64, 64), CLEAR, np.uint8)
    codes[8:20, 30:] = CLOUD
    assets = {
        "red-jp2": put_band(held, folder, "B04.jp2", red, 10) | {"eo:bands": [{"name": "red"}], **SCALED},
        "swir16-jp2": put_band(held, folder, "B11.jp2", swir, 20) | {"eo:bands": [{"name": "swir16"}], **SCALED},
        Path(mask).stem: put_band(held, folder, mask, codes, 20),
    }
    answer_with(held, {**item(0, ""), "assets": assets})
    return {"red": red, "swir16": swir, "codes": codes}


@pytest.mark.parametrize("mask", ["scl.tif", "SCL_20m.jp2"])
def test_bands_of_jpeg_2000_come_whole_and_clouds_are_dropped(
    mask: str, held: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_CHUNK_BYTES", 1 << 10)
    known = put_granule(held, tmp_path, mask)
    # The first connection breaks in the middle.
    held.faults["/data/B04.jp2"] = deque(["cut"])
    options: dict[str, Any] = {"assets": ["red", "swir16"], "jpeg2000": True, "clouds": "drop"}
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", **options)
    assert fetch(config, workspace, QUICK).done == 3
    ranges = [asked.headers.get("Range") for asked in held.asked if asked.path == "/data/B04.jp2"]
    assert ranges[0] is None
    assert str(ranges[1]).startswith("bytes=")
    assert ingest(config, workspace).rejected == {}
    (source,) = read_catalog(workspace)
    assert source.channels == ("red", "swir16")
    with Geotiff().open(source) as raster:
        pixels, valid = raster.read(Window(0, 0, 0, 128, 128))
    clear = (known["codes"] == CLEAR).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(valid, clear)
    coarse = known["swir16"].repeat(2, 0).repeat(2, 1)
    for found, stored in zip(pixels, (known["red"], coarse), strict=True):
        np.testing.assert_allclose(found[clear], stored[clear] * 0.0001 - 0.1, rtol=1e-5, atol=1e-6)


def test_where_clouds_are_kept_no_mask_is_fetched(held: Ranges, tmp_path: Path) -> None:
    put_granule(held, tmp_path)
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", assets=["red", "swir16"], jpeg2000=True)
    assert fetch(config, workspace, QUICK).done == 2
    assert not held.paths("scl.tif")


def test_clouds_are_dropped_of_scenes_of_one_file(held: Ranges, tmp_path: Path) -> None:
    # The name is that of a Landsat file, and the item says that it is one scene.
    content = tiff(0, bands=2)
    held.add("/data/both.tif", content)
    codes = np.full((64, 64), 1 << 6, np.uint16)
    codes[:10] = 1 << 3
    with rasterio.MemoryFile(content) as memory, memory.open() as both:
        place = {"transform": both.transform, "crs": both.crs}
    write_band(tmp_path / "qa.tif", codes, 10, **place)
    held.add("/data/qa.tif", (tmp_path / "qa.tif").read_bytes())
    document = item(0, f"{held.url}/data/both.tif", content, **{"eo:bands": [{"name": "red"}, {"name": "nir"}]})
    document["id"] = "LC08_L2SP_190028_20210708_20210713_02_T1"
    document["assets"]["QA_PIXEL"] = {"href": f"{held.url}/data/qa.tif", "type": "image/tiff", "roles": ["data"]}
    answer_with(held, document)
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", clouds="drop")
    assert ingest(config, workspace).rejected == {}
    (source,) = read_catalog(workspace)
    assert source.channels == ("red", "nir")
    with Geotiff().open(source) as raster:
        pixels, valid = raster.read(Window(0, 0, 0, 64, 64))
    assert not valid[:10].any()
    assert valid[10:].all()
    (stored,) = workspace.root.glob("scenes/*/*_red.tif")
    np.testing.assert_array_equal(pixels[:, 10:], open_pixels(stored)[:, 10:])


def test_an_item_without_a_cloud_mask_is_told(held: Ranges, tmp_path: Path) -> None:
    held.add("/0.tif", tiff(0))
    answer_with(held, item(0, "/0.tif"))
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", clouds="drop")
    with pytest.raises(TooManyRejected, match=r"NO_CLOUD_MASK.*there are red"):
        fetch(config, workspace, QUICK)
    assert not held.paths("/0.tif")


def test_a_band_is_taken_from_a_geotiff_where_there_is_one(held: Ranges, tmp_path: Path) -> None:
    put_granule(held, tmp_path)
    document = held.answers["/v1/search"](None)[1]["features"][0]  # type: ignore[arg-type]
    content = tiff(0)
    held.add("/data/red.tif", content)
    named = {"eo:bands": [{"name": "red"}]}
    document["assets"]["red-cog"] = item(0, "/data/red.tif", content, **named)["assets"]["red"]
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", assets=["red"], jpeg2000=True)
    assert fetch(config, workspace, QUICK).done == 1
    assert held.paths("B04.jp2") == []


def test_a_jpeg_2000_is_taken_only_where_it_is_asked_for(held: Ranges, tmp_path: Path) -> None:
    put_granule(held, tmp_path)
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", assets=["red-jp2"])
    with pytest.raises(TooManyRejected, match=r"NOT_GEOTIFF.*jpeg2000: true"):
        fetch(config, workspace, QUICK)
    assert "jpeg2000" not in config.source.model_dump()


def test_a_jpeg_2000_from_a_list_of_addresses_is_told_what_to_do(held: Ranges, tmp_path: Path) -> None:
    put_granule(held, tmp_path)
    held.add("/data/good.tif", tiff(0))
    (tmp_path / "list.txt").write_text(f"{held.url}/data/B04.jp2\n{held.url}/data/good.tif\n")
    source = {"kind": "geotiff", "path": str(tmp_path / "list.txt"), "max_reject_share": 0.5}
    config = PipelineConfig.model_validate({"name": "t", "source": source, "workspace": str(tmp_path / "w")})
    assert ingest(config, Workspace(tmp_path / "w")).rejected == {"NOT_GEOTIFF": 1}
    assert "jpeg2000: true" in read_quarantine(Workspace(tmp_path / "w")).iloc[0]["reason"]


def test_a_file_that_is_too_long_is_refused_before_it_is_fetched(
    held: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_granule(held, tmp_path)
    monkeypatch.setattr(items, "_LONGEST_JP2", 1000)
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", assets=["red-jp2"], jpeg2000=True)
    with pytest.raises(TooManyRejected, match="the most that is fetched of its kind"):
        fetch(config, workspace, QUICK)
    assert not list(workspace.root.rglob("*.jp2"))


@pytest.mark.parametrize(("damage", "code"), [("cut", "TRUNCATED"), ("vrt", "NOT_GEOTIFF")])
def test_what_is_no_whole_jpeg_2000_is_told(damage: str, code: str, held: Ranges, tmp_path: Path) -> None:
    put_granule(held, tmp_path)
    document = held.answers["/v1/search"](None)[1]["features"][0]  # type: ignore[arg-type]
    whole = held.files["/data/B04.jp2"]
    held.files["/data/B04.jp2"] = whole[: len(whole) // 2] if damage == "cut" else b'<VRTDataset rasterXSize="2"/>'
    for stated in ("file:size", "file:checksum"):
        del document["assets"]["red-jp2"][stated]
    config, workspace = pipeline(
        tmp_path, f"{held.url}/v1", assets=["red-jp2", "swir16-jp2"], jpeg2000=True, max_reject_share=1
    )
    ingest(config, workspace)
    rows = read_quarantine(workspace)
    assert rows[rows["uri"].str.endswith("red-jp2.jp2")]["code"].tolist() == [code]
