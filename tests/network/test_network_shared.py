"""Real files of every encoding through a real Orthanc, both ways: what arrives is what was sent."""

from __future__ import annotations

import json
import urllib.error
import warnings
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from tests.conftest import SHARED
from tests.network.network_cases import QUICK, pipeline
from tests.network.orthanc import PASSWORD, USER, Orthanc, needs_orthanc
from tests.network.test_receive import Listening, content, received, wait_for
from vitpipe.fetch import fetch

pytestmark = [needs_orthanc, pytest.mark.shared]

# Two files of the same study, series and instance UID: no request of DICOMweb tells one from the other.
SAME_UIDS = {"pylibjpeg-data__rtdose_1frame.dcm", "pydicom__rtdose_rle_1frame.dcm"}
# Orthanc 1.10 offers no presentation context for the first and the last, and breaks off at the second.
NOT_SENT = {"pydicom-data__color-px.dcm", "pydicom-data__liver_deflate.dcm", "pydicom__rtdose_rle_1frame.dcm"}


@pytest.fixture
def stored(orthanc: Orthanc) -> dict[str, Path]:
    """What Orthanc took of the files with odd encodings, by its own names of them."""
    held: dict[str, Path] = {}
    for path in sorted(item for item in (SHARED / "dicom_edge").rglob("*") if item.is_file()):
        try:
            answer = orthanc.ask("/instances", path.read_bytes())
        except urllib.error.HTTPError:
            continue
        # An archive gives a list; a file of the same UIDs replaces the one before.
        if isinstance(answer, dict):
            held[str(answer["ID"])] = path
    assert len(held) > 90
    return held


def test_every_encoding_is_fetched_byte_for_byte_or_named(
    orthanc: Orthanc, stored: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITPIPE_DICOMWEB_USER", USER)
    monkeypatch.setenv("VITPIPE_DICOMWEB_PASSWORD", PASSWORD)
    config, workspace = pipeline(tmp_path, orthanc.url)
    summary = fetch(config, workspace, QUICK)
    expected = [path for path in stored.values() if path.name not in SAME_UIDS]
    assert summary.rejected == {"FETCH_FAILED": 1}
    fetched = sorted(path.read_bytes() for path in (workspace.root / "studies").rglob("*.dcm"))
    assert fetched == sorted(path.read_bytes() for path in expected)


def test_every_encoding_is_received_with_the_pixels_that_were_sent(
    orthanc: Orthanc, stored: dict[str, Path], tmp_path: Path
) -> None:
    sent = {name: path for name, path in stored.items() if path.name not in NOT_SENT}
    found = Listening(tmp_path / "received", quiet_seconds=60)
    with found.receiver:
        peer = json.dumps({"AET": "VITPIPE", "Host": "127.0.0.1", "Port": found.receiver.port}).encode()
        orthanc.ask("/modalities/edge", peer, "PUT")
        answer = orthanc.ask("/modalities/edge/store", json.dumps(list(sent)).encode())
        assert answer["FailedInstancesCount"] == 0
        wait_for(lambda: len(received(found.folder)) == len(sent))
    originals = {str(item.SOPInstanceUID): item for item in map(whole, sent.values())}
    for ours in map(whole, received(found.folder)):
        original = originals[str(ours.SOPInstanceUID)]
        # Orthanc may write another order of bytes, explicit VRs, and the padding to an even length; no more than that.
        if original.original_encoding[1]:
            assert ours.get("PixelData", b"").rstrip(b"\0") == original.get("PixelData", b"").rstrip(b"\0")
    # Orthanc writes the lengths of sequences anew, so not every file is the same; most are.
    same = set(map(content, received(found.folder))) & set(map(content, sent.values()))
    assert len(same) > 2 * len(sent) / 3


def whole(path: Path) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dcmread(path, force=True)
