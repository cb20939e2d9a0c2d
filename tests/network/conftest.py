"""What the tests of the network share: one Orthanc, and no proxy between it and us."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.network.orthanc import PLUGIN, PROGRAM, Orthanc, running_orthanc


@pytest.fixture(autouse=True)
def _loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    # A proxy, such as other tests of this process set, would be asked for every other name.
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("TOKEN", "USER", "PASSWORD", "CA", "QUERY"):
        monkeypatch.delenv(f"VITPIPE_DICOMWEB_{name}", raising=False)
    for name in ("TOKEN", "HEADERS", "HOSTS", "CA"):
        monkeypatch.delenv(f"VITPIPE_STAC_{name}", raising=False)
    monkeypatch.setenv("VITPIPE_KEY", "a key for the tests")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    if not (PROGRAM.is_file() and PLUGIN.exists()):
        pytest.skip("needs Orthanc and its DICOMweb plugin")
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture
def orthanc(running: Orthanc) -> Orthanc:
    """An empty Orthanc."""
    running.clear()
    return running
