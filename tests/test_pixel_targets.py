"""Targets of pixels: written a shard at a time, gathered in any order, refused where they do not fit the tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vitpipe.errors import ContractError
from vitpipe.pixel_targets import IGNORE, PixelTargets, write_targets
from vitpipe.records import Task


def _rows(pairs: list[tuple[str, int]]) -> pd.DataFrame:
    return pd.DataFrame(pairs, columns=["shard_id", "shard_row"])


def test_targets_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stored = {name: rng.integers(0, 4, (5, 8, 8)).astype(np.uint8) for name in ("a", "b")}
    stored["a"][0, 0, 0] = IGNORE
    for name, targets in stored.items():
        write_targets(tmp_path, name, targets)
    pairs = [("b", 4), ("a", 0), ("b", 1), ("a", 3), ("b", 1)]
    found = PixelTargets(tmp_path, Task.SEGMENTATION, (8, 8)).gather(_rows(pairs))
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.stack([stored[name][row] for name, row in pairs]))


def test_values_keep_their_gaps(tmp_path: Path) -> None:
    values = np.array([[[1.5, np.nan], [-2.0, 0.0]]], np.float32)
    write_targets(tmp_path, "a", values)
    found = PixelTargets(tmp_path, Task.REGRESSION, (2, 2)).gather(_rows([("a", 0)]))
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    ("task", "shape", "row", "said"),
    [
        (Task.SEGMENTATION, (8, 8), 5, "holds the targets of 5 tiles, row 5"),
        (Task.SEGMENTATION, (9, 8), 0, r"holds uint8 \(8, 8\)"),
        (Task.REGRESSION, (8, 8), 0, "a regression of these tiles needs float32"),
    ],
)
def test_other_tiles_are_refused(tmp_path: Path, task: Task, shape: tuple[int, ...], row: int, said: str) -> None:
    write_targets(tmp_path, "a", np.zeros((5, 8, 8), np.uint8))
    with pytest.raises(ContractError, match=said):
        PixelTargets(tmp_path, task, shape).gather(_rows([("a", row)]))


def test_a_missing_array_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="delete the folder"):
        PixelTargets(tmp_path, Task.SEGMENTATION, (8, 8)).gather(_rows([("a", 0)]))


def test_other_dtypes_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="int64"):
        write_targets(tmp_path, "a", np.zeros((1, 8, 8), np.int64))
    assert not list(tmp_path.iterdir())
