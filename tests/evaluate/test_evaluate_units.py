"""Tiles pooled to sources and groups."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vitpipe.errors import ContractError
from vitpipe.evaluate.units import mixed_groups, pool, truth_matrix
from vitpipe.records import Level

TILES = pd.DataFrame(
    {
        "tile_id": ["a", "b", "c", "d", "e"],
        "source_id": ["s1", "s1", "s2", "s2", "s3"],
        "group_id": ["z", "z", "z", "y", "y"],
        "label": ["no", "no", "yes", "yes", "yes"],
        "p_no": [0.9, 0.3, 0.2, 0.6, 0.5],
        "p_yes": [0.1, 0.7, 0.8, 0.4, 0.5],
    }
)


def test_a_unit_is_pooled_over_what_carries_one_label_in_one_group() -> None:
    tiles, sources, groups = (pool(TILES, ("no", "yes"), level) for level in Level)
    assert (tiles.n, sources.n, groups.n) == (5, 4, 3)
    # s2 lies in two groups: a unit in each. Group z has two labels: a unit for each.
    assert sources.keys == ("s1", "s2", "s2", "s3")
    assert groups.keys == ("z", "z", "y")
    assert sources.probabilities == pytest.approx(np.array([[0.6, 0.4], [0.2, 0.8], [0.6, 0.4], [0.5, 0.5]]))
    assert groups.probabilities == pytest.approx(np.array([[0.6, 0.4], [0.2, 0.8], [0.55, 0.45]]))
    assert groups.truth.tolist() == [[True, False], [False, True], [False, True]]
    assert groups.correct.tolist() == [True, True, False]
    # Groups are numbered as they appear, not by name: another pseudonym key gives the same numbers.
    assert groups.groups.tolist() == [0, 0, 1]
    assert (groups.n_groups, groups.present.size) == (2, 2)
    assert mixed_groups(TILES) == 1


def test_a_constant_score_stays_constant_however_many_tiles_are_pooled() -> None:
    sizes = range(1, 40)
    groups = [f"g{size}" for size in sizes for _ in range(size)]
    table = pd.DataFrame({"tile_id": [str(number) for number in range(len(groups))], "group_id": groups})
    table = table.assign(source_id=table["group_id"], label="no", p_no=0.513, p_yes=0.487)
    assert len(np.unique(pool(table, ("no", "yes"), Level.GROUP).probabilities)) == 2


def test_of_equal_probabilities_the_first_class_is_decided() -> None:
    assert pool(TILES, ("no", "yes"), Level.TILE).decided[4].tolist() == [True, False]


def test_multi_label_units_pool_over_one_set_of_labels() -> None:
    table = TILES.assign(label=["no|yes", "no|yes", "", "yes", "yes"])
    groups = pool(table, ("no", "yes"), Level.GROUP, np.array([0.5, 0.35]))
    assert groups.truth.tolist() == [[True, True], [False, False], [False, True]]
    assert groups.decided.tolist() == [[True, True], [False, True], [True, True]]


def test_a_label_that_is_no_class_is_refused() -> None:
    with pytest.raises(ContractError, match="'maybe' is no class of the model"):
        truth_matrix(["no", "maybe"], ("no", "yes"), multi_label=False)
