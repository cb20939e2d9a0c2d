"""The whole chain from a DICOMweb server, as the command line runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.empty_stores import give_stores
from tests.end_to_end.pipeline_cases import environment
from tests.network.network_cases import CANARIES, PATIENTS, SERIES, SLICES, pipeline, texts_below, write_studies
from tests.network.orthanc import PASSWORD, USER, Orthanc, needs_orthanc
from vitpipe import stages as stages_of_chain
from vitpipe.check import check_pipeline
from vitpipe.domains.known import machine_findings
from vitpipe.loading import load_config

pytestmark = needs_orthanc
ROOT = Path(__file__).resolve().parents[2]
ALL = PATIENTS * SERIES * SLICES


def vitpipe(verb: str, config: Path) -> Any:
    # Not of this process: other tests set addresses of servers.
    login = {"VITPIPE_DICOMWEB_USER": USER, "VITPIPE_DICOMWEB_PASSWORD": PASSWORD}
    child = environment(config.parent / "home") | login
    command = [sys.executable, "-m", "flows.cli", verb, str(config), "--json"]
    done = subprocess.run(command, cwd=ROOT, env=child, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not [canary for canary in CANARIES if canary in done.stdout + done.stderr]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_run_fetches_ingests_and_tiles_and_tells_no_name(
    orthanc: Orthanc, tmp_path: Path, empty_stores: Path
) -> None:
    orthanc.add(*write_studies(tmp_path / "made"))
    folder = tmp_path / "project"
    folder.mkdir()
    config = folder / "pipeline.yaml"
    source = {"kind": "dicomweb", "url": orthanc.url, "page_size": 2, "query": {"StudyDate": "20190101-20191231"}}
    config.write_text(json.dumps({"name": "t", "source": source, "tiles": {"size": 8}}))
    give_stores(empty_stores, folder / "workspace")
    stages = {row["stage"]: row for row in vitpipe("run", config)["stages"]}
    assert [stages[name]["done"] for name in ("fetch", "ingest", "tile")] == [
        ALL, PATIENTS * SERIES, PATIENTS * SERIES,
    ]  # fmt: skip
    # Tiles are those of the plain files: nothing is left to do for them.
    assert stages_of_chain.plan_shards(load_config(config).on_disk()) == []
    leaks = [canary for canary in CANARIES for text in texts_below(folder) if canary in text]
    assert not leaks


def test_check_fetches_and_says_what_would_be_done(
    orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITPIPE_DICOMWEB_USER", USER)
    monkeypatch.setenv("VITPIPE_DICOMWEB_PASSWORD", PASSWORD)
    orthanc.add(*write_studies(tmp_path / "made"))
    config, _ = pipeline(tmp_path, orthanc.url)
    findings = check_pipeline(config)
    assert findings.values["sources"] == PATIENTS * SERIES
    # It says of this machine what it says of plain DICOM files.
    machine = machine_findings("dicom")
    assert machine.lines
    assert set(machine.lines) <= set(findings.lines)
