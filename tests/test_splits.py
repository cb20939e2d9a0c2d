"""Splits: disjoint, stable as data grow, quotas that hold; leaks are found, every use of the test split counts."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitpipe.config import SplitRecipe
from vitpipe.errors import ContractError, LeakageError, SplitError
from vitpipe.splits import assign_groups, check_leaks, content_order, read_splits, record_test_use, update_splits
from vitpipe.workspace import Workspace

NOTHING = pd.DataFrame({"group_id": pd.Series(dtype="str"), "split": pd.Series(dtype="str")})
RECIPE = SplitRecipe()


def make_groups(strata: list[str], *, start: int = 0, seed: int = 0) -> pd.DataFrame:
    names = [f"g{start + number:07d}" for number in range(len(strata))]
    return pd.DataFrame(
        {
            "group_id": pd.Series(names, dtype="str"),
            "stratum": pd.Series(strata, dtype="str"),
            "order": content_order([f"source-{name}" for name in names], seed=seed),
        }
    )


def shares(recipe: SplitRecipe) -> dict[str, float]:
    return {"train": recipe.train, "val": recipe.val, "calibration": recipe.calibration, "test": recipe.test}


def counts(table: pd.DataFrame) -> dict[str, int]:
    return {name: int((table["split"] == name).sum()) for name in ("train", "val", "calibration", "test")}


strata_lists = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", "g"]), min_size=20, max_size=160)
recipes = st.builds(
    SplitRecipe,
    val=st.sampled_from([0.0, 0.05, 0.1, 0.15, 0.2]),
    calibration=st.sampled_from([0.0, 0.05, 0.15, 0.25]),
    test=st.sampled_from([0.05, 0.1, 0.2, 0.3]),
    seed=st.integers(0, 3),
)


@settings(max_examples=60, deadline=None)
@given(strata_lists, recipes)
def test_shares_hold_within_one_group_and_groups_are_disjoint(strata: list[str], recipe: SplitRecipe) -> None:
    table = assign_groups(make_groups(strata), NOTHING, recipe)
    assert sorted(table["group_id"]) == sorted(make_groups(strata)["group_id"])
    assert table["group_id"].is_unique
    for name, share in shares(recipe).items():
        assert abs(counts(table)[name] - share * len(strata)) <= 1 + 1e-6
        if share == 0:
            assert counts(table)[name] == 0
        else:
            assert counts(table)[name] >= 1


@settings(max_examples=60, deadline=None)
@given(strata_lists, recipes)
def test_every_stratum_is_near_its_shares(strata: list[str], recipe: SplitRecipe) -> None:
    groups = make_groups(strata)
    table = assign_groups(groups, NOTHING, recipe).merge(groups, on="group_id")
    for _, part in table.groupby("stratum"):
        for name, share in shares(recipe).items():
            assert abs((part["split"] == name).sum() - share * len(part)) <= 3


@settings(max_examples=40, deadline=None)
@given(st.lists(strata_lists, min_size=2, max_size=5), recipes)
def test_an_assigned_group_never_moves_and_growth_fills_the_deficits(
    batches: list[list[str]], recipe: SplitRecipe
) -> None:
    existing, groups = NOTHING, make_groups([])
    for strata in batches:
        before = existing.set_index("group_id")["split"]
        groups = pd.concat([groups, make_groups(strata, start=len(groups))], ignore_index=True)
        existing = pd.concat([existing, assign_groups(groups, existing, recipe)], ignore_index=True)
        after = existing.set_index("group_id")["split"]
        assert len(after) == len(groups)
        assert after.loc[before.index].equals(before)
        for name, share in shares(recipe).items():
            assert abs(counts(existing)[name] - share * len(groups)) <= 1 + 1e-6


@settings(max_examples=60, deadline=None)
@given(strata_lists, recipes, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(strata: list[str], recipe: SplitRecipe, random: object) -> None:
    groups = make_groups(strata)
    half = assign_groups(groups.iloc[: len(groups) // 2], NOTHING, recipe) if len(groups) > 40 else NOTHING
    rows = list(range(len(groups)))
    random.shuffle(rows)  # type: ignore[attr-defined]
    straight = assign_groups(groups, half, recipe)
    shuffled = assign_groups(groups.iloc[rows], half.iloc[::-1], recipe)
    pd.testing.assert_frame_equal(straight, shuffled)


def test_ties_of_the_hash_are_broken_by_the_group() -> None:
    groups = make_groups(["a"] * 12).assign(order=np.uint64(7))
    pd.testing.assert_frame_equal(
        assign_groups(groups, NOTHING, RECIPE), assign_groups(groups.iloc[::-1], NOTHING, RECIPE)
    )


def test_the_order_comes_from_content_and_seed_not_from_pseudonyms() -> None:
    first = make_groups(["a"] * 30)
    renamed = first.assign(group_id="p" + first["group_id"].str[::-1])
    assert list(assign_groups(first, NOTHING, RECIPE)["split"]) == list(
        assign_groups(renamed, NOTHING, RECIPE)["split"]
    )
    moved = "p" + assign_groups(first, NOTHING, RECIPE)["group_id"].str[::-1]
    assert list(moved) == list(assign_groups(renamed, NOTHING, RECIPE)["group_id"])
    assert content_order(["x"], seed=0) != content_order(["x"], seed=1)
    # Pinned: another machine or release must queue the same groups in the same order.
    assert content_order(["a", "b"], seed=0).tolist() == [PIN_A, PIN_B]


PIN_A, PIN_B = 8167458624584103502, 16042685318497786227


def test_many_strata_of_one_group_each_still_fill_the_quotas() -> None:
    table = assign_groups(make_groups([f"s{number}" for number in range(1000)]), NOTHING, RECIPE)
    assert counts(table) == {"train": 500, "val": 150, "calibration": 150, "test": 200}


def test_fifty_thousand_strata_of_one_group_are_quick_because_rounding_is_carried_on() -> None:
    groups = make_groups([f"s{number}" for number in range(50_000)])
    began = time.process_time()
    table = assign_groups(groups, NOTHING, RECIPE)
    assert time.process_time() - began < 10
    assert counts(table) == {"train": 25_000, "val": 7500, "calibration": 7500, "test": 10_000}


def test_new_groups_fill_what_their_own_stratum_lacks() -> None:
    old = make_groups(["a"] * 20 + ["b"] * 20)
    splits = ["train"] * 20 + ["val"] * 6 + ["calibration"] * 6 + ["test"] * 8
    groups = pd.concat([old, make_groups(["a"] * 20 + ["b"] * 20, start=40)])
    table = assign_groups(groups, pd.DataFrame({"group_id": old["group_id"], "split": splits}), RECIPE)
    found = table.merge(groups, on="group_id").groupby("stratum")["split"].value_counts()
    assert found["a"].to_dict() == {"test": 8, "val": 6, "calibration": 6}
    assert found["b"].to_dict() == {"train": 20}


def test_the_only_group_of_a_class_is_learned_from() -> None:
    for rare in range(12):
        strata = ["common"] * 40 + [f"rare{number}" for number in range(rare)]
        table = assign_groups(make_groups(strata), NOTHING, RECIPE)
        lonely = table["group_id"].isin([f"g{40 + number:07d}" for number in range(rare)])
        assert set(table.loc[lonely, "split"]) <= {"train"}
        for name, share in shares(RECIPE).items():
            assert abs(counts(table)[name] - share * len(strata)) <= 1


def test_eight_groups() -> None:
    table = assign_groups(make_groups(["a"] * 4 + ["b"] * 4), NOTHING, RECIPE)
    assert counts(table) == {"train": 4, "val": 1, "calibration": 1, "test": 2}


def test_every_split_gets_a_group_when_there_are_just_enough() -> None:
    recipe = SplitRecipe(val=0.02, calibration=0.02, test=0.02)
    assert counts(assign_groups(make_groups(["a", "a", "b", "b"]), NOTHING, recipe)) == {
        "train": 1,
        "val": 1,
        "calibration": 1,
        "test": 1,
    }


def test_fewer_groups_than_splits_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(SplitError, match=r"3 labelled group\(s\) cannot fill 4 splits.*label more groups"):
        assign_groups(make_groups(["a", "b", "c"]), NOTHING, RECIPE)
    no_spare = SplitRecipe(val=0, calibration=0, test=0.3)
    assert counts(assign_groups(make_groups(["a", "b"]), NOTHING, no_spare))["test"] == 1


def test_no_group_left_for_the_test_split_is_an_error() -> None:
    groups = make_groups(["a"] * 8)
    existing = pd.DataFrame({"group_id": groups["group_id"], "split": ["train"] * 8})
    with pytest.raises(SplitError, match="no labelled group is left for the test split"):
        assign_groups(groups, existing, RECIPE)


def test_groups_that_are_gone_do_not_count_but_keep_their_row(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    groups = make_groups(["a"] * 40)
    first = update_splits(workspace, groups, RECIPE)
    gone = set(first.loc[first["split"] == "test", "group_id"])
    left = groups[~groups["group_id"].isin(gone)]
    second = update_splits(workspace, pd.concat([left, make_groups(["a"] * 10, start=100)]), RECIPE)
    pd.testing.assert_frame_equal(second.iloc[:40], first)
    assert counts(second.iloc[40:])["test"] >= 7


def test_update_appends_and_a_run_without_news_leaves_the_file(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert read_splits(workspace).empty
    first = update_splits(workspace, make_groups(["a"] * 10), RECIPE)
    content = workspace.splits.read_bytes()
    pd.testing.assert_frame_equal(update_splits(workspace, make_groups(["a"] * 10), RECIPE), first)
    assert workspace.splits.read_bytes() == content
    grown = update_splits(workspace, make_groups(["a"] * 25), RECIPE)
    pd.testing.assert_frame_equal(grown.iloc[:10], first)
    pd.testing.assert_frame_equal(read_splits(workspace), grown)


def test_a_group_listed_twice_is_a_bug_that_is_named() -> None:
    twice = pd.concat([make_groups(["a"] * 8), make_groups(["b"])])
    with pytest.raises(ContractError, match="one row a group"):
        assign_groups(twice, NOTHING, RECIPE)


def test_two_million_groups_take_seconds() -> None:
    size = 2_000_000
    rng = np.random.default_rng(0)
    groups = pd.DataFrame(
        {
            "group_id": pd.Series(np.arange(size)).astype("str"),
            "stratum": pd.Series(rng.integers(0, 50, size)).astype("str"),
            "order": rng.integers(0, 2**63, size).astype(np.uint64),
        }
    )
    began = time.process_time()
    table = assign_groups(groups, NOTHING, RECIPE)
    assert time.process_time() - began < 12
    for name, share in shares(RECIPE).items():
        assert abs(counts(table)[name] - share * size) <= 1


# --------------------------------------------------------------------------------------------------------------- leaks


def tiles(rows: list[tuple[str, str, str, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["group_id", "source_id", "split", "pixel_digest"])


def test_clean_tiles_pass() -> None:
    check_leaks(
        tiles(
            [
                ("g1", "s1", "train", "aa"),
                ("g1", "s1", "train", "aa"),
                ("g2", "s2", "train", "aa"),
                ("g3", "s3", "test", "bb"),
                ("g4", "s4", "test", ""),
                ("g1", "s1", "train", ""),
            ]
        )
    )


def test_one_group_in_two_splits_leaks() -> None:
    rows = tiles([("g1", "s1", "train", "aa"), ("g1", "s2", "test", "bb"), ("g2", "s3", "test", "cc")])
    with pytest.raises(LeakageError, match=r"1 group\(s\) stand in more than one split; their sources are s1, s2;"):
        check_leaks(rows)


def test_the_same_pixels_in_two_splits_leak() -> None:
    rows = tiles([("g1", "s1", "train", "aa"), ("g2", "s2", "val", "aa"), ("g3", "s3", "test", "cc")])
    with pytest.raises(
        LeakageError, match=r"1 tile\(s\) have the same pixels.*source s1 \(train\) and source s2 \(val\).*labels.group"
    ):
        check_leaks(rows)


# -------------------------------------------------------------------------------------------------------------- ledger


def test_every_use_of_the_test_split_is_counted_once(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert record_test_use(workspace, "run1", "evaluate", "d1") == 1
    assert record_test_use(workspace, "run2", "evaluate", "d1") == 2
    assert record_test_use(workspace, "run1", "evaluate", "d1") == 1
    assert record_test_use(workspace, "run1", "gate", "d1") == 3
    lines = [json.loads(line) for line in workspace.test_ledger.read_text().splitlines()]
    assert [(line["use"], line["run_id"], line["purpose"], line["digest"]) for line in lines] == [
        (1, "run1", "evaluate", "d1"),
        (2, "run2", "evaluate", "d1"),
        (3, "run1", "gate", "d1"),
    ]
    assert all(line["when"].endswith("+00:00") for line in lines)


def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    record_test_use(workspace, "run1", "evaluate", "d1")
    with workspace.test_ledger.open("a") as stream:
        stream.write('{"use": 2, "run_id": "' + "x" * 1000)
    assert record_test_use(workspace, "run2", "evaluate", "d1") == 2
    assert [json.loads(line)["run_id"] for line in workspace.test_ledger.read_text().splitlines()] == ["run1", "run2"]
