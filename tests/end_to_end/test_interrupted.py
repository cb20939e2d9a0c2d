"""A signal to the whole group, as `timeout`, containers and Ctrl-C send it: the run ends at once, in one sentence."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.empty_stores import give_stores
from tests.end_to_end.pipeline_cases import environment, make_scenes

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("number", "code", "sentence"),
    [
        (signal.SIGTERM, 143, r"^interrupted.* goes on where it was$"),
        (signal.SIGINT, 130, r"^interrupted; .*goes on where it was$"),
    ],
)
def test_a_signal_to_the_group_ends_an_embedded_run(
    tmp_path: Path, empty_stores: Path, number: int, code: int, sentence: str
) -> None:
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
    os.killpg(process.pid, number)
    try:
        left = process.wait(60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = log.read_text()
    assert left == code, said
    assert len(re.findall(sentence, said, flags=re.MULTILINE)) == 1, said
    assert "Traceback" not in re.split(sentence, said, flags=re.MULTILINE)[1]
