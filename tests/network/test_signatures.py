"""Assets that must be signed for: short-lived signatures of a service, renewed in time, and kept nowhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.network.network_cases import QUICK
from tests.network.range_server import Asked, Ranges, serving
from tests.network.stac_cases import answer_with, item, pipeline, tiff
from vitpipe.config import StacSource
from vitpipe.errors import TooManyRejected
from vitpipe.fetch import fetch
from vitpipe.ingest import ingest
from vitpipe.web.signatures import Signatures

CONTAINER = "/account/container"


@pytest.fixture
def held() -> Iterator[Ranges]:
    with serving(Ranges()) as server:
        yield server


@dataclass
class Signing:
    """A service that signs for a store on one server, which refuses what is not signed or signed too long ago."""

    held: Ranges
    seconds: float = 3600.0
    """For how long it says that a signature holds."""
    uses: int = 1000
    """After so many requests the store does not take a signature any more, whatever the service says."""
    left: dict[str, int] = field(default_factory=dict)
    given: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self.held.answers[f"/sas/token{CONTAINER}"] = lambda _: (200, {"token": self._new(), **self._until()})
        self.held.answers["/sas/sign"] = self._sign
        self.held.guard = self._takes

    def _new(self) -> str:
        token = f"se=2030&sig=canary-{next(self._numbers)}"
        self.left[token] = self.uses
        self.given.append(token)
        return token

    def _until(self) -> dict[str, str]:
        moment = datetime.now(UTC) + timedelta(seconds=self.seconds)
        return {"msft:expiry": moment.strftime("%Y-%m-%dT%H:%M:%SZ")}

    def _sign(self, asked: Asked) -> tuple[int, Any]:
        return 200, {"href": f"{asked.query['href']}?{self._new()}", **self._until()}

    def _takes(self, asked: Asked) -> bool:
        if not asked.path.startswith(CONTAINER):
            return True
        token = f"se={asked.query.get('se')}&sig={asked.query.get('sig')}"
        self.left[token] = self.left.get(token, 0) - 1
        return self.left[token] >= 0


def put_items(held: Ranges, count: int) -> None:
    contents = [tiff(number) for number in range(count)]
    for number, content in enumerate(contents):
        held.add(f"{CONTAINER}/{number}.tif", content)
    answer_with(held, *(item(n, f"{held.url}{CONTAINER}/{n}.tif", content) for n, content in enumerate(contents)))


@pytest.mark.parametrize(("service", "asked"), [("token", 1), ("sign", 3)])
def test_assets_are_fetched_with_signatures_that_stay_nowhere(
    service: str, asked: int, held: Ranges, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    signing = Signing(held)
    put_items(held, 3)
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", sign=f"{held.url}/sas/{service}")
    assert ingest(config, workspace).done == 3
    assert len(signing.given) == asked
    # What is there is neither asked nor signed for again.
    assert fetch(config, workspace, QUICK).skipped == 3
    assert len(signing.given) == asked
    texts = [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in [*texts, caplog.text, repr(config)] if "canary" in text]


def test_without_a_signature_the_files_are_refused(held: Ranges, tmp_path: Path) -> None:
    Signing(held)
    put_items(held, 1)
    config, workspace = pipeline(tmp_path, f"{held.url}/v1")
    with pytest.raises(TooManyRejected, match=r"HTTP 403.*source.sign"):
        fetch(config, workspace, QUICK)


def test_a_signature_that_runs_out_is_renewed(held: Ranges, tmp_path: Path) -> None:
    # By what the service says: in half a minute it would not last a request.
    signing = Signing(held, seconds=30)
    put_items(held, 3)
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", sign=f"{held.url}/sas/token", connections=1)
    assert fetch(config, workspace, QUICK).done == 3
    assert len(signing.given) == 3


def test_a_signature_that_the_store_does_not_take_any_more_is_renewed(held: Ranges, tmp_path: Path) -> None:
    signing = Signing(held, uses=2)
    put_items(held, 6)
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", sign=f"{held.url}/sas/token", connections=2)
    assert fetch(config, workspace, QUICK).done == 6
    assert 3 <= len(signing.given) <= 6


def test_a_signature_that_was_never_taken_is_not_asked_for_again_and_again(held: Ranges, tmp_path: Path) -> None:
    signing = Signing(held, uses=0)
    put_items(held, 1)
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", sign=f"{held.url}/sas/token")
    with pytest.raises(TooManyRejected, match="HTTP 403") as caught:
        fetch(config, workspace, QUICK)
    assert "canary" not in str(caught.value)
    assert len(signing.given) == 1


@pytest.mark.parametrize(
    "answer",
    [
        {"token": "sig=canary"},
        {"msft:expiry": "2030-01-01T00:00:00Z"},
        {"token": "sig=canary", "msft:expiry": "tomorrow"},
        {"href": "https://elsewhere.example.org/0.tif?sig=canary", "msft:expiry": "2030-01-01T00:00:00Z"},
    ],
)
def test_what_is_no_signature_is_told_without_a_secret(answer: dict[str, str], held: Ranges, tmp_path: Path) -> None:
    put_items(held, 1)
    service = "sign" if "href" in answer else "token"
    held.answers[f"/sas/token{CONTAINER}"] = held.answers["/sas/sign"] = lambda _: (200, answer)
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", sign=f"{held.url}/sas/{service}")
    with pytest.raises(TooManyRejected, match=r"source\.sign") as caught:
        fetch(config, workspace, QUICK)
    assert "canary" not in str(caught.value)
    assert not held.paths(".tif")


def test_a_busy_service_is_asked_again(held: Ranges, tmp_path: Path) -> None:
    Signing(held)
    put_items(held, 1)
    held.faults[f"/sas/token{CONTAINER}"].extend([503, (429, {"Retry-After": "0"})])
    config, workspace = pipeline(tmp_path, f"{held.url}/v1", sign=f"{held.url}/sas/token")
    assert fetch(config, workspace, QUICK).done == 1


def test_only_files_of_azure_that_hold_no_query_are_signed_for_by_container() -> None:
    asked: list[str] = []

    def ask(place: str) -> dict[str, str]:
        asked.append(place)
        return {"token": "?sig=1", "msft:expiry": "2999-01-01T00:00:00Z"}

    signatures = Signatures("https://a.org/token/", ask)
    # A host that is a number, or any other, could be one of whoever wrote the catalog.
    for plain in (
        "https://b.org/c/d/x.tif",
        "https://6.6.6.6/c/d/x.tif",
        "s3://b/c/d.tif",
        "https://x.blob.core.windows.net/c/d.tif?sig=2",
    ):
        assert signatures.signed(plain) == plain
    assert asked == []
    address = "https://X.blob.core.windows.net/c/d/e.tif"
    assert signatures.signed(address) == f"{address}?sig=1"
    assert signatures.signed("https://x.blob.core.windows.net/c/f.tif").endswith("f.tif?sig=1")
    assert asked == ["https://a.org/token/x/c"]


def test_a_source_without_a_service_has_the_digest_that_it_had() -> None:
    plain, signed = StacSource(url="https://a.org"), StacSource(url="https://a.org", sign="https://a.org/token")
    assert "sign" not in plain.model_dump()
    assert signed.model_dump()["sign"] == "https://a.org/token"
    for wrong in ("a.org/token", "https://u:canary@a.org", "http://a.org/token", "https://a.org/token?key=canary"):
        with pytest.raises(ValueError, match="`sign`") as caught:
            StacSource(url="https://a.org", sign=wrong)
        assert "canary" not in str(caught.value.errors(include_input=False))  # type: ignore[attr-defined]
