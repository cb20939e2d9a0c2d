"""Names that lead elsewhere than they say: nothing is sent to a machine that a catalog has no business to name."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.network.network_cases import QUICK
from tests.network.range_server import Ranges, serving
from tests.network.stac_cases import answer_with, item, pipeline, tiff
from vitpipe.fetch import fetch
from vitpipe.ingest import ingest, read_quarantine
from vitpipe.web import peers
from vitpipe.web.address import Rules

PUBLIC = "93.184.216.34"


@pytest.fixture
def held() -> Iterator[Ranges]:
    with serving(Ranges()) as server:
        yield server


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every example.org be this machine, as its owner could."""
    plain = socket.getaddrinfo

    def looked_up(host: Any, *rest: Any, **options: Any) -> Any:
        return plain("127.0.0.1" if str(host).endswith("example.org") else host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)


@pytest.mark.parametrize("moved", [False, True])
def test_a_name_that_leads_to_this_machine_gets_no_request(
    moved: bool, held: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The catalog is one that everyone can reach.
    monkeypatch.setattr(peers, "_numbers", lambda _: [PUBLIC])
    plain = peers.Peers.refusal
    monkeypatch.setattr(
        peers.Peers, "refusal", lambda self, host, at: plain(self, host, PUBLIC if host.startswith("stac.") else at)
    )
    held.add("/inner.tif", tiff(0))
    held.add("/good.tif", tiff(1))
    elsewhere = f"http://inner.example.org:{held.port}/inner.tif"
    held.always["/moved.tif"] = (302, {"Location": elsewhere})
    catalog = f"http://stac.example.org:{held.port}"
    answer_with(held, item(0, f"{catalog}/moved.tif" if moved else elsewhere), item(1, f"{catalog}/good.tif"))
    config, workspace = pipeline(tmp_path, f"{catalog}/v1", plain_http=True, max_reject_share=0.5)
    assert ingest(config, workspace).done == 1
    (row,) = read_quarantine(workspace).query("not junk").itertuples()
    assert row.code == "FETCH_FAILED"
    assert "nothing is asked of inner.example.org: its name leads to a machine that is this one" in row.reason
    assert "/inner.tif" not in held.paths()


def test_a_catalog_of_this_machine_leads_where_it_says(held: Ranges, tmp_path: Path) -> None:
    held.add("/x.tif", tiff(0))
    answer_with(held, item(0, f"http://data.example.org:{held.port}/x.tif"))
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", plain_http=True)
    assert fetch(config, workspace, QUICK).done == 1


@pytest.mark.parametrize(
    ("root", "own", "host", "number", "refused"),
    [
        ("https://stac.org/v1", PUBLIC, "data.org", PUBLIC, False),
        ("https://stac.org/v1", PUBLIC, "data.org", "2606:2800:220:1::1", False),
        ("https://stac.org/v1", PUBLIC, "data.org", "10.1.2.3", True),
        ("https://stac.org/v1", PUBLIC, "data.org", "100.64.1.2", True),
        ("https://stac.org/v1", PUBLIC, "data.org", "fd00::1", True),
        ("https://stac.org/v1", PUBLIC, "data.org", "::1", True),
        ("https://stac.org/v1", PUBLIC, "data.org", "::ffff:127.0.0.1", True),
        ("https://stac.org/v1", PUBLIC, "data.org", "169.254.169.254", True),
        ("https://stac.org/v1", PUBLIC, "data.org", "fe80::1%eth0", True),
        # Numbers of IPv6 that hold one of IPv4: by NAT64, 6to4, SIIT, and the form that came first.
        ("https://stac.org/v1", PUBLIC, "data.org", "64:ff9b::7f00:1", True),
        ("https://stac.org/v1", PUBLIC, "data.org", "64:ff9b::a9fe:a9fe", True),
        ("https://stac.org/v1", PUBLIC, "data.org", "64:ff9b::5db8:d822", False),
        ("https://stac.org/v1", PUBLIC, "data.org", "2002:0a01:0203::1", True),
        ("https://stac.org/v1", PUBLIC, "data.org", "::ffff:0:127.0.0.1", True),
        ("https://stac.org/v1", PUBLIC, "data.org", "::127.0.0.1", True),
        # A look-up that holds this machine beside another number makes the catalog none of this machine.
        ("https://stac.org/v1", "127.0.0.1", "data.org", "127.0.0.1", True),
        # What the user named may be anywhere, and clouds lead the names of their stores inside.
        ("https://stac.org/v1", "10.1.2.3", "STAC.org.", "10.1.2.3", False),
        ("https://stac.org/v1", PUBLIC, "x.blob.core.windows.net", "10.1.2.3", False),
        ("https://stac.org/v1", PUBLIC, "x.blob.core.windows.net", "127.0.0.1", True),
        ("https://stac.org/v1", PUBLIC, "sign.org", "10.1.2.3", False),
        ("https://stac.org/v1", PUBLIC, "s3.corp", "10.1.2.3", False),
        # A catalog of an inner network leads into it, not to this machine.
        ("https://stac.corp/v1", "10.1.2.3", "data.corp", "192.168.1.2", False),
        ("https://stac.corp/v1", "10.1.2.3", "data.corp", "127.0.0.1", True),
        ("https://stac.corp/v1", "10.1.2.3", "data.corp", "100.100.100.200", True),
        ("/data/catalog.json", "", "data.corp", "192.168.1.2", False),
        ("/data/catalog.json", "", "data.org", "127.0.0.1", False),
        ("/data/catalog.json", "", "data.org", "169.254.169.254", True),
    ],
)
def test_a_catalog_leads_to_what_as_many_can_reach_as_itself(
    root: str, own: str, host: str, number: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_numbers", lambda _: [own])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.corp:9000/")
    assert bool(peers.Peers(Rules(root, signing="https://sign.org/token")).refusal(host, number)) == refused


def test_the_name_of_a_catalog_may_not_move_to_this_machine_later_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_numbers", lambda _: [PUBLIC])
    elsewhere = peers.Peers(Rules("https://stac.org/v1"))
    assert elsewhere.refusal("stac.org", PUBLIC) == ""
    assert "that is this one" in elsewhere.refusal("stac.org", "127.0.0.1")
    assert "in the local network" in elsewhere.refusal("stac.org", "10.1.2.3")
    assert elsewhere.refusal("data.org", "127.0.0.1")
    # One that was here from the start is the user's own.
    here = peers.Peers(Rules("https://stac.test/v1"))
    assert here.refusal("stac.test", "127.0.0.1") == ""
    assert here.refusal("data.test", "127.0.0.1") == ""
