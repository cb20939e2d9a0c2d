"""Overlapping tiles: each pixel is judged once, in the tile whose centre is nearest."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from learn_cases import PixelCase, make_config, make_pixel_manifest, make_run
from numpy.typing import NDArray

from vitpipe.learn import child
from vitpipe.learn.counted import CountedPixels
from vitpipe.learn.pixel_tables import write_pixel_tables
from vitpipe.learn.progress import EPOCH, read_progress
from vitpipe.records import Task
from vitpipe.store import TileStore


def table_of(corners: NDArray[np.int64], source: str = "scene") -> pd.DataFrame:
    through = corners.shape[1] == 3
    return pd.DataFrame(
        {
            "source_id": source,
            "frame": corners[:, 0] if through else 0,
            "row": corners[:, -2],
            "col": corners[:, -1],
        }
    )


def owners(corners: NDArray[np.int64], shape: tuple[int, ...]) -> dict[tuple[int, ...], list[int]]:
    """Name the tiles of every pixel, by the distance to their centres: one after the other."""
    found: dict[tuple[int, ...], list[tuple[float, tuple[int, ...], int]]] = {}
    for number, corner in enumerate(corners):
        for place in np.ndindex(shape):
            pixel = tuple(int(at) for at in corner + np.array(place))
            away = float(sum((2 * at + 1 - size) ** 2 for at, size in zip(place, shape, strict=True)))
            found.setdefault(pixel, []).append((away, tuple(corner.tolist()), number))
    return {pixel: [number for *_, number in sorted(those)] for pixel, those in found.items()}


@pytest.mark.parametrize(("shape", "count"), [((6, 6), 30), ((7, 7), 25), ((3, 5, 5), 30)])
def test_each_pixel_counts_once_in_the_tile_whose_centre_is_nearest(shape: tuple[int, ...], count: int) -> None:
    generator = np.random.default_rng(3)
    corners = np.unique(generator.integers(0, 15, (count, len(shape))), axis=0)
    counted = CountedPixels(table_of(corners), shape)
    dropped = counted.drop(np.arange(len(corners)))
    assert dropped is not None
    for pixel, those in owners(corners, shape).items():
        kept = [number for number in those if not dropped[number][tuple(np.array(pixel) - corners[number])]]
        assert kept == those[:1]


def test_a_grid_keeps_all_of_its_pixels_and_other_pictures_are_let_alone() -> None:
    grid = np.array([(row, col) for row in range(0, 40, 8) for col in range(0, 40, 8)])
    assert CountedPixels(table_of(grid), (8, 8)).drop(np.arange(len(grid))) is None
    several = pd.concat([table_of(grid, name) for name in ("one", "other")], ignore_index=True)
    frames = pd.concat([table_of(grid).assign(frame=frame) for frame in (0, 1)], ignore_index=True)
    for table in (several, frames):
        assert CountedPixels(table, (8, 8)).drop(np.arange(len(table))) is None


@pytest.mark.parametrize("task", [Task.SEGMENTATION, Task.REGRESSION])
def test_tables_of_overlapping_tiles_count_each_labelled_pixel_once(task: Task, tmp_path: Path) -> None:
    made = make_pixel_manifest(tmp_path, PixelCase(tiles=24, size=16, task=task, labelled=0.7))
    rows = np.arange(len(made.table))
    table = made.table.assign(source_id="scene", row=rows % 6 * 12, col=rows // 6 * 4, valid_fraction=1.0, split="test")
    manifest = replace(made, table=table)

    def say(tiles: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        return np.zeros((len(valid), 3 if task is Task.SEGMENTATION else 1, *valid.shape[1:]), np.float32)

    write_pixel_tables(tmp_path, manifest, TileStore(manifest.tiles_folder), say)
    sums = pd.read_parquet(tmp_path / "pixels.parquet").set_index("tile_id").loc[table["tile_id"], "n"].to_numpy()
    shards = {name: np.load(tmp_path / "targets" / f"{name}.npy") for name in table["shard_id"].unique()}
    targets = [shards[name][row] for name, row in zip(table["shard_id"], table["shard_row"], strict=True)]
    expected = np.zeros(len(table), dtype=np.int64)
    corners = table[["row", "col"]].to_numpy(np.int64)
    for pixel, those in owners(corners, (16, 16)).items():
        value = targets[those[0]][tuple(np.array(pixel) - corners[those[0]])]
        expected[those[0]] += bool(value != 255 if task is Task.SEGMENTATION else np.isfinite(value))
    assert sums.tolist() == expected.tolist()
    sample = pd.read_parquet(tmp_path / "pixel_sample.parquet").merge(table[["tile_id", "row", "col"]], on="tile_id")
    ground = sample["row_x"] + sample["row_y"], sample["col_x"] + sample["col_y"]
    assert not pd.DataFrame(dict(enumerate(ground))).duplicated().any()
    assert sample["weight"].sum() == pytest.approx(sums.sum())


def test_the_score_of_training_is_that_of_the_judged_pixels(tmp_path: Path) -> None:
    """Tiles of the validation split overlap by half: what training watches and what is judged are the same pixels."""
    made = make_pixel_manifest(tmp_path / "m", PixelCase(tiles=36, size=16, labelled=0.5))
    val = made.table["split"] == "val"
    places = np.cumsum(val) - 1
    table = made.table.assign(
        source_id=made.table["source_id"].where(~val, "scene"), row=(places // 3 * 8).where(val, 0),
        col=(places % 3 * 4).where(val, 0),
    )  # fmt: skip
    manifest = replace(made, table=table)
    config = make_config(tmp_path, epochs=3, learning_rate=0.01, baseline="none", precision="fp32")
    folder = make_run(tmp_path / "run", config, manifest)
    child.run(folder, threading.Event())
    done = json.loads(folder.done.read_text())
    epochs = [event for event in read_progress(folder.progress) if event.event == EPOCH]
    tiles = pd.read_parquet(folder.root / "pixels.parquet")
    counts = np.stack(tiles.loc[tiles["split"] == "val", "counts"]).sum(0).reshape(3, 3)
    hits = counts.diagonal()
    judged = float((hits / (counts.sum(0) + counts.sum(1) - hits)).mean())
    assert epochs[done["best_epoch"]].val_mean_iou == pytest.approx(judged, abs=1e-6)
