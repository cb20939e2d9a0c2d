"""What the gap is measured on: pixels with their own class, tile and group, and colours of valid pixels alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from vitpipe.ground import gap_examples
from vitpipe.ground.gap import Examples
from vitpipe.ground.gap_examples import Labelled, colour_features, gap_of_tiles
from vitpipe.pixel_targets import IGNORE, PixelTargets, write_targets
from vitpipe.records import Task

TILES, SIZE = 40, 4


class Store:
    """Pixels that say where they are: 100 times the tile, plus the place in it; its negative in a second channel."""

    channels, tile_size, depth = ("a", "b"), SIZE, None

    def __init__(self) -> None:
        place = np.arange(SIZE * SIZE).reshape(SIZE, SIZE)
        first = (100 * np.arange(TILES)[:, None, None] + place).astype(np.float32)
        self.pixels = np.stack([first, -first], axis=1)
        self.valid = (place % 3 > 0) | (np.arange(TILES)[:, None, None] % 2 == 0)
        self.calls = 0

    def gather(self, rows: pd.DataFrame) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        self.calls += 1
        at = rows["shard_row"].to_numpy()
        return self.pixels[at], self.valid[at]


@pytest.mark.parametrize("task", [Task.SEGMENTATION, Task.REGRESSION])
def test_pixels_keep_their_class_tile_and_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    given: list[Examples] = []
    monkeypatch.setattr(gap_examples, "measure_gap", lambda examples, _seed: given.append(examples))
    # Several tiles at a time, and several times.
    monkeypatch.setattr(gap_examples, "_BLOCK_VALUES", 7 * 2 * SIZE * SIZE)
    store = Store()
    place = np.arange(SIZE * SIZE).reshape(SIZE, SIZE)
    targets = np.stack([(place + tile) % 3 for tile in range(TILES)]).astype(np.uint8)
    # Tiles without a label leave no hole in the numbers of tiles.
    targets[5], targets[20, 0] = IGNORE, IGNORE
    if task is Task.REGRESSION:
        targets = np.where(targets == IGNORE, np.nan, targets).astype(np.float32)
    write_targets(tmp_path, "s", targets)
    groups = [f"g{tile // 2}" for tile in range(TILES)]
    table = pd.DataFrame({"group_id": groups, "shard_id": "s", "shard_row": range(TILES)})
    table = table.assign(valid_fraction=0.5, label="c")
    labelled = Labelled(task, targets=PixelTargets(tmp_path, task, (SIZE, SIZE)))
    assert gap_of_tiles(table, store, labelled, 0) is None
    assert store.calls > 1
    (found,) = given
    assert found.metric == ("mean_iou" if task is Task.SEGMENTATION else "r2")
    tile, at = np.divmod(found.features[:, 0].astype(int), 100)
    row, col = np.divmod(at, SIZE)
    assert (found.features[:, 1] == -found.features[:, 0]).all()
    assert (found.groups == np.array([f"g{each // 2}" for each in tile], object)).all()
    assert store.valid[tile, row, col].all()
    said = found.truth if task is Task.REGRESSION else found.truth @ np.arange(3)
    assert (said == targets[tile, row, col]).all()
    mean = np.array([store.pixels[each, 0][store.valid[each]].mean(dtype=np.float64) for each in tile])
    assert found.features[:, 2] == pytest.approx(mean)
    assert found.features[:, 3] == pytest.approx(-mean)
    # Each pixel once, and each tile a number.
    assert len(np.unique(found.features[:, 0])) == len(found.truth)
    assert (np.unique(found.tiles) == np.arange(TILES - 1)).all()
    assert (found.tiles == tile - (tile > 5)).all()


def test_colours_are_those_of_valid_pixels() -> None:
    rng = np.random.default_rng(0)
    tiles, valid = rng.normal(50, 9, (6, 3, 5, 5)).astype(np.float32), rng.random((6, 5, 5)) > 0.4
    tiles[np.broadcast_to(~valid[:, None], tiles.shape)] = -9999
    valid[5] = False
    found = colour_features(tiles, valid)
    for number in range(5):
        inside = tiles[number][:, valid[number]].astype(np.float64)
        assert found[number] == pytest.approx([*inside.mean(axis=1), *inside.std(axis=1)], rel=1e-6)
    assert (found[5] == 0).all()


def test_volumes_have_no_gap() -> None:
    assert gap_of_tiles(pd.DataFrame(), SimpleNamespace(depth=3), Labelled(Task.CLASSIFICATION), 0) is None
