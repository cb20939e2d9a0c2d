"""Tiles get their split: overlapping scenes and dates share blocks, borders are cleared, and the audit says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.ground.ground_cases import config_of, corner_at, parted, scene, tiles_of
from vitpipe.config import TileRecipe
from vitpipe.errors import LeakageError, SplitError
from vitpipe.ground.blocks import read_block_m
from vitpipe.partition import GROUND_COLUMNS, Partition
from vitpipe.records import Source
from vitpipe.splits import read_splits
from vitpipe.workspace import Workspace

BLOCK_M = 2000.0
OVERLAPPING = TileRecipe(size=64, stride=48)


def two_zones_and_two_dates() -> list[Source]:
    """One place at 12 degrees east: twice in zone 32, 35 pixels apart, and once in zone 33."""
    x, y = corner_at(32632, 12.0, 50.0)
    return [
        scene("early", 32632, (x, y)),
        scene("later", 32632, (x + 350, y - 350)),
        scene("other", 32633, corner_at(32633, 12.0, 50.0)),
    ]


def build(
    root: Path, sources: list[Source], recipe: TileRecipe = OVERLAPPING, labels: str = "ab", **split: object
) -> Partition:
    table = tiles_of(sources, recipe, block_m=BLOCK_M)
    # A class a column of tiles: every block has some of each.
    table["label"] = [labels[number % len(labels)] for number in range(len(table))]
    return parted(config_of(root, recipe, **split), Workspace(root), table, sources)


def test_scenes_that_overlap_share_blocks_whatever_their_zone_and_date(tmp_path: Path) -> None:
    found = build(tmp_path, two_zones_and_two_dates())
    table = found.table
    of_block = table.groupby("group_id")
    assert (of_block["split"].nunique() == 1).all()
    assert (of_block["source_id"].nunique() == 3).sum() >= 8
    # Equal ground (centres within two pixels) in two scenes is in one split, unless a border runs between.
    centres = table[["x", "y"]].to_numpy()
    first, second = (table["source_id"] == name for name in ("early", "other"))
    gaps = np.linalg.norm(centres[first][:, None] - centres[second][None], axis=2)
    assert (gaps < 240).sum() > 10
    same = table["split"].to_numpy()[first][:, None] == table["split"].to_numpy()[second][None]
    assert same[gaps < 240].all()


def test_border_tiles_of_train_are_left_out_and_counted(tmp_path: Path) -> None:
    found = build(tmp_path, two_zones_and_two_dates())
    whole = len(tiles_of(two_zones_and_two_dates(), OVERLAPPING))
    audit = found.audit
    counts = audit["left_out"]
    assert isinstance(counts, dict)
    assert counts["shared_ground"] == whole - len(found.table) > 20
    assert counts["buffer"] == 0
    assert isinstance(audit["pairs"], list)
    assert len(audit["pairs"]) == 6
    assert all(pair["shared_m2"] == 0 for pair in audit["pairs"])  # type: ignore[index, call-overload]
    (note,) = [note for note in found.notes if note.startswith("left out ")]
    assert "train tile(s)" in note
    assert "test tile(s)" not in note
    # No tile of test went: the test split is what its blocks hold.
    splits = read_splits(Workspace(tmp_path)).set_index("group_id")["split"]
    tiles = tiles_of(two_zones_and_two_dates(), OVERLAPPING, block_m=BLOCK_M)
    assert (tiles["group_id"].map(splits) == "test").sum() == (found.table["split"] == "test").sum()


def test_tiles_side_by_side_in_one_scene_all_stay(tmp_path: Path) -> None:
    found = build(tmp_path, [scene("a", 32633, (500_000.0, 5_000_000.0))], TileRecipe(size=64))
    assert len(found.table) == 100
    assert not any("left out" in note for note in found.notes)
    assert tuple(found.table.columns[-3:]) == GROUND_COLUMNS
    outside = found.table["split"] != "train"
    assert found.table["distance_to_train_m"].notna().equals(outside)


def test_a_buffer_takes_from_train_and_moves_no_group(tmp_path: Path) -> None:
    source = scene("a", 32633, (500_000.0, 5_000_000.0), size=1280)
    plain = build(tmp_path, [source], TileRecipe(size=64))
    kept = read_splits(Workspace(tmp_path))
    near = build(tmp_path, [source], TileRecipe(size=64), buffer_m=700.0)
    pd.testing.assert_frame_equal(read_splits(Workspace(tmp_path)), kept)
    assert set(near.table["tile_id"]) < set(plain.table["tile_id"])
    assert near.table["distance_to_train_m"].min() >= 700
    assert near.audit["buffer_m"] == 700.0
    assert any("nearer than 700 m to a tile of another split" in note for note in near.notes)
    counts = near.audit["left_out"]
    assert isinstance(counts, dict)
    assert counts["buffer"] == len(plain.table) - len(near.table)


def test_a_buffer_that_leaves_no_training_tile_says_so(tmp_path: Path) -> None:
    source = scene("a", 32633, (500_000.0, 5_000_000.0))
    with pytest.raises(SplitError, match=r"no tile is left in the train split.*smaller `split.buffer_m`"):
        build(tmp_path, [source], TileRecipe(size=64), buffer_m=50_000.0)


def test_a_run_that_fails_after_the_split_keeps_the_size_of_its_blocks(tmp_path: Path) -> None:
    source = scene("a", 32633, (500_000.0, 5_000_000.0))
    with pytest.raises(SplitError, match=r"another `workspace` with a larger `source.block_m`"):
        build(tmp_path, [source], TileRecipe(size=64), buffer_m=50_000.0)
    # Groups are named by their block: another size would give their splits to other ground.
    assert len(read_splits(Workspace(tmp_path))) > 0
    assert read_block_m(Workspace(tmp_path).ground_block) == 10_000.0


def test_growth_moves_no_group_and_clears_new_borders(tmp_path: Path) -> None:
    first, *more = two_zones_and_two_dates()
    before = build(tmp_path, [first])
    splits = read_splits(Workspace(tmp_path))
    after = build(tmp_path, [first, *more])
    grown = read_splits(Workspace(tmp_path))
    pd.testing.assert_frame_equal(grown.iloc[: len(splits)], splits)
    known = after.table.set_index("tile_id")["split"]
    shared = before.table[before.table["tile_id"].isin(known.index)]
    assert (known.loc[shared["tile_id"]].to_numpy() == shared["split"].to_numpy()).all()
    # New scenes on test ground push training tiles out that were in before.
    assert len(shared) < len(before.table)


def test_groups_of_a_table_that_tear_the_ground_are_cleared_too(tmp_path: Path) -> None:
    """A group column may give each scene to itself: then the same ground twice would be in train and in test."""
    sources = [scene(name, 32633, (500_000.0 + 3000 * n, 5_000_000.0)) for n, name in enumerate("abc")]
    table = tiles_of(sources, OVERLAPPING).assign(label="a")
    table["group_id"] = table["source_id"]
    recipe = {"val": 0.0, "calibration": 0.0, "test": 0.3}
    found = parted(config_of(tmp_path, OVERLAPPING, **recipe), Workspace(tmp_path), table, sources)
    left = found.audit["left_out"]
    assert isinstance(left, dict)
    assert isinstance(left["shared_ground"], int)
    assert left["shared_ground"] > 50


def test_equal_pixels_on_other_ground_still_fail(tmp_path: Path) -> None:
    source = scene("a", 32633, (500_000.0, 5_000_000.0), size=1280)
    table = tiles_of([source], TileRecipe(size=64), block_m=BLOCK_M).assign(label="a", pixel_digest="same")
    with pytest.raises(LeakageError, match="same pixels under different groups"):
        parted(config_of(tmp_path), Workspace(tmp_path), table, [source])
