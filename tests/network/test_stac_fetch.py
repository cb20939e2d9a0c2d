"""Fetch the scenes of STAC catalogs and APIs: found, chosen, continued, checked, and no secret told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.network.network_cases import QUICK
from tests.network.range_server import Asked, Ranges, serving
from tests.network.stac_cases import SIGNATURE, answer_with, item, multihash, pipeline, put_api, put_catalog, tiff
from vitpipe.errors import ConfigError, DataError, TooManyRejected, TransientError
from vitpipe.fetch import fetch
from vitpipe.ingest import ingest, read_catalog, read_quarantine
from vitpipe.web import client
from vitpipe.web.retries import Backoff

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def held() -> Iterator[Ranges]:
    with serving(Ranges()) as server:
        yield server


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.tif")) if "/." not in str(path)}


def texts_below(folder: Path) -> str:
    return "\n".join(f"{path}\n{path.read_bytes().decode('latin-1')}" for path in folder.rglob("*") if path.is_file())


def test_a_static_catalog_is_walked_once_and_its_scenes_are_read(held: Ranges, tmp_path: Path) -> None:
    put_catalog(held, 3)
    config, workspace = pipeline(tmp_path, f"{held.url}/cat/catalog.json")
    summary = ingest(config, workspace)
    assert (summary.done, summary.rejected) == (3, {})
    # A child that leads back to the root is not read again.
    assert held.paths("catalog.json") == ["/cat/catalog.json"]
    sources = read_catalog(workspace)
    assert sorted(source.attributes["cloud_cover"] for source in sources) == [0.0, 10.0, 20.0]
    assert {source.attributes["platform"] for source in sources} == {"sentinel-2a"}
    assert {source.channels for source in sources} == {("B04",)}
    assert sorted(str(source.acquired_at) for source in sources)[0] == "2023-06-01T10:00:00+00:00"
    # Nothing is downloaded again; the signature in the references stays nowhere.
    held.asked.clear()
    assert fetch(config, workspace, QUICK).skipped == 3
    assert not held.paths(".tif")
    assert "canary" not in texts_below(tmp_path)


@pytest.mark.parametrize("post", [True, False])
def test_an_api_is_searched_page_by_page(post: bool, held: Ranges, tmp_path: Path) -> None:
    put_api(held, 5, post=post)
    query = {"collections": ["small"], "bbox": [10, 44, 20, 46], "datetime": "2023-06-01/2023-06-30"}
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", query=query, page_size=2)
    assert fetch(config, workspace, QUICK).done == 5
    searches = [asked for asked in held.asked if asked.path == "/v1/search"]
    if post:
        assert len(searches) == 3
        assert searches[-1].body == {
            "collections": ["small"], "bbox": [10, 44, 20, 46], "limit": 2, "token": 4,
            "datetime": "2023-06-01T00:00:00Z/2023-06-30T23:59:59.999999Z",
        }  # fmt: skip
    else:
        assert [asked.method for asked in searches] == ["POST", "GET", "GET", "GET"]
        assert searches[1].query["collections"] == "small"
    assert sorted(files_below(workspace.root / "scenes")) == [f"scene-{number}_red.tif" for number in range(5)]


def test_the_collection_of_an_api_is_gone_through_page_by_page(held: Ranges, tmp_path: Path) -> None:
    put_api(held, 5)
    place = "/v1/collections/small"
    items = [held.answers["/v1/search"](Asked("POST", "", {}, {}, {"token": token}))[1] for token in (0, 2, 4)]

    def listed(asked: Asked) -> tuple[int, Any]:
        at = int(asked.query.get("page", 0))
        following = [{"rel": "next", "href": f"{held.url}{place}/items?page={at + 1}"}] if at < 2 else []
        return 200, {"type": "FeatureCollection", "features": items[at]["features"], "links": following}

    held.answers[f"{place}/items"] = listed
    links = [{"rel": "items", "href": f"{held.url}{place}/items"}, {"rel": "root", "href": f"{held.url}/v1"}]
    held.add(place, {"type": "Collection", "stac_version": "1.0.0", "id": "small", "links": links})
    box = {"bbox": [10.9, 44.0, 14.1, 46.0]}
    config, workspace = pipeline(tmp_path, f"{held.url}{place}", query=box)
    assert fetch(config, workspace, QUICK).done == 4
    first = next(asked for asked in held.asked if asked.path == f"{place}/items")
    assert first.query == {"bbox": "10.9,44.0,14.1,46.0", "limit": "100"}


def test_a_server_without_the_query_extension_is_asked_without_it(held: Ranges, tmp_path: Path) -> None:
    put_api(held, 3)
    answer = held.answers["/v1/search"]
    held.answers["/v1/search"] = lambda asked: (400, {}) if "query" in asked.body else answer(asked)
    query = {"properties": {"eo:cloud_cover": {"lt": 15}}}
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", query=query)
    assert fetch(config, workspace, QUICK).done == 2
    held.answers["/v1/search"] = lambda _: (400, {})
    with pytest.raises(ConfigError, match="HTTP 400"):
        fetch(config, workspace, QUICK)


@pytest.mark.parametrize(
    "document",
    [
        {"type": "Feature", "id": 3, "assets": {}},
        {"type": "Feature", "id": "a", "assets": {}, "properties": [1]},
        {"type": "FeatureCollection", "features": [3]},
        {"type": "Nothing"},
        {"type": "Catalog", "links": {"rel": "item"}},
        {"type": "Catalog", "stac_version": "1.0.0", "links": [{"rel": "item"}, 3]},
    ],
)
def test_a_document_that_is_no_stac_is_told(document: Any, tmp_path: Path) -> None:
    (tmp_path / "it.json").write_text(json.dumps(document))
    config, workspace = pipeline(tmp_path, str(tmp_path / "it.json"))
    with pytest.raises(DataError, match=r"no STAC|no item that fits"):
        fetch(config, workspace, QUICK)


def test_an_item_that_nests_too_deep_is_told(held: Ranges, tmp_path: Path) -> None:
    put_api(held, 2)
    deep: list[Any] = []
    for _ in range(700):
        deep = [deep]
    bad = item(5, "x.tif")
    bad["properties"]["deep"] = deep
    answer_with(held, bad, item(0, "/data/0.tif"))
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", max_reject_share=0.5)
    assert fetch(config, workspace, QUICK).rejected == {"BAD_ITEM": 1}


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"datetime": "2023-06-02"}, ["scene-1"]),
        ({"datetime": "../2023-06-01T09:00:00Z"}, None),
        ({"bbox": [11.2, 40, 11.3, 50]}, ["scene-1"]),
        ({"bbox": [170, 40, 10.2, 50]}, ["scene-0"]),
        ({"properties": {"eo:cloud_cover": {"gt": 5, "lte": 20}}}, ["scene-1", "scene-2"]),
        ({"properties": {"eo:cloud_cover": {"lt": "20"}}}, None),
        ({"properties": {"platform": {"startsWith": "sentinel"}}, "ids": ["scene-2"]}, ["scene-2"]),
        ({"collections": ["other"]}, None),
    ],
)
def test_a_filter_holds_whatever_the_server_heeds(
    query: dict[str, Any], found: list[str] | None, held: Ranges, tmp_path: Path
) -> None:
    put_api(held, 3)
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", query=query)
    if found is None:
        with pytest.raises(DataError, match="no item that fits"):
            fetch(config, workspace, QUICK)
        return
    fetch(config, workspace, QUICK)
    assert sorted(path.name for path in (workspace.root / "scenes").iterdir() if path.name[0] != ".") == found


def test_what_is_not_found_any_more_is_left_out_and_comes_back(held: Ranges, tmp_path: Path) -> None:
    put_api(held, 3)
    config, workspace = pipeline(tmp_path, f"{held.url}/v1")
    assert ingest(config, workspace).done == 3
    fewer, _ = pipeline(tmp_path, f"{held.url}/v1", query={"ids": ["scene-0"]})
    assert fetch(fewer, workspace, QUICK).notes[1].startswith("2 scene(s)")
    ingest(fewer, workspace)
    assert len(read_catalog(workspace)) == 1
    held.asked.clear()
    assert fetch(config, workspace, QUICK).skipped == 3
    assert not held.paths(".tif")


def test_a_broken_download_goes_on_where_it_was(held: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_CHUNK_BYTES", 512)
    put_api(held, 1)
    config, workspace = pipeline(tmp_path, f"{held.url}/v1")
    # More breaks than tries: each brings a part.
    held.faults["/data/0.tif"] = deque(["cut", 503, "cut", "cut", (429, {"Retry-After": "0"}), "cut"])
    assert fetch(config, workspace, QUICK).done == 1
    starts = [
        int(asked.headers["Range"].removeprefix("bytes=")[:-1]) for asked in held.asked if "Range" in asked.headers
    ]
    assert starts == sorted(starts)
    assert starts[0] > 0
    assert {asked.headers["If-Range"] for asked in held.asked if "Range" in asked.headers} == {held.etag("/data/0.tif")}
    assert files_below(workspace.root / "scenes") == {"scene-0_red.tif": held.files["/data/0.tif"]}
    assert not list(workspace.root.rglob(".partial-*"))


@pytest.mark.parametrize("answer", ["", "blind", "no_range"])
@pytest.mark.parametrize("stated", [True, False])
def test_a_file_that_changes_while_it_is_fetched_is_never_mixed(
    answer: str, stated: bool, held: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_CHUNK_BYTES", 512)
    put_api(held, 1)
    after = tiff(77)
    document = item(0, f"{held.url}/data/0.tif", after if stated else None)
    answer_with(held, document)
    held.faults["/data/0.tif"] = deque(["cut", 503, 503])
    config, workspace = pipeline(tmp_path, f"{held.url}/v1")
    with pytest.raises(TransientError):
        fetch(config, workspace, Backoff(tries=1))
    held.add("/data/0.tif", after)
    held.faults["/data/0.tif"] = deque([answer, answer])
    fetch(config, workspace, QUICK)
    assert files_below(workspace.root / "scenes") == {"scene-0_red.tif": after}


def test_without_a_validator_a_half_file_is_begun_again(
    held: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_CHUNK_BYTES", 512)
    put_api(held, 1)
    held.etags = False
    held.faults["/data/0.tif"] = deque(["cut"])
    config, workspace = pipeline(tmp_path, f"{held.url}/v1")
    assert fetch(config, workspace, QUICK).done == 1
    assert not [asked for asked in held.asked if "Range" in asked.headers]
    held.dates = True
    other, elsewhere = pipeline(tmp_path / "dates", f"{held.url}/v1")
    held.faults["/data/0.tif"] = deque(["cut"])
    fetch(other, elsewhere, QUICK)
    assert [asked.headers["If-Range"] for asked in held.asked if "Range" in asked.headers]


def test_another_range_than_was_asked_for_is_refused(
    held: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_CHUNK_BYTES", 512)
    put_api(held, 2)
    held.faults["/data/0.tif"] = deque(["cut", "shifted"])
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", max_reject_share=0.5)
    assert fetch(config, workspace, QUICK).rejected == {"FETCH_FAILED": 1}


def test_size_and_checksum_are_checked(held: Ranges, tmp_path: Path) -> None:
    put_api(held, 1)
    good = held.files["/data/0.tif"]
    flipped = bytearray(good)
    flipped[-1] ^= 1
    for number, (content, stated) in enumerate(
        [(bytes(flipped), {"file:checksum": multihash(good)}), (good, {"file:size": len(good) + 1})]
    ):
        held.add("/data/0.tif", content)
        document = item(0, f"{held.url}/data/0.tif", **stated)
        answer_with(held, document)
        config, workspace = pipeline(tmp_path / str(number), f"{held.url}/v1")
        with pytest.raises(TooManyRejected, match="CHECKSUM_MISMATCH"):
            fetch(config, workspace, QUICK)
        assert not files_below(workspace.root / "scenes")
    answer_with(held, item(0, f"{held.url}/data/0.tif", **{"file:checksum": "99" + multihash(good)}))
    config, workspace = pipeline(tmp_path / "unknown", f"{held.url}/v1")
    assert "1 file(s) have a checksum of a kind" in " ".join(fetch(config, workspace, QUICK).notes)


def test_what_fails_for_good_is_named_and_the_rest_goes_on(
    held: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "Backoff", lambda: QUICK)
    put_api(held, 4)
    held.always = {"/data/1.tif": 403, "/data/2.tif": 500}
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", max_reject_share=0.5)
    assert fetch(config, workspace, QUICK).rejected == {"FETCH_FAILED": 2}
    ingest(config, workspace)
    rows = read_quarantine(workspace).query("code == 'FETCH_FAILED'")
    assert sorted("VITPIPE_STAC_TOKEN" in reason for reason in rows["reason"]) == [False, True]
    assert len(read_catalog(workspace)) == 2
    assert SIGNATURE not in texts_below(tmp_path)
    held.always = {}
    held.asked.clear()
    assert fetch(config, workspace, QUICK).done == 2
    assert sorted(held.paths(".tif")) == ["/data/1.tif", "/data/2.tif"]
    assert not read_quarantine(workspace).empty
    ingest(config, workspace)
    assert read_quarantine(workspace).query("not junk").empty


def test_a_server_that_is_gone_is_transient(held: Ranges, tmp_path: Path) -> None:
    put_api(held, 2)
    config, workspace = pipeline(tmp_path, f"{held.url}/v1")
    held.always = {"/data/0.tif": 503, "/data/1.tif": 503}
    with pytest.raises(TransientError, match="HTTP 503"):
        fetch(config, workspace, QUICK)
    held.always = {"/v1": 502}
    with pytest.raises(TransientError, match="HTTP 502"):
        fetch(config, workspace, QUICK)


def test_a_changed_item_asks_whether_its_file_changed(held: Ranges, tmp_path: Path) -> None:
    put_api(held, 1)
    document = item(0, f"{held.url}/data/0.tif")
    answer_with(held, document)
    config, workspace = pipeline(tmp_path, f"{held.url}/v1")
    fetch(config, workspace, QUICK)
    document["properties"]["updated"] = "2024-01-01T00:00:00Z"
    document["properties"]["eo:cloud_cover"] = 99
    held.asked.clear()
    summary = fetch(config, workspace, QUICK)
    assert (summary.done, summary.skipped) == (0, 1)
    assert [asked.headers.get("If-None-Match") for asked in held.asked if asked.path.endswith(".tif")] == [
        held.etag("/data/0.tif")
    ]
    ingest(config, workspace)
    assert read_catalog(workspace)[0].attributes["cloud_cover"] == 99
    document["properties"]["updated"] = "2024-01-02T00:00:00Z"
    held.add("/data/0.tif", tiff(9))
    assert fetch(config, workspace, QUICK).done == 1
    assert files_below(workspace.root / "scenes") == {"scene-0_red.tif": tiff(9)}


def test_a_killed_fetch_goes_on(held: Ranges, tmp_path: Path) -> None:
    for number in range(2):
        held.add(f"/data/{number}.tif", tiff(number, size=256))
    features = [item(number, f"{held.url}/data/{number}.tif") for number in range(2)]
    answer_with(held, *features)
    held.faults["/data/1.tif"] = deque(["trickle"])
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", connections=1)
    (tmp_path / "c.json").write_text(config.model_dump_json())
    code = (
        "import sys; from pathlib import Path; from vitpipe.config import PipelineConfig;"
        "from vitpipe.fetch import fetch; from vitpipe.web import client;"
        "from vitpipe.workspace import Workspace; client._CHUNK_BYTES = 4096;"
        "config = PipelineConfig.model_validate_json(Path(sys.argv[1]).read_text());"
        "fetch(config, Workspace(Path(config.workspace)))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "c.json")], cwd=ROOT)
    partial = workspace.root / "scenes" / ".scene-1" / ".partial-scene-1_red.tif"
    deadline = time.monotonic() + 30
    while not (partial.is_file() and partial.stat().st_size >= 8192):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    size = partial.stat().st_size
    held.asked.clear()
    summary = fetch(config, workspace, QUICK)
    assert (summary.done, summary.skipped) == (1, 1)
    assert [asked.headers.get("Range") for asked in held.asked if asked.path.endswith(".tif")] == [f"bytes={size}-"]
    assert files_below(workspace.root / "scenes") == {
        f"scene-{number}_red.tif": held.files[f"/data/{number}.tif"] for number in range(2)
    }


def test_the_token_goes_to_the_catalog_and_to_no_other_host(
    held: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITPIPE_STAC_TOKEN", "canary-token")
    with serving(Ranges()) as elsewhere:
        elsewhere.add("/0.tif", tiff(0))
        document = item(0, f"{elsewhere.url}/0.tif")
        held.add("/item.json", document)
        held.add("/moved.json", document)
        held.always = {"/moved.json": (302, {"Location": "/item.json"})}
        config, workspace = pipeline(tmp_path, f"{held.url}/moved.json")
        fetch(config, workspace, QUICK)
        assert {asked.headers.get("Authorization") for asked in held.asked} == {"Bearer canary-token"}
        assert {asked.headers.get("Authorization") for asked in elsewhere.asked} == {None}
        monkeypatch.setenv("VITPIPE_STAC_HOSTS", f"127.0.0.1:{elsewhere.port}")
        config, workspace = pipeline(tmp_path / "named", f"{held.url}/moved.json")
        fetch(config, workspace, QUICK)
        assert elsewhere.asked[-1].headers.get("Authorization") == "Bearer canary-token"
    assert "canary" not in texts_below(tmp_path)
    held.always = {"/moved.json": 401}
    with pytest.raises(ConfigError, match="refuses access") as caught:
        fetch(config, workspace, QUICK)
    assert "canary" not in str(caught.value)


def test_a_catalog_in_a_folder_is_linked_not_copied(tmp_path: Path) -> None:
    folder = tmp_path / "cat"
    folder.mkdir()
    (folder / "my red.tif").write_bytes(tiff(0))
    (folder / "one.json").write_text(json.dumps(item(0, "./my%20red.tif", tiff(0))))
    (folder / "all.json").write_text(
        json.dumps({"type": "Catalog", "stac_version": "1.1.0", "links": [{"rel": "item", "href": "one.json"}]})
    )
    config, workspace = pipeline(tmp_path, str(folder / "all.json"))
    assert ingest(config, workspace).done == 1
    assert (workspace.root / "scenes" / "scene-0" / "scene-0_red.tif").is_symlink()
    with pytest.raises(ConfigError, match="no file"):
        fetch(pipeline(tmp_path, str(folder / "none.json"))[0], workspace, QUICK)


def test_a_server_that_does_not_page_is_not_believed(held: Ranges, tmp_path: Path) -> None:
    put_api(held, 1)
    link = {"rel": "next", "method": "POST", "href": "/v1/search", "body": {"token": 1}}
    page = {"type": "FeatureCollection", "features": [item(0, "x.tif")], "links": [link]}
    held.answers["/v1/search"] = lambda _: (200, page)
    config, workspace = pipeline(tmp_path, f"{held.url}/v1")
    with pytest.raises(ConfigError, match="does not page"):
        fetch(config, workspace, QUICK)
    page["features"] = []
    with pytest.raises(ConfigError, match="without end"):
        fetch(config, workspace, QUICK)


def test_pages_without_items_and_without_end_are_told(held: Ranges, tmp_path: Path) -> None:
    def search(asked: Asked) -> tuple[int, Any]:
        token = int(asked.query.get("token", 0)) + 1
        links = [{"rel": "next", "href": f"{held.url}/v1/search?token={token}"}]
        return (200 if token < 150 else 404), {"type": "FeatureCollection", "features": [], "links": links}

    answer_with(held)
    held.answers["/v1/search"] = search
    config, workspace = pipeline(tmp_path, f"{held.url}/v1")
    with pytest.raises(ConfigError, match="100 pages without an item"):
        fetch(config, workspace, QUICK)


def test_a_folder_of_another_fetch_is_refused(held: Ranges, tmp_path: Path) -> None:
    put_api(held, 1)
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", path=str(tmp_path / "shared"))
    fetch(config, workspace, QUICK)
    with pytest.raises(ConfigError, match="a folder of its own"):
        fetch(config.model_copy(update={"name": "other"}), workspace, QUICK)
