"""Multipart bodies, credentials and the configuration of a DICOMweb source."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitpipe.config import DicomSource, PipelineConfig
from vitpipe.dicomweb.access import Access, read_access, read_persons
from vitpipe.dicomweb.multipart import boundary_of, parts
from vitpipe.errors import ConfigError, TransientError
from vitpipe.loading import load_config
from vitpipe.web.retries import retry_after_seconds

HEADERS = b"Content-Type: application/dicom\r\nContent-Length: 3\r\n\r\n"


def body_of(contents: list[bytes], *, preamble: bytes = b"", headers: bytes = HEADERS) -> bytes:
    return preamble + b"".join(b"\r\n--B\r\n" + headers + item for item in contents) + b"\r\n--B--\r\nepilogue"


@given(
    st.lists(st.binary(max_size=60).filter(lambda item: b"--B" not in item), max_size=4),
    st.integers(1, 40),
    st.sampled_from([b"", b"preamble", b"\r\n"]),
)
def test_parts_come_out_whatever_the_chunks(contents: list[bytes], size: int, preamble: bytes) -> None:
    body = body_of(contents, preamble=preamble)
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    assert [b"".join(part) for part in parts(chunks, b"B")] == contents


def test_the_first_delimiter_may_open_the_body_and_a_part_may_have_no_headers() -> None:
    assert [b"".join(part) for part in parts([b"--B\r\n\r\nabc\r\n--B--"], b"B")] == [b"abc"]
    # A part that the caller leaves is stepped over.
    assert len(list(parts([body_of([b"abc", b"def"])], b"B"))) == 2


@pytest.mark.parametrize("end", range(1, 60, 7))
def test_a_body_that_breaks_off_is_an_error(end: int) -> None:
    body = body_of([b"abc"]).removesuffix(b"--\r\nepilogue")
    with pytest.raises(TransientError, match="ends in the middle"):
        list(map(list, parts([body[: len(body) - end + 1]], b"B")))


def test_memory_holds_a_chunk_not_a_part() -> None:
    chunk = b"\x00\xff\r\n-" * (1 << 14)

    def chunks() -> Iterator[bytes]:
        yield b"--B\r\n" + HEADERS
        for _ in range(600):
            yield chunk
        yield b"\r\n--B--"

    tracemalloc.start()
    total = sum(len(piece) for part in parts(chunks(), b"B") for piece in part)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 600 * len(chunk)
    assert peak < 8 * len(chunk)


def test_boundaries_are_read_as_servers_write_them() -> None:
    assert boundary_of('multipart/related; type="application/dicom"; boundary="a b"') == b"a b"
    assert boundary_of("Multipart/Related; boundary=x; type=application/dicom") == b"x"
    assert boundary_of("application/dicom") is None


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after_seconds("7") == 7
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after_seconds("soon") is None


def test_credentials_are_whole_and_never_shown(tmp_path: Path) -> None:
    assert read_access({}) == Access()
    assert "secret" not in repr(read_access({"VITPIPE_DICOMWEB_TOKEN": "secret"}))
    for environ, found in (
        ({"VITPIPE_DICOMWEB_TOKEN": "a", "VITPIPE_DICOMWEB_USER": "b"}, "unset one"),
        ({"VITPIPE_DICOMWEB_USER": "b"}, "belong together"),
        ({"VITPIPE_DICOMWEB_CA": str(tmp_path / "none.pem")}, "VITPIPE_DICOMWEB_CA"),
    ):
        with pytest.raises(ConfigError, match=found):
            read_access(environ)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"PatientName": ["CANARY"]}',
        '{"PatientID": []}',
        '{"PatientID": ["CANARY*"]}',
        '{"PatientID": [7]}',
    ],
)
def test_a_private_query_that_does_not_fit_is_refused_without_its_values(text: str, tmp_path: Path) -> None:
    private = tmp_path / "private.json"
    private.write_text(text)
    with pytest.raises(ConfigError, match="VITPIPE_DICOMWEB_QUERY") as caught:
        read_persons({"VITPIPE_DICOMWEB_QUERY": str(private)})
    assert "CANARY" not in str(caught.value)


def write(folder: Path, source: dict[str, object]) -> Path:
    path = folder / "pipeline.yaml"
    path.write_text(json.dumps({"name": "t", "source": {"kind": "dicomweb", **source}}))
    return path


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ({"url": "https://reader:CANARY@pacs.example.org/dicom-web"}, "VITPIPE_DICOMWEB_USER"),
        ({"url": "http://pacs.example.org/dicom-web"}, "plain_http"),
        ({"url": "ftp://pacs.example.org"}, "must be an address"),
        ({"url": "https://pacs.example.org:CANARY/x"}, "no address"),
        ({"url": "https://pacs.example.org/x?PatientID=CANARY"}, r"source\.query"),
        ({"url": "https://a.org", "query": {"PatientID": "CANARY"}}, "VITPIPE_DICOMWEB_QUERY"),
        ({"url": "https://a.org", "query": {"StudyDescription": "CANARY"}}, "unknown key"),
        ({"url": "https://a.org", "query": {"StudyDate": "last year"}}, "StudyDate"),
        ({"path": "x"}, r"source\.url: missing"),
    ],
)
def test_a_source_that_tells_too_much_or_is_unsafe_is_refused(
    source: dict[str, object], found: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=found) as caught:
        load_config(write(tmp_path, source))
    assert "CANARY" not in str(caught.value)


def test_after_the_fetch_it_is_a_plain_dicom_source(tmp_path: Path) -> None:
    given = {"url": "https://a.org/dicom-web", "modality": "CT", "query": {"StudyDate": 20190101}}
    config = load_config(write(tmp_path, given))
    local = config.on_disk()
    assert local.source == DicomSource(path=str(tmp_path / "workspace" / "studies"), modality="CT")
    assert local.on_disk() is local
    placed = load_config(write(tmp_path, {**given, "path": "here"})).on_disk()
    assert placed.source.path == str(tmp_path / "here")
    assert placed.content_digest() == local.content_digest()
    again = PipelineConfig.model_validate_json(config.model_dump_json(by_alias=True))
    assert again == config
