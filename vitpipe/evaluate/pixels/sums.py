"""Metrics of pixels as functions of sums: a bootstrap draw is one product of matrices, whatever the number of pixels.

At level tile every labelled pixel counts once. At level source, or group, every source (group) counts once, however
many of its pixels are labelled: a block of ground with many labels does not outvote the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitpipe.evaluate.metrics import mean_of_defined, ratio
from vitpipe.evaluate.pixels.tables import VALUE_SUMS, matrices
from vitpipe.evaluate.statistics import Counts, Floats, Statistic, Values
from vitpipe.manifest import Manifest
from vitpipe.records import Level, Task

COUNTED: Final = ("mean_iou", "accuracy", "balanced_accuracy", "macro_f1")
"""Metrics of classes that are exact, from the counts of every labelled pixel."""
COUNTED_BY_CLASS: Final = ("class_iou", "class_precision", "class_recall", "class_f1")
SAMPLED: Final = ("auroc", "average_precision", "brier", "nll", "ece")
"""Metrics of probabilities, from the weighted sample of pixels."""
VALUES: Final = ("r2", "rmse", "mae", "bias", "pearson_r")
"""Metrics of values, exact."""


@dataclass(frozen=True, slots=True)
class PixelUnits:
    """Tiles, sources or groups with the sums of their labelled pixels."""

    sums: Floats
    """(units, M); the first column is what a unit weighs."""
    groups: NDArray[np.intp]
    """(units,)."""
    n_groups: int
    pixels: int
    """Labelled pixels in all units."""

    @property
    def n(self) -> int:
        """Number of units."""
        return len(self.sums)

    @property
    def present(self) -> NDArray[np.intp]:
        """Numbers of the groups that have a unit, ascending."""
        return np.unique(self.groups)

    def by_group(self) -> Floats:
        """Give the sums of each group, (n_groups, M)."""
        total = np.zeros((self.n_groups, self.sums.shape[1]))
        np.add.at(total, self.groups, self.sums)
        return total

    def alone(self) -> PixelUnits:
        """Give each unit a group of its own, as if units were independent."""
        return PixelUnits(self.sums, np.arange(self.n, dtype=np.intp), self.n, self.pixels)


def tile_sums(tiles: pd.DataFrame, manifest: Manifest) -> Floats:
    """Give the sums of tiles (N, M).

    Classes: labelled pixels, right ones, then right, true and predicted ones of each class. Values: `VALUE_SUMS`.
    """
    if manifest.task is Task.REGRESSION:
        return tiles[list(VALUE_SUMS)].to_numpy(np.float64)
    cells = matrices(tiles, len(manifest.classes))
    hits = np.diagonal(cells, axis1=1, axis2=2)
    return np.column_stack([cells.sum(axis=(1, 2)), hits.sum(axis=1), hits, cells.sum(axis=2), cells.sum(axis=1)])


def group_numbers(tiles: pd.DataFrame) -> tuple[NDArray[np.intp], int]:
    """Number the groups of tiles by first appearance."""
    codes, names = pd.factorize(tiles["group_id"])
    return codes.astype(np.intp), len(names)


def pool_sums(tiles: pd.DataFrame, sums: Floats, level: Level, numbered: tuple[NDArray[np.intp], int]) -> PixelUnits:
    """Pool the sums of tiles to a level.

    Args:
        tiles: source_id, group_id.
        sums: (N, M), as of :func:`tile_sums`.
        level: tile, source or group.
        numbered: the group of each tile, and how many groups there are.
    """
    groups, n_groups = numbered
    pixels = int(sums[:, 0].sum())
    if level is Level.TILE:
        return PixelUnits(sums, groups, n_groups, pixels)
    unit = unit_of(tiles, level)
    number = int(unit.max()) + 1 if len(unit) else 0
    pooled = np.column_stack([np.bincount(unit, weights=column, minlength=number) for column in sums.T])
    first = np.unique(unit, return_index=True)[1]
    return PixelUnits(pooled / pooled[:, :1], groups[first], n_groups, pixels)


def unit_of(tiles: pd.DataFrame, level: Level) -> NDArray[np.intp]:
    """Number the unit of each tile; a source on two blocks of ground is a unit in each, since units lie in groups."""
    if level is Level.GROUP:
        return pd.factorize(tiles["group_id"])[0].astype(np.intp)
    pairs = pd.MultiIndex.from_arrays([tiles["source_id"].astype(str), tiles["group_id"].astype(str)])
    return pd.factorize(pairs)[0].astype(np.intp)


def statistic_of(task: Task, classes: int) -> Callable[[PixelUnits], Statistic]:
    """Give what makes the statistic of the exact metrics of a task from units."""

    def of_units(units: PixelUnits) -> Statistic:
        sums = units.by_group()

        def statistic(counts: Counts) -> Values:
            drawn = counts.astype(np.float64) @ sums
            return _values(drawn) if task is Task.REGRESSION else _classes(drawn, classes)

        return statistic

    return of_units


def _classes(drawn: Floats, classes: int) -> Values:
    """Accuracy, recall and overlap of classes; means run over the classes that have a labelled pixel in the draw.

    IoU is ``tp / (tp + fp + fn)``, F1 (Dice) ``2 tp / (2 tp + fp + fn)``.
    """
    hits, support, predicted = (drawn[:, 2 + k * classes : 2 + (k + 1) * classes] for k in range(3))
    there = support > 0
    recall = ratio(hits, support)
    iou = np.where(there, ratio(hits, support + predicted - hits), np.nan)
    f1 = np.where(there, ratio(2 * hits, support + predicted), np.nan)
    return {
        "mean_iou": mean_of_defined(iou),
        "accuracy": ratio(drawn[:, 1], drawn[:, 0]),
        "balanced_accuracy": mean_of_defined(recall),
        "macro_f1": mean_of_defined(f1),
        "class_iou": iou,
        "class_precision": ratio(hits, predicted),
        "class_recall": recall,
        "class_f1": f1,
    }


def _values(drawn: Floats) -> Values:
    """Errors of values in the label's units; ``R2 = 1 - SSE / SST`` about the mean of the draw, below 0 if worse."""
    n, y, y2, p, p2, yp, absolute, squared = drawn.T
    spread_y, spread_p = y2 - ratio(y**2, n), p2 - ratio(p**2, n)
    # What is left of two large sums that cancel is noise: a constant has no spread.
    spread_y = np.where(spread_y > 1e-12 * y2, spread_y, 0.0)
    spread_p = np.where(spread_p > 1e-12 * p2, spread_p, 0.0)
    return {
        "r2": 1.0 - ratio(squared, spread_y),
        "rmse": np.sqrt(ratio(squared, n)),
        "mae": ratio(absolute, n),
        "bias": ratio(p - y, n),
        "pearson_r": ratio(yp - ratio(y * p, n), np.sqrt(spread_y * spread_p)),
    }
