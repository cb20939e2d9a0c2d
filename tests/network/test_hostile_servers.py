"""Servers that answer what no server should: one file of theirs is told and the others come, within bounds."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.network.network_cases import QUICK
from tests.network.range_server import ENDLESS_BYTES, Ranges, serving
from tests.network.stac_cases import answer_with, item, pipeline, tiff
from vitpipe.config import PipelineConfig
from vitpipe.errors import DataError
from vitpipe.fetch import fetch, read_failures
from vitpipe.web.ranges import Ranges as RemoteRanges
from vitpipe.web.ranges import RemoteFile, client_of
from vitpipe.web.retries import retry_after_seconds
from vitpipe.workspace import Workspace

BOUND_BYTES = 8 << 20
"""More than the buffers between two sockets hold."""


@pytest.fixture
def held() -> Iterator[Ranges]:
    with serving(Ranges()) as server:
        yield server


def fetch_beside_a_good_one(held: Ranges, folder: Path, href: str, **asset: Any) -> str:
    """Fetch an odd file and a good one; gives why the odd one did not come."""
    held.add("/good.tif", tiff(1))
    answer_with(held, item(0, href, **asset), item(1, "/good.tif"))
    config, workspace = pipeline(folder, f"{held.url}/v1", max_reject_share=0.5, plain_http=True)
    assert fetch(config, workspace, QUICK).done == 1
    (row,) = read_failures(config, workspace)
    assert row.uri.endswith("scene-0_red.tif")
    return f"{row.code} {row.reason}"


@pytest.mark.parametrize("host", ["a" * 64 + ".example.org", "a..example.org"])
def test_a_name_that_no_host_can_have_is_told(host: str, held: Ranges, tmp_path: Path) -> None:
    assert "no name that a host can have" in fetch_beside_a_good_one(held, tmp_path, f"http://{host}/x.tif")


def test_a_redirect_to_what_is_no_address_is_told(held: Ranges, tmp_path: Path) -> None:
    held.always["/0.tif"] = (302, {"Location": "http://[canary"})
    reason = fetch_beside_a_good_one(held, tmp_path, "/0.tif")
    assert "sends to what is no address" in reason
    assert "canary" not in reason


@pytest.mark.parametrize("told", ["bytes 0-1/" + "9" * 5000, "bytes 0-1/x", "bytes 7-8/9", "pages 0-1/2"])
def test_a_range_that_cannot_be_is_told(told: str, held: Ranges, tmp_path: Path) -> None:
    held.always["/0.tif"] = (206, {"Content-Range": told})
    assert "gives another range" in fetch_beside_a_good_one(held, tmp_path, "/0.tif")


@pytest.mark.parametrize("fault", ["none", (206, {"Content-Range": "bytes 0-9/10"})])
def test_a_file_of_which_no_byte_comes_stops_no_other(fault: Any, held: Ranges, tmp_path: Path) -> None:
    held.add("/0.tif", tiff(0))
    held.always["/0.tif"] = fault
    assert "in all tries, while other files are answered" in fetch_beside_a_good_one(held, tmp_path, "/0.tif")


def test_a_file_that_is_sent_compressed_twice_is_told(held: Ranges, tmp_path: Path) -> None:
    content = gzip.compress(gzip.compress(tiff(0)))
    held.add("/0.tif", content)
    held.headers["/0.tif"] = {"Content-Encoding": "gzip, gzip"}
    assert "is sent compressed" in fetch_beside_a_good_one(held, tmp_path, "/0.tif")


def test_a_body_without_end_is_cut_off_where_its_length_is_stated(held: Ranges, tmp_path: Path) -> None:
    held.add("/0.tif", tiff(0))
    held.always["/0.tif"] = "endless"
    reason = fetch_beside_a_good_one(held, tmp_path, "/0.tif", **{"file:size": 100})
    assert reason.startswith("CHECKSUM_MISMATCH it has more bytes than `file:size` 100")
    assert held.sent["/0.tif"] < BOUND_BYTES
    assert not list(tmp_path.rglob(".partial-*"))


def test_more_bytes_than_a_range_has_are_cut_off(held: Ranges, tmp_path: Path) -> None:
    held.always["/0.tif"] = (206, {"Content-Range": "bytes 0-9/10"}, "endless")
    reason = fetch_beside_a_good_one(held, tmp_path, "/0.tif")
    assert "sends more bytes than the 10 that it says" in reason
    assert held.sent["/0.tif"] < ENDLESS_BYTES // 2


def test_the_body_of_a_redirect_is_not_read(held: Ranges, tmp_path: Path) -> None:
    held.add("/x.tif", tiff(0))
    held.always["/0.tif"] = (302, {"Location": "/x.tif"}, "endless")
    answer_with(held, item(0, "/0.tif"))
    config, workspace = pipeline(tmp_path, f"{held.url}/v1")
    assert fetch(config, workspace, QUICK).done == 1
    assert held.sent["/0.tif"] < BOUND_BYTES


@pytest.mark.parametrize("length", [0, 65])
def test_a_checksum_of_a_length_that_is_none_is_not_checked(length: int, held: Ranges, tmp_path: Path) -> None:
    held.add("/0.tif", tiff(0))
    text = f"c0e402{length:02x}" + "00" * length
    answer_with(held, item(0, "/0.tif", **{"file:checksum": text}))
    config, workspace = pipeline(tmp_path, f"{held.url}/v1")
    summary = fetch(config, workspace, QUICK)
    assert summary.done == 1
    assert "1 file(s) have a checksum of a kind that is not known here" in summary.notes


@pytest.mark.parametrize("relation", ["item", "child", "search", "items"])
@pytest.mark.parametrize("href", ["http://[canary", "x\x00canary.json"])
def test_a_link_that_is_no_address_is_told(relation: str, href: str, held: Ranges, tmp_path: Path) -> None:
    kind = "Collection" if relation == "items" else "Catalog"
    document = {"type": kind, "stac_version": "1.0.0", "id": "a", "links": [{"rel": relation, "href": href}]}
    held.add("/v1", document)
    config, workspace = pipeline(tmp_path, f"{held.url}/v1")
    with pytest.raises(DataError, match=f"link `{relation}` that is no address") as caught:
        fetch(config, workspace, QUICK)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("text", ["²", "Wed, 07 Jun 2023 10:00:00 +99999999999999", "soon", ""])
def test_a_wait_that_cannot_be_read_is_none(text: str) -> None:
    assert retry_after_seconds(text) is None


# ------------------------------------------------------------------------------------------------------- read from afar


def addresses(folder: Path, held: Ranges, *paths: str) -> tuple[PipelineConfig, Workspace]:
    (folder / "list.txt").write_text("\n".join(f"{held.url}{path}" for path in paths))
    source = {"kind": "geotiff", "path": str(folder / "list.txt"), "max_reject_share": 0.5}
    values = {"name": "t", "source": source, "workspace": str(folder / "workspace")}
    return PipelineConfig.model_validate(values), Workspace(folder / "workspace")


@pytest.mark.parametrize(
    ("told", "word"),
    [
        ("bytes 0-1/" + "9" * 5000, "does not say how long it is"),
        ("bytes 0-1/*", "does not say how long it is"),
        ("bytes 5-9/10", "gives another part than it was asked for"),
    ],
)
def test_a_range_of_another_file_is_told_when_it_is_looked_at(
    told: str, word: str, held: Ranges, tmp_path: Path
) -> None:
    held.add("/good.tif", tiff(0))
    held.always["/0.tif"] = (206, {"Content-Range": told})
    config, workspace = addresses(tmp_path, held, "/0.tif", "/good.tif")
    assert fetch(config, workspace, QUICK).done == 1
    (row,) = read_failures(config, workspace)
    assert word in row.reason


@pytest.mark.parametrize("fault", ["none", "cut", (206, {"Content-Range": "bytes 0-16383/20000"}, "endless")])
def test_a_head_that_is_not_what_it_says_stops_no_other(fault: Any, held: Ranges, tmp_path: Path) -> None:
    held.add("/good.tif", tiff(0))
    held.add("/0.tif", tiff(1))
    held.always["/0.tif"] = fault
    config, workspace = addresses(tmp_path, held, "/0.tif", "/good.tif")
    assert fetch(config, workspace, QUICK).done == 1
    (row,) = read_failures(config, workspace)
    assert "in all tries" in row.reason
    assert held.sent["/0.tif"] < ENDLESS_BYTES // 2


def test_a_part_of_a_file_that_has_no_end_is_not_held_in_memory(held: Ranges) -> None:
    held.always["/0.tif"] = (206, {"Content-Range": "bytes 0-99/100"}, "endless")
    with client_of(held.url, plain_http=True, backoff=QUICK) as client:
        ranges = RemoteRanges(RemoteFile(f"{held.url}/0.tif", 100, "", ""), client, "x.tif")
        assert ranges.read(0, 100) == b""
    assert "more bytes than it was asked for" in str(ranges.failure)
    assert held.sent["/0.tif"] < ENDLESS_BYTES // 2
