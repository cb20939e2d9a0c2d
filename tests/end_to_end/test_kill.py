"""``kill -9`` of the whole process tree in each stage, then the same command: it finishes, and with the same bytes."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.empty_stores import give_stores
from tests.end_to_end.pipeline_cases import CHAIN, environment, make_scenes, run_script

pytestmark = pytest.mark.slow


def tree(pid: int) -> list[int]:
    """The process and all that it started, read from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        todo += children.get(one, [])
    return found


STAGES = f"{CHAIN}\nprint(json.dumps(chain(sys.argv[1])))"
"""The stages that the flow calls, without Prefect around them: the same state on disk, and they start sooner."""


def kill_when(seen: Callable[[], bool], pipeline: Path, home: Path) -> None:
    """Start the stages, and kill everything of them as soon as `seen` says so."""
    process = subprocess.Popen(
        [sys.executable, "-c", STAGES, str(pipeline)],
        env=environment(home),
        cwd=home,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    limit = time.monotonic() + 300
    while not seen():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < limit, "the stage was not reached"
        time.sleep(0.002)
    for pid in tree(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    assert process.wait(timeout=30) == -signal.SIGKILL


def hashes(folder: Path, pattern: str) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    }


def test_a_run_that_is_killed_in_every_stage_ends_as_an_unbroken_one(tmp_path: Path, empty_stores: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    give_stores(empty_stores, tmp_path / "unbroken" / "workspace")
    unbroken = run_script(STAGES, str(make_scenes(tmp_path / "unbroken", 60, size=96)), home=home)
    pipeline = make_scenes(tmp_path / "broken", 60, size=96)
    workspace = pipeline.parent / "workspace"

    # Ingest: the workspace is locked, the catalog is not there yet.
    def ingesting() -> bool:
        return (workspace / "index").is_dir() and not (workspace / "catalog.parquet").exists()

    kill_when(ingesting, pipeline, home)
    assert not (workspace / "catalog.parquet").exists()

    # Tiling: a shard is being written.
    kill_when(lambda: any(workspace.glob("tiles/*/.partial-*/tiles.npy")), pipeline, home)
    assert not any(workspace.glob("runs/*"))
    shards_then = {
        path: path.stat().st_mtime_ns for path in workspace.glob("tiles/*/*/tiles.npy") if ".partial" not in str(path)
    }

    # Training: two epochs are done.
    def in_training() -> bool:
        logs = list(workspace.glob("runs/*/progress.jsonl"))
        return bool(logs) and logs[0].read_text().count('"event": "epoch"') >= 2

    kill_when(in_training, pipeline, home)
    (run,) = (path for path in (workspace / "runs").iterdir() if path.is_dir())
    assert not (run / "model" / "model.safetensors").exists()
    checkpointed = any((run / "checkpoint").iterdir())
    assert checkpointed

    # Registration: the evaluation is complete, the registry is being written.
    kill_when((run / "metrics.json").exists, pipeline, home)

    result = run_script(STAGES, str(pipeline), home=home)
    assert {"champion", "challenger"} <= set(result["aliases"])
    assert result["model_uri"] == "models:/stripes/1"
    assert result["run_id"] == unbroken["run_id"] == run.name

    # Finished work was not touched again.
    assert all(path.stat().st_mtime_ns == before for path, before in shards_then.items())
    progress = (run / "progress.jsonl").read_text()
    assert progress.count('"event": "started"') >= 2
    assert progress.count('"event": "done"') == 1

    other = Path(unbroken["workspace"])
    for pattern, least in (("tiles/**/*.npy", 2), ("tiles/**/tiles.parquet", 1), (f"runs/{run.name}/model/*", 3)):
        ours, theirs = hashes(workspace, pattern), hashes(other, pattern)
        assert len(ours) >= least
        assert ours == theirs
    ours, theirs = (pd.read_parquet(place / "runs" / run.name / "predictions.parquet") for place in (workspace, other))
    assert len(ours) > 0
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    assert hashes(workspace, f"runs/{run.name}/predictions.parquet") == hashes(
        other, f"runs/{run.name}/predictions.parquet"
    )
    assert not list(workspace.rglob(".partial-*"))
