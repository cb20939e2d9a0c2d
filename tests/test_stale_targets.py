"""Targets of pixels are swept once no run needs them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.labels.ground_cases import make_config, write_scene, write_tif
from vitpipe import stages
from vitpipe.errors import ContractError
from vitpipe.evaluate.judged import METRICS_FILE
from vitpipe.ingest import ingest
from vitpipe.manifest import RECORD_FILE, read_manifest
from vitpipe.workspace import Workspace


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    write_scene(tmp_path / "scenes" / "s.tif", 160, 160)
    config = make_config(tmp_path, {"kind": "raster", "path": str(tmp_path / "labels.tif")})
    ingest(config, Workspace(tmp_path / "work"))
    for shard in stages.plan_shards(config):
        stages.tile_shard(config, shard)
    return tmp_path


def prepare(root: Path, seed: int) -> tuple[Path, Path, list[str]]:
    """Draw other labels and prepare a run: its folder, its targets, and what was said of removed ones."""
    write_tif(root / "labels.tif", np.random.default_rng(seed).integers(1, 3, (160, 160)).astype(np.uint8), nodata=0)
    prepared = stages.prepare_run(make_config(root, {"kind": "raster", "path": str(root / "labels.tif")}))
    run = Workspace(root / "work").run(prepared.run_id)
    targets = read_manifest(run).targets_folder
    assert targets is not None
    return run, targets, [note for note in prepared.summary.notes if note.startswith("removed the targets")]


def test_targets_go_when_their_run_is_judged_or_gone(labelled: Path) -> None:
    first_run, first, said = prepare(labelled, 1)
    (first / ".partial-x.npy").write_bytes(b"half")
    (first.parent / ".partial-y").mkdir()
    assert said == []
    second_run, second, said = prepare(labelled, 2)
    assert first != second
    # The first run has yet to be judged.
    assert (said, first.is_dir()) == ([], True)
    assert not list(first.parent.rglob(".partial-*"))
    (first_run / METRICS_FILE).write_text("{}")
    third_run, third, said = prepare(labelled, 3)
    assert said == ["removed the targets of 1 earlier setting(s) of labels or tiles (0.0 MiB)"]
    assert (first.exists(), second.is_dir(), third.is_dir()) == (False, True, True)
    # The label tables, and the judged run, stay.
    assert first_run.is_dir()
    assert list(first.parent.glob("*.parquet"))
    shutil.rmtree(second_run)
    (third_run / METRICS_FILE).write_text("{}")
    again, targets, said = prepare(labelled, 3)
    assert (again, targets) == (third_run, third)
    assert (second.exists(), third.is_dir()) == (False, True)
    # The first labels come back: made anew.
    assert prepare(labelled, 1)[1] == first
    assert list(first.glob("*.npy"))


def test_what_is_no_target_stays(labelled: Path) -> None:
    """The workspace may be the user's own folder, with label rasters in `labels`."""
    run, targets, _ = prepare(labelled, 1)
    (run / METRICS_FILE).write_text("{}")
    labels = targets.parent
    write_tif(labels / "june" / "a.tif", np.ones((4, 4), np.uint8))
    write_tif(labels / "0123456789abcdef" / "a.tif", np.ones((4, 4), np.uint8))
    for folder in ("june", "0123456789abcdef"):
        (labels / folder / "table.parquet").write_bytes(b"mine")
    (labels / "0123456789abcdee").symlink_to(labels / "june", target_is_directory=True)
    (labels / "arrays").mkdir()
    (labels / "arrays" / "a.npy").write_bytes(b"mine")
    mine = {path: path.read_bytes() for path in labels.rglob("*") if path.is_file() and targets not in path.parents}
    assert len(prepare(labelled, 2)[2]) == 1
    assert not targets.exists()
    assert {path: path.read_bytes() for path in mine} == mine
    assert (labels / "0123456789abcdee").is_symlink()


def test_a_broken_record_of_a_run_is_named(labelled: Path) -> None:
    run, targets, _ = prepare(labelled, 1)
    for text in ("{", "[]"):
        (run / RECORD_FILE).write_text(text)
        with pytest.raises(ContractError, match=rf"{run / RECORD_FILE} is broken.*remove the folder {run}"):
            prepare(labelled, 2)
    assert targets.is_dir()
