"""The gap, worked out once more in plain Python: neighbours, metrics, and the interval of the group jackknife."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from vitpipe.ground.gap import Examples, measure_gap

GROUPS, SEED = 12, 7
Judged = list[tuple[set[int], set[int], int]] | list[tuple[float, float, int]]
"""Of each example: what it is, what its neighbours say, its group."""


def examples(metric: str) -> Examples:
    rng = np.random.default_rng(15)
    sizes = rng.integers(3, 9, GROUPS)
    group = np.repeat(np.arange(GROUPS), sizes)
    look = rng.normal(0, [3, 60, 3], (GROUPS, 3))[group] + rng.normal(0, [1, 30, 1], (len(group), 3))
    # A channel that never varies has no say.
    features = np.column_stack([look, np.full(len(group), 7.0)])
    # The last class lies in one group alone.
    of_group = np.append(rng.integers(0, 3, GROUPS - 1), 3)
    truth: NDArray[np.bool_] | NDArray[np.float64] = of_group[group][:, None] == np.arange(4)
    if metric == "macro_f1":
        truth = rng.random((len(group), 4)) < rng.random((GROUPS, 4))[group]
    elif metric == "r2":
        truth = 1000 + 0.2 * look[:, 0] + rng.normal(0, 6, GROUPS)[group]
    of_pixels = metric in ("mean_iou", "r2")
    # Two pixels of a tile, never of two groups.
    within = np.concatenate([np.arange(size) for size in sizes]) // 2
    tile = np.unique(group * 100 + within, return_inverse=True)[1] if of_pixels else np.arange(len(group))
    return Examples(features, truth, np.array([f"g{number}" for number in group], object), tile, metric, of_pixels)


def judged(given: Examples) -> tuple[Judged, Judged]:
    """Judge by folds of tiles and by folds of groups, three times each."""
    rng = np.random.default_rng(SEED)
    group = [int(name[1:]) for name in given.groups.tolist()]
    scale = [float(np.std(column)) or math.inf for column in given.features.T]
    points = [[value / by for value, by in zip(row, scale, strict=True)] for row in given.features.tolist()]
    near = [sorted(range(len(points)), key=lambda other, own=own: math.dist(points[own], points[other]))
            for own in range(len(points))]  # fmt: skip
    values = given.truth.ndim == 1
    found: tuple[list[tuple[float, float, int]], list[tuple[float, float, int]]] = ([], [])
    for _ in range(3):
        of_tile = rng.permutation(max(given.tiles) + 1) % 5
        of_group, filled = {}, [0] * 5
        for number in rng.permutation(GROUPS).tolist():
            of_group[number] = filled.index(min(filled))
            filled[of_group[number]] += group.count(number)
        deals = [of_tile[tile] for tile in given.tiles], [of_group[number] for number in group]
        for rows, fold in zip(found, deals, strict=True):
            for own in range(len(points)):
                others = [other for other in near[own] if fold[other] != fold[own]][: 5 if values else 1]
                if values:
                    said = sum(float(given.truth[other]) for other in others) / 5
                    rows.append((float(given.truth[own]), said, group[own]))
                else:
                    both = (set(np.flatnonzero(given.truth[which]).tolist()) for which in (own, others[0]))
                    rows.append((*both, group[own]))
    return found


def score(metric: str, rows: Sequence[tuple[set[int], set[int], int]] | Sequence[tuple[float, float, int]]) -> float:
    if metric == "r2":
        mean = sum(row[0] for row in rows) / len(rows)
        return 1 - sum((a - b) ** 2 for a, b, _ in rows) / sum((a - mean) ** 2 for a, _, _ in rows)
    shares = []
    for number in range(4):
        there = sum(number in row[0] for row in rows)
        said = sum(number in row[1] for row in rows)
        hits = sum(number in row[0] and number in row[1] for row in rows)
        below = {"balanced_accuracy": there, "macro_f1": (there + said) / 2, "mean_iou": there + said - hits}[metric]
        if there:
            shares.append(hits / below)
    return sum(shares) / len(shares)


@pytest.mark.parametrize("metric", ["balanced_accuracy", "macro_f1", "mean_iou", "r2"])
def test_the_gap_is_what_plain_python_finds(metric: str) -> None:
    given = examples(metric)
    found = measure_gap(given, SEED)
    assert found is not None
    by_tiles, by_groups = judged(given)
    assert found.random_split == pytest.approx(score(metric, by_tiles))
    assert found.group_split == pytest.approx(score(metric, by_groups))
    without = []
    for group in range(GROUPS):
        tiles, groups = ([row for row in rows if row[2] != group] for rows in (by_tiles, by_groups))
        without.append(score(metric, tiles) - score(metric, groups))
    mean = sum(without) / GROUPS
    error = math.sqrt((GROUPS - 1) / GROUPS * sum((value - mean) ** 2 for value in without))
    reach = float(stats.t.ppf(0.975, GROUPS - 1)) * error
    gap = found.random_split - found.group_split
    assert found.difference.method == "jackknife-t"
    assert found.difference.low == pytest.approx(gap - reach)
    assert found.difference.high == pytest.approx(gap + reach)
    # A difference of R2 has no upper limit, other than one of shares.
    assert metric != "r2" or gap + reach > 1
