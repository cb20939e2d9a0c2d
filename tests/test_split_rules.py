"""Folds, splits by date and by an attribute: what is dealt, what stays, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.ground.ground_cases import config_of, parted, scene, tiles_of
from vitpipe.config import PipelineConfig, SplitRecipe, TileRecipe
from vitpipe.errors import ConfigError, SplitError
from vitpipe.partition import Partition
from vitpipe.records import Grid, Source
from vitpipe.splits import content_order, read_splits, update_splits
from vitpipe.splits.assign import assign_folds
from vitpipe.splits.table import split_of_fold
from vitpipe.workspace import Workspace


def make_groups(strata: list[str], *, start: int = 0) -> pd.DataFrame:
    names = [f"g{start + number:05d}" for number in range(len(strata))]
    order = content_order([f"source-{name}" for name in names], seed=0)
    return pd.DataFrame({"group_id": pd.Series(names, dtype="str"), "stratum": strata, "order": order})


def dated(number: int, when: str | None, **attributes: str | float | None) -> Source:
    name = f"src{number:04d}"
    return Source(
        name, f"pat{number // 2:04d}", "images", name, (name,), Grid(1, 8, 8), ("r",), "dn", "uint8",
        acquired_at=when, attributes=attributes,
    )  # fmt: skip


def build(root: Path, sources: list[Source], table: pd.DataFrame | None = None, **split: object) -> Partition:
    if table is None:
        table = pd.DataFrame(
            {
                "tile_id": [f"{source.source_id}:0:0:0" for source in sources],
                "source_id": [source.source_id for source in sources],
                "group_id": [source.group_id for source in sources],
                "row": 0, "col": 0, "height": 8, "width": 8,
                "pixel_digest": [source.source_id for source in sources],
            }
        )  # fmt: skip
        for name in sorted({name for source in sources for name in source.attributes}):
            table[f"attr_{name}"] = [source.attributes.get(name) for source in sources]
    table = table.assign(label=["ab"[number % 2] for number in range(len(table))])
    return parted(config_of(root, TileRecipe(size=64), **split), Workspace(root), table, sources)


# --------------------------------------------------------------------------------------------------------------- folds


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from("abcd"), min_size=20, max_size=90), st.integers(3, 8), st.integers(5, 40))
def test_folds_are_even_stratified_and_never_move(strata: list[str], folds: int, more: int) -> None:
    nothing = pd.DataFrame({"group_id": pd.Series(dtype="str"), "fold": pd.Series(dtype="int64")})
    first = assign_folds(make_groups(strata), nothing, folds)
    sizes = np.bincount(first["fold"], minlength=folds)
    assert sizes.max() - sizes.min() <= 1
    for _, part in first.merge(make_groups(strata), on="group_id").groupby("stratum"):
        each = np.bincount(part["fold"], minlength=folds)
        assert each.max() - each.min() <= 3
    grown = pd.concat([make_groups(strata), make_groups(["a"] * more, start=len(strata))])
    added = assign_folds(grown, first, folds)
    assert set(added["group_id"]).isdisjoint(first["group_id"])
    sizes = np.bincount([*first["fold"], *added["fold"]], minlength=folds)
    assert sizes.max() - sizes.min() <= 1


def test_every_group_is_tested_once_and_folds_do_not_depend_on_which_is_test(tmp_path: Path) -> None:
    groups = make_groups(["a", "b", "c"] * 12)
    tables = []
    for fold in range(5):
        workspace = Workspace(tmp_path / str(fold))
        recipe = SplitRecipe(folds=5, fold=fold)
        update_splits(workspace, groups, recipe)
        # Growth in two steps, the same in every workspace.
        update_splits(workspace, pd.concat([groups, make_groups(["a"] * 9, start=36)]), recipe)
        table = pd.read_parquet(workspace.splits)
        assert table["split"].tolist() == [split_of_fold(each, recipe) for each in table["fold"]]
        tables.append(table)
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table[["group_id", "fold"]], tables[0][["group_id", "fold"]])
    for split in ("test", "val", "calibration"):
        times = sum((table["split"] == split).to_numpy().astype(int) for table in tables)
        assert (times == 1).all()


def test_the_splits_of_folds_go_round() -> None:
    recipe = SplitRecipe(folds=5, fold=3)
    assert [str(split_of_fold(fold, recipe)) for fold in range(5)] == ["calibration", "train", "train", "test", "val"]
    two = SplitRecipe(folds=4, fold=3, calibration=0)
    assert [str(split_of_fold(fold, two)) for fold in range(4)] == ["val", "train", "train", "test"]
    assert (recipe.train, two.train) == (pytest.approx(0.4), pytest.approx(0.5))


def test_another_fold_needs_another_workspace(tmp_path: Path) -> None:
    workspace, groups = Workspace(tmp_path), make_groups(["a", "b"] * 10)
    update_splits(workspace, groups, SplitRecipe(folds=5, fold=0))
    content = workspace.splits.read_bytes()
    update_splits(workspace, groups, SplitRecipe(folds=5, fold=0))
    for other in (SplitRecipe(folds=5, fold=1), SplitRecipe(folds=4, fold=0), SplitRecipe()):
        with pytest.raises(ConfigError, match=r"was dealt into 5 folds.*take another `workspace` for each fold"):
            update_splits(workspace, groups, other)
    assert workspace.splits.read_bytes() == content
    plain = Workspace(tmp_path / "plain")
    update_splits(plain, groups, SplitRecipe())
    with pytest.raises(ConfigError, match="was split by shares"):
        update_splits(plain, groups, SplitRecipe(folds=5, fold=0))
    with pytest.raises(SplitError, match=r"4 labelled group\(s\) cannot fill 5 folds"):
        update_splits(Workspace(tmp_path / "few"), groups.iloc[:4], SplitRecipe(folds=5, fold=0))


# ---------------------------------------------------------------------------------------------------------------- date


def years(count: int) -> list[Source]:
    """Two dates a patient: a year, and two years later."""
    return [dated(number, f"{2019 + number % 7 // 2 + 2 * (number % 2)}-06-01T10:00:00") for number in range(count)]


def test_by_date_a_group_counts_at_the_dates_of_its_split_alone(tmp_path: Path) -> None:
    found = build(tmp_path, years(120), by="date", val_from="2021-01-01", test_from="2022-01-01")
    when = found.table["source_id"].map({source.source_id: str(source.acquired_at)[:10] for source in years(120)})
    by_split = when.groupby(found.table["split"])
    assert by_split.max()["train"] < "2021"
    assert by_split.min()["val"] >= "2021"
    assert by_split.max()[["val", "calibration"]].max() < "2022"
    assert by_split.min()["test"] >= "2022"
    assert (found.table.groupby("group_id")["split"].nunique() == 1).all()
    gone = 120 - len(found.table)
    assert gone > 10
    assert found.notes == (f"left out {gone} tile(s) whose group is in a split that `split.by` does not leave to them",)


def test_by_date_a_group_of_one_period_has_the_split_of_its_period(tmp_path: Path) -> None:
    sources = [dated(number, "2020-01-01" if number < 60 else "2024-01-01") for number in range(80)]
    found = build(tmp_path, sources, by="date", test_from="2024-01-01")
    assert len(found.table) == 80
    late = found.table["source_id"].isin([source.source_id for source in sources[60:]])
    assert set(found.table.loc[late, "split"]) == {"test"}
    # What is earlier is shared by what is left of the shares: 0.5 to 0.15 to 0.15.
    counts = found.table.loc[~late].drop_duplicates("group_id")["split"].value_counts().to_dict()
    assert counts in ({"train": 19, "val": 6, "calibration": 5}, {"train": 19, "val": 5, "calibration": 6})


def test_dates_that_do_not_tell_are_left_out_and_counted(tmp_path: Path) -> None:
    sources = [
        dated(
            number, [None, "2020", "2023", "2023-02", "2023-05", "2023-06-15", "2025-01-01T00:00:00Z", "no"][number % 8]
        )
        for number in range(160)
    ]
    for place, source in enumerate(sources):
        object.__setattr__(source, "group_id", f"p{place}")
    found = build(tmp_path, sources, by="date", test_from="2023-05-15")
    assert any("left out 20 tile(s) without a date" in note for note in found.notes)
    # 2023, and May of it, lie on both sides; `no` is no date.
    assert any("left out 60 tile(s) whose date" in note for note in found.notes)
    assert len(found.table) == 80
    with pytest.raises(SplitError, match=r"none of 4 tile\(s\) has a date"):
        build(tmp_path / "none", [dated(number, None) for number in range(4)], by="date", test_from="2023-05-15")


def two_dates() -> list[Source]:
    """Four scenes of 6.4 km, each imaged in 2020 and in 2024."""
    found = []
    for place in range(4):
        for year in (2020, 2024):
            source = scene(f"s{place}-{year}", 32633, (500_000.0 + 6400 * place, 5_000_000.0))
            object.__setattr__(source, "acquired_at", f"{year}-07-01")
            found.append(source)
    return found


def test_by_date_the_same_ground_is_not_in_train_and_test_unless_it_may(tmp_path: Path) -> None:
    sources = two_dates()
    table = tiles_of(sources, block_m=2000.0)
    apart = build(tmp_path / "a", sources, table, by="date", test_from="2024-01-01")
    assert all(pair["shared_m2"] == 0 for pair in _pairs(apart))
    assert (apart.table.loc[apart.table["split"] == "test", "source_id"].str.endswith("2024")).all()
    assert (apart.table.loc[apart.table["split"] != "test", "source_id"].str.endswith("2020")).all()
    assert len(apart.table) < 0.7 * len(table)
    again = build(tmp_path / "b", sources, table, by="date", test_from="2024-01-01", same_ground=True)
    assert len(again.table) == len(table)
    assert again.audit["same_ground"] is True
    shared = {tuple(pair["splits"]): pair["shared_m2"] for pair in _pairs(again)}
    assert shared["train", "test"] > 1e7
    assert shared["train", "val"] == 0
    assert again.table["group_id"].str.contains("@").all()
    assert (read_splits(Workspace(tmp_path / "b"))["group_id"].str.count("@") == 1).all()


def test_with_the_same_ground_two_splits_of_one_period_still_share_none(tmp_path: Path) -> None:
    sources = two_dates()
    recipe = TileRecipe(size=64, stride=48)
    table = tiles_of(sources, recipe, block_m=2000.0)
    config = config_of(tmp_path, recipe, by="date", test_from="2024-01-01", same_ground=True)
    found = parted(config, Workspace(tmp_path), table.assign(label="a"), sources)
    shared = {tuple(pair["splits"]): pair["shared_m2"] for pair in _pairs(found)}
    assert shared["train", "val"] == shared["train", "calibration"] == shared["val", "calibration"] == 0
    assert shared["train", "test"] > 1e7


def _pairs(found: Partition) -> list[dict[str, Any]]:
    pairs = found.audit["pairs"]
    assert isinstance(pairs, list)
    return pairs  # type: ignore[return-value]


# ----------------------------------------------------------------------------------------------------------- attribute


def regions(count: int) -> list[Source]:
    return [
        dated(number, None, region=["north", "south", "east", None][number // 2 % 4], level=float(number // 2 % 4))
        for number in range(count)
    ]


def test_by_attribute_whole_regions_are_held_out(tmp_path: Path) -> None:
    by = {"attribute": "region", "test": ["south"], "val": ["east"]}
    found = build(tmp_path, regions(80), by=by, calibration=0.2)
    region = found.table["attr_region"]
    assert set(region[found.table["split"] == "test"]) == {"south"}
    assert set(region[found.table["split"] == "val"]) == {"east"}
    assert set(region[found.table["split"].isin(["train", "calibration"])]) == {"north"}
    assert set(found.table["split"]) == {"train", "val", "calibration", "test"}
    assert found.notes == ("left out 20 tile(s) without a value of `region`",)


def test_by_a_number_and_growth(tmp_path: Path) -> None:
    by = {"attribute": "level", "test": [1], "val": [2]}
    first = build(tmp_path, regions(40), by=by)
    assert set(first.table.loc[first.table["split"] == "test", "attr_level"]) == {1.0}
    splits = read_splits(Workspace(tmp_path))
    build(tmp_path, regions(80), by=by)
    pd.testing.assert_frame_equal(read_splits(Workspace(tmp_path)).iloc[: len(splits)], splits)


def test_a_group_of_two_regions_is_held_out_and_loses_what_is_not_of_test(tmp_path: Path) -> None:
    sources = [dated(number, None, region="south" if number % 10 == 0 else "north") for number in range(80)]
    found = build(tmp_path, sources, by={"attribute": "region", "test": ["south"]})
    assert (found.table.loc[found.table["attr_region"] == "south", "split"] == "test").all()
    assert (found.table.loc[found.table["attr_region"] == "north", "split"] != "test").all()
    # Each of the eight patients with a southern picture loses the northern one.
    assert len(found.table) == 80 - 8
    assert (found.table.groupby("group_id")["split"].nunique() == 1).all()


def test_what_an_attribute_cannot_say_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match=r"names the attribute `country`.*there are: level, region"):
        build(tmp_path, regions(80), by={"attribute": "country", "test": ["x"]})
    with pytest.raises(SplitError, match=r"lists the value\(s\) suoth of `region`.*there are: east, north, south"):
        build(tmp_path, regions(80), by={"attribute": "region", "test": ["south", "suoth"]})


def test_groups_that_were_assigned_before_may_leave_a_split_without_tiles(tmp_path: Path) -> None:
    sources = regions(80)
    first = build(tmp_path, sources)
    test = set(first.table.loc[first.table["split"] == "test", "group_id"])
    for source in sources:
        region = "south" if source.group_id not in test else "north"
        object.__setattr__(source, "attributes", {"region": region})
    with pytest.raises(SplitError, match="leaves no tile for the"):
        build(tmp_path, sources, by={"attribute": "region", "test": ["south"]})


# ------------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"folds": 5}, "folds and fold belong together"),
        ({"folds": 5, "fold": 5}, "count from 0 to 4"),
        ({"folds": 3, "fold": 0}, "3 folds leave none to train on: test, val and calibration take 3"),
        ({"folds": 5, "fold": 0, "by": "date", "test_from": "2024-01-01"}, "not both"),
        ({"test_from": "2024-01-01"}, "need `by: date`"),
        ({"by": "date"}, "needs test_from"),
        ({"by": "date", "val_from": "2024-01-01", "test_from": "2024-01-01"}, "must be before"),
        ({"by": "date", "val_from": "2023-01-01", "test_from": "2024-01-01", "val": 0, "calibration": 0}, "both 0"),
        ({"by": {"attribute": "r", "test": ["a"], "val": ["a"]}}, "stand in more than one list"),
        ({"by": {"attribute": "r", "test": []}}, "at least 1"),
    ],
)
def test_what_does_not_hold_together_is_refused(values: dict[str, object], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        SplitRecipe.model_validate(values)


def test_what_was_written_before_has_the_digest_it_had() -> None:
    assert set(SplitRecipe().model_dump(mode="json")) == {"val", "calibration", "test", "seed"}
    full = SplitRecipe.model_validate({"by": "date", "test_from": "2024-01-01", "buffer_m": 5})
    dumped = full.model_dump(mode="json")
    assert dumped["test_from"] == "2024-01-01"
    assert SplitRecipe.model_validate(dumped) == full
    assert "split" in PipelineConfig.model_json_schema()["properties"]
