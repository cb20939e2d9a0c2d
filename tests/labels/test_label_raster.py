"""Label rasters: copied or warped onto the tiles' grid, ignored where they say nothing, never guessed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.labels.ground_cases import Run, make_config, mosaic, targets_of, write_scene, write_tif
from vitpipe.errors import LabelError
from vitpipe.manifest import read_manifest, write_manifest
from vitpipe.pixel_targets import IGNORE
from vitpipe.records import Task

H, W = 72, 90


def classes(seed: int, height: int = H, width: int = W, values: int = 4) -> np.ndarray:
    """Values 0 (unlabelled) and 1.. in squares of 6 pixels."""
    small = np.random.default_rng(seed).integers(0, values, (-(-height // 6), -(-width // 6)))
    return np.kron(small, np.ones((6, 6), int))[:height, :width].astype(np.uint8)


def test_an_aligned_raster_gives_the_targets_of_every_pixel(tmp_path: Path) -> None:
    holes = np.zeros((H, W), bool)
    holes[10:30, 40:60] = True
    write_scene(tmp_path / "scenes" / "a.tif", H, W, holes=holes)
    drawn = classes(1)
    write_tif(tmp_path / "labels" / "a_label.tif", drawn, nodata=0)
    names = {1: "water", 2: "forest", 3: "field"}
    run = Run(make_config(tmp_path, {"kind": "raster", "path": str(tmp_path / "labels"), "classes": names}))
    manifest = run.manifest()
    assert manifest.task is Task.SEGMENTATION
    assert manifest.classes == ("field", "forest", "water")
    expected = np.choose(drawn, [IGNORE, 2, 1, 0])
    expected[holes] = IGNORE
    assert (mosaic(manifest, run.sources[0].source_id, H, W) == expected).all()
    targets = targets_of(manifest)
    table = manifest.table
    assert table["labelled_px"].tolist() == [(tile != IGNORE).sum() for tile in targets]
    most = [np.bincount(tile[tile != IGNORE], minlength=3).argmax() for tile in targets]
    assert table["label"].tolist() == [manifest.classes[place] for place in most]
    train = (table["split"] == "train").to_numpy()
    counts = np.bincount(targets[train].ravel(), minlength=256)[:3]
    listed = f"pixels by class: field {counts[0]}, forest {counts[1]}, water {counts[2]}"
    assert any(note.startswith("train:") and note.endswith(listed) for note in manifest.notes)
    write_manifest(manifest, tmp_path / "run")
    again = read_manifest(tmp_path / "run")
    assert (again.task, again.targets_folder) == (manifest.task, manifest.targets_folder)


def test_targets_that_are_there_are_kept_and_a_lost_array_is_made_again(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    write_tif(tmp_path / "labels" / "a.tif", classes(2), nodata=0)
    run = Run(make_config(tmp_path, {"kind": "raster", "path": str(tmp_path / "labels")}, stride=8))
    first = run.manifest()
    assert any("the values themselves are the names" in note for note in first.notes)
    assert first.classes == ("1", "2", "3")
    assert first.targets_folder is not None
    arrays = sorted(first.targets_folder.glob("*.npy"))
    assert arrays
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in arrays]
    again = run.manifest()
    assert again.digest == first.digest
    assert [(path.stat().st_mtime_ns, path.read_bytes()) for path in arrays] == before
    arrays[0].unlink()
    assert run.manifest().digest == first.digest
    assert arrays[0].read_bytes() == before[0][1]


def test_values_without_a_name_are_an_error_that_names_them_and_ignored_ones_are_not(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes" / "a.tif", H, W)
    write_tif(tmp_path / "labels" / "a.tif", classes(3))
    labels: dict[str, object] = {"kind": "raster", "path": str(tmp_path / "labels"), "classes": {1: "a", 2: "b"}}
    run = Run(make_config(tmp_path, labels))
    with pytest.raises(LabelError, match=r"2 value\(s\) on the sources have no class: 0, 3"):
        run.labels()
    run.config = make_config(tmp_path, labels | {"ignore": [0, 3]})
    manifest = run.manifest()
    assert manifest.classes == ("a", "b")
    found = mosaic(manifest, run.sources[0].source_id, H, W)
    assert (found == np.choose(classes(3), [IGNORE, 0, 1, IGNORE])).all()
