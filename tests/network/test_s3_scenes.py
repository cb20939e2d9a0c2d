"""Scenes in S3: objects and folders of a store that checks every signature, ingested, verified and predicted on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from tests.infer.infer_cases import write_scene
from tests.infer.pixel_cases import hold, pixel_predictor
from tests.network.network_cases import QUICK
from tests.network.s3_server import Store, storing
from tests.network.stac_cases import open_pixels, tiff
from vitpipe import fetch_listing, results
from vitpipe.config import PipelineConfig
from vitpipe.domains.geotiff import Geotiff
from vitpipe.errors import ConfigError, DataError, TooManyRejected
from vitpipe.ingest import ingest, read_catalog, read_quarantine
from vitpipe.records import Window
from vitpipe.web import client
from vitpipe.workspace import Workspace


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(client, "Backoff", lambda: QUICK)
    with storing(Store()) as running:
        running.use(monkeypatch)
        yield running


def _pipeline(folder: Path, path: str, **source: Any) -> tuple[PipelineConfig, Workspace]:
    workspace = folder / "workspace"
    values = {"kind": "geotiff", "path": path, **source}
    config = {"name": "t", "source": values, "workspace": str(workspace)}
    return PipelineConfig.model_validate(config), Workspace(workspace)


def test_all_scenes_below_a_prefix_are_read_where_they_lie(store: Store, tmp_path: Path) -> None:
    names = ["2023/june 1/a+b=c.tif", "2023/june 1/ä.TIF", "2023/july/x.tif", "2024/other.tif"]
    for number, name in enumerate(names):
        store.objects[f"scenes/{name}"] = tiff(number)
    store.objects |= {f"scenes/2023/{name}": b"x" for name in ("readme.txt", "preview.png", ".hidden/x.tif")}
    config, workspace = _pipeline(tmp_path, "s3://scenes/2023/")
    assert ingest(config, workspace).done == 3
    assert store.refused == []
    # Nothing but scenes is asked for, and six keys came in pages of two.
    assert sum("list-type" in asked for asked in store.asked) == 3
    assert not [asked for asked in store.asked if "readme" in asked or "hidden" in asked]
    sources = read_catalog(workspace)
    assert sorted(str(source.keys["path"][0]) for source in sources)[0].startswith("scenes/2023/july")
    for source in sources:
        with Geotiff().open(source) as raster:
            pixels, _ = raster.read(Window(0, 0, 0, 64, 64))
        contents = (store.objects[f"scenes/{name}"] for name in names[:3])
        assert pixels.tobytes() in {_pixels(content, tmp_path) for content in contents}
    # A new object is found, the others are not looked into again.
    store.objects["scenes/2023/new.tif"] = tiff(9)
    assert (ingest(config, workspace).done, store.refused) == (1, [])
    assert "canary" not in "".join(path.read_text("latin-1") for path in workspace.root.rglob("*") if path.is_file())


def _pixels(content: bytes, folder: Path) -> bytes:
    (folder / "copy.tif").write_bytes(content)
    return open_pixels(folder / "copy.tif").tobytes()


def test_a_whole_bucket_is_a_folder_too(store: Store, tmp_path: Path) -> None:
    store.objects["scenes/x.tif"] = tiff(0)
    assert ingest(*_pipeline(tmp_path, "s3://scenes/")).done == 1


def test_a_wrong_key_is_refused_and_told_without_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.objects["scenes/x.tif"] = tiff(0)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-canary")
    with pytest.raises(ConfigError, match=r"s3://scenes may not be read \(HTTP 403\)") as caught:
        ingest(*_pipeline(tmp_path, "s3://scenes/"))
    with pytest.raises(TooManyRejected, match="HTTP 403") as other:
        ingest(*_pipeline(tmp_path, "s3://scenes/x.tif"))
    assert "canary" not in f"{caught.value}{other.value}"
    assert set(store.refused) == {"another signature"}


def test_what_is_no_list_and_what_holds_no_scene_is_told(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.objects |= {f"scenes/{name}": b"x" for name in ("a.txt", "b.txt", "c.txt")}
    with pytest.raises(DataError, match="no GeoTIFF among 3 objects"):
        ingest(*_pipeline(tmp_path, "s3://scenes/"))
    monkeypatch.setattr(fetch_listing, "_MOST_KEYS", 2)
    with pytest.raises(DataError, match="more than 2 objects"):
        ingest(*_pipeline(tmp_path, "s3://scenes/"))
    entities = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]><x><IsTruncated>false</IsTruncated></x>'
    for content in (b"<html>", b"{}", b"<ListBucketResult/>", entities):
        monkeypatch.setattr(client.Client, "content", lambda *_, content=content: content)
        with pytest.raises(DataError, match="expected ListBucketResult"):
            ingest(*_pipeline(tmp_path, "s3://scenes/"))
    # A list that says that there is more, but not where.
    monkeypatch.setattr(client.Client, "content", lambda *_: b"<L><IsTruncated>true</IsTruncated></L>")
    with pytest.raises(ConfigError, match="without end"):
        ingest(*_pipeline(tmp_path, "s3://scenes/"))


@pytest.mark.parametrize("place", ["s3://scenes/june/", "s3://scenes/june/a.tif"])
def test_a_model_predicts_on_objects_and_on_folders(
    place: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(monkeypatch, pixel_predictor(tmp_path / "model"))
    for number, name in enumerate(("a.tif", "b.tif")):
        write_scene(tmp_path / "copies" / name, seed=number)
        store.objects[f"scenes/june/{name}"] = (tmp_path / "copies" / name).read_bytes()
    if place.endswith(".tif"):
        (tmp_path / "copies" / "b.tif").unlink()
    found = results.predict("models:/land@champion", place, str(tmp_path / "out"), None)
    local = results.predict("models:/land@champion", str(tmp_path / "copies"), str(tmp_path / "local"), None)
    assert found.done == local.done == (1 if place.endswith(".tif") else 2)
    assert _maps(tmp_path / "out") == _maps(tmp_path / "local")
    assert store.refused == []


def _maps(out: Path) -> list[bytes]:
    maps = []
    for path in (out / "maps").glob("*/classes.tif"):
        with rasterio.open(path) as file:
            maps.append(file.read().tobytes())
    return sorted(maps)


def test_checksums_are_verified_from_afar(store: Store, tmp_path: Path) -> None:
    scene = tmp_path / "x.tif"
    with rasterio.open(
        scene, "w", driver="GTiff", width=256, height=256, count=1, dtype="uint8", compress="deflate", tiled=True,
        blockxsize=128, blockysize=128, crs="EPSG:32633", transform=rasterio.transform.from_origin(0, 0, 10, 10),
    ) as file:  # fmt: skip
        file.write(np.random.default_rng(0).integers(0, 9, (256, 256)).astype(np.uint8), 1)
    with rasterio.open(scene) as file:
        at, length = (int(file.get_tag_item(f"BLOCK_{what}_1_1", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE"))
    good = scene.read_bytes()
    broken = bytearray(good)
    # The last byte of the block is of its checksum, which GDAL passes over.
    broken[at + length - 1] ^= 1
    store.objects |= {"scenes/good.tif": good, "scenes/broken.tif": bytes(broken)}
    config, workspace = _pipeline(tmp_path, "s3://scenes/", verify=True, max_reject_share=0.5)
    assert ingest(config, workspace).rejected == {"UNDECODABLE": 1}
    row = read_quarantine(workspace).iloc[0]
    assert "row 128, col 128" in row["reason"]
    assert str(row["uri"]).endswith("broken.tif")
    # Unasked it is not looked for.
    config, workspace = _pipeline(tmp_path / "plain", "s3://scenes/")
    assert ingest(config, workspace).rejected == {}
