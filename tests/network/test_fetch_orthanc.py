"""Fetch from a real Orthanc: paging, resumption after a kill, what is new, who may ask, and no name anywhere."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.network.network_cases import (
    CANARIES,
    PATIENTS,
    QUICK,
    SERIES,
    SLICES,
    pipeline,
    texts_below,
    write_instance,
    write_studies,
)
from tests.network.orthanc import PASSWORD, USER, Orthanc, needs_orthanc
from vitpipe import ingest as ingesting
from vitpipe.config import PipelineConfig
from vitpipe.dicomweb import client
from vitpipe.errors import ConfigError, DataError
from vitpipe.fetch import fetch
from vitpipe.studies import committed, read_commit
from vitpipe.workspace import Workspace

pytestmark = needs_orthanc
ALL = PATIENTS * SERIES * SLICES
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITPIPE_DICOMWEB_USER", USER)
    monkeypatch.setenv("VITPIPE_DICOMWEB_PASSWORD", PASSWORD)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The places that are asked for, in order; `(place, "retrieve")` where images are."""
    places: list[tuple[str, ...]] = []
    real = client.Server._get

    def get(server: client.Server, place: tuple[str, ...], filters: dict[str, str], accept: str) -> object:
        places.append((*place, "retrieve" if accept.startswith("multipart") else "search"))
        return real(server, place, filters, accept)

    monkeypatch.setattr(client.Server, "_get", get)
    return places


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.dcm")}


def test_all_studies_arrive_byte_for_byte_in_pages_of_two(
    orthanc: Orthanc, tmp_path: Path, caplog: pytest.LogCaptureFixture, asked: list[tuple[str, ...]]
) -> None:
    caplog.set_level(logging.DEBUG)
    paths = write_studies(tmp_path / "made")
    orthanc.add(*paths)
    config, workspace = pipeline(tmp_path, orthanc.url, page_size=2)
    summary = fetch(config, workspace, QUICK)
    assert (summary.done, summary.skipped, summary.rejected) == (ALL, 0, {})
    root = workspace.root / "studies"
    assert sorted(files_of(root).values()) == sorted(path.read_bytes() for path in paths)
    # A whole series comes as one stream.
    assert sum(place[-1] == "retrieve" for place in asked) == PATIENTS * SERIES
    names = list(committed(root))
    assert len(names) == PATIENTS
    commits = [read_commit(root / name) for name in names]
    assert all(commit and len(commit.files) == SERIES * SLICES and commit.series == SERIES for commit in commits)
    told = [*texts_below(workspace.root), caplog.text, json.dumps(summary.to_json())]
    assert not [canary for canary in CANARIES for text in told if canary in text]


def test_a_second_fetch_only_searches_and_takes_what_is_new(
    orthanc: Orthanc, tmp_path: Path, asked: list[tuple[str, ...]]
) -> None:
    orthanc.add(*write_studies(tmp_path / "made"))
    config, workspace = pipeline(tmp_path, orthanc.url)
    fetch(config, workspace, QUICK)
    before = files_of(workspace.root)
    asked.clear()
    again = fetch(config, workspace, QUICK)
    assert (again.done, again.skipped) == (0, ALL)
    assert set(asked) == {("studies", "search")}
    orthanc.add(write_instance(tmp_path / "made", 1, 0, 9), write_instance(tmp_path / "made", 7, 0, 0))
    asked.clear()
    third = fetch(config, workspace, QUICK)
    assert (third.done, third.skipped) == (2, ALL)
    assert sum(place[-1] == "retrieve" for place in asked) == 2
    assert len(files_of(workspace.root)) == ALL + 2
    assert before.items() <= files_of(workspace.root).items()


def test_a_file_that_was_lost_here_is_fetched_again(orthanc: Orthanc, tmp_path: Path) -> None:
    orthanc.add(*write_studies(tmp_path / "made"))
    config, workspace = pipeline(tmp_path, orthanc.url)
    fetch(config, workspace, QUICK)
    before = files_of(workspace.root)
    lost = sorted((workspace.root / "studies").rglob("*.dcm"))
    lost[0].unlink()
    lost[-1].write_bytes(b"cut")
    assert fetch(config, workspace, QUICK).done == 2
    assert files_of(workspace.root) == before


def test_what_the_server_or_the_query_drops_is_left_out_and_comes_back(orthanc: Orthanc, tmp_path: Path) -> None:
    names = orthanc.add(*write_studies(tmp_path / "made"))
    config, workspace = pipeline(tmp_path, orthanc.url)
    fetch(config, workspace, QUICK)
    root = workspace.root / "studies"
    orthanc.ask(f"/instances/{names[0]}", method="DELETE")
    assert fetch(config, workspace, QUICK).skipped == ALL - 1
    seen = [path for path in root.rglob("*.dcm") if not path.name.startswith(".")]
    assert len(seen) == ALL - 1
    other, _ = pipeline(tmp_path, orthanc.url, query={"StudyDate": "20200101-"})
    with pytest.raises(DataError, match="no study that fits"):
        fetch(other, workspace, QUICK)
    orthanc.add(write_instance(tmp_path / "made", 8, 0, 0, StudyDate="20210101"))
    summary = fetch(other, workspace, QUICK)
    assert len(list(committed(root))) == 1
    assert any("left out" in note for note in summary.notes)
    again = fetch(config, workspace, QUICK)
    assert (again.done, again.skipped, len(list(committed(root)))) == (0, ALL, PATIENTS + 1)


