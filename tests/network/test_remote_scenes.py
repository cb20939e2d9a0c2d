"""Scenes that are read where they lie: the same pixels, few requests, one file from first byte to last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.domains.scene_cases import LANDSAT_NAME, write_landsat
from tests.network.network_cases import QUICK
from tests.network.range_server import Asked, Ranges, serving
from tests.network.stac_cases import open_pixels, tiff
from vitpipe import stages
from vitpipe.config import GeotiffSource, PipelineConfig
from vitpipe.domains.geotiff import Geotiff
from vitpipe.errors import ConfigError, DataError, TooManyRejected, TransientError, UnreadableSource
from vitpipe.fetch import fetch
from vitpipe.ingest import ingest, read_catalog, read_quarantine
from vitpipe.loading import load_config
from vitpipe.records import Source, Window
from vitpipe.web import client, ranges
from vitpipe.web.signing import sign
from vitpipe.workspace import Workspace


@pytest.fixture
def held() -> Iterator[Ranges]:
    with serving(Ranges()) as server:
        yield server


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "Backoff", lambda: QUICK)
    for name in ("AWS_ENDPOINT_URL", "AWS_S3_ENDPOINT", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)


def _pipeline(folder: Path, path: str, **source: Any) -> tuple[PipelineConfig, Workspace]:
    values = {"kind": "geotiff", "path": path, **source}
    workspace = folder / "workspace"
    config = {"name": "t", "source": values, "tiles": {"size": 64, "stride": 64}, "workspace": str(workspace)}
    return PipelineConfig.model_validate(config), Workspace(workspace)


def _read(source: Source, rows: int = 64) -> Any:
    with Geotiff().open(source) as raster:
        return raster.read(Window(0, 0, 0, rows, source.grid.width))


def test_a_scene_is_read_where_it_lies(held: Ranges, tmp_path: Path) -> None:
    content = tiff(1, bands=3, size=700)
    held.add("/scenes/one.tif", content)
    (tmp_path / "one.tif").write_bytes(content)
    config, workspace = _pipeline(tmp_path, f"{held.url}/scenes/one.tif")
    assert ingest(config, workspace).done == 1
    (source,) = read_catalog(workspace)
    assert source.keys["scene"] == ("one",)
    assert source.bytes == len(content)
    held.asked.clear()
    pixels, valid = _read(source, 700)
    np.testing.assert_array_equal(pixels, open_pixels(tmp_path / "one.tif"))
    assert valid.all()
    # Neighbouring blocks are asked for at once, each byte once.
    asked = [tuple(map(int, asked.headers["Range"].removeprefix("bytes=").split("-"))) for asked in held.asked]
    assert len(asked) <= 4
    assert sum(end - start + 1 for start, end in asked) == len(content)
    # What has not changed is not looked into again.
    held.asked.clear()
    assert ingest(config, workspace).skipped == 1
    assert len(held.asked) == 1
    assert not list(workspace.root.rglob("*.partial*"))


def test_tiles_are_those_of_the_file_and_a_list_may_name_many(held: Ranges, tmp_path: Path) -> None:
    for number in range(3):
        held.add(f"/scenes/{number}.tif", tiff(number, size=128))
        (tmp_path / "local").mkdir(exist_ok=True)
        (tmp_path / "local" / f"{number}.tif").write_bytes(held.files[f"/scenes/{number}.tif"])
    (tmp_path / "list.csv").write_text(
        "name,href\n" + "\n".join(f"x{number},{held.url}/scenes/{number}.tif" for number in range(3))
    )
    (tmp_path / "list.txt").write_text("\n# comment\n" + "\n".join(f"{held.url}/scenes/{n}.tif" for n in range(3)))
    found = []
    for name in ("list.csv", "list.txt", "local"):
        config, workspace = _pipeline(tmp_path / f"w-{name}", str(tmp_path / name))
        assert ingest(config, workspace).done == 3
        local = config.on_disk()
        for shard in stages.plan_shards(local):
            assert stages.tile_shard(local, shard).rejected == {}
        tiles = sorted(np.load(path).tobytes() for path in workspace.root.rglob("tiles.npy"))
        found.append(b"".join(sorted(b"".join(tiles)[start : start + 8192] for start in range(0, 98304, 8192))))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("blind", [False, True])
def test_a_file_that_changed_is_told_while_it_is_read(blind: bool, held: Ranges, tmp_path: Path) -> None:
    held.add("/one.tif", tiff(1, bands=3, size=700))
    config, workspace = _pipeline(tmp_path, f"{held.url}/one.tif")
    ingest(config, workspace)
    (source,) = read_catalog(workspace)
    with Geotiff().open(source) as raster:
        raster.read(Window(0, 0, 0, 8, 700))
        held.add("/one.tif", tiff(2, bands=3, size=700))
        held.always = {"/one.tif": "blind" if blind else ""}
        with pytest.raises(UnreadableSource, match=r"CHANGED.*another file than at the ingest"):
            raster.read(Window(0, 600, 0, 100, 700))
    assert held.asked[-1].headers["If-Match"] != held.etag("/one.tif")
    with pytest.raises(UnreadableSource, match="CHANGED"):
        _read(source)
    assert ingest(config, workspace).done == 1
    assert read_catalog(workspace)[0].source_id != source.source_id
    _read(read_catalog(workspace)[0])


def test_the_head_tells_a_change_where_a_server_gives_no_validator(held: Ranges, tmp_path: Path) -> None:
    held.etags = False
    held.add("/one.tif", tiff(1))
    config, workspace = _pipeline(tmp_path, f"{held.url}/one.tif")
    ingest(config, workspace)
    held.add("/one.tif", tiff(2))
    with pytest.raises(UnreadableSource, match="CHANGED"):
        _read(read_catalog(workspace)[0])


def test_a_server_that_fails_is_transient_and_a_gone_file_is_told(held: Ranges, tmp_path: Path) -> None:
    held.add("/one.tif", tiff(1, bands=3, size=700))
    config, workspace = _pipeline(tmp_path, f"{held.url}/one.tif")
    ingest(config, workspace)
    (source,) = read_catalog(workspace)
    held.always = {"/one.tif": 503}
    with pytest.raises(TransientError, match="HTTP 503"):
        _read(source)
    with pytest.raises(TransientError, match="HTTP 503"):
        ingest(config, workspace)
    held.always = {}
    with Geotiff().open(source) as raster:
        held.always = {"/one.tif": "cut"}
        with pytest.raises(TransientError, match=r"cuts the connection|breaks off"):
            raster.read(Window(0, 600, 0, 100, 700))
    held.always = {"/one.tif": 404}
    with pytest.raises(UnreadableSource, match="CHANGED"):
        _read(source)
    held.always = {"/one.tif": 403}
    with pytest.raises(UnreadableSource, match=r"UNREADABLE_FILE.*refuses access"):
        _read(source)


def test_what_cannot_be_read_is_told_and_the_rest_goes_on(held: Ranges, tmp_path: Path) -> None:
    names = ("good", "gone", "closed", "whole", "text")
    for number, name in enumerate(names):
        held.add(f"/{name}.tif", tiff(number))
    held.add("/text.tif", b"no scene at all")
    held.always = {"/gone.tif": 404, "/closed.tif": 403, "/whole.tif": "no_range"}
    (tmp_path / "list.txt").write_text("\n".join(f"{held.url}/{name}.tif" for name in names))
    config, workspace = _pipeline(tmp_path, str(tmp_path / "list.txt"), max_reject_share=0.7)
    ingest(config, workspace)
    rows = read_quarantine(workspace)
    assert sorted(rows["code"]) == ["FETCH_FAILED", "FETCH_FAILED", "NOT_GEOTIFF", "NO_RANGES"]
    assert len(read_catalog(workspace)) == 1
    strict, _ = _pipeline(tmp_path, str(tmp_path / "list.txt"))
    with pytest.raises(TooManyRejected, match="3 of 5 files could not be fetched"):
        fetch(strict, workspace)
    # What the list does not name any more is forgotten.
    (tmp_path / "list.txt").write_text(f"{held.url}/good.tif")
    ingest(strict, workspace)
    assert [path.name for path in (workspace.root / "remote").rglob("*.tif")] == ["good.tif"]


# ------------------------------------------------------------------------------------------------------------------- S3


def test_objects_of_s3_are_asked_for_with_a_signature(
    held: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", held.url)
    held.add("/bucket/a folder/one.tif", tiff(1))
    held.files["/bucket/a%20folder/one.tif"] = held.files.pop("/bucket/a folder/one.tif")
    config, workspace = _pipeline(tmp_path, "s3://bucket/a folder/one.tif")
    assert ingest(config, workspace).done == 1
    assert {asked.headers.get("Authorization") for asked in held.asked} == {None}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "canary-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    monkeypatch.setenv("VITPIPE_STAC_TOKEN", "canary-token")
    held.asked.clear()
    _read(read_catalog(workspace)[0])
    assert all("AWS4-HMAC-SHA256 Credential=canary-key/" in asked.headers["Authorization"] for asked in held.asked)
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    held.asked.clear()
    _read(read_catalog(workspace)[0])
    assert held.asked
    assert not [asked for asked in held.asked if "canary-key" in str(asked.headers)]
    assert "canary" not in "".join(path.read_text("latin-1") for path in workspace.root.rglob("*") if path.is_file())


def test_a_signature_is_that_of_the_published_example() -> None:
    environ = {
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "AWS_REGION": "us-east-1",
    }
    moment = datetime(2013, 5, 24, tzinfo=UTC)
    given = sign("https://examplebucket.s3.amazonaws.com/test.txt", {"Range": "bytes=0-9"}, environ, moment)
    assert given["Authorization"].endswith(
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,"
        " Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )
    assert sign("https://a.org/x", {}, {**environ, "AWS_NO_SIGN_REQUEST": "yes"}) == {}
    assert sign("https://a.org/x", {}, {}) == {}


# ------------------------------------------------------------------------------------------- no request that none asked


def _dressed(url: str) -> dict[str, bytes]:
    """Files that name an address, as GDAL's other drivers would follow it."""
    vrt = (
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">/vsicurl/{url}/hit.tif</SourceFilename></SimpleSource></VRTRasterBand>'
        "</VRTDataset>"
    )
    wms = f'<GDAL_WMS><Service name="TMS"><ServerUrl>{url}/hit</ServerUrl></Service></GDAL_WMS>'
    gml = f'<gml:FeatureCollection xmlns:gml="http://www.opengis.net/gml" xsi:schemaLocation="{url}/hit.xsd"/>'
    zarr = json.dumps({"zarr_format": 2, "store": f"{url}/hit"})
    return {
        "vrt.tif": vrt.encode(), "wms.tif": wms.encode(), "gml.tif": gml.encode(), "netcdf.tif": b"CDF\x01" + bytes(64),
        "hdf.tif": b"\x89HDF\r\n\x1a\n" + bytes(64), "zarr.tif": zarr.encode(), "list.tif": f"{url}/hit.tif".encode(),
        "good.tif": tiff(0),
    }  # fmt: skip


