"""The predict flow maps scenes as tasks side by side; one that fails for a moment is tried again, and goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.empty_stores import give_stores
from tests.end_to_end.pipeline_cases import environment
from tests.infer.infer_cases import write_scene

SCRIPT = """
import json, sys
from pathlib import Path
from flows.settings import apply_environment

folder = Path(sys.argv[1])
apply_environment(folder / "work")
import pytest
from flows import predict, tasks
from tests.infer.pixel_cases import hold, pixel_predictor
from vitpipe import results
from vitpipe.errors import TransientError
from vitpipe.infer import maps

patch = pytest.MonkeyPatch()
hold(patch, pixel_predictor(folder / "model"))
patch.setattr(maps, "_SCENES_A_TASK", 1)
failed = []
plain = results.map_scenes

def once_gone(job, source_ids):
    if not failed:
        failed.append(source_ids)
        raise TransientError("the store does not answer")
    return plain(job, source_ids)

patch.setattr(results, "map_scenes", once_gone)
tasks.map_scenes.retry_delay_seconds = 0
summary = predict.predict("models:/land@champion", str(folder / "in"), str(folder / "out"))
print(json.dumps([summary.done, len(failed), dict(summary.rejected)]))
"""


@pytest.mark.slow
def test_scenes_are_mapped_as_tasks_and_a_passing_failure_is_retried(tmp_path: Path, empty_stores: Path) -> None:
    for number in range(3):
        write_scene(tmp_path / "in" / f"{number}.tif", seed=number)
    (tmp_path / "home").mkdir()
    give_stores(empty_stores, tmp_path / "work")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    child = subprocess.run(
        command, env=environment(tmp_path / "home"), capture_output=True, text=True, check=False, timeout=300
    )
    assert child.returncode == 0, child.stderr[-3000:]
    assert json.loads(child.stdout.splitlines()[-1]) == [3, 1, {}]
    assert len(list((tmp_path / "out" / "maps").glob("*/classes.tif"))) == 3
    # Each scene was a task of its own.
    assert "map scenes 2" in child.stderr + child.stdout
