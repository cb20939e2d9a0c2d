"""Which transfer syntaxes decode here, by trial; what is said of the others."""

from __future__ import annotations

from pathlib import Path

import pytest
from dicom_cases import codes, instance, save, scan
from pydicom.encaps import encapsulate
from pydicom.uid import HTJ2KLossless, JPEGLSLossless, RLELossless

from vitpipe.domains.dicom import codecs, support
from vitpipe.domains.known import machine_findings

VIDEO = "1.2.840.10008.1.2.4.102"


@pytest.fixture(autouse=True)
def _tried_anew() -> None:
    support.support.cache_clear()


def test_every_syntax_that_is_read_decodes_a_known_frame() -> None:
    assert {item.uid for item in support.all_support() if item.decoder} == codecs.READ
    assert support.support(HTJ2KLossless).decoder == "imagecodecs OpenJPH"


def test_a_codec_that_is_left_out_of_the_build_is_found_by_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> codecs.Samples:
        raise ImportError

    monkeypatch.setitem(codecs.CODECS, JPEGLSLossless, codecs.Codec("CharLS", missing))
    found = support.support(JPEGLSLossless)
    assert (found.decoder, found.remedy) == ("", "pip install --force-reinstall imagecodecs")
    dataset = instance(0, PixelData=encapsulate([b"\xff\xd8\xff\xd9"]))
    dataset["PixelData"].is_undefined_length = True
    save(dataset, tmp_path / "file", JPEGLSLossless)
    (rejected,) = scan(tmp_path)[1]
    assert rejected.code == "UNDECODABLE"
    assert JPEGLSLossless in rejected.reason
    assert "pip install" in rejected.reason


def test_a_codec_that_gives_other_pixels_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    name, decode = codecs.CODECS[JPEGLSLossless]
    monkeypatch.setitem(codecs.CODECS, JPEGLSLossless, codecs.Codec(name, lambda *given: decode(*given) + 1))
    assert not support.support(JPEGLSLossless).decoder


def test_check_lists_all_syntaxes_of_the_standard() -> None:
    findings = machine_findings("dicom")
    assert machine_findings("geotiff").lines == ()
    listed = {row["uid"]: row for row in findings.values["transfer_syntaxes"]}  # type: ignore[index, union-attr, call-overload]
    assert len(listed) > 50
    assert listed[RLELossless]["decoder"]
    assert (listed[VIDEO]["decoder"], listed[VIDEO]["remedy"]) == ("", "a video: export its frames as images")
    text = "\n".join(findings.lines)
    for uid, row in listed.items():
        # Those that do not decode share a line a remedy, and what their UIDs have in common.
        assert (
            f"  {uid}  {row['name']}, by {row['decoder']}" in text
            if row["decoder"]
            else f".{uid.rpartition('.')[2]}" in text
        )
    assert "1.2.840.10008.1.2.4.94, .95, .204, .205: the pixels lie on a JPIP server" in text
    assert not any("private" in row["name"] for row in listed.values())


def test_a_video_is_rejected_with_its_syntax_and_what_to_do(tmp_path: Path) -> None:
    dataset = instance(0, PixelData=encapsulate([b"\0\0\1\xba"]))
    dataset["PixelData"].is_undefined_length = True
    save(dataset, tmp_path / "file", VIDEO)
    sources, found = scan(tmp_path)
    assert (sources, codes(found)) == ([], ["UNDECODABLE"])
    assert VIDEO in found[0].reason
    assert "export its frames" in found[0].reason