@pytest.mark.parametrize("where", ["local", "remote"])
def test_a_file_that_names_an_address_makes_no_request(where: str, held: Ranges, tmp_path: Path) -> None:
    with serving(Ranges()) as trap:
        files = _dressed(trap.url)
        folder = tmp_path / "data"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
            (folder / f"{name}.msk").write_bytes(files["vrt.tif"])
            (folder / f"{name}.aux.xml").write_bytes(files["vrt.tif"])
            held.add(f"/{name}", content)
            for beside in (".msk", ".ovr", ".aux.xml"):
                held.add(f"/{name}{beside}", files["vrt.tif"])
        (tmp_path / "list.txt").write_text("\n".join(f"{held.url}/{name}" for name in files))
        path = folder if where == "local" else tmp_path / "list.txt"
        config, workspace = _pipeline(tmp_path, str(path), max_reject_share=0.99)
        ingest(config, workspace)
        (source,) = read_catalog(workspace)
        _read(source)
        codes = read_quarantine(workspace).query("not junk")["code"].tolist()
        assert codes == ["NOT_GEOTIFF"] * (len(files) - 1)
        assert trap.asked == []
    # Nor is anything looked for beside a remote file.
    assert {asked.path for asked in held.asked} <= {f"/{name}" for name in files}


