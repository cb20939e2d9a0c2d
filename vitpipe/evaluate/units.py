"""What is judged: tiles, or tiles pooled to their source or their group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitpipe.errors import ContractError
from vitpipe.evaluate.statistics import Floats
from vitpipe.records import Level

LABEL_SEPARATOR = "|"
"""Between the positive classes of one label in a multi-label table."""
_DECIMALS = 12


@dataclass(frozen=True, slots=True)
class Units:
    """Truth and prediction of the units of one level, in a stable order."""

    keys: tuple[str, ...]
    """tile_id, source_id or group_id of each unit."""
    truth: NDArray[np.bool_]
    """(units, classes); one True a row unless multi-label."""
    probabilities: Floats
    """(units, classes)."""
    decided: NDArray[np.bool_]
    """(units, classes): the prediction."""
    groups: NDArray[np.intp]
    """(units,): number of the group, by first appearance."""
    n_groups: int
    """Groups that are drawn from; those of a subgroup are fewer."""
    multi_label: bool = False
    weights: Floats | None = None
    """(units,): how many a unit stands for, such as the pixels of a sampled one; None: each for itself."""

    @property
    def n(self) -> int:
        """Number of units."""
        return len(self.keys)

    @property
    def present(self) -> NDArray[np.intp]:
        """Numbers of the groups that have a unit, ascending."""
        return np.unique(self.groups)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(units,): every class is decided rightly."""
        return np.asarray((self.truth == self.decided).all(axis=1))

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Units:
        """Give some of the units, with the same numbering of groups."""
        numbers = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return Units(
            tuple(self.keys[number] for number in numbers),
            self.truth[numbers],
            self.probabilities[numbers],
            self.decided[numbers],
            self.groups[numbers],
            self.n_groups,
            self.multi_label,
            None if self.weights is None else self.weights[numbers],
        )


def truth_matrix(labels: Sequence[str], classes: Sequence[str], *, multi_label: bool) -> NDArray[np.bool_]:
    """Turn labels into a matrix (units, classes).

    Raises:
        ContractError: a label is no class of the model.
    """
    column = {name: index for index, name in enumerate(classes)}
    truth = np.zeros((len(labels), len(classes)), dtype=bool)
    for row, label in enumerate(labels):
        names = [name for name in label.split(LABEL_SEPARATOR) if name] if multi_label else [label]
        for name in names:
            if name not in column:
                raise ContractError(
                    f"label {name!r} is no class of the model ({', '.join(classes)}); train again on the new labels"
                )
            truth[row, column[name]] = True
    return truth


def decide(probabilities: Floats, thresholds: Floats | None) -> NDArray[np.bool_]:
    """Decide on classes: the most probable one (the first of equals), or, with `thresholds`, each on its own."""
    if thresholds is not None:
        return np.asarray(probabilities >= thresholds)
    decided = np.zeros(probabilities.shape, dtype=bool)
    if len(probabilities):
        decided[np.arange(len(probabilities)), probabilities.argmax(axis=1)] = True
    return decided


def probability_columns(classes: Sequence[str]) -> list[str]:
    """Names of the probability columns of a prediction table."""
    return [f"p_{name}" for name in classes]


def pool(table: pd.DataFrame, classes: Sequence[str], level: Level, thresholds: Floats | None = None) -> Units:
    """Pool tiles to a level by the mean of their probabilities.

    A unit is a (source, label) or (group, label): a patient with tiles of two classes, or a block of ground with two
    land covers, gives one unit for each. It pools over what truly carries one label; its number of groups stays the
    number of groups.

    Args:
        table: tile_id, source_id, group_id, label, and a probability column a class.
        classes: of the model, in the order of its outputs.
        level: tile, source or group.
        thresholds: (classes,) makes the labels multi-label ones.
    """
    multi_label = thresholds is not None
    labels = table["label"].astype(str)
    probabilities = table[probability_columns(classes)].to_numpy(dtype=np.float64)
    codes, names = pd.factorize(table["group_id"])
    groups = codes.astype(np.intp)
    if level is Level.TILE:
        keys = tuple(table["tile_id"].astype(str))
        truth = truth_matrix(labels.tolist(), classes, multi_label=multi_label)
        return Units(keys, truth, probabilities, decide(probabilities, thresholds), groups, len(names), multi_label)
    column = "source_id" if level is Level.SOURCE else "group_id"
    # A source that reaches over two blocks of ground gives a unit in each: a unit must lie in one group.
    parts = [table[column].astype(str), labels, table["group_id"].astype(str)]
    unit, _ = pd.factorize(pd.MultiIndex.from_arrays(parts))
    number = int(unit.max()) + 1 if len(unit) else 0
    sizes = np.bincount(unit, minlength=number).astype(np.float64)
    sums = np.column_stack([np.bincount(unit, weights=each, minlength=number) for each in probabilities.T])
    # Equal tiles give equal means, however many they are: else the last bit of a sum would rank a constant score.
    means = np.round(sums / sizes[:, None], _DECIMALS)
    first = np.unique(unit, return_index=True)[1]
    truth = truth_matrix(labels.iloc[first].tolist(), classes, multi_label=multi_label)
    keys = tuple(table[column].astype(str).iloc[first])
    return Units(keys, truth, means, decide(means, thresholds), groups[first], len(names), multi_label)


def mixed_groups(table: pd.DataFrame) -> int:
    """Count the groups whose tiles carry more than one label."""
    return int((table.groupby("group_id", sort=False)["label"].nunique() > 1).sum())
