"""SIGTERM to the whole process group, as `timeout` and containers send it: the run ends at once, in one sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.empty_stores import give_stores
from tests.end_to_end.pipeline_cases import environment, make_scenes

pytestmark = pytest.mark.slow


def test_a_signal_to_the_group_ends_an_embedded_run(tmp_path: Path, empty_stores: Path) -> None:
    home, log = tmp_path / "home", tmp_path / "log"
    home.mkdir()
    pipeline = make_scenes(tmp_path, 300)
    give_stores(empty_stores, tmp_path / "workspace")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "run", str(pipeline)],
            env=environment(home),
            cwd=home,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    limit = time.monotonic() + 120
    while b"Beginning flow run" not in log.read_bytes():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < limit, log.read_text()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    try:
        code = process.wait(60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = log.read_text()
    assert code == 143, said
    assert said.count("interrupted: Prefect's embedded server has ended") == 1
    assert "Traceback" not in said.split("interrupted: Prefect's embedded server has ended")[1]