def test_a_stand_in_of_another_key_makes_no_request(held: Ranges, tmp_path: Path) -> None:
    held.add("/one.tif", tiff(1))
    config, workspace = _pipeline(tmp_path, f"{held.url}/one.tif")
    ingest(config, workspace)
    (path,) = (workspace.root / "remote").rglob("*.tif")
    values = json.loads(path.read_bytes())
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "copied.tif").write_text(json.dumps({**values, "address": f"{held.url}/other.tif"}))
    (folder / "good.tif").write_bytes(tiff(2))
    shutil.copy(path, folder / "own.tif")
    held.asked.clear()
    other, elsewhere = _pipeline(tmp_path / "other", str(folder), max_reject_share=0.9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITPIPE_KEY", "another key for the tests")
        ingest(other, elsewhere)
    assert read_quarantine(elsewhere)["code"].tolist() == ["NOT_GEOTIFF"] * 2
    assert held.asked == []


# -------------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("http://example.org/x.tif", "plain http"),
        ("https://example.org/x.tif?sig=canary", "holds a query"),
        ("https://u:canary@example.org/x.tif", "holds credentials"),
        ("s3://bucket", "names no file"),
    ],
)
def test_an_address_that_would_leak_is_refused(path: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "pipeline.yaml").write_text(json.dumps({"name": "t", "source": {"kind": "geotiff", "path": path}}))
    with pytest.raises(ConfigError, match=word) as caught:
        load_config(tmp_path)
    assert "canary" not in str(caught.value)
    (tmp_path / "list.txt").write_text(path)
    config, workspace = _pipeline(tmp_path, str(tmp_path / "list.txt"))
    with pytest.raises(ConfigError, match=word) as caught:
        fetch(config, workspace)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("list.txt", "# nothing\n", "lists no address"),
        ("list.txt", "/etc/passwd", "line 1: it is no address"),
        ("list.csv", "name,size\na,1", "no column of addresses"),
        ("none.txt", None, "cannot be read"),
    ],
)
def test_a_list_that_is_none_is_refused(name: str, text: str | None, word: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    config, workspace = _pipeline(tmp_path, str(tmp_path / name))
    with pytest.raises((ConfigError, DataError), match=word):
        fetch(config, workspace)


def test_an_address_stays_as_it_is_and_changes_no_digest(tmp_path: Path) -> None:
    source = {"kind": "geotiff", "path": "https://example.org/x.tif"}
    (tmp_path / "pipeline.yaml").write_text(json.dumps({"name": "t", "source": source}))
    config = load_config(tmp_path)
    assert config.source.path == source["path"]
    assert config.on_disk().source.path == str(tmp_path / "workspace" / "remote")
    assert config.on_disk().on_disk() is not None
    assert config.content_digest() == config.on_disk().content_digest()
    assert "plain_http" not in GeotiffSource(path="x").model_dump()


def test_requests_grow_where_a_file_is_read_on_and_on(
    held: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "_CHUNK_BYTES", 1 << 14)
    monkeypatch.setattr(ranges, "_MOST_CHUNKS", 16)
    content = bytes(range(256)) * 4096
    held.add("/x.tif", content)
    address = f"{held.url}/x.tif"
    with ranges.client_of(address, plain_http=True) as asked_by:
        remote = ranges.look(address, asked_by)
        opened = ranges.Ranges(remote, asked_by, "x")
        stream = ranges.RangeFile(opened)
        held.asked.clear()
        assert b"".join(iter(lambda: stream.read(5000), b"")) == content
        spans = [_span(asked) for asked in held.asked]
        assert spans[:4] == [1, 2, 4, 8]
        assert sum(spans) == len(content) >> 14
        assert len(opened._kept) <= 16
        stream.seek(-3, 2)
        assert (stream.read(10), stream.tell()) == (content[-3:], len(content))


def _span(asked: Asked) -> int:
    start, end = asked.headers["Range"].removeprefix("bytes=").split("-")
    return (int(end) + 1 - int(start)) >> 14


@pytest.mark.parametrize("names", [("/q/a.tif", "/q/a.tif/b.tif"), ("/q/a.tif/b.tif", "/q/a.tif")])
def test_a_file_and_a_folder_may_share_a_name(names: tuple[str, str], held: Ranges, tmp_path: Path) -> None:
    for number, name in enumerate(names):
        held.add(name, tiff(number))
    (tmp_path / "list.txt").write_text("\n".join(f"{held.url}{name}" for name in names))
    config, workspace = _pipeline(tmp_path, str(tmp_path / "list.txt"))
    assert ingest(config, workspace).done == 2


def test_a_landsat_scene_is_one_scene_from_afar_too(held: Ranges, tmp_path: Path) -> None:
    name = LANDSAT_NAME.replace("L2SP", "L1TP")
    bands = {band: np.full((40, 40), 9000 + int(band[1:]), np.uint16) for band in ("B4", "B5")}
    found = []
    for place in ("local", "afar"):
        root = write_landsat(tmp_path / "scene", bands, name=name, mtl=("json",))
        for path in root.iterdir():
            held.add(f"/landsat/{path.name}", path.read_bytes())
        (tmp_path / "list.txt").write_text("\n".join(f"{held.url}{path}" for path in held.files))
        where = str(root if place == "local" else tmp_path / "list.txt")
        config, workspace = _pipeline(tmp_path / place, where)
        assert ingest(config, workspace).rejected == {}
        (source,) = read_catalog(workspace)
        assert (source.units, source.channels, source.notes) == ("toa_reflectance", ("B4", "B5"), ())
        found.append(_read(source, 40)[0])
    np.testing.assert_array_equal(found[0], found[1])
    # A level-1 scene is nothing without its metadata.
    held.add(f"/landsat/{name}_MTL.json", {"x": 1})
    with pytest.raises(TooManyRejected, match="NO_METADATA"):
        ingest(config, workspace)
