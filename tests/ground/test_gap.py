"""What a random split would claim: the probe, its interval, and the samples that it is measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

from vitpipe import stages
from vitpipe.config import PipelineConfig
from vitpipe.evaluate.report_cohort import leakage_audit
from vitpipe.ground.gap import Examples, measure_gap
from vitpipe.ground.gap_examples import examples_of_tiles, sample_of_groups
from vitpipe.infer.facts import flat_metrics
from vitpipe.ingest import ingest
from vitpipe.manifest import Manifest, read_manifest
from vitpipe.records import Json
from vitpipe.workspace import Workspace

GROUPS, EACH = 60, 20
NAMES = np.repeat([f"g{number}" for number in range(GROUPS)], EACH).astype(object)
CLASS_OF = np.repeat(np.arange(GROUPS) % 3, EACH)


def looks(*, own: bool) -> NDArray[np.float64]:
    """A look of each group of its own, which says nothing of its class; or a look of the class alone."""
    rng = np.random.default_rng(0)
    if own:
        return np.repeat(rng.normal(0, 10, (GROUPS, 4)), EACH, axis=0) + rng.normal(0, 1, (GROUPS * EACH, 4))
    return CLASS_OF[:, None] * 2.0 + rng.normal(0, 1, (GROUPS * EACH, 3))


def tiles(features: NDArray[np.float64], labels: list[str], *, multi_label: bool = False) -> Examples:
    rows = pd.DataFrame({"label": labels, "group_id": NAMES[: len(labels)]})
    return examples_of_tiles(features, rows, multi_label=multi_label)


SINGLE = [f"c{number}" for number in CLASS_OF]
SEVERAL = [("", "c0|c1", "c1|c2")[number] for number in CLASS_OF]


@pytest.mark.parametrize(("labels", "metric"), [(SINGLE, "balanced_accuracy"), (SEVERAL, "macro_f1")])
def test_groups_that_look_alike_flatter_a_random_split(labels: list[str], metric: str) -> None:
    several = metric == "macro_f1"
    found = measure_gap(tiles(looks(own=True), labels, multi_label=several), 0)
    assert found is not None
    assert (found.metric, found.tiles, found.groups, found.pixels) == (metric, 1200, 60, None)
    assert found.random_split > 0.95
    assert found.group_split < 0.55
    gap = found.difference
    assert gap.estimate == pytest.approx(found.random_split - found.group_split)
    assert gap.low is not None
    assert gap.high is not None
    # Twenty tiles of a group are one piece of evidence: as if independent the interval would be four times as narrow.
    assert 0.2 < gap.low < gap.estimate < gap.high < 0.9
    assert gap.high - gap.low > 0.1
    alike = measure_gap(tiles(looks(own=False), labels, multi_label=several), 0)
    assert alike is not None
    assert abs(alike.random_split - alike.group_split) < 0.03
    assert alike.difference.low is not None
    assert alike.difference.low < 0.01


def test_values_of_groups_that_look_alike_flatter_too() -> None:
    rng = np.random.default_rng(1)
    values = np.repeat(rng.normal(1000, 5, GROUPS), EACH)
    number = np.arange(GROUPS * EACH)
    found = measure_gap(Examples(looks(own=True), values, NAMES, number, "r2", of_pixels=True), 0)
    assert found is not None
    assert found.random_split > 0.95
    # The colour of other groups says nothing of the value of this one.
    assert found.group_split < 0.1
    assert found.pixels == 1200
    assert "5 nearest neighbours in colour, 1200 pixels of 1200 tiles of 60 groups" in found.sentence()
    # The colour is the value: nothing flatters.
    told = measure_gap(Examples(values[:, None] + rng.normal(0, 0.5, (1200, 1)), values, NAMES, number, "r2"), 0)
    assert told is not None
    assert told.group_split > 0.9
    assert told.random_split - told.group_split < 0.05


def test_pixels_of_one_tile_are_never_on_both_sides() -> None:
    """Each tile has a look and a class of its own: only pixels of the same tile could tell it."""
    rng = np.random.default_rng(2)
    number = np.repeat(np.arange(300), 4)
    features = np.repeat(rng.normal(0, 10, (300, 5)), 4, axis=0) + rng.normal(0, 0.1, (1200, 5))
    truth = np.repeat(rng.integers(0, 3, 300), 4)[:, None] == np.arange(3)
    found = measure_gap(Examples(features, truth, NAMES, number, "mean_iou", of_pixels=True), 0)
    assert found is not None
    assert found.random_split < 0.35
    assert (found.tiles, found.pixels) == (300, 1200)


def test_few_groups_or_nothing_to_tell_give_no_gap() -> None:
    own = looks(own=True)
    assert measure_gap(tiles(own[:100], SINGLE[:100]), 0) is None
    assert measure_gap(tiles(own, ["c"] * 1200), 0) is None
    assert measure_gap(tiles(own, [""] * 1200, multi_label=True), 0) is None
    # Where all look the same, everyone's neighbour would be the first.
    assert measure_gap(tiles(np.full((1200, 2), 7.0), SINGLE), 0) is None
    few = measure_gap(tiles(own[: 12 * EACH], SINGLE[: 12 * EACH]), 0)
    assert few is not None
    assert few.difference.method == "jackknife-t"


def test_a_sample_takes_whole_groups() -> None:
    groups = np.array([f"g{number // 50}" for number in range(10_000)] + ["large"] * 5000, dtype=object)
    with_large = 0
    for seed in range(10):
        chosen = sample_of_groups(groups, seed)
        assert 2800 < len(chosen) <= 3000
        names, counts = np.unique(groups[chosen], return_counts=True)
        assert set(counts[names != "large"]) == {50}
        with_large += counts.max() == 150
        assert (np.diff(chosen) > 0).all()
        assert (sample_of_groups(groups, seed) == chosen).all()
    # The large one gives a twentieth of the sample, no more.
    assert 0 < with_large < 10
    assert len(sample_of_groups(groups, 0, most=120)) <= 120


# -------------------------------------------------------------------------------------------------------- from the disk


def write(path: Path, values: NDArray[np.generic], **more: object) -> None:
    place = from_origin(500_000, 5_000_000, 10, 10)
    count, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=str(values.dtype), crs="EPSG:32633",
        transform=place, **more,
    ) as dataset:  # fmt: skip
        dataset.write(values)


def prepared(folder: Path, labels: NDArray[np.generic], **recipe: object) -> Manifest:
    """A scene of 8 x 8 squares of 320 m, each with a look of its own, and what lies on it, in tiles of a quarter."""
    (folder / "scenes").mkdir()
    rng = np.random.default_rng(5)
    look = np.kron(rng.integers(20, 220, (3, 8, 8)), np.ones((1, 32, 32), int))
    write(folder / "scenes" / "scene.tif", (look + rng.integers(0, 6, look.shape)).astype(np.uint8))
    write(folder / "labels.tif", labels, nodata=255)
    config = PipelineConfig.model_validate(
        {
            "name": "t",
            "source": {"kind": "geotiff", "path": str(folder / "scenes"), "block_m": 320.0},
            "labels": {"kind": "raster", "path": str(folder / "labels.tif"), **recipe},
            "tiles": {"size": 16},
            "model": {"weights": {"source": "random"}, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
            "workspace": str(folder / "ws"),
        }
    )
    workspace = Workspace(folder / "ws")
    ingest(config, workspace)
    for shard in stages.plan_shards(config):
        stages.tile_shard(config, shard)
    manifest = read_manifest(workspace.run(stages.prepare_run(config).run_id))
    assert any("a random split would claim" in note for note in manifest.notes)
    return manifest


def gap_of(manifest: Manifest) -> dict[str, Json]:
    gap = manifest.audit["gap"]
    assert isinstance(gap, dict)
    return gap


def number(value: Json) -> float:
    assert isinstance(value, float)
    return value


def test_the_gap_of_labels_of_pixels_is_measured_and_shown(tmp_path: Path) -> None:
    # The class is that of the square, which its look does not tell; the right half of each has no label.
    classes = np.kron(np.random.default_rng(6).integers(0, 3, (8, 8)), np.ones((32, 32), int)).astype(np.uint8)
    classes[:, np.arange(256) % 32 >= 24] = 255
    manifest = prepared(tmp_path, classes[None])
    gap = gap_of(manifest)
    assert (gap["metric"], gap["tiles"], gap["pixels"]) == ("mean_iou", 256, 256 * 15)
    assert number(gap["random_split"]) > 0.9
    assert number(gap["group_split"]) < 0.75
    shown = leakage_audit(manifest.audit)
    assert f"A random split would claim {gap['random_split']:.3f} mean IoU" in shown
    assert "nearest neighbour in colour, 3840 pixels of 256 tiles of " in shown
    found = gap["difference"]
    assert isinstance(found, dict)
    assert f"[{found['low']:.3f}, {found['high']:.3f}] by groups" in shown
    flat = flat_metrics({"split_gap": gap})
    assert flat == {
        "split_gap/mean_iou/random_split": gap["random_split"],
        "split_gap/mean_iou/group_split": gap["group_split"],
        "split_gap/mean_iou/difference": found["estimate"],
        "split_gap/mean_iou/difference/low": found["low"],
        "split_gap/mean_iou/difference/high": found["high"],
    }


def test_the_gap_of_values_of_pixels_is_measured(tmp_path: Path) -> None:
    values = np.kron(np.random.default_rng(6).normal(20, 4, (8, 8)), np.ones((32, 32))).astype(np.float32)
    gap = gap_of(prepared(tmp_path, values[None], values="continuous", units="m"))
    assert gap["metric"] == "r2"
    assert number(gap["random_split"]) > 0.9
    assert number(gap["group_split"]) < 0.3


def test_a_gap_from_before_it_had_an_interval_is_still_shown() -> None:
    audit: dict[str, Json] = {
        "torn_groups": 0, "equal_pixels": 0, "buffer_m": 0.0, "without_ground": 0, "pairs": [],
        "left_out": {"shared_ground": 0, "buffer": 0},
        "gap": {"random_split": 0.8, "group_split": 0.6, "tiles": 900, "groups": 30},
    }  # fmt: skip
    assert "would claim 0.800 balanced accuracy, the split by blocks 0.600: measured" in leakage_audit(audit)
    assert flat_metrics({"split_gap": audit["gap"]}) == {
        "split_gap/balanced_accuracy/random_split": 0.8, "split_gap/balanced_accuracy/group_split": 0.6,
    }  # fmt: skip