def test_a_modality_is_asked_for_by_series(orthanc: Orthanc, tmp_path: Path, asked: list[tuple[str, ...]]) -> None:
    orthanc.add(*write_studies(tmp_path / "made"))
    orthanc.add(*(write_instance(tmp_path / "made", 0, 5, number, Modality="SR") for number in range(2)))
    config, workspace = pipeline(tmp_path, orthanc.url, query={"Modality": "SR", "ModalitiesInStudy": "SR"})
    assert fetch(config, workspace, QUICK).done == 2
    assert len(list(committed(workspace.root / "studies"))) == 1
    # Without the filter the other series of that study come, too.
    config, _ = pipeline(tmp_path, orthanc.url, query={"ModalitiesInStudy": "SR"})
    assert fetch(config, workspace, QUICK).done == SERIES * SLICES


def test_persons_are_asked_for_by_a_private_file(
    orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orthanc.add(*write_studies(tmp_path / "made"))
    private = tmp_path / "private.json"
    private.write_text(json.dumps({"PatientID": ["CANARY-1"], "StudyInstanceUID": ["1.2.3.777.2.1", "1.2.3.777.1.1"]}))
    monkeypatch.setenv("VITPIPE_DICOMWEB_QUERY", str(private))
    config, workspace = pipeline(tmp_path, orthanc.url)
    assert fetch(config, workspace, QUICK).done == 2 * SERIES * SLICES
    assert not [canary for canary in CANARIES for text in texts_below(workspace.root) if canary in text]


def test_wrong_credentials_and_wrong_addresses_are_the_callers(
    orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, workspace = pipeline(tmp_path, orthanc.url)
    monkeypatch.setenv("VITPIPE_DICOMWEB_PASSWORD", "canary-token")
    with pytest.raises(ConfigError, match="refuses the credentials") as caught:
        fetch(config, workspace, QUICK)
    assert "canary-token" not in str(caught.value)
    monkeypatch.delenv("VITPIPE_DICOMWEB_USER")
    monkeypatch.delenv("VITPIPE_DICOMWEB_PASSWORD")
    monkeypatch.setenv("VITPIPE_DICOMWEB_TOKEN", "canary-token")
    with pytest.raises(ConfigError, match="VITPIPE_DICOMWEB_TOKEN"):
        fetch(config, workspace, QUICK)
    monkeypatch.delenv("VITPIPE_DICOMWEB_TOKEN")
    monkeypatch.setenv("VITPIPE_DICOMWEB_USER", USER)
    monkeypatch.setenv("VITPIPE_DICOMWEB_PASSWORD", PASSWORD)
    elsewhere, _ = pipeline(tmp_path, orthanc.url + "x")
    with pytest.raises(ConfigError, match=r"correct `source\.url`"):
        fetch(elsewhere, workspace, QUICK)
    # Orthanc's own interface is no DICOMweb.
    with pytest.raises(ConfigError, match=r"check `source\.url`"):
        fetch(pipeline(tmp_path, orthanc.url.removesuffix("/dicom-web"))[0], workspace, QUICK)


def test_a_killed_fetch_goes_on_at_the_next_missing_instance(
    orthanc: Orthanc, tmp_path: Path, asked: list[tuple[str, ...]]
) -> None:
    paths = write_studies(tmp_path / "made")
    orthanc.add(*paths)
    config, workspace = pipeline(tmp_path, orthanc.url, connections=1)
    code = (
        "import sys, time; from pathlib import Path; from vitpipe import studies, fetch\n"
        "from vitpipe.config import PipelineConfig; from vitpipe.workspace import Workspace\n"
        "real = studies.move_into\n"
        "def slow(source, target):\n"
        "    real(source, target)\n"
        "    print(target.name, flush=True)\n"
        "    time.sleep(0.2)\n"
        "studies.move_into = slow\n"
        "config = PipelineConfig.model_validate_json(sys.argv[1])\n"
        "fetch.fetch(config, Workspace(Path(config.workspace)))\n"
    )
    command = [sys.executable, "-c", code, config.model_dump_json(by_alias=True)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        # The second study is half there.
        for _ in range(SERIES * SLICES + SLICES + 2):
            assert process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    there = len(list((workspace.root / "studies").rglob("*.dcm")))
    assert SERIES * SLICES + SLICES < there < ALL
    assert len(list(committed(workspace.root / "studies"))) == 1
    time.sleep(0.1)
    summary = fetch(config, workspace, QUICK)
    assert (summary.done, summary.skipped) == (ALL - there, there)
    assert sorted(files_of(workspace.root).values()) == sorted(path.read_bytes() for path in paths)
    assert not list((workspace.root / "studies").rglob(".partial-*"))


def test_the_catalog_is_that_of_the_same_files_by_kind_dicom(orthanc: Orthanc, tmp_path: Path) -> None:
    made = tmp_path / "made"
    orthanc.add(*write_studies(made))
    config, workspace = pipeline(tmp_path, orthanc.url)
    ingesting.ingest(config, workspace)
    local = Workspace(tmp_path / "local")
    values = {"name": "t", "source": {"kind": "dicom", "path": str(made)}, "workspace": str(local.root)}
    plain = PipelineConfig.model_validate(values)
    ingesting.ingest(plain, local)
    fetched, expected = ingesting.read_catalog(workspace), ingesting.read_catalog(local)
    assert len(expected) == PATIENTS * SERIES
    assert [source.source_id for source in fetched] == [source.source_id for source in expected]
    for one, other in zip(fetched, expected, strict=True):
        assert (one.group_id, one.grid, one.attributes, one.notes) == (
            other.group_id, other.grid, other.attributes, other.notes,
        )  # fmt: skip
        assert one.keys["instance_uid"] == other.keys["instance_uid"]
    assert ingesting.read_quarantine(workspace).empty
    assert not [canary for canary in CANARIES for text in texts_below(workspace.root) if canary in text]
