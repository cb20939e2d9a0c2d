"""Secrets of references stay nowhere: not in what is kept of items, is told, or is made of them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.schema_tools.validation import validate

from tests.network.network_cases import QUICK
from tests.network.range_server import Ranges, serving
from tests.network.stac_cases import SIGNATURE, item, pipeline, tiff
from vitpipe.domains.geotiff.item import address_of_item
from vitpipe.errors import ConfigError
from vitpipe.fetch import fetch
from vitpipe.web.address import resolve, s3_address, shown


@pytest.fixture
def held() -> Iterator[Ranges]:
    with serving(Ranges()) as server:
        yield server


def test_a_signature_of_a_relative_reference_stays_nowhere(held: Ranges, tmp_path: Path) -> None:
    held.add("/data/red.tif", tiff(0))
    document = item(0, f"./data/red.tif?{SIGNATURE}", **{"preview": [f"red.png?{SIGNATURE}"]})
    held.add("/item.json", document)
    config, workspace = pipeline(tmp_path / "remote", f"{held.url}/item.json")
    assert fetch(config, workspace, QUICK).done == 1
    # A copy of such an item on this machine leads to files that are not there.
    (tmp_path / "item.json").write_text(json.dumps(document))
    local, beside = pipeline(tmp_path / "local", str(tmp_path / "item.json"), max_reject_share=1)
    assert fetch(local, beside, QUICK).rejected == {"FETCH_FAILED": 1}
    places = [path for folder in ("remote", "local") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert [path for path in places if b"canary" in path.read_bytes()] == []
    (tmp_path / "item.json").unlink()
    links = [{"rel": "item", "href": f"item.json?{SIGNATURE}"}]
    (tmp_path / "c.json").write_text(json.dumps({"type": "Catalog", "links": links}))
    config, workspace = pipeline(tmp_path / "gone", str(tmp_path / "c.json"))
    with pytest.raises(ConfigError) as caught:
        fetch(config, workspace, QUICK)
    assert "item.json" in str(caught.value)
    assert "canary" not in str(caught.value)


def test_the_address_of_an_item_is_given_without_its_secret(tmp_path: Path) -> None:
    links = {"links": [{"rel": "self", "href": f"https://u:canary@a.org/item?{SIGNATURE}"}]}
    (tmp_path / "item.json").write_text(json.dumps(links))
    assert address_of_item(tmp_path / "x.tif") == "https://a.org/item"


def test_addresses_are_told_without_secrets_and_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(f"https://u:p@a.org:8/x.tif?{SIGNATURE}#f") == "https://a.org:8/x.tif"
    assert resolve("https://a.org/cat/c.json?x=1", "../x.tif") == "https://a.org/x.tif"
    assert resolve("/cat/one/c.json", "../x.tif") == "/cat/x.tif"
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_S3_ENDPOINT", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    assert s3_address("s3://bucket/a b/x.tif") == "https://s3.amazonaws.com/bucket/a%20b/x.tif"
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    assert s3_address("s3://bucket/x.tif") == "https://s3.us-west-2.amazonaws.com/bucket/x.tif"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    assert s3_address("s3://bucket/x.tif") == "http://127.0.0.1:9000/bucket/x.tif"
    assert resolve("https://a.org/c.json", "s3://bucket/x.tif") == "s3://bucket/x.tif"


SECRETIVE = ["https://a.org/x?sig=canary", "https://u:canary@a.org/x", "s3://canary@a/x", "HTTPS://a.org/x#canary"]
PLAIN = ["https://a.org:8/x@2.tif", "s3://a/b/", "/data/what?/a@b=c#d", "catalog.json", "file?x=https://a.org/b"]


@pytest.mark.parametrize(
    ("flow", "given"),
    [
        ("predict", lambda text: {"source": text}),
        ("predict", lambda text: {"source": {"kind": "stac", "url": text}}),
        ("predict", lambda text: {"source": {"kind": "stac", "url": "https://a.org", "sign": text}}),
        ("pipeline", lambda text: {"config": {"name": "a", "source": {"kind": "stac", "url": text}}}),
        ("pipeline", lambda text: {"config": {"name": "a", "source": {"kind": "dicomweb", "url": text}}}),
        ("pipeline", lambda text: {"config": {"name": "a", "source": {"kind": "geotiff", "path": text}}}),
    ],
)
def test_a_server_of_flows_takes_no_address_with_a_secret(flow: str, given: Callable[[str], dict[str, Any]]) -> None:
    # It keeps and logs the values of a run before any of our code sees them, but checks them by the form first.
    form = getattr(importlib.import_module(f"flows.{flow}"), flow).parameters.model_dump_for_openapi()
    others = {"model_uri": "models:/a/1", "out": "out"} if flow == "predict" else {}
    for text in SECRETIVE:
        assert validate(others | given(text), form), text
    for text in PLAIN:
        assert not validate(others | given(text), form), text


def test_headers_that_cannot_be_read_put_no_signature_into_the_log(
    held: Ranges, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    held.add("/0.tif", tiff(0))
    # The length comes first: what follows the odd line is no header any more.
    held.headers["/0.tif"] = {"Content-Length": str(len(tiff(0))), "X-One": "1\r\nno header at all"}
    held.add("/item.json", item(0, f"{held.url}/0.tif?{SIGNATURE}"))
    config, workspace = pipeline(tmp_path, f"{held.url}/item.json")
    fetch(config, workspace, QUICK)
    assert held.paths("/0.tif")
    assert "canary" not in caplog.text
