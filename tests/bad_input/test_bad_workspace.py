"""A workspace that cannot be written, or no longer: a sentence that helps, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bad_input.bad_input_cases import (
    KINDS,
    chain,
    change,
    contents,
    refusal,
)
from tests.end_to_end.pipeline_cases import ROOT
from vitpipe.check import check_pipeline
from vitpipe.errors import WorkspaceError
from vitpipe.infer.tracking import TrackingStore
from vitpipe.learn.tensors import write_tensors
from vitpipe.loading import load_config


def read_only_places(folder: Path) -> Iterator[tuple[Path, str]]:
    """Places where nobody, root included, can make a folder."""
    (folder / "file").write_text("x")
    yield folder / "file", f"{folder / 'file'} is a file"
    yield folder / "file" / "deeper" / "still", f"{folder / 'file'} is a file"
    if Path("/proc/self").exists():
        yield Path("/proc/vitpipe"), "the system has no such place"
    if Path("/sys/kernel").exists():
        # EPERM in most kernels, EROFS in most containers, EACCES for plain users.
        yield Path("/sys/vitpipe"), "name a folder that this user can write"


def test_a_workspace_that_cannot_be_written_is_said(place: Callable[[str], Path], tmp_path: Path) -> None:
    pipeline = place("images")
    for workspace, said in read_only_places(tmp_path):
        change(pipeline, "workspace", str(workspace))
        with pytest.raises(WorkspaceError) as caught:
            check_pipeline(load_config(pipeline))
        assert caught.value.exit_code == 2
        assert str(caught.value).startswith(("cannot make the folder", "cannot write"))
        assert str(workspace) in str(caught.value)
        assert said in str(caught.value)
        assert "`workspace` in the pipeline file" in str(caught.value)
        assert refusal(pipeline, WorkspaceError, 2) == str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_on_file_sizes_leaves_nothing_half_written(place: Callable[[str], Path], kind: str) -> None:
    pipeline = place(kind)
    workspace = pipeline.parent / "workspace"
    chain(pipeline)
    unbroken = contents(workspace)
    shutil.rmtree(workspace)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    said = []
    # Python ignores SIGXFSZ: the write that goes past the limit fails with EFBIG, in the middle of a file.
    for limit in (1_000, 6_000, 9_000, 12_000, 30_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            chain(pipeline)
        except WorkspaceError as error:
            said.append(str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not list(workspace.rglob(".partial-*"))
    assert all("raise the limit (`ulimit -f`)" in sentence for sentence in said)
    assert len({sentence.split()[2] for sentence in said}) >= 2, "the limits met the same file only"
    chain(pipeline)
    assert contents(workspace) == unbroken


FULL_DISK = """
import json, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.bad_input.bad_input_cases import chain, contents
from vitpipe.errors import WorkspaceError

pipeline = Path(sys.argv[1])
workspace = pipeline.parent / "workspace"
workspace.mkdir()

def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(workspace)], check=True)

mount("size=16k")
said = []
for kibibytes in range(16, 400, 12):
    subprocess.run(["mount", "-o", f"remount,size={kibibytes}k", str(workspace)], check=True)
    try:
        chain(pipeline)
        break
    except WorkspaceError as error:
        said.append(str(error))
whole = contents(workspace)
subprocess.run(["mount", "-o", "remount,ro", str(workspace)], check=True)
try:
    chain(pipeline)
    read_only = None
except WorkspaceError as error:
    read_only = str(error)
print(json.dumps({"said": said, "whole": whole, "read_only": read_only}))
"""


def can_mount() -> bool:
    """Whether this user may mount in a namespace of its own."""
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        return False
    probe = ["unshare", "-Umr", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs a user namespace in which a file system can be mounted")
def test_a_disk_that_is_full_then_larger_then_read_only(place: Callable[[str], Path]) -> None:
    pipeline = place("geotiff")
    chain(pipeline)
    workspace = pipeline.parent / "workspace"
    unbroken = contents(workspace)
    shutil.rmtree(workspace)
    child = subprocess.run(
        ["unshare", "-Umr", sys.executable, "-c", FULL_DISK, str(pipeline), str(ROOT)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    result = json.loads(child.stdout)
    assert len(result["said"]) >= 5
    assert all("the disk is full; free some space" in sentence for sentence in result["said"])
    stopped_at = {Path(sentence.split()[2].rstrip(":")).name for sentence in result["said"]}
    assert len(stopped_at) >= 3, stopped_at
    assert result["whole"] == unbroken
    assert "the file system is read-only; name a folder that this user can write" in result["read_only"]


def test_a_full_disk_is_known_behind_the_texts_of_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    with pytest.raises(OSError, match="os error") as caught:
        write_tensors(tmp_path / "gone" / "model.safetensors", {"weight": torch.zeros(1)})
    assert caught.value.errno == errno.ENOENT
    store = TrackingStore(f"sqlite:///{tmp_path}/mlflow.db", None)
    full = store.error("log progress", 503, "(sqlite3.OperationalError) database or disk is full")
    assert isinstance(full, WorkspaceError)
    assert "is full; free some space" in str(full)
