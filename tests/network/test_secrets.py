"""Secrets of references stay nowhere: not in what is kept of items, is told, or is made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

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
