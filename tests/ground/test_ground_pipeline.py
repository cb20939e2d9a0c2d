"""From scenes on the disk to the manifest, the check and the report: blocks, audit and gap are said."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from rasterio.transform import from_origin

from vitpipe import stages
from vitpipe.check import check_pipeline
from vitpipe.check_ground import ground_findings
from vitpipe.config import PipelineConfig, TableLabels
from vitpipe.evaluate.report_cohort import leakage_audit
from vitpipe.ingest import ingest, read_catalog
from vitpipe.labels import read_labels
from vitpipe.manifest import read_manifest
from vitpipe.pseudonym import load_pseudonymiser
from vitpipe.records import Json
from vitpipe.workspace import Workspace

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def make_scenes(root: Path, count: int = 64) -> None:
    """Scenes of 320 m side by side, on 8 x 8 places; their class and their look is that of their square of 640 m."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        across, down = number % 8, number // 8
        square = across // 2 + 4 * (down // 2)
        look = np.random.default_rng(square).integers(50, 200, 2)
        pixels = (look[:, None, None] + rng.integers(0, 4 + 3 * square, (2, 32, 32))).astype(np.uint8)
        path = root / f"scene{number:02d}.tif"
        place = from_origin(500_000 + 320 * across, 5_000_000 - 320 * down, 10, 10)
        with rasterio.open(
            path, "w", driver="GTiff", count=2, height=32, width=32, dtype="uint8", crs="EPSG:32633", transform=place
        ) as dataset:
            dataset.write(pixels)
        rows.append({"path": path.name, "label": "ab"[square % 2]})
    pd.DataFrame(rows).to_csv(root / "labels.csv", index=False)


def pipeline(root: Path, workspace: Path, **source: object) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "name": "t",
            "source": {"kind": "geotiff", "path": str(root), **source},
            "labels": {"kind": "table", "path": str(root / "labels.csv"), "key": "path", "column": "label"},
            "tiles": {"size": 32},
            "model": {"weights": {"source": "random"}, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
            "workspace": str(workspace),
        }
    )


def test_scenes_on_the_disk_are_audited_and_said(tmp_path: Path) -> None:
    root = tmp_path / "scenes"
    root.mkdir()
    make_scenes(root)
    config = pipeline(root, tmp_path / "ws", block_m=640.0)
    checked = check_pipeline(config)
    said = "\n".join(checked.lines)
    assert "block(s) of ground of 640 m" in said
    claim = re.search(r"a random split would claim (\d\.\d+) balanced accuracy, the split by blocks (\d\.\d+)", said)
    assert claim is not None
    assert float(claim[1]) > 0.9
    assert float(claim[2]) < 0.8
    assert isinstance(checked.values["ground"], dict)
    assert not Workspace(tmp_path / "ws").ground_block.exists()

    ingest(config, Workspace(tmp_path / "ws"))
    for shard in stages.plan_shards(config):
        stages.tile_shard(config, shard)
    prepared = stages.prepare_run(config)
    manifest = read_manifest(Workspace(tmp_path / "ws").run(prepared.run_id))
    assert {"x", "y", "distance_to_train_m"} < set(manifest.table.columns)
    audit = manifest.audit
    assert len(audit["pairs"]) == 6  # type: ignore[arg-type]
    # One tile a scene, in its middle or whole: the check and the run measured the same.
    assert audit["gap"] == checked.values["gap"]
    assert audit["blocks"] == checked.values["ground"]
    assert any("a random split would claim" in note for note in prepared.summary.notes)
    shown = leakage_audit(audit)
    assert shown.count("<tr><td>") == 6
    # A buffer takes tiles away, and says nothing else of what a random split would claim.
    near = config.model_copy(update={"split": config.split.model_copy(update={"buffer_m": 10.0})})
    buffered = read_manifest(Workspace(tmp_path / "ws").run(stages.prepare_run(near).run_id))
    assert len(buffered.table) < len(manifest.table)
    assert buffered.audit["gap"] == audit["gap"]
    assert re.search(r"A random split would claim [01]\.\d+ balanced accuracy, .* a gap of 0\.\d+ \[", shown)


def test_the_report_says_what_was_compared() -> None:
    assert leakage_audit({}) == ""
    plain = leakage_audit({"torn_groups": 0, "equal_pixels": 0})
    assert "The sources have no place on the ground" in plain
    audit: dict[str, Json] = {
        "torn_groups": 0, "equal_pixels": 0, "buffer_m": 500.0, "without_ground": 3, "same_ground": True,
        "left_out": {"shared_ground": 12, "buffer": 7},
        "pairs": [{"splits": ["train", "test"], "shared_m2": 1234567.0, "least_distance_m": 4321.0}],
    }  # fmt: skip
    shown = leakage_audit(audit)
    for text in (
        "<td>train and test</td><td class='r'>1,234,567</td><td class='r'>4,321</td>", "share ground: 12 tile(s)",
        "the buffer of 500 m: 7.", "3 tile(s) lie on no known ground", "at different dates",
    ):  # fmt: skip
        assert text in shown


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no folder {SHARED}")
def test_real_tiles_need_blocks_of_their_range(tmp_path: Path) -> None:
    """EuroSAT: 0.734 against 0.650 were measured on 9000 tiles of the same source, with blocks of a degree."""
    root = SHARED / "eurosat_geo"
    config, workspace = pipeline(root / "chips", tmp_path, block_m="auto"), Workspace(tmp_path)
    ingest(config, workspace)
    sources = read_catalog(workspace)
    recipe = TableLabels(path=str(root / "labels.csv"), key="path", column="label")
    labels = read_labels(recipe, sources, load_pseudonymiser(tmp_path))
    found = ground_findings(config, workspace, sources, labels)
    ground, gap = found.values["ground"], found.values["gap"]
    assert isinstance(ground, dict)
    assert isinstance(gap, dict)
    assert ground["block_m"] == 50_000.0
    assert isinstance(gap["random_split"], float)
    assert isinstance(gap["group_split"], float)
    assert 0.05 < gap["random_split"] - gap["group_split"] < 0.12
